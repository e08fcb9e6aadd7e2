"""GroupedArgmin as a TensorRT quick plugin whose kernel is embedded in the engine ahead of time.

The engine that results needs neither Python nor a plugin library to run. Nothing here imports TensorRT until
:func:`register_plugin` is called. The plugin has no attributes: everything it needs are its inputs' shapes.

This module must not say ``from __future__ import annotations``: TensorRT reads the annotations of the functions below as
objects and refuses strings.
"""

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import cast

from mgvq_export.core.errors import BackendError
from mgvq_export.core.types import Untyped
from mgvq_export.ops.contract import DOMAIN, OP_NAME
from mgvq_export.ops.cuda_kernel import KERNEL_NAMES, POSITIONS_PER_BLOCK, THREADS_PER_BLOCK, compile_ptx
from mgvq_export.ops.trt_machine import check_version, import_tensorrt

PLUGIN_ID = f"{DOMAIN}::{OP_NAME}"
#: What the ONNX node must carry to become the plugin: without the namespace the parser inlines the node's function body.
NODE_ATTRIBUTES: dict[str, str | int] = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}

_architecture = 0  # set when the plugin is registered


def is_registered() -> bool:
    """Whether this process has registered the plugin with TensorRT."""
    trtp = _import_plugins(import_tensorrt())
    return hasattr(trtp.op, DOMAIN) and hasattr(getattr(trtp.op, DOMAIN), OP_NAME)


def register_plugin(*, architecture: int) -> None:
    """Register the plugin, so that the ONNX parser finds it; call before parsing. Calling again only sets the architecture.

    Args:
        architecture: lowest compute capability, times ten, that engines built from now on shall run on
            (:func:`~mgvq_export.ops.cuda_kernel.kernel_architecture`).

    Raises:
        BackendError: TensorRT is not usable or too old, or the kernel cannot be compiled here (see :func:`cuda_kernel.compile_ptx`).
    """
    global _architecture
    trt = import_tensorrt()
    trtp = _import_plugins(trt)
    compile_ptx(architecture)  # now, so that a missing compiler is one clear line and not a failure inside the builder
    _architecture = architecture
    if not is_registered():
        _define_plugin(trt, trtp)


def _import_plugins(trt: Untyped) -> ModuleType:
    """``tensorrt.plugin``. It says on standard output that it is experimental, among what our commands print there."""
    check_version(trt)  # before the import: early versions have no such module
    try:
        with _stdout_on_stderr():
            import tensorrt.plugin as trtp
    except ImportError as error:
        reason = f"its module tensorrt.plugin does not load: {error}"
        raise BackendError(f"TensorRT {trt.__version__} is not usable ({reason}); install its Python package again") from None
    return cast(ModuleType, trtp)


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """What C++ code writes to standard output goes to standard error."""
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        yield
        return
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _define_plugin(trt: Untyped, trtp: Untyped) -> None:
    @trtp.register(PLUGIN_ID)
    def describe(latent: trtp.TensorDesc, codebook: trtp.TensorDesc) -> trtp.TensorDesc:
        # [B, G*d, h, w], [G, K, d] -> [B, G, h, w]
        batch, _, height, width = latent.shape_expr
        return trtp.from_shape_expr((batch, codebook.shape_expr[0], height, width), trt.int32)

    @trtp.autotune(PLUGIN_ID)
    def combinations(
        latent: trtp.TensorDesc, codebook: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        # The codebook stays float32 in every precision: the contract sums in float32 and the rows are small.
        return [trtp.AutoTuneCombination("FP32|FP16, FP32, INT32", "LINEAR")]

    @trtp.aot_impl(PLUGIN_ID)
    def kernel(
        latent: trtp.TensorDesc, codebook: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
        # TensorRT keeps one kernel per combination of types, not per shape: everything about shapes goes in as a scalar.
        batch, _, height, width = latent.shape_expr
        groups, rows, dim = codebook.shape_expr
        positions = batch * height * width
        launch = trtp.KernelLaunchParams()
        launch.grid_x = trtp.cdiv(positions, POSITIONS_PER_BLOCK)
        launch.grid_y = groups
        launch.block_x = THREADS_PER_BLOCK
        scalars = trtp.SymIntExprs(4)  # only SymInt32 reaches the kernel; plain integers and sums must be wrapped
        for index, scalar in enumerate((positions, height * width, rows, dim)):
            scalars[index] = trtp.SymInt32(scalar)
        name = KERNEL_NAMES["float16" if latent.dtype == trt.float16 else "float32"]
        return name, compile_ptx(_architecture), launch, scalars
