"""Timing in turns, and statistics of the samples: percentiles, paired ratios with intervals, power laws. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mgvq_export.core.errors import InputError

T = TypeVar("T")

_RESAMPLES = 2000
_LEVEL = 0.95  # of all intervals


def take_turns(
    turns: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    settle: Callable[[], object] = lambda: None,
    progress: Callable[[str, int], None] = lambda name, done: None,
) -> dict[str, list[T]]:
    """The results of each of ``turns``, ``rounds`` times, in the order A B A B, so that a drift of the machine affects all alike.

    Args:
        settle: called before every turn, such as to wait until threads sleep.
        progress: called with the name and the number of turns done before each turn.
    """
    found: dict[str, list[T]] = {name: [] for name in turns}
    done = 0
    for _ in range(rounds):
        for name, turn in turns.items():
            progress(name, done)
            settle()
            found[name].append(turn())
            done += 1
    return found


class Laps:
    """Seconds between successive calls of :meth:`lap`, by name; a name that comes again adds up."""

    def __init__(self, clock: Callable[[], float]):
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._last = clock()

    def lap(self, name: str) -> float:
        """End the stage ``name``, which began where the last one ended; its seconds."""
        now = self._clock()
        elapsed, self._last = now - self._last, now
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        return elapsed


@dataclass(frozen=True)
class Percentiles:
    """Of a sample, with linear interpolation between order statistics; from few samples p99 is close to the largest."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Percentiles:
        """Raises :class:`InputError` without samples."""
        _need(samples)
        p50, p90, p99 = np.percentile(samples, (50, 90, 99))
        return cls(float(p50), float(p90), float(p99))


@dataclass(frozen=True)
class Ratio:
    """A ratio of times and its interval.

    Attributes:
        value: median of the ratios (:func:`paired_ratio`) or ratio of the medians (:func:`unpaired_ratio`).
        low, high: 95 % percentile bootstrap interval of ``value``.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def paired_ratio(samples: Sequence[float], reference: Sequence[float]) -> Ratio:
    """``samples / reference``, round by round, so that a disturbance of a whole round cancels.

    Raises :class:`InputError` when the two are empty or of different length.
    """
    _need(samples)
    if len(samples) != len(reference):
        raise InputError(f"{len(samples)} samples cannot be paired with {len(reference)}; wanted one of each per round")
    ratios = np.asarray(samples, float) / np.asarray(reference, float)
    medians = np.median(ratios[_resampling(len(ratios), seed=0)], axis=1)
    return Ratio(float(np.median(ratios)), *_interval(medians))


def unpaired_ratio(samples: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Median of ``samples`` over median of ``reference``, from two runs apart. Raises :class:`InputError` when one is empty."""
    _need(samples)
    _need(reference)
    a, b = np.asarray(samples, float), np.asarray(reference, float)
    over = np.median(a[_resampling(len(a), seed=0)], axis=1) / np.median(b[_resampling(len(b), seed=1)], axis=1)
    return Ratio(float(np.median(a) / np.median(b)), *_interval(over))


def _need(samples: Sequence[float]) -> None:
    if not len(samples):
        raise InputError("no samples; wanted at least one round")


def _resampling(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))


def _interval(values: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - _LEVEL)
    low, high = np.percentile(values, (tail, 100 - tail))
    return float(low), float(high)


@dataclass(frozen=True)
class PowerLaw:
    """``y = factor * x ** exponent``, fitted to logarithms by least squares.

    ``standard_error`` is that of the exponent; NaN for two points, which any line fits.
    """

    exponent: float
    standard_error: float
    factor: float

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ± {self.standard_error:.2f}"


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Raises :class:`InputError` unless there are at least two different positive ``x``, each with a positive ``y``."""
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise InputError(f"cannot fit a power law to {len(x)} and {len(y)} values; wanted pairs of positive ones, two at least")
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    centred = log_x - log_x.mean()
    exponent = float(centred @ log_y / (centred @ centred))
    level = float(log_y.mean() - exponent * log_x.mean())
    residuals = log_y - level - exponent * log_x
    free = len(x) - 2
    error = math.sqrt(float(residuals @ residuals) / free / float(centred @ centred)) if free else math.nan
    return PowerLaw(exponent, error, math.exp(level))
