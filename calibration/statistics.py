"""Statistics of one tensor's values over many images, in a few kilobytes regardless of their number."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated

import numpy as np
from msgspec import Meta

from mgvq_export.core.types import JsonObject

BINS = 2048  # 16 bins or more per step of an 8-bit scale that spans the range

FP16_MAX = 65504.0
FP16_NORMAL = 2.0**-14  # smaller magnitudes are subnormal: fewer than 11 significant bits
FP16_LOST = 2.0**-25  # magnitudes up to here round to zero
HEADROOM = 8.0  # a value within this factor of FP16_MAX counts as near overflow: other images may hold larger ones

Count = Annotated[int, Meta(ge=0, le=2**60)]
Finite = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]  # float32


@dataclass
class TensorStatistics:
    """Counts over all values of one tensor; exact, independent of order and batches.

    Magnitudes are counted in :data:`BINS` bins of equal width over [0, 2**exponent). When a magnitude reaches 2**exponent, the
    range doubles and neighbouring bins are merged, as often as needed: since widths are powers of two, the counts equal
    those with the final range from the beginning.

    Attributes:
        count: values seen, not finite ones included.
        nan, infinite, zeros: how many of them are not a number, infinite, zero.
        near_overflow: finite, larger in magnitude than ``FP16_MAX / HEADROOM``.
        overflow: finite, larger in magnitude than ``FP16_MAX``: float16 makes them infinite.
        subnormal: not zero, smaller in magnitude than ``FP16_NORMAL``: float16 keeps few of their bits.
        lost: not zero, at most ``FP16_LOST``: float16 makes them zero (those counted as subnormal include them).
        minimum, maximum: over finite values; 0 when there is none.
        exponent: the histogram spans [0, 2**exponent); None until there is a finite value other than zero.
        histogram: int64 [BINS], finite values other than zero by magnitude.
    """

    count: int = 0
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    near_overflow: int = 0
    overflow: int = 0
    subnormal: int = 0
    lost: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    exponent: int | None = None
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: np.ndarray) -> None:
        """Count all ``values``, float of any shape."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = flat[np.isfinite(flat)]
            self.count += flat.size - finite.size
            self.nan += int(np.isnan(flat).sum())
            self.infinite += int(np.isinf(flat).sum())
            self.add(finite)
            return
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        largest = max(-low, high)
        if largest > 0:
            self._grow(math.frexp(largest)[1])
        width = 0.0 if self.exponent is None else 2.0**self.exponent / BINS
        counts = np.zeros(5, np.int64)
        _kernel()(flat, 1 / width if width else 0.0, self.histogram, counts)
        self.count += flat.size
        for name, found in zip(("zeros", "near_overflow", "overflow", "subnormal", "lost"), counts.tolist(), strict=True):
            setattr(self, name, getattr(self, name) + found)

    def _grow(self, exponent: int) -> None:
        """Make the histogram span 2**exponent at least (frexp: the largest magnitude is below that)."""
        if self.exponent is None:
            self.exponent = exponent
        merged = 2 ** min(max(exponent - self.exponent, 0), BINS.bit_length() - 1)
        if merged > 1:
            sums = self.histogram.reshape(-1, merged).sum(axis=1)
            self.histogram = np.concatenate([sums, np.zeros(BINS - len(sums), np.int64)])
        self.exponent = max(exponent, self.exponent)

    @property
    def finite(self) -> int:
        """How many values are finite."""
        return self.count - self.nan - self.infinite

    @property
    def largest(self) -> float:
        """The largest finite magnitude; 0 when there is none."""
        return max(-self.minimum, self.maximum, 0.0) if self.finite else 0.0

    @property
    def bin_width(self) -> float:
        """Width of a bin of the histogram; 0 when it is empty."""
        return 0.0 if self.exponent is None else 2.0**self.exponent / BINS

    def percentile(self, percent: float) -> float:
        """The magnitude that ``percent`` of the finite values do not exceed, to within the width of a bin."""
        wanted = percent / 100 * self.finite - self.zeros
        if wanted <= 0 or self.exponent is None:
            return 0.0
        cumulated = np.cumsum(self.histogram)
        index = min(int(np.searchsorted(cumulated, wanted)), BINS - 1)
        before = int(cumulated[index - 1]) if index else 0
        inside = (wanted - before) / max(int(self.histogram[index]), 1)
        return min((index + inside) * self.bin_width, self.largest)

    def share(self, counted: int) -> float:
        """``counted`` as a share of all values, 0 to 1."""
        return counted / self.count if self.count else 0.0

    def to_dict(self) -> JsonObject:
        """JSON-ready; the histogram without the empty bins at its end."""
        names = ("count", "nan", "infinite", "zeros", "near_overflow", "overflow", "subnormal", "lost")
        used = np.flatnonzero(self.histogram)
        return {name: getattr(self, name) for name in names} | {
            "minimum": self.minimum if self.finite else None,
            "maximum": self.maximum if self.finite else None,
            "exponent": self.exponent,
            "histogram": self.histogram[: used[-1] + 1 if used.size else 0].tolist(),
        }

    @classmethod
    def restore(cls, stored: StoredStatistics) -> TensorStatistics:
        """The statistics that :meth:`to_dict` stored."""
        known = {one.name: getattr(stored, one.name) for one in fields(stored)}
        counts = np.zeros(BINS, np.int64)
        counts[: len(stored.histogram)] = stored.histogram
        known |= {"histogram": counts, "exponent": stored.exponent}
        known["minimum"] = math.inf if stored.minimum is None else stored.minimum
        known["maximum"] = -math.inf if stored.maximum is None else stored.maximum
        return cls(**known)


@dataclass(frozen=True)
class StoredStatistics:
    """:meth:`TensorStatistics.to_dict` as it is read again. Raises ValueError for counts that contradict one another."""

    count: Count
    nan: Count
    infinite: Count
    zeros: Count
    near_overflow: Count
    overflow: Count
    subnormal: Count
    lost: Count
    minimum: Finite | None
    maximum: Finite | None
    exponent: Annotated[int, Meta(ge=-160, le=160)] | None
    histogram: Annotated[list[Count], Meta(max_length=BINS)]

    def __post_init__(self) -> None:
        finite = self.count - self.nan - self.infinite
        if (self.minimum is None, self.maximum is None) != (finite == 0, finite == 0):
            raise ValueError("minimum and maximum are those of the finite values")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("minimum is larger than maximum")
        if (self.exponent is None) != (sum(self.histogram) == 0) or sum(self.histogram) + self.zeros != finite:
            raise ValueError("the histogram does not count all finite values")


@functools.cache
def _kernel() -> Callable[[np.ndarray, float, np.ndarray, np.ndarray], None]:
    """One pass over finite values: histogram of magnitudes, and the counts about float16."""
    import numba

    near, limit, normal, lost = FP16_MAX / HEADROOM, FP16_MAX, FP16_NORMAL, FP16_LOST
    last = BINS - 1

    @numba.njit(nogil=True)
    def scan(values, per_bin, histogram, counts):
        zeros = nears = overs = smalls = losts = 0
        for value in values:
            magnitude = abs(float(value))
            if magnitude == 0.0:
                zeros += 1
                continue
            histogram[min(int(magnitude * per_bin), last)] += 1
            nears += magnitude > near
            overs += magnitude > limit
            smalls += magnitude < normal
            losts += magnitude <= lost
        counts[0] += zeros
        counts[1] += nears
        counts[2] += overs
        counts[3] += smalls
        counts[4] += losts

    return scan
