"""Sessions of ONNX Runtime with the settings that this project's graphs need: the one place that knows them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mgvq_export.core.cgroups import cpu_quota
from mgvq_export.core.processors import usable_cpus

if TYPE_CHECKING:
    import onnxruntime

CPU_PROVIDER = "CPUExecutionProvider"

# ONNX Runtime would rewrite 8-bit graphs: it drops a Relu before a float8 QuantizeLinear and has no float8 kernels for what it makes of it
# (seen in 1.31), and its integer kernels round otherwise than the graph says. With these it computes what is written.
_CONFIG = {"session.disable_quant_qdq": "1"}
# Threads that have no work sleep at once. Otherwise those of one graph keep the processor busy while the next graph runs, in this process or, on a
# server, in another: demo model, 256x256, two cores shared with other work, 34 against 110 ms of processor time an image.
_CONFIG["session.intra_op.allow_spinning"] = "0"
_DISABLED_OPTIMIZERS = ["ReluQuantRewrite"]


def session_options(
    *, threads: int | None = None, keep_memory: bool = True, fused_kernels: bool = False, optimize: bool = True
) -> onnxruntime.SessionOptions:
    """Options for a session that reports nothing below an error.

    Args:
        threads: threads of one operator; all cores when None.
        keep_memory: keep freed memory for the next run. Without, peak memory follows the run under way: the arena keeps the largest
            working set it ever saw, and plans made for one input shape are useless for the next.
        fused_kernels: run ``mgvq::GroupedArgmin`` as the fused CPU kernel; else as its function body.
        optimize: rewrite the graph; off where every value of the graph is asked for.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is None and cpu_quota() is not None:
        threads = (
            usable_cpus()
        )  # ONNX Runtime counts the machine's cores; more threads than the container's quota pays for wait for one another
    if threads is not None:
        options.intra_op_num_threads = threads
    if not keep_memory:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in _CONFIG.items():
        options.add_session_config_entry(key, value)
    if fused_kernels:
        from mgvq_export.ops.ort_kernel import register_ort_kernels

        register_ort_kernels(options)
    return options


def load_graph(
    model: Path | bytes,
    options: onnxruntime.SessionOptions,
    *,
    provider: str = CPU_PROVIDER,
    provider_options: dict[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """A session over a graph, a file or its bytes, on one provider. Raises ONNX Runtime's own errors."""
    import onnxruntime as ort

    source: bytes | str = model if isinstance(model, bytes) else os.fspath(model)
    return ort.InferenceSession(
        source,
        options,
        providers=[provider],
        provider_options=[provider_options or {}],
        disabled_optimizers=_DISABLED_OPTIMIZERS,
    )
