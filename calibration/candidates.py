"""Candidates for 8 bits and their scales: convolutions, grouped by the value they read, and skip branches of residual sums."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mgvq_export.calibration.effects import Effects
from mgvq_export.calibration.ranges import Ranges
from mgvq_export.calibration.scales import Scale, candidates
from mgvq_export.calibration.search import Candidate, Sensitivity
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.export.graphs.plans import PlanNode

_SAME = 0.02  # scales closer than this share are taken as equal: measuring cannot tell them apart


@dataclass(frozen=True)
class Choice:
    """Nodes that run in 8 bits together because they read the same value, through one pair of Quantize and Dequantize.

    Attributes:
        candidate: named after the first node; its work: multiply-adds per pixel, or 1 for a skip branch.
        nodes: the nodes, and the position of the input that is quantized.
        value: the value they read.
    """

    candidate: Candidate
    nodes: Mapping[str, int]
    value: str


def convolutions(known: Mapping[str, PlanNode], side: str) -> list[PlanNode]:
    """All convolutions of a side in graph order, those that cannot be quantized included."""
    return [node for node in known.values() if node.op == "Conv" and node.side == side]


def inner_convolutions(known: Mapping[str, PlanNode], side: str, skip: Collection[str] = ()) -> list[PlanNode]:
    """The convolutions of a side that may run in 8 bits: not the first and last, not grouped ones, none of ``skip``."""
    able = [node for node in convolutions(known, side) if node.quantizable]
    return [node for node in able[1:-1] if node.name not in skip]


def conv_choices(nodes: Sequence[PlanNode]) -> list[Choice]:
    """Convolutions that read the same value as one choice."""
    by_value: dict[str, list[PlanNode]] = {}
    for node in nodes:
        by_value.setdefault(node.inputs[0], []).append(node)
    return [
        Choice(Candidate(group[0].name, sum(node.macs for node in group)), {node.name: 0 for node in group}, value)
        for value, group in by_value.items()
    ]


def skip_choices(
    known: Mapping[str, PlanNode], side: str, quantized: Collection[str], skip: Collection[str] = ()
) -> list[Choice]:
    """The skip branches of a side's residual sums right after a convolution of ``quantized``, which TensorRT fuses with it.

    A sum after another operator, such as a norm, gains nothing from 8 bits.
    """
    return [
        Choice(Candidate(node.name, 1.0), {node.name: node.skip}, node.inputs[node.skip])
        for node in known.values()
        if node.side == side and node.skip is not None and node.name not in skip and node.inputs[1 - node.skip] in quantized
    ]


class Scales:
    """The scale of every value that is quantized: one per value, shared by all nodes that read it."""

    def __init__(self, ranges: Ranges, kind: str):
        self.ranges, self.kind = ranges, kind
        self.chosen: dict[str, Scale] = {}
        self.why: dict[str, str] = {}
        self.unusable: dict[str, str] = {}  # value -> why it has no scale

    def rules(self, side: str, value: str) -> list[Scale]:
        """The scale of every rule for a value, smallest error on the histogram first; empty when there is none."""
        try:
            return candidates(self.ranges.sides[side][value], self.kind)
        except InputError as error:
            self.unusable[value] = str(error)
            return []

    def choose(
        self, choices: Sequence[Choice], side: str, effects: Effects, sensitivity: Sensitivity, say: Callable[[str], None]
    ) -> list[Choice]:
        """Decide on the scale of every choice's value; returns the choices that have one.

        The rule with the smallest error on the histogram is compared with ``max``, which clips nothing, by the effect on
        codes and pixels of quantizing this choice alone; the better one is taken.
        """
        usable = []
        for choice in choices:
            if choice.value not in self.chosen:
                rules = self.rules(side, choice.value)
                if not rules:
                    continue
                say(f"scale of {choice.value}")
                self._decide(choice, rules, effects, sensitivity)
            usable.append(choice)
        return usable

    def _decide(self, choice: Choice, rules: Sequence[Scale], effects: Effects, sensitivity: Sensitivity) -> None:
        best = rules[0]
        full = next(scale for scale in rules if scale.method == "max")
        told = f"{best.method}: smallest error on the histogram, {best.error:.1e}"
        if abs(best.scale - full.scale) > _SAME * full.scale:
            effect = {scale.method: effects.measure(self._alone(choice, scale)) for scale in (best, full)}
            if sensitivity(effect["max"]) < sensitivity(effect[best.method]):
                told = f"max: measured better than {best.method}, whose error on the histogram is smaller"
                best = full
            else:
                told += ", and measured no worse than max"
        self.chosen[choice.value], self.why[choice.value] = best, told

    def _alone(self, choice: Choice, scale: Scale) -> PrecisionPlan:
        return PrecisionPlan("trial", "fp32", self._nodes(choice, scale, ""))

    def _nodes(self, choice: Choice, scale: Scale, reason: str) -> dict[str, NodePlan]:
        return {name: NodePlan(self.kind, {position: scale.scale}, reason=reason) for name, position in choice.nodes.items()}

    def plan(self, plan: PrecisionPlan, choices: Iterable[Choice]) -> PrecisionPlan:
        """``plan`` with ``choices`` in 8 bits."""
        nodes = dict(plan.nodes)
        for choice in choices:
            nodes |= self._nodes(choice, self.chosen[choice.value], f"scale by {self.why[choice.value]}")
        return replace(plan, nodes=nodes)
