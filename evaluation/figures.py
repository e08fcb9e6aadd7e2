"""The figures of one image, and those of a whole dataset from streamed features and counts. Numpy; scikit-image for SSIM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

PEAK = 255.0
_ROWS_AT_ONCE = 64
_SSIM_WINDOW = 7  # scikit-image's default


def mean_squared_error(image: np.ndarray, reference: np.ndarray) -> float:
    """Mean of the squared differences of two uint8 arrays [H, W, 3], in units of 8-bit steps; exact up to the division."""
    total = 0
    for top in range(0, image.shape[0], _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        difference = np.subtract(image[rows], reference[rows], dtype=np.int32)
        total += int(np.sum(difference * difference, dtype=np.int64))
    return total / image.size


def psnr_of(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in 8-bit steps; infinite for 0."""
    return math.inf if mse == 0 else 10 * math.log10(PEAK**2 / mse)


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of two uint8 images [H, W, 3]: scikit-image's, mean over pixels and channels, windows of 7 pixels.

    Computed strip by strip, which gives the same mean in half the time and a fraction of the memory: scikit-image leaves out the
    pixels whose window is cut by the border, and strips overlap by just those.
    """
    from skimage.metrics import structural_similarity

    margin, height = _SSIM_WINDOW // 2, image.shape[0]
    total = 0.0
    for top in range(margin, height - margin, _ROWS_AT_ONCE):
        bottom = min(top + _ROWS_AT_ONCE, height - margin)
        rows = slice(top - margin, bottom + margin)
        strip = structural_similarity(image[rows], reference[rows], win_size=_SSIM_WINDOW, channel_axis=-1)
        total += float(strip) * (bottom - top)
    return total / (height - 2 * margin)


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy in bits of how often each code was seen, int [K]; 0 when only one was."""
    seen = counts[counts > 0].astype(np.float64)
    if not seen.size:
        return 0.0
    share = seen / seen.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0  # + 0.0: a single code gives 0, not -0


def moments(blocks: Callable[[], Iterator[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] (divided by n - 1) of feature rows, float64, read twice block by block.

    ``blocks``: gives an iterator over arrays [n, D]; memory is that of one block and the covariance.
    """
    count, total = 0, np.zeros(())
    for block in blocks():
        count, total = count + len(block), total + block.sum(axis=0, dtype=np.float64)
    mean = total / count
    covariance = np.zeros((mean.size, mean.size))
    for block in blocks():
        centred = block.astype(np.float64) - mean
        covariance += centred.T @ centred
    return mean, covariance / max(count - 1, 1)


def frechet_distance(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
) -> float:
    """Frechet distance of two Gaussians given as (mean [D], covariance [D, D]): FID when the features are Inception's.

    ``|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^1/2)`` (Heusel et al. 2017, arXiv 1706.08500). The eigenvalues of ``C1 C2`` are those
    of ``C1^1/2 C2 C1^1/2``: only symmetric matrices are decomposed, so singular covariances (of few images) need no
    regularisation.
    """
    difference = first[0] - second[0]
    values, vectors = np.linalg.eigh(first[1])
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second[1] @ root), 0, None)).sum()
    return max(float(difference @ difference + np.trace(first[1]) + np.trace(second[1]) - 2 * shared), 0.0)
