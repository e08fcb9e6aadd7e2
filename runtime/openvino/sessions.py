"""OpenVINO: sessions over the graphs of a bundle, on the CPU.

A graph of floats is compiled once, for shapes of any size: measured, that is as fast as a compilation for one shape, gives the same
bits, and holds the packed weights once for all shapes. What OpenVINO prepares for a shape it keeps itself, for a bounded number of them.

A graph with 8-bit nodes is compiled for every shape, and a few of those are kept: compiled for any shape, OpenVINO 2026.4 computes
attention over 8-bit values wrongly (a third of the decoder head's output, measured).
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.arrays import DType
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import Part
from mgvq_export.core.types import Untyped
from mgvq_export.ops.contract import DOMAIN, OP_NAME
from mgvq_export.runtime.backend import Array
from mgvq_export.runtime.graphs import LazyGraphs, check_values

if TYPE_CHECKING:
    import openvino

_INTERVAL_MS = 100  # between looks for Ctrl-C
_MOST_SHAPES = 4  # compilations kept of a graph that is compiled for every shape

Shapes = tuple[tuple[int, ...], ...]
Compile = Callable[["openvino.Model"], "openvino.CompiledModel"]

_TABLES = (Part.QUANTIZER, Part.DEQUANTIZER)  # they look rows up, and compute nothing
_DECODER = (Part.DECODER, Part.DECODER_HEAD, Part.DECODER_TRUNK, Part.DECODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE)
_BF16_PARTS: dict[str, tuple[Part, ...]] = {"bf16": _DECODER, "bf16-all": tuple(Part)}


class OpenVinoSession:
    """One graph, ready to run. Thread-safe: every run has a request of its own. Ctrl-C in the main thread ends a run.

    Attributes:
        inputs, outputs: names -> numpy dtypes, in the graph's order.
    """

    def __init__(self, name: str, model: openvino.Model, compile_model: Compile, *, by_shape: bool = False):
        """Use :class:`OpenVinoGraphs`. ``name`` is what messages call the graph; ``by_shape``: compile it for every shape."""
        self._name, self._compile = name, compile_model
        self.inputs: Mapping[str, DType] = {port.any_name: port.element_type.to_dtype() for port in model.inputs}
        self.outputs: Mapping[str, DType] = {port.any_name: port.element_type.to_dtype() for port in model.outputs}
        self._model = model if by_shape else None
        self._compiled: OrderedDict[Shapes, openvino.CompiledModel] = OrderedDict()
        self._lock = threading.Lock()
        if not by_shape:
            self._compiled[()] = compile_model(model)

    def run(self, feeds: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
        """The outputs (all, in the graph's order, when None). Float feeds are cast to the graph's type.

        Raises :class:`BackendError` when OpenVINO fails, or has too little memory.
        """
        values = {name: np.asarray(feeds[name], dtype, order="C") for name, dtype in self.inputs.items()}
        try:
            request = self._compiled_for(values).create_infer_request()
            request.start_async(values, share_inputs=True)
            _finish(request)
        except (RuntimeError, MemoryError) as error:
            text = _reason(error)
            if "alloc" in text.lower() or isinstance(error, MemoryError):
                raise BackendError("OpenVINO ran out of memory; give a --memory-limit so that the image is tiled") from error
            raise BackendError(
                f"openvino cannot run {self._name}: {text}; check the bundle with mgvq-export inspect BUNDLE"
            ) from error
        # The arrays are the request's own memory, which lives as long as they do.
        return [request.get_tensor(name).data for name in outputs or self.outputs]

    def _compiled_for(self, values: Mapping[str, Array]) -> openvino.CompiledModel:
        """The compilation that runs ``values``; of those for one shape, the one used longest ago makes room for a new one."""
        if self._model is None:
            return self._compiled[()]
        key: Shapes = tuple(array.shape for array in values.values())
        with self._lock:
            if key not in self._compiled:
                model = self._model.clone()
                model.reshape({name: list(array.shape) for name, array in values.items()})
                while len(self._compiled) >= _MOST_SHAPES:
                    self._compiled.popitem(last=False)
                self._compiled[key] = self._compile(model)
            self._compiled.move_to_end(key)
            return self._compiled[key]

    def rest(self) -> None:
        """Give back the memory of intermediate values; the next run takes it again."""
        with self._lock:
            for compiled in self._compiled.values():
                compiled.release_memory()


def _finish(request: openvino.InferRequest) -> None:
    """Wait for a request; cancel it when an exception such as KeyboardInterrupt comes meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        request.wait()
        return
    try:
        while not request.wait_for(_INTERVAL_MS):  # returns between signals, so that Python can handle them
            pass
        request.wait()  # raises what went wrong
    except KeyboardInterrupt:
        _cancel(request)
        raise
    except RuntimeError:
        raise
    except BaseException:
        _cancel(request)
        raise


def _cancel(request: openvino.InferRequest) -> None:
    request.cancel()
    with contextlib.suppress(RuntimeError):  # which says that it was cancelled
        request.wait()


def _reason(error: BaseException) -> str:
    """What went wrong, on one line, without the places in OpenVINO's sources."""
    return " ".join(re.sub(r"Exception from \S+:\d+:", "", str(error)).split())[:300]


class QuantizerSession:
    """The quantizer graph: the project's own kernel finds the codes, OpenVINO looks up their rows.

    Attributes:
        inputs, outputs: names -> numpy dtypes, in the graph's order.
    """

    def __init__(self, codebook: Array, lookup: OpenVinoSession, dtype: DType, threads: int):
        """``codebook``: float32 [G, K, d]. ``lookup``: codes -> quantized. ``dtype``: of the latent."""
        self._codebook, self._lookup, self._threads = codebook, lookup, threads
        self.inputs: Mapping[str, DType] = {"latent": dtype}
        self.outputs: Mapping[str, DType] = {"codes": np.dtype(np.int32), **lookup.outputs}

    def run(self, feeds: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
        """``codes`` int32 [B, G, h, w] and ``quantized`` [B, G*d, h, w], or those named. Raises as :class:`OpenVinoSession`."""
        from mgvq_export.ops.cpu_kernel import grouped_argmin

        latent = np.ascontiguousarray(feeds["latent"], self.inputs["latent"])
        found = {"codes": grouped_argmin(latent, self._codebook, threads=self._threads)}
        wanted = outputs or list(self.outputs)
        if set(wanted) - {"codes"}:
            found["quantized"] = self._lookup.run(found)[0]
        return [found[name] for name in wanted]

    def rest(self) -> None:
        """Give back the memory of intermediate values."""
        self._lookup.rest()


AnySession = OpenVinoSession | QuantizerSession


class OpenVinoGraphs(LazyGraphs[AnySession]):
    """The sessions of one bundle and precision, each loaded when first used."""

    def __init__(self, bundle: Bundle, graphs: str, *, precision: str, threads: int):
        """``graphs``: which of the bundle's graphs; ``precision``: what to compute with, the same or made of them."""
        super().__init__()
        self.bundle, self.graphs, self.precision = bundle, graphs, precision
        self._threads = threads
        self._core: openvino.Core | None = None

    def _load(self, part: Part) -> AnySession:
        path = self.bundle.graph_path(self.graphs, part)
        session: AnySession
        try:
            session = self._quantizer(path) if part is Part.QUANTIZER else self._compile(self._read(path), part)
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"openvino cannot load {path.name}: {_reason(error)}") from error
        check_values(self.bundle, self.graphs, part, session.inputs, session.outputs)
        return session

    def rest(self, part: Part) -> None:
        """Give back a part's working memory; its next run takes it again."""
        found = self._loaded.get(part)
        if found is not None:
            found.rest()

    def _read(self, path: Path) -> openvino.Model:
        return self._any_core().read_model(path)

    def _any_core(self) -> openvino.Core:
        import openvino

        if self._core is None:
            self._core = openvino.Core()
        return self._core

    def _compile(self, model: openvino.Model, part: Part) -> OpenVinoSession:
        side = "encoder" if part.value.startswith("encoder") else "decoder"
        eight_bit = part not in _TABLES and self.bundle.kind(self.graphs, side) == "int8"
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if part in _BF16_PARTS.get(self.precision, ()) else "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # other work runs on the same processors
            "CACHE_DIR": "",
        }
        core = self._any_core()
        return OpenVinoSession(str(part), model, lambda some: core.compile_model(some, "CPU", settings), by_shape=eight_bit)

    def _quantizer(self, path: Path) -> QuantizerSession:
        """OpenVINO reads no functions inside a model: the operator becomes a placeholder, which is then cut out."""
        import openvino
        from openvino import opset13 as opset
        from openvino.frontend.onnx import ConversionExtension

        codebooks: list[Array] = []
        places: list[openvino.Output] = []

        def replace(node: Untyped) -> list[openvino.Output]:
            codebook = np.array(node.get_input(1).get_node().data, np.float32)
            groups = np.arange(len(codebook), dtype=np.int64)
            places.append(opset.convert(opset.gather(node.get_input(0), groups, np.int64(1)), np.int32).output(0))
            codebooks.append(codebook)
            return [places[0]]

        core = openvino.Core()  # of its own: extensions stay
        core.add_extension(ConversionExtension(OP_NAME, DOMAIN, replace))
        model = core.read_model(path)
        (latent,) = model.inputs
        codes = opset.parameter([-1, len(codebooks[0]), -1, -1], np.int32, name="codes")
        places[0].replace(codes.output(0))
        lookup = openvino.Model([model.output("quantized").get_node()], [codes], "lookup")
        lookup.inputs[0].get_tensor().set_names({"codes"})
        return QuantizerSession(
            codebooks[0], self._compile(lookup, Part.DEQUANTIZER), latent.element_type.to_dtype(), self._threads
        )
