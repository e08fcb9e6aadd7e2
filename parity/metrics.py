"""Distances between two images, latents or code maps. Numpy only; arrays of equal shape, else :class:`InputError`."""

import math

import numpy as np

from mgvq_export.core.errors import InputError


def psnr(image: np.ndarray, reference: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB of two arrays whose values span ``peak``; infinite when they are equal."""
    _check(image, reference)
    error = np.mean(np.square(image.astype(np.float64) - reference.astype(np.float64)))
    return math.inf if error == 0 else float(10 * np.log10(peak**2 / error))


def relative_l2(values: np.ndarray, reference: np.ndarray) -> float:
    """``|values - reference| / |reference|`` in the Euclidean norm, computed in float64; 0 when both are all zeros."""
    _check(values, reference)
    reference = reference.astype(np.float64)
    error = float(np.linalg.norm(values.astype(np.float64) - reference))
    length = float(np.linalg.norm(reference))
    return error / length if length else (math.inf if error else 0.0)


def max_abs(values: np.ndarray, reference: np.ndarray) -> float:
    """The largest ``|values - reference|``, computed in float64; NaN where either has NaN."""
    _check(values, reference)
    return float(np.max(np.abs(values.astype(np.float64) - reference.astype(np.float64)), initial=0.0))


def agreement(codes: np.ndarray, reference: np.ndarray) -> float:
    """Share of equal entries, 0 to 1."""
    _check(codes, reference)
    return float(np.mean(codes == reference))


def _check(values: np.ndarray, reference: np.ndarray) -> None:
    # Broadcasting would compare arrays that do not belong together.
    if values.shape != reference.shape or not values.size:
        raise InputError(f"cannot compare shapes {list(values.shape)} and {list(reference.shape)}; wanted equal ones, not empty")
