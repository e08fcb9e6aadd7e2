"""Execution contexts of engines.

TensorRT for RTX compiles an engine's kernels for the GPU when a context is made, which takes seconds. What it has compiled is kept in the
user's cache folder, a file for each engine, GPU and driver. The library itself refuses a file that does not fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path

from platformdirs import user_cache_path

from mgvq_export.core.errors import InputError
from mgvq_export.core.files import atomic_write_bytes
from mgvq_export.core.types import Untyped
from mgvq_export.ops.cuda_kernel import driver_version
from mgvq_export.runtime.tensorrt.engines import LoadedEngine

_log = logging.getLogger("mgvq_export")


def make_context(loaded: LoadedEngine, *, cuda_graphs: bool) -> Untyped:
    """A context of the engine, with no memory of its own yet; None when the library gives none.

    ``cuda_graphs``: whether TensorRT for RTX is to record its work as a CUDA graph; with TensorRT that is the caller's.
    """
    trt = loaded.loader.trt
    if loaded.loader.machine.target != "rtx":
        return loaded.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    rtx, rtx_engine = trt, loaded.engine
    rtx_config = rtx_engine.create_runtime_config()
    if rtx_config is None:
        return None
    rtx_config.set_execution_context_allocation_strategy(rtx.ExecutionContextAllocationStrategy.USER_MANAGED)
    rtx_config.cuda_graph_strategy = rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if cuda_graphs else rtx.CudaGraphStrategy.DISABLED
    # All kernels now, and not in the background while images wait: runs take the same time, and the cache is whole.
    rtx_config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    path = _cache_path(loaded)
    kept = b""
    with contextlib.suppress(OSError):
        kept = path.read_bytes()
    rtx_cache = rtx_config.create_runtime_cache()
    known = rtx_cache is not None and bool(kept) and rtx_cache.deserialize(kept)
    if rtx_cache is not None:
        rtx_config.set_runtime_cache(rtx_cache)
    if not known:
        _log.info("%s is compiled for %s, which takes some seconds the first time", loaded.name, loaded.loader.machine.gpu)
    loaded.loader.errors.clear()  # a cache that does not fit is reported as an error, and is none
    context = rtx_engine.create_execution_context(rtx_config)
    if context is not None and rtx_cache is not None:
        _keep(path, kept, rtx_cache.serialize())
    return context


def _cache_path(loaded: LoadedEngine) -> Path:
    machine = loaded.loader.machine
    engine = loaded.record.sha256 if loaded.record else loaded.name
    parts = (engine, machine.tensorrt, machine.gpu, machine.compute_capability, str(driver_version()))
    return user_cache_path("mgvq-export") / "tensorrt-rtx" / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.cache"


def _keep(path: Path, kept: bytes, compiled: Untyped) -> None:
    """Write the cache if it has changed: beside and renamed, so that two processes do not mix theirs. Not writable: done without."""
    data = b"" if compiled is None else bytes(memoryview(compiled))
    if not data or data == kept:
        return
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, data)
