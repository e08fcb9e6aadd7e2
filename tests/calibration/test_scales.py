"""Scales by every rule on distributions whose answer is known."""

import ml_dtypes
import numpy as np
import pytest

from mgvq_export.calibration.scales import candidates, quantize
from mgvq_export.calibration.statistics import TensorStatistics
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import LARGEST


def scales(values: np.ndarray, kind: str = "int8"):
    found = TensorStatistics()
    found.add(values.astype(np.float32))
    return found, {scale.method: scale for scale in candidates(found, kind)}


def measured(values: np.ndarray, scale: float, kind: str = "int8") -> float:
    magnitudes = np.abs(values).astype(np.float64)
    return float(np.mean((magnitudes - quantize(magnitudes, scale, kind)) ** 2) / np.mean(magnitudes**2))


def test_uniform_values_need_the_whole_range() -> None:
    x = np.random.default_rng(0).uniform(-3, 3, 200_000)
    _, found = scales(x)
    assert found["max"].scale == pytest.approx(3 / 127, rel=1e-3)
    assert found["mse"].scale == pytest.approx(found["max"].scale, rel=0.01)
    assert found["entropy"].scale == pytest.approx(found["max"].scale, rel=0.02)
    # Rounding to steps of s leaves a mean squared error of s**2 / 12; the values' mean square is 3.
    assert found["max"].error == pytest.approx((3 / 127) ** 2 / 12 / 3, rel=0.02)


def test_one_outlier_is_cut_off() -> None:
    x = np.append(np.random.default_rng(0).standard_normal(1_000_000), 100.0)
    found, by_rule = scales(x)
    assert by_rule["max"].scale == pytest.approx(100 / 127, rel=1e-6)
    # The outlier is a hundredth of the error that 20 times the step makes for everything else.
    assert by_rule["mse"].scale * 127 < 40
    assert by_rule["percentile-99.99"].scale * 127 == pytest.approx(np.percentile(np.abs(x), 99.99), abs=found.bin_width)
    assert candidates(found, "int8")[0].method != "max"


def test_gaussian_clip_is_near_the_known_optimum() -> None:
    """For 8 bits and a normal distribution the squared error is least when values are clipped near 3.9 sigma (Banner et al. 2019)."""
    x = np.random.default_rng(1).standard_normal(2_000_000)
    _, found = scales(x)
    assert 3.6 < found["mse"].scale * 127 < 4.3


@pytest.mark.parametrize("kind", LARGEST)
@pytest.mark.parametrize("shape", ["normal", "relu", "heavy"])
def test_errors_from_the_histogram_are_those_of_the_values(kind: str, shape: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal(200_000)
    if shape == "relu":
        x = np.maximum(x, 0)
    if shape == "heavy":
        x = rng.standard_t(3, 200_000)
    _, found = scales(x, kind)
    best = min(found.values(), key=lambda scale: scale.error)
    for scale in found.values():
        assert scale.error == pytest.approx(measured(x, scale.scale, kind), rel=0.15)
        assert measured(x, best.scale, kind) <= measured(x, scale.scale, kind) * 1.02


def test_fp8_rounds_as_e4m3_does() -> None:
    x = np.concatenate([np.linspace(0, 460, 5001), np.logspace(-5, 2, 5001)])
    wanted = np.minimum(x, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(quantize(x, 1.0, "fp8"), wanted)


def test_all_zeros_have_no_scale() -> None:
    found = TensorStatistics()
    found.add(np.zeros(5, np.float32))
    with pytest.raises(InputError, match="all values are zero: no scale follows"):
        candidates(found, "int8")
