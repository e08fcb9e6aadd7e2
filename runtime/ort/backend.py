"""The backends ``ort-cpu`` and ``ort-cuda``: ONNX Runtime on the CPU or an NVIDIA GPU."""

from __future__ import annotations

import logging
from pathlib import Path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.processors import usable_cpus
from mgvq_export.core.spec import Part
from mgvq_export.runtime.backend import GraphRunner, RunOptions
from mgvq_export.runtime.ort.sessions import OrtGraphs, check_provider
from mgvq_export.runtime.pipeline import HostBackend, default_precision
from mgvq_export.runtime.tiling.costs import CostModel, Speed
from mgvq_export.runtime.tiling.memory import return_freed_memory

_log = logging.getLogger("mgvq_export")

_GPU_BATCHES = (1, 2, 4, 8)

#: On the CPU with its arena, which keeps freed memory for the next run: measured 1.7 to 1.85 times what runs without it take.
_WITH_ARENA = CostModel(maps={"res": 6.2, "evit": 11.2}, decoder_maps={"res": 5.4, "evit": 11.2})

#: By backend and bytes of a number. The GPU's figures are unmeasured: of a data sheet's order, with some hundred kernels to launch in a run.
COST_MODELS = {
    ("ort-cpu", 4): CostModel(),
    ("ort-cuda", 4): CostModel(4, speed=Speed(1e13, 1e10, 2e-3), batches=_GPU_BATCHES, together=2**22),
    ("ort-cuda", 2): CostModel(2, speed=Speed(5e13, 1e10, 2e-3), batches=_GPU_BATCHES, together=2**22),
}


def open_backend(name: str, bundle: Bundle, options: RunOptions, *, required: bool) -> HostBackend | None:
    """ONNX Runtime over ``bundle``; with the default precision fp32, if the bundle has it.

    Raises:
        BundleError: the bundle lacks the precision.
        BackendError: the provider is not installed; when not ``required``, None is returned instead.
    """
    on_host = name == "ort-cpu"
    try:
        check_provider(name)
    except BackendError:
        if required:
            raise
        return None
    # The list of providers says only what the wheel was built with; a device file says that there is a GPU to use.
    if not required and not on_host and not Path("/dev/nvidia0").exists():
        return None
    precision = options.precision or default_precision(bundle)
    bundle.graph(precision, Part.QUANTIZER)  # names the precisions it has when this one is missing
    kinds = {bundle.kind(precision, side) for side in ("encoder", "decoder")}
    if on_host and kinds & {"int8"}:
        _log.warning(
            "%s is no faster than fp32 on ort-cpu: pip install 'mgvq-export[openvino]', then --backend openvino runs it two to four times faster",
            precision,
        )
    limited = options.tiling.limit is not None
    if limited:
        return_freed_memory()
    keeps = on_host and not limited
    threads = options.threads or usable_cpus()
    graphs: GraphRunner = OrtGraphs(bundle, precision, name, threads=threads, keep_memory=keeps)
    if options.instrument:
        graphs = options.instrument(graphs)
    # ONNX Runtime's CPU kernels compute float16 graphs in float32 wherever they have no float16 form.
    itemsize = 4 if on_host or bundle.base(precision) != "fp16" else 2
    model = _WITH_ARENA if keeps else COST_MODELS[name, itemsize]
    return HostBackend(bundle, name, precision, graphs, options.tiling, model, on_host)
