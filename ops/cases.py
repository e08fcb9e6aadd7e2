"""Inputs on which every lowering of GroupedArgmin must agree with the oracle: all sizes, ties, and values that are not finite.

In the package and not with the tests, because a machine with a GPU checks its kernel with them too.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

Case = tuple[np.ndarray, np.ndarray]  # latent [B, G*d, h, w], codebook [G, K, d]
_CASES: dict[str, Callable[[np.random.Generator], Case]] = {}


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """``rows`` [..., d] scaled to length 1; rows of zeros stay. float32."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(length == 0, 1, length)).astype(np.float32)


def random_case(
    rng: np.random.Generator, groups: int, codes: int, dim: int, *, batch: int = 1, height: int = 5, width: int = 7
) -> Case:
    """Normal ``latent`` [batch, groups * dim, height, width] and unit rows ``codebook`` [groups, codes, dim], float32."""
    latent = rng.standard_normal((batch, groups * dim, height, width)).astype(np.float32)
    return latent, unit_rows(rng.standard_normal((groups, codes, dim)))


_SIZES = [  # G, K, d, B, h, w
    (1, 1, 1, 1, 1, 1),
    (1, 7, 1, 1, 1, 9),
    (1, 64, 2, 1, 9, 1),
    (2, 65, 3, 2, 3, 5),
    (3, 61, 5, 3, 4, 3),
    (4, 8192, 8, 1, 3, 7),
    (8, 2048, 4, 2, 6, 5),
    (8, 2048, 4, 1, 40, 45),
    (16, 61, 2, 1, 5, 5),
    (32, 7, 1, 5, 2, 2),
    (1, 127, 32, 2, 3, 3),
    (5, 333, 17, 1, 2, 11),
    (32, 61, 32, 1, 3, 3),
    (4, 1111, 8, 1, 5, 5),
    (2, 300, 13, 1, 6, 6),
    (1, 1500, 5, 2, 10, 11),
]


def _of_size(size: tuple[int, ...], rng: np.random.Generator) -> Case:
    return random_case(rng, *size[:3], batch=size[3], height=size[4], width=size[5])


for _size in _SIZES:
    _CASES["G{}-K{}-d{}-B{}-{}x{}".format(*_size)] = partial(_of_size, _size)


def _case(function: Callable[[np.random.Generator], Case]) -> Callable[[np.random.Generator], Case]:
    _CASES[function.__name__.strip("_").replace("_", "-")] = function
    return function


@_case
def _duplicated_rows(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 2, 300, 4, batch=2, height=11)
    codebook[:, 150:] = codebook[:, :150]  # far apart: other chunks, blocks and warps
    return latent, codebook


@_case
def _neighbouring_duplicates(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 3, 130, 5)
    return latent, np.repeat(codebook[:, :65], 2, axis=1)


@_case
def _all_rows_equal(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 2, 200, 8)
    codebook[:] = codebook[:, :1]
    return latent, codebook


@_case
def _first_row_again_at_the_end(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 2, 200, 4, height=8, width=9)
    codebook[:, -1] = codebook[:, 0]
    return latent, codebook


@_case
def _many_exact_ties(rng: np.random.Generator) -> Case:
    """Rows of halves and whole latents: every score is exact in any order of summing."""
    latent, _ = random_case(rng, 2, 1, 4, height=8, width=9)
    signs = np.array(list(np.ndindex(2, 2, 2, 2)), np.float32) - 0.5
    return np.round(latent), np.tile(signs, (2, 5, 1))


@_case
def _mirrored_rows(rng: np.random.Generator) -> Case:
    """Axis rows and small whole numbers: every score is exact, and many tie."""
    latent = rng.integers(-2, 3, (2, 8, 6, 6)).astype(np.float32)
    axes = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    return latent, np.stack([axes, axes[::-1]])


@_case
def _float16_latents(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 8, 2048, 4, height=9, width=13)
    return latent.astype(np.float16), codebook


