"""The search on problems whose best plan is known."""

import itertools
import math
from collections.abc import Sequence

import pytest

from mgvq_export.calibration.effects import Effect
from mgvq_export.calibration.search import Candidate, Point, pareto, search
from mgvq_export.core.budgets import Budgets

#: Candidate -> work, error it adds.
PROBLEM = {"a": (4.0, 8e-5), "b": (3.0, 1e-5), "c": (2.0, 1e-5), "d": (1.0, 4e-5), "e": (0.5, 1e-6)}
ITEMS = [Candidate(name, work) for name, (work, _) in PROBLEM.items()]


def effect_of(error: float) -> Effect:
    return Effect(1.0, 10 * math.log10(4 / error) if error else math.inf, 0.0, 0.0, error)


def added(names: Sequence[str]) -> Effect:
    return effect_of(sum(PROBLEM[name][1] for name in names))


def best_by_trying(budgets: Budgets) -> float:
    subsets = itertools.chain.from_iterable(itertools.combinations(PROBLEM, count) for count in range(len(PROBLEM) + 1))
    return max(sum(PROBLEM[name][0] for name in names) for names in subsets if added(names).holds(budgets))


@pytest.mark.parametrize("error", [1e-6, 1.2e-5, 2.2e-5, 7e-5, 1.2e-4, 1.5e-4])
def test_finds_the_best_set(error: float) -> None:
    budgets = Budgets(min_psnr=effect_of(error).psnr)
    found = search(ITEMS, 10.5, added, budgets)
    assert found.chosen is not None
    assert found.chosen.effect.holds(budgets)
    assert found.chosen.share * 10.5 == pytest.approx(best_by_trying(budgets))


def test_order_is_saved_work_per_error() -> None:
    found = search(ITEMS, 10.5, added, Budgets())
    assert [one.names[0] for one in found.alone] == ["e", "b", "c", "a", "d"]
    assert [len(one.names) for one in found.curve] == [0, 1, 2, 3, 4, 5]
    assert found.chosen is not None and found.chosen.share == pytest.approx(1)


def test_what_was_estimated_is_measured() -> None:
    """b and c cost quality together that neither costs alone: the sum of their errors would let both in."""

    def together(names: Sequence[str]) -> Effect:
        return effect_of(added(names).error + (1e-3 if {"b", "c"} <= set(names) else 0))

    budgets = Budgets(min_psnr=effect_of(1.2e-4).psnr)
    found = search(ITEMS, 10.5, together, budgets)
    assert found.chosen is not None and found.chosen.effect.holds(budgets)
    assert not {"b", "c"} <= set(found.chosen.names)
    assert "b" in found.chosen.names and found.chosen.share * 10.5 >= 3.5


def test_nothing_fits() -> None:
    assert search(ITEMS, 10.5, added, Budgets(min_psnr=90)).chosen is None
    broken = search(
        ITEMS, 10.5, lambda names: Effect(0, -math.inf, math.inf, math.inf, math.inf, False) if names else effect_of(0), Budgets()
    )
    assert broken.chosen is None


def test_items_already_taken_stay() -> None:
    seen: list[Sequence[str]] = []

    def measure(names: Sequence[str]) -> Effect:
        seen.append(names)
        return added([name for name in names if name != "start"])

    search(ITEMS, 10.5, measure, Budgets(), start=["start"])
    assert all("start" in names for names in seen)


def test_pareto_keeps_what_nothing_beats() -> None:
    points = [Point((), share, effect_of(error)) for share, error in ((0, 0), (0.2, 1e-5), (0.3, 1e-6), (0.5, 1e-4), (0.5, 2e-4))]
    assert [(one.share, one.effect.error) for one in pareto(points)] == [(0, 0), (0.3, 1e-6), (0.5, 1e-4)]


def test_many_items_take_few_steps(monkeypatch) -> None:
    monkeypatch.setattr("mgvq_export.calibration.search.CURVE_STEPS", 3)
    found = search(ITEMS, 10.5, added, Budgets(min_psnr=effect_of(1.2e-5).psnr))
    assert [len(one.names) for one in found.curve] == [0, 1, 3, 5]
    assert found.chosen is not None
    assert found.chosen.share * 10.5 == pytest.approx(3.5)  # between two steps of the curve
