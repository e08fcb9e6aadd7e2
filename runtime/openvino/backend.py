"""The backend ``openvino``: OpenVINO on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.processors import usable_cpus
from mgvq_export.core.spec import Part
from mgvq_export.runtime.backend import BACKENDS, GraphRunner, RunOptions
from mgvq_export.runtime.openvino.sessions import OpenVinoGraphs
from mgvq_export.runtime.pipeline import HostBackend, default_precision
from mgvq_export.runtime.tiling.costs import CostModel, Speed
from mgvq_export.runtime.tiling.memory import return_freed_memory

OLDEST = (2025, 2)  # has CompiledModel.release_memory, and took and gave what the tests want
INSTALL = "pip install 'mgvq-export[openvino]'"


def check_installed() -> str:
    """The installed OpenVINO's version. Raises :class:`BackendError` when there is none, or one older than was tested."""
    if importlib.util.find_spec("openvino") is None:
        raise BackendError(f"openvino is not installed: {INSTALL}, or choose --backend ort-cpu")
    found = importlib.metadata.version("openvino")
    numbers = tuple(int(number) for number in found.split(".")[:2] if number.isdecimal())
    if numbers < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise BackendError(f"openvino {found} is installed; wanted {wanted} or later: {INSTALL}, or choose --backend ort-cpu")
    return found


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 numbers itself (AVX-512 BF16 or AMX); without, OpenVINO would be slower with them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags


#: Maps held at the worst moment, measured, with whole numbers of maps blurred by what OpenVINO reuses.
_MAPS = {"res": 3.2, "evit": 9.6}
_DECODER_MAPS = {"res": 4.0, "evit": 9.6}
_BF16_MAPS = {"res": 2.6, "evit": 9.6}
_REPACKED = 0.13  # of the weights: what a kernel chosen for another size wants in another layout


def cost_model(bundle: Bundle, graphs: str, precision: str, threads: int) -> CostModel:
    """What runs cost with ``graphs`` of the bundle, computing in ``precision``."""
    decoder_maps = _BF16_MAPS if precision != graphs else _DECODER_MAPS
    return CostModel(
        maps=_BF16_MAPS if precision == "bf16-all" else _MAPS,
        decoder_maps=decoder_maps,
        reserve_bytes=int(_REPACKED * bundle.entry(graphs).weights.bytes),
        speed=Speed(7e10, 2e9, 2e-4),
        together=min(2**20, 2**17 * threads),
    )


def _check_weights(bundle: Bundle, graphs: str) -> None:
    """Raise :class:`BackendError` where the weights' file is a link to another folder, which OpenVINO does not follow."""
    weights = bundle.path / bundle.entry(graphs).weights.file
    graph = bundle.path / bundle.graph(graphs, Part.QUANTIZER).file
    if weights.resolve().parent != graph.resolve().parent:
        raise BackendError(
            f"{weights} is a link to another folder, which openvino does not follow: copy the bundle with cp -rL, or choose --backend ort-cpu"
        )


def open_backend(name: str, bundle: Bundle, options: RunOptions, *, required: bool) -> HostBackend | None:
    """OpenVINO over ``bundle``; with the default precision fp32, if the bundle has it.

    Raises :class:`BackendError` when OpenVINO is not installed or cannot run the bundle, or a bfloat16 precision is asked for on a
    processor without; when not ``required``, None is returned instead. Raises :class:`BundleError` when the bundle lacks the precision.
    """
    precision = options.precision or default_precision(bundle)
    graphs = BACKENDS[name].precisions.get(precision, precision)
    bundle.graph(graphs, Part.QUANTIZER)  # names the precisions it has when this one is missing
    try:
        check_installed()
        _check_weights(bundle, graphs)
        if precision != graphs and not has_bf16():
            raise BackendError(f"precision {precision} needs a processor with AVX-512 BF16 or AMX; choose --precision {graphs}")
        if any(bundle.kind(graphs, side) == "fp8" for side in ("encoder", "decoder")):
            raise BackendError(f"{precision} computes with 8-bit floats, which openvino does not run; choose --backend ort-cpu")
    except BackendError:
        if required:
            raise
        return None
    if options.tiling.limit is not None:
        return_freed_memory()
    threads = options.threads or usable_cpus()
    runner: GraphRunner = OpenVinoGraphs(bundle, graphs, precision=precision, threads=threads)
    if options.instrument:
        runner = options.instrument(runner)
    return HostBackend(bundle, name, precision, runner, options.tiling, cost_model(bundle, graphs, precision, threads))
