"""What ``mgvq::GroupedArgmin`` computes: names, shapes, the numpy oracle and the measure of a near-tie. Numpy only.

Inputs: ``latent`` float or float16 [B, G*d, h, w]; ``codebook`` float [G, K, d] with unit rows. G and d are 1 to 32,
K at least 1. Output: ``codes`` int32 [B, G, h, w], each 0 to K-1: the index of the row of group g with the largest inner product with
the d latent values of that position and group (a *sub-vector*).

Rules every lowering follows:

* products are summed in float32, whatever the latent's type; the order of the sum is free;
* equal scores: the lowest index wins; rows with equal values have equal scores;
* a sub-vector with a value that is not finite is taken as all zeros, so its code is 0, and so is a zero sub-vector's;
* finite values beyond 2**120, whose scores may overflow, give any code from 0 to K-1.
"""

import numpy as np

from mgvq_export.core.arrays import Array
from mgvq_export.core.errors import InputError

OP_NAME = "GroupedArgmin"
DOMAIN = "mgvq"
VERSION = 1
MAX_GROUPS = 32
MAX_GROUP_DIM = 32

#: Two scores closer than this share of the sub-vector's length may swap between lowerings (float32 rounding, with room to spare).
NEAR_TIE = 1e-6


def codes_shape(latent: tuple[int, ...], codebook: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The shape [B, G, h, w] of the codes, from the inputs' shapes. Raises :class:`InputError` when they do not fit."""
    if len(latent) != 4 or len(codebook) != 3 or min(*latent, *codebook) < 1:
        raise InputError(
            f"{OP_NAME}: latent {list(latent)}, codebook {list(codebook)}; wanted [B, G*d, h, w], [G, K, d], none zero"
        )
    groups, _, dim = codebook
    if groups > MAX_GROUPS or dim > MAX_GROUP_DIM:
        raise InputError(f"{OP_NAME}: {groups} groups of {dim} channels; wanted at most {MAX_GROUPS} and {MAX_GROUP_DIM}")
    if latent[1] != groups * dim:
        raise InputError(f"{OP_NAME}: latent has {latent[1]} channels; the codebook wants {groups} x {dim} = {groups * dim}")
    return latent[0], groups, latent[2], latent[3]


def check_inputs(latent: np.ndarray, codebook: np.ndarray) -> tuple[int, int, int, int]:
    """:func:`codes_shape`, after checking the types. Raises :class:`InputError`."""
    if latent.dtype not in (np.float32, np.float16) or codebook.dtype != np.float32:
        raise InputError(f"{OP_NAME}: latent {latent.dtype}, codebook {codebook.dtype}; wanted float32 or float16, and float32")
    return codes_shape(latent.shape, codebook.shape)


def sub_vectors(latent: np.ndarray, groups: int) -> np.ndarray:
    """float32 [G, B*h*w, d]: the sub-vectors of ``latent`` [B, G*d, h, w], those with a value that is not finite as zeros."""
    batch, channels, height, width = latent.shape
    split = latent.astype(np.float32).reshape(batch, groups, channels // groups, height * width)
    vectors = split.transpose(1, 0, 3, 2).reshape(groups, batch * height * width, channels // groups)
    return np.where(np.isfinite(vectors).all(axis=-1, keepdims=True), vectors, np.float32(0))


def grouped_argmin(latent: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The oracle: codes int32 [B, G, h, w]. Simple, not fast: holds 4 * K bytes per position. Raises :class:`InputError`."""
    batch, groups, height, width = check_inputs(latent, codebook)
    codes = np.empty((groups, batch * height * width), np.int32)
    for group, vectors in enumerate(sub_vectors(latent, groups)):
        scores = np.zeros((len(vectors), codebook.shape[1]), np.float32)
        for channel in range(codebook.shape[2]):  # one term at a time: equal rows get equal bits, which BLAS does not promise
            scores += vectors[:, channel, None] * codebook[group, None, :, channel]
        codes[group] = scores.argmax(axis=1)  # the first of equal scores
    return np.ascontiguousarray(codes.reshape(groups, batch, height, width).swapaxes(0, 1))


def near_tie_margins(latent: np.ndarray, codebook: np.ndarray, codes_a: np.ndarray, codes_b: np.ndarray) -> np.ndarray:
    """float64 [n]: for each of the n places where two codes arrays [B, G, h, w] differ, how far apart the two rows are.

    The margin is the gap between the two rows' scores (in float64) over the length of the sub-vector; float32 sums of up to 32
    terms explain margins up to about 1e-6 (:data:`NEAR_TIE`). It is infinite where nothing but the tie rule decides, so
    that no difference is allowed: rows of equal values, and sub-vectors of zeros. Order: C order of [B, G, h, w].
    """
    shape = check_inputs(latent, codebook)
    if codes_a.shape != shape or codes_b.shape != shape:
        raise InputError(
            f"codes have shapes {list(codes_a.shape)}, {list(codes_b.shape)}; latent and codebook give {list(shape)}"
        )
    batch, group, row, column = np.nonzero(codes_a != codes_b)
    position = (batch * shape[2] + row) * shape[3] + column
    vectors = sub_vectors(latent, shape[1])[group, position].astype(np.float64)
    row_a = codebook[group, codes_a[batch, group, row, column]].astype(np.float64)
    row_b = codebook[group, codes_b[batch, group, row, column]].astype(np.float64)
    length = np.linalg.norm(vectors, axis=1)
    gap = np.abs(((row_a - row_b) * vectors).sum(axis=1))
    margins: Array = gap / np.maximum(length, 2.0**-100)  # below, products are subnormal and may be flushed to zero
    margins[(row_a == row_b).all(axis=1) | (length == 0)] = np.inf
    return margins
