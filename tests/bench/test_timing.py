"""Turns and statistics, against numpy and scipy, with a clock that the tests move."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mgvq_export.bench.stages import TimedSessions, overhead
from mgvq_export.bench.timing import Laps, Percentiles, fit_power_law, paired_ratio, take_turns, unpaired_ratio
from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import Part


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_baselines_take_turns():
    log = []

    def backend(name):
        calls = itertools.count()

        def turn():
            log.append(name)
            return next(calls)

        return turn

    told = []
    found = take_turns(
        {"a": backend("a"), "b": backend("b")}, 3, settle=lambda: log.append("."), progress=lambda *step: told.append(step)
    )
    assert "".join(log) == ".a.b.a.b.a.b"
    assert found == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert told == [("a", 0), ("b", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5)]


def test_laps_follow_one_another_and_add_up():
    clock = Clock()
    laps = Laps(clock)
    for name, seconds in (("read", 2.0), ("encode", 3.0), ("read", 0.5)):
        clock.now += seconds
        assert laps.lap(name) == seconds
    assert laps.seconds == {"read": 2.5, "encode": 3.0}


class SlowSessions:
    """Every run takes as many seconds as its input has numbers."""

    def __init__(self, clock: Clock):
        self.clock, self.dropped, self.closed = clock, [], False
        self.inputs = {"x": np.dtype(np.float32)}

    def __getitem__(self, part):
        return self

    def run(self, feeds, outputs=None):
        self.clock.now += feeds["x"].size
        return [feeds["x"]]

    def drop(self, part):
        self.dropped.append(part)

    def close(self):
        self.closed = True


def test_sessions_are_timed_by_part_and_shape():
    clock = Clock()
    inner = SlowSessions(clock)
    sessions = TimedSessions(inner, clock)
    for part, size in ((Part.ENCODER_TRUNK, 3), (Part.ENCODER_TRUNK, 3), (Part.ENCODER_HEAD, 5)):
        (found,) = sessions[part].run({"x": np.zeros(size, np.float32)})
        assert found.size == size
    assert sessions.seconds == {"encoder_trunk": 6.0, "encoder_head": 5.0}
    assert sessions.runs == {("encoder_trunk", (("x", (3,)),)): 2, ("encoder_head", (("x", (5,)),)): 1}
    assert sessions[Part.ENCODER_HEAD].inputs == inner.inputs
    sessions.drop(Part.ENCODER_HEAD)
    sessions.close()
    assert inner.dropped == [Part.ENCODER_HEAD]
    assert inner.closed
    sessions.reset()
    assert sessions.seconds == {}
    assert sessions.runs == {}


def test_overhead_is_what_a_run_that_does_nothing_takes():
    ticks = itertools.count()  # every look at the clock takes one second
    # From outside: the start, the session's two looks, the end.
    assert overhead(5, lambda: float(next(ticks))) == 3.0


def test_percentiles_are_numpys():
    samples = np.random.default_rng(0).exponential(size=137)
    found = Percentiles.of(list(samples))
    assert (found.p50, found.p90, found.p99) == tuple(np.percentile(samples, [50, 90, 99]))
    with pytest.raises(InputError, match="no samples"):
        Percentiles.of([])


def test_paired_ratio_cancels_what_both_suffer():
    rng = np.random.default_rng(1)
    load = rng.uniform(1, 10, 40)  # the machine's, tenfold, the same for both in a round
    ours, theirs = load * rng.normal(1, 0.01, 40), load * rng.normal(3, 0.03, 40)
    ratio = paired_ratio(list(theirs), list(ours))
    assert ratio.value == np.median(theirs / ours)
    assert 2.9 < ratio.low < ratio.value < ratio.high < 3.1
    unpaired = unpaired_ratio(list(theirs), list(ours))
    assert unpaired.value == np.median(theirs) / np.median(ours)
    assert unpaired.high - unpaired.low > 10 * (ratio.high - ratio.low)
    with pytest.raises(InputError, match="2 samples cannot be paired with 1"):
        paired_ratio([1.0, 2.0], [1.0])


def test_bootstrap_interval_is_scipys():
    rng = np.random.default_rng(2)
    a, b = rng.lognormal(0, 0.2, 30), rng.lognormal(0.3, 0.2, 30)
    ours = paired_ratio(list(a), list(b))
    theirs = stats.bootstrap((a / b,), np.median, method="percentile", n_resamples=2000, rng=3).confidence_interval
    assert ours.low == pytest.approx(theirs.low, rel=0.02)
    assert ours.high == pytest.approx(theirs.high, rel=0.02)

    def ratio_of_medians(x, y, axis=-1):
        return np.median(x, axis=axis) / np.median(y, axis=axis)

    ours = unpaired_ratio(list(a), list(b))
    theirs = stats.bootstrap((a, b), ratio_of_medians, method="percentile", n_resamples=2000, rng=4).confidence_interval
    assert ours.low == pytest.approx(theirs.low, rel=0.03)
    assert ours.high == pytest.approx(theirs.high, rel=0.03)


def test_power_law_is_scipys_regression_of_logarithms():
    rng = np.random.default_rng(5)
    x = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    y = [3 * value**1.37 * math.exp(rng.normal(0, 0.1)) for value in x]
    law = fit_power_law(x, y)
    wanted = stats.linregress(np.log(x), np.log(y))
    assert law.exponent == pytest.approx(wanted.slope)
    assert law.standard_error == pytest.approx(wanted.stderr)
    assert law.factor == pytest.approx(math.exp(wanted.intercept))
    exact = fit_power_law(x, [5 * value**2 for value in x])
    assert str(exact) == "2.00 ± 0.00"
    assert math.isnan(fit_power_law([1, 2], [1, 2]).standard_error)
    for bad in (([1.0], [1.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 1.0]), ([1.0, 2.0, 3.0], [1.0, 2.0])):
        with pytest.raises(InputError, match="cannot fit"):
            fit_power_law(*bad)
