"""How far apart two images, latents or code maps are. Numpy only."""

import math

import numpy as np


def psnr(image: np.ndarray, reference: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of equal shape with values 0 to ``peak``; infinite when they are equal."""
    error = np.mean(np.square(image.astype(np.float64) - reference.astype(np.float64)))
    return math.inf if error == 0 else float(10 * math.log10(peak**2 / error))


def relative_l2(values: np.ndarray, reference: np.ndarray) -> float:
    """``|values - reference| / |reference|`` in the Euclidean norm, computed in float64."""
    reference = reference.astype(np.float64)
    return float(np.linalg.norm(values.astype(np.float64) - reference) / np.linalg.norm(reference))
