"""Streamed statistics equal numpy's on all data at once, whatever the order and the batches."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgvq_export.calibration.statistics import (
    BINS,
    FP16_LOST,
    FP16_MAX,
    FP16_NORMAL,
    HEADROOM,
    StoredStatistics,
    TensorStatistics,
)


def values(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.standard_normal(5000), 1e5 * rng.standard_normal(20), 1e-6 * rng.standard_normal(300), np.zeros(50)])
    x = np.concatenate([x, 1e-9 * rng.standard_normal(40)])
    return rng.permutation(x).astype(np.float32)


def of(batches: list[np.ndarray]) -> TensorStatistics:
    found = TensorStatistics()
    for batch in batches:
        found.add(batch)
    return found


def test_equal_numpy_on_everything() -> None:
    x = values()
    found = of(np.array_split(x, 7))
    magnitude = np.abs(x.astype(np.float64))
    assert (found.minimum, found.maximum, found.count) == (x.min(), x.max(), x.size)
    assert found.largest == magnitude.max()
    assert found.zeros == (x == 0).sum()
    assert found.overflow == (magnitude > FP16_MAX).sum() > 0
    assert found.near_overflow == (magnitude > FP16_MAX / HEADROOM).sum()
    assert found.subnormal == ((magnitude < FP16_NORMAL) & (x != 0)).sum() > 0
    assert found.lost == ((magnitude <= FP16_LOST) & (x != 0)).sum() > 0
    wanted, _ = np.histogram(magnitude[x != 0], bins=BINS, range=(0, 2.0**found.exponent))
    np.testing.assert_array_equal(found.histogram, wanted)
    for percent in (1, 50, 90, 99, 99.9, 100):
        assert abs(found.percentile(percent) - np.percentile(magnitude, percent, method="inverted_cdf")) <= found.bin_width


def test_lost_is_what_float16_makes_zero() -> None:
    x = np.array([FP16_LOST, np.nextafter(np.float32(FP16_LOST), np.float32(1)), FP16_MAX, 65520.0], np.float32)
    found = of([x])
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    assert found.lost == (half == 0).sum() == 1
    assert found.overflow == np.isinf(half).sum() == 1


@given(st.integers(0, 1000), st.integers(1, 9))
def test_order_and_batches_do_not_matter(seed: int, pieces: int) -> None:
    x = values(seed)
    shuffled = np.random.default_rng(seed + 1).permutation(x)
    assert of(np.array_split(x, pieces)).to_dict() == of([np.sort(shuffled)]).to_dict() == of([shuffled[::-1]]).to_dict()


@pytest.mark.parametrize("first, last", [(1e-30, 1e30), (3.0, 3.0), (1e-3, 0.999), (2.0, 2.0)])
def test_the_range_grows_without_moving_counts(first: float, last: float) -> None:
    found = of([np.full(10, first, np.float32), np.full(4, last, np.float32)])
    assert found.to_dict() == of([np.array([last] * 4 + [first] * 10, np.float32)]).to_dict()
    assert found.histogram.sum() == 14


def test_values_that_are_not_finite_are_counted_apart() -> None:
    found = of([np.array([1, np.nan, -np.inf, 2, np.inf], np.float32)])
    assert (found.count, found.finite, found.nan, found.infinite, found.minimum, found.maximum) == (5, 2, 1, 2, 1, 2)


def test_only_zeros_and_nothing() -> None:
    assert of([np.zeros(9, np.float32)]).to_dict() | {"histogram": []} == of([np.zeros((3, 3), np.float32)]).to_dict()
    assert of([np.zeros(9, np.float32)]).largest == of([]).largest == of([np.zeros(0, np.float32)]).largest == 0
    assert of([np.zeros(9, np.float32)]).percentile(99) == 0


def test_json_brings_everything_back() -> None:
    found = of([values()])
    again = TensorStatistics.restore(msgspec.convert(json.loads(json.dumps(found.to_dict())), StoredStatistics))
    assert again.to_dict() == found.to_dict()
    again.add(values(1))
    found.add(values(1))
    assert again.to_dict() == found.to_dict()
