"""Metrics against scikit-image and plain loops; shapes that do not belong together are refused."""

import math

import numpy as np
import pytest

from mgvq_export.core.errors import InputError
from mgvq_export.parity.metrics import agreement, max_abs, psnr, relative_l2


def test_psnr_is_that_of_scikit_image(rng: np.random.Generator) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    reference = rng.integers(0, 256, (20, 30, 3), np.uint8)
    image = np.clip(reference.astype(int) + rng.integers(-9, 10, reference.shape), 0, 255).astype(np.uint8)
    assert psnr(image, reference) == pytest.approx(metrics.peak_signal_noise_ratio(reference, image), abs=1e-9)
    floats, other = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert psnr(floats, other, peak=2) == pytest.approx(metrics.peak_signal_noise_ratio(other, floats, data_range=2), abs=1e-5)


def test_bytes_are_subtracted_as_numbers() -> None:
    """Unsigned differences would wrap: 0 - 255 is 1 in uint8."""
    black, white = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    assert psnr(black, white) == 0
    assert max_abs(black, white) == 255
    assert psnr(white, white) == math.inf


def test_relative_l2_and_max_abs_are_those_of_loops(rng: np.random.Generator) -> None:
    values, reference = rng.standard_normal((2, 5, 7)).astype(np.float16)
    pairs = [(float(a), float(b)) for a, b in zip(values.ravel(), reference.ravel(), strict=True)]
    wanted = math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs)) / math.sqrt(math.fsum(b * b for _, b in pairs))
    assert relative_l2(values, reference) == pytest.approx(wanted, rel=1e-12)
    assert max_abs(values, reference) == max(abs(a - b) for a, b in pairs)


def test_relative_l2_of_zeros() -> None:
    zeros = np.zeros(3, np.float32)
    assert relative_l2(zeros, zeros) == 0
    assert relative_l2(np.ones(3, np.float32), zeros) == math.inf


def test_agreement_counts_equal_entries() -> None:
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75


@pytest.mark.parametrize("metric", [psnr, relative_l2, max_abs])
def test_values_that_are_no_number_stay_so(metric) -> None:
    assert math.isnan(metric(np.array([1.0, np.nan]), np.array([1.0, 2.0])))


@pytest.mark.parametrize("metric", [psnr, relative_l2, max_abs, agreement])
def test_shapes_are_never_broadcast(metric) -> None:
    with pytest.raises(InputError, match=r"cannot compare shapes \[2, 3\] and \[3\]"):
        metric(np.ones((2, 3)), np.ones(3))
    with pytest.raises(InputError, match="not empty"):
        metric(np.ones((0, 3)), np.ones((0, 3)))
