"""float16 fallback: the fewest nodes in float32 with which codes and pixels stay within a budget, found by measurement.

Norms and attention are float32 in every float16 graph (:mod:`mgvq_export.export.graphs.lowering`). That is a fixed rule by
default, since attention sums over all pixels: windows of 256x256 do not show the sums of a 100 times larger image.
Starting there, or from a plan without that rule, this module adds the further nodes that are needed:

1. nodes whose values come within a factor of eight of float16's largest number, whatever their effect on these images;
2. if the budget is not met, the most sensitive nodes: every node is run alone in float16 on float32 inputs and
   compared with float32; nodes that give infinite values come first, then those with the largest relative error. The shortest such
   list that meets the budget is found by bisection;
3. nodes of that list that can return to float16 within the budget do, until none of those left can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from mgvq_export.calibration.effects import Effect, Effects
from mgvq_export.calibration.ranges import Ranges
from mgvq_export.calibration.rounding import round_trip
from mgvq_export.calibration.statistics import FP16_MAX, HEADROOM
from mgvq_export.core.budgets import Budgets
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.core.spec import Part
from mgvq_export.export.graphs.builder import WeightStore
from mgvq_export.export.graphs.in_memory import load_session
from mgvq_export.export.graphs.parts import build_graph
from mgvq_export.export.graphs.plans import PlanNode
from mgvq_export.model.network import MGVQ
from mgvq_export.runtime.images import to_float

_SUMS = ("error", "power", "largest")  # squared difference, squared values, largest magnitude

#: Called with a short description of the current step.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sensitivity:
    """The effect of float16 on one node alone, with float32 inputs.

    Attributes:
        error: relative L2 of its output; infinite when float16 gives values that are not finite.
        largest: largest magnitude of its output in float32.
    """

    error: float
    largest: float

    def __str__(self) -> str:
        if not math.isfinite(self.error):
            return f"alone, float16 makes its values infinite or NaN (largest in float32: {self.largest:.3g})"
        return f"alone, float16 changes its output by {self.error:.2g} (relative L2)"


def find_fp16_fallback(
    effects: Effects,
    ranges: Ranges,
    known: Mapping[str, PlanNode],
    plan: PrecisionPlan,
    budgets: Budgets,
    *,
    target: Budgets | None = None,
    headroom: bool = True,
    say: Say = lambda step: None,
) -> tuple[PrecisionPlan, Effect]:
    """``plan``, of base ``fp16``, with the fewest further nodes in float32 that meet ``budgets``, and its effect.

    Nodes that ``plan`` names stay as they are unless they are ``fp16``. Raises :class:`InputError` when all of them together do not
    meet the budgets; the message has the best result found.

    Args:
        target: what to reach, if it can be, once nodes have to go to float32, so that other images meet ``budgets`` too.
        headroom: take step 1 of the module's description.
    """
    say("float16")
    half = [name for name in known if _type(plan, known[name]) == "fp16"]
    near = {name: reason for name in half if headroom and (reason := _headroom_reason(ranges, known[name]))}
    plan = promote(plan, near)
    first = effects.measure(plan)
    if first.holds(budgets):
        return plan, first
    say("float16, node by node")
    sensitivity = node_sensitivity(effects.network, effects.images)
    # Sorting keeps the graph's order among equals.
    worst = sorted((name for name in half if name not in near), key=lambda name: -sensitivity[name].error)

    def measured(names: Collection[str]) -> Effect:
        say(f"float16, {len(names)} further nodes in float32")
        return effects.measure(promote(plan, dict.fromkeys(names, "")))

    everything = measured(worst)
    if target is not None and everything.holds(target):
        budgets = target
    if not everything.holds(budgets):
        raise InputError(
            "no fp16 plan meets the budgets; with all nodes in float32, and float16 between image and codes, "
            f"{'; '.join(everything.misses(budgets))}"
        )
    count = _bisect(len(worst), lambda count: measured(worst[:count]).holds(budgets))
    needed, without = smallest(worst[:count], measured, budgets)
    reasons = {name: f"{sensitivity[name]}; left in float16: {'; '.join(without[name].misses(budgets))}" for name in needed}
    final = promote(plan, reasons)
    return final, effects.measure(final)


def promote(plan: PrecisionPlan, reasons: Mapping[str, str]) -> PrecisionPlan:
    """``plan`` with the nodes of ``reasons`` in float32."""
    return replace(plan, nodes={**plan.nodes, **{name: NodePlan("fp32", reason=reason) for name, reason in reasons.items()}})


def smallest(
    names: Sequence[str], measured: Callable[[Collection[str]], Effect], budgets: Budgets
) -> tuple[list[str], dict[str, Effect]]:
    """A subset of ``names`` that still meets ``budgets`` and of which no single name can be left out.

    Halves are tried first, then smaller pieces (delta debugging, Zeller and Hildebrandt 2002). Also returns, for every name
    that stays, the effect of leaving it out.
    """
    kept = list(names)
    without: dict[str, Effect] = {}
    size = max(1, len(kept) // 2)
    while kept:
        before = len(kept)
        start = 0
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            effect = measured(rest)
            if effect.holds(budgets):
                kept = rest
            else:
                if size == 1:
                    without[kept[start]] = effect
                start += size
        if size == 1 and len(kept) == before:
            break
        size = max(1, size // 2)
    return kept, {name: without[name] for name in kept}


def node_sensitivity(network: MGVQ, images: Sequence[np.ndarray]) -> dict[str, Sensitivity]:
    """The effect of float16 on every node of both graphs alone, over all ``images`` uint8 [H, W, 3]."""
    import torch

    sums: dict[str, np.ndarray] = {}
    weights = WeightStore()
    models = {part: build_graph(network, part, "fp32", weights) for part in (Part.ENCODER, Part.DECODER)}
    sessions = {part: load_session(_shadowed(model), weights) for part, model in models.items()}
    for image in images:
        values = to_float(image)
        for part, session in sessions.items():
            names = [output.name for output in session.get_outputs()]
            found = dict(zip(names, session.run(names, {session.get_inputs()[0].name: values}), strict=True))
            values = found.pop(models[part].graph.output[0].name)
            for name, numbers in found.items():
                node, _, kind = name.split("|")
                held = sums.setdefault(node, np.zeros(3))
                # A difference of two infinities is NaN, which counts as infinite.
                numbers = np.where(np.isfinite(numbers), numbers, np.inf).astype(np.float64)
                index = _SUMS.index(kind)
                held[index] = max(held[index], float(numbers)) if kind == "largest" else held[index] + float(numbers)
            if part is Part.ENCODER:
                with torch.inference_mode():
                    values = network.quantize.decode(network.quantize.encode(torch.from_numpy(values))).numpy()
    return {
        name: Sensitivity(math.sqrt(error / power) if power else (math.inf if error else 0.0), largest)
        for name, (error, power, largest) in sums.items()
    }


def _shadowed(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` (float32), and beside every node a copy that reads and writes rounded values; outputs are sums over both."""
    integers = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64}
    nodes: list[onnx.NodeProto] = []
    outputs = list(model.graph.output)
    made: set[str] = set()

    def as_float16(name: str) -> str:
        target = f"{name}|rounded"
        if target not in made:
            made.add(target)
            nodes.extend(round_trip(name, target))
        return target

    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Shape":
            integers.add(node.output[0])
        if node.output[0] in integers or all(name in integers for name in node.input):
            integers.update(node.output)
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}|shadow"
        copy.input[:] = [name if name in integers or not name else as_float16(name) for name in node.input]
        copy.output[:] = [f"{name}|shadow" for name in node.output]
        nodes.append(copy)
        for index, name in enumerate(node.output):
            prefix = f"{node.name}|{index}"
            nodes += _sums(prefix, name, as_float16(f"{name}|shadow"))
            outputs += [helper.make_tensor_value_info(f"{prefix}|{kind}", TensorProto.FLOAT, []) for kind in _SUMS]
    graph = helper.make_graph(nodes, model.graph.name, list(model.graph.input), outputs, list(model.graph.initializer))
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _sums(prefix: str, exact: str, shadow: str) -> Iterable[onnx.NodeProto]:
    """Nodes that give ``_SUMS`` of a value and its shadow, as ``prefix|error`` and so on."""
    return [
        helper.make_node("Sub", [shadow, exact], [f"{prefix}|difference"]),
        helper.make_node("ReduceSumSquare", [f"{prefix}|difference"], [f"{prefix}|error"], keepdims=0),
        helper.make_node("ReduceSumSquare", [exact], [f"{prefix}|power"], keepdims=0),
        helper.make_node("Abs", [exact], [f"{prefix}|magnitude"]),
        helper.make_node("ReduceMax", [f"{prefix}|magnitude"], [f"{prefix}|largest"], keepdims=0),
    ]


def _type(plan: PrecisionPlan, node: PlanNode) -> str:
    return plan.nodes[node.name].precision if node.name in plan.nodes else node.dtype


def _headroom_reason(ranges: Ranges, node: PlanNode) -> str:
    """Why ``node`` should not be float16 whatever its effect on these images; empty when no value it reads or writes is that large."""
    values = {name: found for side in ranges.sides.values() for name, found in side.items() if name in (node.name, *node.inputs)}
    large = {name: found.largest for name, found in values.items() if found.near_overflow}
    if not large:
        return ""
    name = max(large, key=lambda name: large[name])
    what = "its values reach" if name == node.name else f"it reads {name}, which reaches"
    if large[name] > FP16_MAX:
        return f"{what} {large[name]:.3g}; float16 ends at {FP16_MAX:g}"
    return f"{what} {large[name]:.3g}, within a factor of {HEADROOM:g} of float16's largest, {FP16_MAX:g}: other images may exceed it"


def _bisect(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest number for which ``holds`` is true, given that it is true for ``count`` and for all numbers above the smallest."""
    low, high = 0, count  # 0 is known not to hold
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
