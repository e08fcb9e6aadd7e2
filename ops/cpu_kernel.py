"""``mgvq::GroupedArgmin`` on CPUs: one fused pass compiled by numba that never stores the scores.

The rows of a group are packed channel by channel in blocks of 64, so that one SIMD register holds one channel of 8 or 16
rows. Four positions share every load. Only the largest score of a block is kept; the winning block is scored once more
to find the row. Memory beyond inputs and codes: the packed codebook and a few hundred bytes per thread.
"""

import atexit
import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from mgvq_export.core.arrays import Array
from mgvq_export.core.processors import usable_cpus
from mgvq_export.core.types import Untyped
from mgvq_export.ops.contract import check_inputs

BLOCK = 64  # rows; 32 and 128 were slower for both released codebook shapes
TILE = 4  # positions scored together; the kernel spells the four out, since numba keeps arrays out of registers
TASK_SUB_VECTORS = 4096  # sub-vectors below which a second thread does not pay

# nnan is sound because values that are not finite are zeroed first. Without nnan and nsz LLVM does not vectorise a maximum.
FAST_MATH = {"contract", "nnan", "nsz"}
LOWEST = np.float32(np.finfo(np.float32).min)
LARGEST = np.float32(np.finfo(np.float32).max)


def _declare_larger(typing_context: object, a: object, b: object) -> tuple[Untyped, Callable[..., Untyped]]:
    """The larger of two float32. Python's own max or comparison compiles to a select that LLVM does not vectorise."""

    def generate(context: object, builder: Untyped, signature: object, arguments: object) -> object:
        kind = ir.FloatType()
        maximum = builder.module.declare_intrinsic("llvm.maxnum", [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(maximum, arguments, fastmath=("nnan", "nsz"))

    return numba.float32(numba.float32, numba.float32), generate


_larger: Untyped = intrinsic(_declare_larger)


def _compile(dim: int, cache: bool) -> Callable[..., None]:
    """``scan`` for groups of ``dim`` channels: a constant, so that LLVM unrolls the sum over channels."""

    @numba.njit(nogil=True, cache=cache, fastmath=FAST_MATH, error_model="numpy")
    def scan(latent: Array, rows: Array, last_code: int, codes: Array, first: int, last: int) -> None:
        area = latent.shape[2]
        groups, blocks = rows.shape[:2]
        x = np.empty((4, dim), np.float32)
        scores = np.empty(BLOCK, np.float32)
        winner = np.empty(4, np.int64)
        for g in range(groups):
            for start in range(first, last, 4):
                for t in range(4):
                    n = min(start + t, last - 1)
                    batch = n // area
                    finite = True
                    for c in range(dim):
                        value = latent[batch, g * dim + c, n - batch * area]
                        finite = finite and abs(value) <= LARGEST
                        x[t, c] = value
                    if not finite:
                        x[t] = 0
                best0 = best1 = best2 = best3 = LOWEST
                winner[:] = 0
                for j in range(blocks):
                    m0 = m1 = m2 = m3 = LOWEST
                    for k in range(BLOCK):
                        s0 = s1 = s2 = s3 = np.float32(0)
                        for c in range(dim):
                            r = rows[g, j, c, k]
                            s0 += x[0, c] * r
                            s1 += x[1, c] * r
                            s2 += x[2, c] * r
                            s3 += x[3, c] * r
                        m0 = _larger(s0, m0)
                        m1 = _larger(s1, m1)
                        m2 = _larger(s2, m2)
                        m3 = _larger(s3, m3)
                    if m0 > best0:
                        best0, winner[0] = m0, j
                    if m1 > best1:
                        best1, winner[1] = m1, j
                    if m2 > best2:
                        best2, winner[2] = m2, j
                    if m3 > best3:
                        best3, winner[3] = m3, j
                for t in range(min(4, last - start)):
                    j = winner[t]
                    best = LOWEST
                    for k in range(BLOCK):
                        s = np.float32(0)
                        for c in range(dim):
                            s += x[t, c] * rows[g, j, c, k]
                        scores[k] = s
                        best = _larger(s, best)
                    k = 0
                    while k < BLOCK - 1 and scores[k] < best:
                        k += 1
                    n = start + t
                    codes[n // area, g, n % area] = min(j * BLOCK + k, last_code)

    return scan


@functools.cache
def _kernel(dim: int) -> Callable[..., None]:
    try:
        return _compile(dim, cache=True)
    except RuntimeError:  # numba found no writable folder for its cache: compile in every process (about a second)
        return _compile(dim, cache=False)


def _pack(codebook: Array) -> Array:
    """float32 [G, blocks, d, BLOCK]. The last block is filled with row 0, which as a later duplicate never wins."""
    groups, codes, dim = codebook.shape
    blocks = -(-codes // BLOCK)
    padded = np.concatenate([codebook, np.broadcast_to(codebook[:, :1], (groups, blocks * BLOCK - codes, dim))], axis=1)
    return np.ascontiguousarray(padded.reshape(groups, blocks, BLOCK, dim).transpose(0, 1, 3, 2))


_limit = threading.local()


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Within it, calls of :func:`grouped_argmin` in this thread that name no number of threads use ``count``.

    For callers behind an interface that has no place for the number, such as a custom operator's.
    """
    before, _limit.threads = getattr(_limit, "threads", None), count
    try:
        yield
    finally:
        _limit.threads = before


@functools.cache
def _pool() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="mgvq-argmin")
    atexit.register(pool.shutdown, wait=False)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork (data loader workers)


def grouped_argmin(latent: Array, codebook: Array, *, threads: int | None = None) -> Array:
    """Codes int32 [B, G, h, w], as :func:`mgvq_export.ops.contract.grouped_argmin`, fast.

    ``threads`` is how many pieces the positions are cut into (default: that of :func:`limited_threads`, else one per usable core). The pieces run on a pool of
    plain Python threads without the GIL; numba's own parallel loops are not used, because its default threading
    layer may not be entered from two Python threads at once. Safe to call from any number of threads. The first call for
    a new ``d`` on a machine compiles for about a second; the result is cached on disk. Raises ``InputError``.
    """
    batch, groups, height, width = check_inputs(latent, codebook)
    positions = batch * height * width
    flat = np.ascontiguousarray(latent, dtype=np.float32).reshape(batch, -1, height * width)
    rows = _pack(codebook)
    codes = np.empty((batch, groups, height * width), np.int32)
    scan = functools.partial(_kernel(codebook.shape[2]), flat, rows, codebook.shape[1] - 1, codes)
    wanted = threads or getattr(_limit, "threads", None) or usable_cpus()
    pieces = min(wanted, max(1, positions * groups // TASK_SUB_VECTORS))
    bounds = [round(positions * i / pieces / TILE) * TILE for i in range(pieces)] + [positions]
    futures = [_pool().submit(scan, first, last) for first, last in itertools.pairwise(bounds[1:])]
    scan(bounds[0], bounds[1])  # the first piece runs here: one thread less to wake, and none for small maps
    for future in futures:
        future.result()
    return codes.reshape(batch, groups, height, width)
