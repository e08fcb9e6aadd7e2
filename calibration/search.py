"""The search for the plan with most work in 8 bits within a budget: each candidate saves work and costs quality.

Three steps, every one by measurement: the error each candidate causes alone; the curve, candidates added in the order of saved work per error
with the whole plan measured again at every step; and a last pass that tries the candidates left over. The order
assumes that errors add up, which errors of independent roundings nearly do; every decision is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mgvq_export.calibration.effects import Effect
from mgvq_export.core.budgets import Budgets

#: Points of the curve besides the empty one, so that its cost does not grow with the number of convolutions.
CURVE_STEPS = 30


@dataclass(frozen=True)
class Candidate:
    """Something that can run in 8 bits: a convolution, or the skip branch of a sum.

    Attributes:
        name: the node.
        work: the work it saves, in any additive unit.
    """

    name: str
    work: float


@dataclass(frozen=True)
class Point:
    """A set of candidates in 8 bits, in the order they were added, and its effect.

    Attributes:
        names: the candidates.
        share: their work as a share of ``total``, 0 to 1.
        effect: as measured.
    """

    names: tuple[str, ...]
    share: float
    effect: Effect


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        alone: every candidate by itself, best first (saved work per error).
        curve: the candidates added in that order, from none to all, in at most :data:`CURVE_STEPS` steps.
        chosen: the set of most work that holds the budgets, or None when no candidate can be added within them.
    """

    alone: list[Point]
    curve: list[Point]
    chosen: Point | None


#: The effect of a set of candidates in 8 bits.
Measure = Callable[[Sequence[str]], Effect]

#: The loss of an effect: 0 for none, larger is worse.
Sensitivity = Callable[[Effect], float]


def search(
    candidates: Sequence[Candidate],
    total: float,
    measure: Measure,
    budgets: Budgets,
    *,
    sensitivity: Sensitivity = lambda effect: effect.error,
    start: Sequence[str] = (),
) -> Search:
    """The set of candidates that saves most work within ``budgets``.

    Args:
        total: work of everything, in 8 bits or not: shares are of it.
        measure: gives the effect of a set; called two to three times per candidate.
        sensitivity: the loss that is traded for work.
        start: candidates that are in 8 bits already; their work is not counted.
    """
    work = {candidate.name: candidate.work for candidate in candidates}

    def point(names: Sequence[str]) -> Point:
        share = sum(work[name] for name in names) / total if total else 0.0
        return Point(tuple(names), share, measure((*start, *names)))

    # Alone
    nothing = point(())
    alone = [point((candidate.name,)) for candidate in candidates]
    base = sensitivity(nothing.effect)
    alone.sort(key=lambda one: (-_worth(one.share, sensitivity(one.effect) - base), one.names))
    # Together, ever more of them
    order = [one.names[0] for one in alone]
    steps = min(len(order), CURVE_STEPS)
    curve = [nothing, *(point(order[: step * len(order) // steps]) for step in range(1, steps + 1))]
    # What else fits
    best = max((one for one in curve if one.effect.holds(budgets)), key=lambda one: one.share, default=None)
    if best is None:
        return Search(alone, curve, None)
    for candidate in sorted(candidates, key=lambda candidate: (-candidate.work, candidate.name)):
        if candidate.name not in best.names:
            more = point((*best.names, candidate.name))
            if more.effect.holds(budgets):
                best = more
    return Search(alone, curve, best if best.names else None)


def _worth(share: float, added: float) -> float:
    """Saved work per added error: largest for a candidate that adds no error."""
    return share / max(added, 1e-12)


def pareto(points: Sequence[Point], side: str = "decoder") -> list[Point]:
    """The points for which no other is better in both work and quality of ``side``, by rising work."""
    kept: list[Point] = []
    for one in sorted(points, key=lambda one: (-one.share, -one.effect.quality(side))):
        if not kept or one.effect.quality(side) > kept[-1].effect.quality(side):
            kept.append(one)
    return kept[::-1]
