"""ONNX Runtime: sessions over the graphs of a bundle, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.arrays import DType
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.manifest import WEIGHTS
from mgvq_export.core.spec import Part
from mgvq_export.ops.ort_session import CPU_PROVIDER, load_graph, session_options
from mgvq_export.runtime.backend import Array
from mgvq_export.runtime.graphs import LazyGraphs, check_values
from mgvq_export.runtime.interrupt import run_interruptibly

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {"ort-cpu": CPU_PROVIDER, "ort-cuda": "CUDAExecutionProvider"}


def check_provider(backend: str) -> None:
    """Raise :class:`BackendError` when the installed ONNX Runtime was built without what ``backend`` needs."""
    import onnxruntime as ort

    provider, there = PROVIDERS[backend], ort.get_available_providers()
    if provider not in there:
        raise BackendError(
            f"{backend} needs ONNX Runtime's {provider}; installed are {', '.join(there)}: "
            "pip install onnxruntime-gpu, or choose --backend ort-cpu"
        )


class OrtSession:
    """One graph, ready to run. Thread-safe, as ONNX Runtime's sessions are. Ctrl-C in the main thread ends a run.

    Attributes:
        inputs, outputs: names -> numpy dtypes, in the graph's order.
    """

    def __init__(
        self,
        path: Path,
        backend: str = "ort-cpu",
        *,
        threads: int | None = None,
        fused_kernels: bool = True,
        keep_memory: bool = False,
    ):
        """Load the graph at ``path``.

        Args:
            backend: ``ort-cpu`` or ``ort-cuda``.
            threads: threads of one operator; all cores when None.
            fused_kernels: run ``mgvq::GroupedArgmin`` as the fused CPU kernel; else as its function body.
            keep_memory: keep freed memory for the next run: faster, and the peak is higher.

        Raises:
            BackendError: the provider is not installed, or did not load.
        """
        check_provider(backend)
        options = session_options(threads=threads, keep_memory=keep_memory, fused_kernels=fused_kernels and backend == "ort-cpu")
        provider = PROVIDERS[backend]
        # TF32, which CUDA convolutions use unless told otherwise, moves float32 codes between near-equal rows.
        settings = {"use_tf32": "0"} if backend == "ort-cuda" else {}
        try:
            weights = _give_linked_weights(path, options)
            self._session = load_graph(path, options, provider=provider, provider_options=settings)
            del weights  # ONNX Runtime has copied what it needs
        except Exception as error:
            raise BackendError(f"{backend} cannot load {path.name}: {_one_line(error)}") from error
        if provider not in self._session.get_providers():
            # ONNX Runtime falls back to the CPU with a warning only.
            raise BackendError(
                f"{backend}: ONNX Runtime did not load {provider}; run mgvq-export doctor, or choose --backend ort-cpu"
            )
        self._backend, self._name = backend, path.stem
        self._kernel_threads = threads if fused_kernels and backend == "ort-cpu" else None
        self.inputs: Mapping[str, DType] = {value.name: _dtype(value.type) for value in self._session.get_inputs()}
        self.outputs: Mapping[str, DType] = {value.name: _dtype(value.type) for value in self._session.get_outputs()}

    def run(self, feeds: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
        """The outputs (all, in the graph's order, when None). Float feeds are cast to the graph's type.

        Raises :class:`BackendError` when ONNX Runtime fails, or has too little memory.
        """
        import onnxruntime as ort

        values = {name: np.ascontiguousarray(feeds[name], dtype) for name, dtype in self.inputs.items()}
        options = ort.RunOptions()

        def work() -> list[Array]:
            with self._kernels():
                found: list[Array] = self._session.run(outputs, values, options)
            return found

        def stop() -> None:
            options.terminate = True

        try:
            return run_interruptibly(work, stop)
        except Exception as error:
            if "alloc" in str(error).lower() or isinstance(error, MemoryError):
                raise BackendError("ONNX Runtime ran out of memory; give a --memory-limit so that the image is tiled") from error
            raise BackendError(
                f"{self._backend} cannot run {self._name}: {_one_line(error)}; check the bundle with mgvq-export inspect BUNDLE"
            ) from error

    def _kernels(self) -> contextlib.AbstractContextManager[None]:
        if self._kernel_threads is None:
            return contextlib.nullcontext()
        from mgvq_export.ops.cpu_kernel import limited_threads

        return limited_threads(self._kernel_threads)


def _give_linked_weights(path: Path, options: onnxruntime.SessionOptions) -> Array | None:
    """Hand over the weights' bytes where their file is a link to another folder, which ONNX Runtime refuses to follow.

    Returns the bytes, which must live until the session is made.
    """
    weights = path.parent / WEIGHTS
    if not weights.exists() or weights.resolve().parent == path.resolve().parent:
        return None
    data = np.memmap(weights, np.uint8, mode="r")
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [data], [data.nbytes])
    return data


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _dtype(name: str) -> DType:
    """numpy dtype of an ONNX Runtime type name such as ``tensor(float16)``."""
    kind = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))


class OrtGraphs(LazyGraphs[OrtSession]):
    """The sessions of one bundle and precision, each loaded when first used."""

    def __init__(self, bundle: Bundle, precision: str, backend: str, *, threads: int | None = None, keep_memory: bool = False):
        super().__init__()
        self.bundle, self.precision, self.backend = bundle, precision, backend
        self._threads, self._keep_memory = threads, keep_memory

    def rest(self, part: Part) -> None:
        """Give back a part's working memory: what a session has kept, it gives back only as a whole."""
        if self._keep_memory:
            self.drop(part)

    def _load(self, part: Part) -> OrtSession:
        path = self.bundle.graph_path(self.precision, part)
        fused = part is Part.QUANTIZER  # the only graph with the operator; the kernel's libraries take half a second to load
        session = OrtSession(path, self.backend, threads=self._threads, fused_kernels=fused, keep_memory=self._keep_memory)
        check_values(self.bundle, self.precision, part, session.inputs, session.outputs)
        return session
