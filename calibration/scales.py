"""Scales of 8-bit activations from histograms: candidates by several rules, and the one with the smallest error.

A scale maps real values to 8-bit ones, ``q = round(x / scale)``; the clip magnitude is the largest value that survives, 127
steps for int8 and 448 for FP8 (E4M3). Smaller clips have finer steps and cut off the few largest values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgvq_export.calibration.statistics import BINS, TensorStatistics
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import LARGEST

PERCENTILES = (99.9, 99.99, 99.999)

_LEVELS = 128  # magnitudes an int8 value can have, for the entropy rule
_GRID = 128  # clips tried by the MSE rule


@dataclass(frozen=True)
class Scale:
    """A scale and how it was found.

    Attributes:
        method: ``max``, ``percentile-99.9`` and the like, ``mse`` or ``entropy``.
        scale: real value of one step.
        error: mean squared error of quantizing all values with it, from the histogram, in units of the tensor's mean square.
    """

    method: str
    scale: float
    error: float


def candidates(found: TensorStatistics, kind: str) -> list[Scale]:
    """The scale of every rule, smallest error first; among equal errors, the one that clips least.

    Raises :class:`InputError` when all values are zero: no scale follows from them.
    """
    if not found.largest:
        raise InputError("all values are zero: no scale follows from them")
    clips = {"max": found.largest}
    clips |= {f"percentile-{percent:g}": found.percentile(percent) for percent in PERCENTILES}
    clips["mse"] = _least_error(found, kind)
    if kind == "int8":  # the rule needs equal steps, which FP8 does not have
        clips["entropy"] = _least_divergence(found)
    magnitudes, _ = _points(found)
    power = float(np.dot(found.histogram, magnitudes**2))
    scales = [
        Scale(method, clip / LARGEST[kind], _squared_error(found, clip, kind) / power)
        for method, clip in clips.items()
        if clip > 0
    ]
    return sorted(scales, key=lambda scale: (scale.error, -scale.scale))


def quantize(magnitudes: np.ndarray, scale: float, kind: str) -> np.ndarray:
    """The non-negative real values that ``magnitudes`` become in 8 bits."""
    x = np.minimum(magnitudes / scale, LARGEST[kind])
    if kind == "int8":
        return np.rint(x) * scale
    # E4M3 has three bits after the leading one; below 2**-6 the steps stay equal.
    step = np.exp2(np.maximum(np.frexp(x)[1] - 1, -6) - 3.0)
    return np.rint(x / step) * step * scale


def _points(found: TensorStatistics) -> tuple[np.ndarray, float]:
    width = found.bin_width
    return (np.arange(BINS) + 0.5) * width, width


def _squared_error(found: TensorStatistics, clip: float, kind: str) -> float:
    """Sum over all values; values of a bin count as its middle."""
    magnitudes, _ = _points(found)
    used = found.histogram > 0
    kept = magnitudes[used]
    return float(np.dot(found.histogram[used], (kept - quantize(kept, clip / LARGEST[kind], kind)) ** 2))


def _least_error(found: TensorStatistics, kind: str) -> float:
    """The clip of the smallest squared error, on a grid of shares of the largest magnitude."""
    clips = found.largest * np.arange(1, _GRID + 1) / _GRID
    errors = [_squared_error(found, clip, kind) for clip in clips]
    return float(clips[len(clips) - 1 - int(np.argmin(errors[::-1]))])  # the last of equal ones clips least


def _least_divergence(found: TensorStatistics) -> float:
    """The clip whose 128 steps lose least information (Kullback-Leibler divergence).

    The rule of Migacz, "8-bit inference with TensorRT" (GTC 2017): values beyond the clip are counted in the last bin, and the
    clipped histogram is compared with itself at 128 levels.
    """
    counts = found.histogram.astype(np.float64)
    used = int(np.flatnonzero(counts)[-1]) + 1
    best, clip = np.inf, used
    tail = np.append(np.cumsum(counts[::-1])[::-1], 0.0)
    for bins in range(_LEVELS, used + 1, max(1, used // 256)):
        wanted = counts[:bins].copy()
        kept = wanted > 0
        levels = np.arange(bins) * _LEVELS // bins
        sums = np.bincount(levels, wanted, _LEVELS)
        spread = np.bincount(levels, kept, _LEVELS)
        coarse = np.where(kept, (sums / np.maximum(spread, 1))[levels], 0.0)
        wanted[-1] += tail[bins]
        p, q = wanted / wanted.sum(), coarse / max(coarse.sum(), 1e-300)
        both = (p > 0) & (q > 0)
        # Mass that the coarse histogram cannot hold would be infinite; a small floor keeps the comparison finite, as is usual.
        divergence = float(np.sum(p[both] * np.log(p[both] / q[both]))) + float(p[(p > 0) & (q == 0)].sum()) * 30
        if divergence < best:
            best, clip = divergence, bins
    return min(clip * found.bin_width, found.largest)
