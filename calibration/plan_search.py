"""The steps from ranges to a plan, all by measurement: fp16 fallback, 8-bit search, cutting back, comparison with the plain plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mgvq_export.calibration.candidates import Choice, Scales, conv_choices, convolutions, inner_convolutions, skip_choices
from mgvq_export.calibration.effects import Effect, Effects
from mgvq_export.calibration.fp16_fallback import find_fp16_fallback
from mgvq_export.calibration.options import Options
from mgvq_export.calibration.ranges import Ranges
from mgvq_export.calibration.search import Point, Search, Sensitivity, search
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import LARGEST, NodePlan, PrecisionPlan
from mgvq_export.export.graphs.plans import plan_nodes
from mgvq_export.model.network import MGVQ

_CURVE_POINTS = 6  # of the curve, measured again on the held-out images

#: Called with what is being done and the share done so far, 0 to 1.
Progress = Callable[[str, float], None]


@dataclass
class Calibration:
    """A plan and how it was found.

    Attributes:
        plan: with the figures in ``measured``.
        ranges: of every value.
        searches: side, or side and "skips" -> what the search found; empty for fp16.
        effect, held_out: of the plan, on windows of the calibration images and on the held-out images.
        baseline: plan "every convolution but first and last, scales from max", share of work, effects on both; None for fp16.
        curve_held_out: share of work and effect of some points of the curve on the held-out images.
        compared: the side that ``baseline`` and ``curve_held_out`` are of.
        notes: remarks for the user.
    """

    plan: PrecisionPlan
    ranges: Ranges
    searches: dict[str, Search]
    effect: Effect
    held_out: Effect
    shares: dict[str, float] = field(default_factory=dict)
    baseline: tuple[float, Effect, Effect] | None = None
    curve_held_out: list[tuple[float, Effect]] = field(default_factory=list)
    compared: str = ""
    notes: list[str] = field(default_factory=list)


class PlanSearch:
    """One search: its steps share the network's nodes, the measurements and the progress."""

    def __init__(self, network: MGVQ, ranges: Ranges, options: Options, effects: Effects, held_out: Effects, progress: Progress):
        self.network, self.ranges, self.options = network, ranges, options
        self.effects, self.held_out, self.progress = effects, held_out, progress
        self.known = plan_nodes(network)
        self.expected = 30  # measurements, for the progress bar; raised during the search
        self._share_done = 0.0

    def run(self) -> Calibration:
        """Find the plan. Raises :class:`InputError` when no plan meets the budgets."""
        if self.options.precision in LARGEST:
            return self._eight_bits()
        plan, effect = self._fp16_plan()
        self.say("held-out images")
        found = Calibration(plan, self.ranges, {}, effect, self.held_out.measure(plan))
        names = [node for node in plan.nodes.values() if node.precision == "fp32"]
        found.notes.append(
            f"{len(names)} nodes go to float32 besides norms and attention"
            if names
            else "no node needs float32 besides norms and attention"
        )
        if self.options.measured_islands:
            found.notes[-1] = f"{len(names)} of {len(self.known)} nodes stay in float32"
        return found

    @property
    def _count(self) -> int:
        return self.effects.count + self.held_out.count

    def say(self, step: str) -> None:
        """Report ``step`` and the share of the work done so far."""
        # Never backwards, even when more steps are left than were expected.
        self._share_done = max(self._share_done, min(1.0, self._count / self.expected))
        self.progress(step, 0.4 + 0.55 * self._share_done)

    def _fp16_plan(self) -> tuple[PrecisionPlan, Effect]:
        options = self.options
        nodes = (
            {name: NodePlan("fp16") for name, node in self.known.items() if node.dtype == "fp32"}
            if options.measured_islands
            else {}
        )
        plan = PrecisionPlan(options.name or options.precision, "fp16", nodes)
        # 8 bits add further loss, so their base must meet the target by itself.
        budgets = options.target if options.precision in LARGEST else options.budgets
        try:
            return find_fp16_fallback(self.effects, self.ranges, self.known, plan, budgets, target=options.target, say=self.say)
        except InputError as error:
            if options.precision not in LARGEST:
                raise
            raise InputError(f"{error}{self._margin_said()}; an {options.precision} plan needs one: try --base fp32") from None

    def _eight_bits(self) -> Calibration:
        options = self.options
        base = PrecisionPlan(options.name or options.precision, options.base, {})
        if options.base == "fp16":
            base, _ = self._fp16_plan()
        scales = Scales(self.ranges, options.precision)
        chosen: list[Choice] = []
        searches: dict[str, Search] = {}
        for side in ("decoder", "encoder"):
            if side in options.parts:
                chosen += self._search_side(side, scales, base, chosen, searches)
        plan, effect, dropped = self._cut_back(base, scales, chosen)
        found = Calibration(plan, self.ranges, searches, effect, effect)
        found.shares = {side: self._share(side, plan) for side in options.parts}
        if dropped:
            found.notes.append(
                f"taken back, since it fitted with the rest in fp32 but not in {options.base}: {_named(chosen[-dropped:])}"
            )
        found.notes += [f"{value} is left alone: {why}" for value, why in scales.unusable.items()]
        self._compare(found, scales, base)
        return found

    def _search_side(
        self, side: str, scales: Scales, base: PrecisionPlan, already: Sequence[Choice], searches: dict[str, Search]
    ) -> list[Choice]:
        """Choices of one side within the budgets: convolutions, then the skip branches beside them."""
        sensitivity: Sensitivity = (lambda effect: effect.error) if side == "decoder" else (lambda effect: 1 - effect.agreement)
        exact = PrecisionPlan("trial", "fp32", {})
        start = {choice.candidate.name: choice for choice in already}
        taken: list[Choice] = []
        promoted = [name for name, node in base.nodes.items() if node.precision == "fp32"]
        convs = conv_choices(inner_convolutions(self.known, side, promoted))
        total = sum(node.macs for node in convolutions(self.known, side))
        for title, work in ((side, total), (f"{side} skips", None)):
            choices = convs if work is not None else skip_choices(self.known, side, _nodes(taken), promoted)
            if not choices and work is None:
                break
            self.expected = self._count + 4 * len(choices) + 10
            usable = scales.choose(choices, side, self.effects, sensitivity, self.say)
            by_name = {choice.candidate.name: choice for choice in usable} | start

            def measure(names: Sequence[str], by_name: dict[str, Choice] = by_name, title: str = title) -> Effect:
                self.say(f"{title}: {len(names)} in {self.options.precision}")
                return self.effects.measure(scales.plan(exact, [by_name[name] for name in names]))

            candidates = [choice.candidate for choice in usable]
            if work is not None and not candidates:
                raise InputError(
                    f"the {side} has no convolution that {self.options.precision} is for, or all its values are zero: try fp16"
                )
            found = search(
                candidates, work or len(candidates), measure, self.options.target, sensitivity=sensitivity, start=list(start)
            )
            searches[title] = found
            if found.chosen is None:
                if work is None:
                    break  # skip branches are optional
                raise InputError(self._best_there_is(side, found))
            taken += [by_name[name] for name in found.chosen.names]
            start |= {name: by_name[name] for name in found.chosen.names}
        return taken

    def _best_there_is(self, side: str, found: Search) -> str:
        best = max((one for one in found.alone), key=lambda one: one.effect.psnr if side == "decoder" else one.effect.agreement)
        return (
            f"no convolution of the {side} can run in {self.options.precision} within the budgets; the best, {best.names[0]} alone "
            f"({best.share:.1%} of the work), gives {'; '.join(best.effect.misses(self.options.target))}{self._margin_said()}"
        )

    def _margin_said(self) -> str:
        margin = self.options.margin
        return f" (a margin of {margin:.0%} below the budgets, for other images; --margin 0 leaves none)" if margin else ""

    def _cut_back(self, base: PrecisionPlan, scales: Scales, chosen: Sequence[Choice]) -> tuple[PrecisionPlan, Effect, int]:
        """The plan of ``chosen`` on ``base``, its effect, and how many of the last choices were removed to meet the budgets."""
        for dropped in range(len(chosen)):
            plan = scales.plan(base, chosen[: len(chosen) - dropped])
            self.say("the whole plan")
            effect = self.effects.measure(plan)
            if effect.holds(self.options.target):
                return plan, effect, dropped
        raise InputError(
            f"no {self.options.precision} plan meets the budgets with {self.options.base} for the rest; "
            f"with one choice in {self.options.precision}: {'; '.join(effect.misses(self.options.target))}{self._margin_said()}; try --base fp32"
        )

    def _share(self, side: str, plan: PrecisionPlan) -> float:
        """The share of a side's convolution work that ``plan`` has in 8 bits."""
        convs = convolutions(self.known, side)
        return sum(node.macs for node in convs if node.name in plan.nodes and plan.nodes[node.name].quantized) / sum(
            node.macs for node in convs
        )

    def _compare(self, found: Calibration, scales: Scales, base: PrecisionPlan) -> None:
        """Compare the search with the plain plan, which needs no search, and measure both on the held-out images."""
        side = found.compared = "decoder" if "decoder" in self.options.parts else "encoder"
        exact = PrecisionPlan("trial", "fp32", {})
        plain = Scales(self.ranges, self.options.precision)
        everything = conv_choices(inner_convolutions(self.known, side))
        for choice in everything:
            rules = plain.rules(side, choice.value)
            if rules:
                plain.chosen[choice.value] = next(scale for scale in rules if scale.method == "max")
                plain.why[choice.value] = "max"
        plan = plain.plan(exact, [choice for choice in everything if choice.value in plain.chosen])
        self.say("every convolution but first and last")
        found.baseline = (self._share(side, plan), self.effects.measure(plan), self.held_out.measure(plan))
        found.notes.append(versus(found.searches[side], found.baseline[0], found.baseline[1], side))
        promoted = [name for name, node in base.nodes.items() if node.precision == "fp32"]
        by_name = {choice.candidate.name: choice for choice in conv_choices(inner_convolutions(self.known, side, promoted))}
        for point in _thinned(found.searches[side].curve):
            self.say("held-out images")
            trial = scales.plan(exact, [by_name[name] for name in point.names])
            found.curve_held_out.append((point.share, self.held_out.measure(trial)))
        found.held_out = self.held_out.measure(found.plan)