@_case
def _float16_near_ties(rng: np.random.Generator) -> Case:
    """Half-precision latents half-way between two rows, and rows that half precision cannot tell apart."""
    _, codebook = random_case(rng, 4, 128, 8)
    codebook[:, 1::2] = unit_rows(codebook[:, ::2] + 1e-4 * rng.standard_normal((4, 64, 8)))
    middle = codebook[:, ::2] + codebook[:, 1::2]  # [4, 64, 8]
    return np.ascontiguousarray(middle.transpose(0, 2, 1).reshape(1, 32, 8, 8)).astype(np.float16), codebook


@_case
def _float16_extremes(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 4, 61, 4)
    latent = latent.astype(np.float16)
    latent[:, :, 0, :] = np.where(latent[:, :, 0, :] > 0, np.float16(65504), np.float16(-65504))
    latent[:, :, 1, 0] = np.inf
    latent[:, 3, 2, 1] = np.nan
    return latent, codebook


@_case
def _nan(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 4, 61, 4, batch=2)
    latent[0, 0, 0, 0] = latent[0, 7, 1, 2] = latent[1, 15, 4, 6] = np.nan
    latent[1, 4:8, 2, 2] = np.nan
    return latent, codebook


@_case
def _infinity(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 4, 61, 4, batch=2)
    codebook[0, :, 1] = 0  # infinity times zero
    codebook = unit_rows(codebook)
    latent[0, 1, 0, 0] = np.inf
    latent[0, 8, 1, 1], latent[0, 9, 1, 1] = np.inf, -np.inf
    latent[1, 15, 2, 3] = -np.inf
    return latent, codebook


@_case
def _all_nan(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 2, 70, 3)
    return np.full_like(latent, np.nan), codebook


@_case
def _zero_vectors(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 4, 130, 4)
    latent[:, :, 0] = 0
    latent[:, :, 1] = -0.0
    latent[:, 4:8] = 0
    return latent, codebook


@_case
def _all_scores_negative(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 2, 67, 4)
    return -np.abs(latent), np.abs(codebook)


@_case
def _large_and_small(rng: np.random.Generator) -> Case:
    latent, codebook = random_case(rng, 4, 61, 8)
    return latent * np.float32(10.0) ** rng.integers(-25, 36, (1, 1, 5, 7)).astype(np.float32), codebook


def _close_calls(dim: int, rng: np.random.Generator) -> Case:
    """Scores closer than float16 can tell, and further apart than a near-tie: nearly equal rows, then sub-vectors nearly half-way between two rows."""
    _, codebook = random_case(rng, 2, 256, dim)
    codebook[:, 128:] = unit_rows(codebook[:, :128] + 3e-5 * rng.standard_normal((2, 128, dim)))
    first = codebook[:, :128]
    near = 5.7 * (first + 0.01 * rng.standard_normal(first.shape))
    likeness = first @ first.swapaxes(1, 2) - 2 * np.eye(128, dtype=np.float32)
    second = np.take_along_axis(first, likeness.argmax(-1)[..., None], axis=1)
    between = first + second + 2e-5 * rng.standard_normal((2, 128, 1)) * (first - second)
    latent = np.concatenate([near, between], axis=1)  # [G, positions, d]
    return np.ascontiguousarray(latent.transpose(0, 2, 1).reshape(1, 2 * dim, 16, 16)).astype(np.float32), codebook


for _dim in (4, 7, 13, 32):
    _CASES[f"close-calls-d{_dim}"] = partial(_close_calls, _dim)


NAMES = list(_CASES)


def make(name: str) -> Case:
    """The inputs of case ``name``; the same at every call."""
    return _CASES[name](np.random.default_rng(NAMES.index(name)))


def all_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, latent, codebook) of every case."""
    for name in NAMES:
        yield name, *make(name)


def cases_of_both_types() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, latent, codebook) of every case, with the latent as float32 and rounded to float16: for kernels that take both."""
    for name, latent, codebook in all_cases():
        for dtype in (np.float32, np.float16):
            with np.errstate(over="ignore"):  # too large for float16: infinite, which is a case too
                yield f"{name}-{np.dtype(dtype).name}", latent.astype(dtype), codebook
