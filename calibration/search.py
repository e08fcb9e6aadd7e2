"""The cheapest plan within a budget: which items to put into 8 bits, when each gains work and costs quality.

Three steps, every one by measurement: the error each item causes alone; the curve, items added in the order of saved work per error
with the whole plan measured again at every step; and a last pass that tries the items left over. The order
treats errors as if they added up, which errors of independent roundings nearly do; no decision rests on it unmeasured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mgvq_export.calibration.effects import Effect
from mgvq_export.core.precision_plan import Budgets

#: Points of the curve beside the empty one: a network of a hundred convolutions takes no longer for it than one of thirty.
CURVE_STEPS = 30


@dataclass(frozen=True)
class Item:
    """Something that can run in 8 bits: a convolution, or the skip branch of a sum.

    Attributes:
        name: the node.
        work: what it saves, in any unit that can be added up.
    """

    name: str
    work: float


@dataclass(frozen=True)
class Point:
    """A set of items in 8 bits, in the order they were added, and what it does.

    Attributes:
        names: the items.
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
        alone: every item by itself, best first (saved work per error).
        curve: the items added in that order, from none to all, in at most :data:`CURVE_STEPS` steps.
        chosen: the set of most work that holds the budgets, or None when no item can be added within them.
    """

    alone: list[Point]
    curve: list[Point]
    chosen: Point | None


#: The effect of a set of items in 8 bits.
Measure = Callable[[Sequence[str]], Effect]

#: What an effect costs: 0 for none, larger is worse.
Harm = Callable[[Effect], float]


def search(
    items: Sequence[Item],
    total: float,
    measure: Measure,
    budgets: Budgets,
    *,
    harm: Harm = lambda effect: effect.error,
    start: Sequence[str] = (),
) -> Search:
    """The set of items that saves most work within ``budgets``.

    Args:
        total: work of everything, in 8 bits or not: shares are of it.
        measure: what a set does; called two to three times as often as there are items.
        harm: the figure that is traded for work.
        start: items that are in 8 bits already; their work is not counted.
    """
    work = {item.name: item.work for item in items}

    def point(names: Sequence[str]) -> Point:
        share = sum(work[name] for name in names) / total if total else 0.0
        return Point(tuple(names), share, measure((*start, *names)))

    # Alone
    nothing = point(())
    alone = [point((item.name,)) for item in items]
    base = harm(nothing.effect)
    alone.sort(key=lambda one: (-_worth(one.share, harm(one.effect) - base), one.names))
    # Together, ever more of them
    order = [one.names[0] for one in alone]
    steps = min(len(order), CURVE_STEPS)
    curve = [nothing, *(point(order[: step * len(order) // steps]) for step in range(1, steps + 1))]
    # What else fits
    best = max((one for one in curve if one.effect.holds(budgets)), key=lambda one: one.share, default=None)
    if best is None:
        return Search(alone, curve, None)
    for item in sorted(items, key=lambda item: (-item.work, item.name)):
        if item.name not in best.names:
            more = point((*best.names, item.name))
            if more.effect.holds(budgets):
                best = more
    return Search(alone, curve, best if best.names else None)


def _worth(share: float, harm: float) -> float:
    """Saved work per harm added. An item that does no harm comes first, one that breaks everything last."""
    return share / max(harm, 1e-12)


def pareto(points: Sequence[Point], side: str = "decoder") -> list[Point]:
    """The points that no other beats in both work and the quality of ``side``, by rising work."""
    kept: list[Point] = []
    for one in sorted(points, key=lambda one: (-one.share, -one.effect.quality(side))):
        if not kept or one.effect.quality(side) > kept[-1].effect.quality(side):
            kept.append(one)
    return kept[::-1]
