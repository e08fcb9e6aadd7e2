"""Predicted against measured peak memory, each plan in a process of its own, since the memory of this one would be counted too.

The process runs :func:`main` with the arguments BUNDLE BACKEND PRECISION HEIGHT WIDTH whole|tiled and prints one JSON row per direction.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError, MgvqError
from mgvq_export.core.processes import python_command
from mgvq_export.parity.report.report_data import MemoryRow
from mgvq_export.runtime.backend import ON_HOST
from mgvq_export.runtime.tiling.memory import forget_peak, peak_bytes, resident_bytes
from mgvq_export.runtime.tiling.windows import TrunkPlan
from mgvq_export.runtime.tokenizer import Tokenizer

_PLENTY = 2**62  # a limit that every plan meets; glibc returns freed memory only when one is given
_SHARES = (1 / 2, 2 / 3, 3 / 4, 9 / 10)  # of what one window takes in addition to the loaded graphs
_SMALL = 64  # pixels a side of the image coded first


def measure_peaks(
    bundle: Bundle, precision: str, size: tuple[int, int], *, tiled: bool = False, backend: str = "ort-cpu"
) -> list[MemoryRow]:
    """Encoding and decoding an image of ``size`` (height, width), in one window or, ``tiled``, where less memory is allowed.

    The process codes a small image first: the first use loads libraries, whose memory is not part of any plan.

    Raises:
        BackendError: the backend's memory is not this process's, or the system does not report a process's peak.
        InputError: no plan fits.
    """
    if backend not in ON_HOST:
        raise BackendError(
            f"the memory of {backend} lies on the GPU; plans are held against measurements for {' and '.join(ON_HOST)} only"
        )
    if not forget_peak():
        raise BackendError("this system does not tell a process's peak memory; Linux does")
    arguments = (bundle.path.resolve(), backend, precision, *size, "tiled" if tiled else "whole")
    command = python_command("mgvq_export.parity.report.peak_memory", *map(str, arguments))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError((done.stderr.strip().splitlines() or [f"the measuring process ended with {done.returncode}"])[-1])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [MemoryRow(**{**row, "size": tuple(row["size"])}) for row in rows]


def run(bundle: Path, backend: str, precision: str, size: tuple[int, int], *, tiled: bool) -> Iterator[MemoryRow]:
    """Encode and decode noise; yields predicted and measured peak memory."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    small = np.ascontiguousarray(noise[:_SMALL, :_SMALL])
    with _open(bundle, backend, precision) as tokenizer:
        first = tokenizer.encode(small)
        plan, limit = _plan(tokenizer, lambda some: some.encode_plan(*size), tiled)
        forget_peak()
        tokens = tokenizer.encode(noise, plan=plan)
        yield MemoryRow("encode", size, limit, str(plan), plan.peak_bytes, peak_bytes())
    with _open(bundle, backend, precision) as tokenizer:
        tokenizer.decode(first)
        plan, limit = _plan(tokenizer, lambda some: some.decode_plan(*size), tiled)
        forget_peak()
        tokenizer.decode(tokens, plan=plan)
        yield MemoryRow("decode", size, limit, str(plan), plan.peak_bytes, peak_bytes())


def _open(bundle: Path, backend: str, precision: str) -> Tokenizer:
    return Tokenizer.open(bundle, backend=backend, precision=precision, memory_limit=_PLENTY)


def _plan(tokenizer: Tokenizer, find: Callable[[Tokenizer], TrunkPlan], tiled: bool) -> tuple[TrunkPlan, int | None]:
    """A plan and its limit: one window and None; if ``tiled``, the plan under the first limit of :data:`_SHARES` that can be met."""
    plan = find(tokenizer)
    if not tiled:
        return plan, None
    held = resident_bytes()
    for share in _SHARES:
        limit = held + int(share * (plan.peak_bytes - held))
        with contextlib.suppress(InputError):
            return find(tokenizer.with_tiling(memory_limit=limit)), limit
    raise InputError(f"windows: none take less than {_SHARES[-1]:.0%} of what one window takes at this size")


def main() -> None:
    """The command line; see the module's description."""
    bundle, backend, precision, height, width, mode = sys.argv[1:]
    try:
        for row in run(Path(bundle), backend, precision, (int(height), int(width)), tiled=mode == "tiled"):
            print(json.dumps(asdict(row)), flush=True)
    except MgvqError as error:
        sys.exit(str(error))