def versus(found: Search, share: float, effect: Effect, side: str = "decoder") -> str:
    """Whether the search's points beat a plan of ``share`` and ``effect`` at equal quality, in one sentence."""
    wanted, unit = effect.quality(side), "dB" if side == "decoder" else "% of codes equal"
    as_good = [one for one in found.curve if one.effect.quality(side) >= wanted]
    best = max(as_good, key=lambda one: (one.share, one.effect.quality(side)), default=None)
    plain = (
        f'"every convolution but first and last, scales from max" has {share:.1%} of the work in 8 bits at {wanted:.2f} {unit}'
    )
    if best is None or best.share < share - 1e-9:
        return f"{plain}; at that quality the search does not beat it{f': {best.share:.1%}' if best else ''}"
    reached = best.effect.quality(side)
    if best.share > share + 1e-9:
        return f"{plain}; the search beats it: {best.share:.1%} at {reached:.2f} {unit}"
    if reached - wanted < 0.005:
        return f"{plain}; the search finds the same and does not beat it"
    return f"{plain}; with as much work in 8 bits the search's scales give {reached:.2f}, {reached - wanted:.2f} more"


def _nodes(choices: Sequence[Choice]) -> set[str]:
    return {name for choice in choices for name in choice.nodes}


def _named(choices: Sequence[Choice]) -> str:
    return ", ".join(choice.candidate.name for choice in choices)


def _thinned(curve: Sequence[Point]) -> Iterator[Point]:
    """At most ``_CURVE_POINTS`` points, the last among them, evenly spaced; the first, with nothing in 8 bits, is left out."""
    count = min(_CURVE_POINTS, len(curve) - 1)
    for index in range(1, count + 1):
        yield curve[index * (len(curve) - 1) // count]
