"""ONNX Runtime: sessions over the graphs of a bundle, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.precision_plan import ORT_CONFIG, ORT_DISABLED_OPTIMIZERS
from mgvq_export.core.spec import Part

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}


class OrtSession:
    """One graph, ready to run. Thread-safe, as ONNX Runtime's sessions are.

    Attributes:
        inputs, outputs: names -> numpy dtypes, in the graph's order.
    """

    def __init__(self, path: Path, backend: str = "ort-cpu", *, threads: int | None = None, fused_kernels: bool = True):
        """Load the graph at ``path``.

        Args:
            backend: ``ort-cpu`` or ``ort-cuda``.
            threads: threads of one operator; all cores when None.
            fused_kernels: run ``mgvq::GroupedArgmin`` as the fused CPU kernel; else as its function body.

        Raises:
            BackendError: the provider is not installed, or did not load.
        """
        import onnxruntime as ort

        provider = PROVIDERS[backend]
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"{backend} needs ONNX Runtime's {provider}; installed are {', '.join(ort.get_available_providers())}: "
                "pip install onnxruntime-gpu, or choose --backend ort-cpu"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # The arena keeps the largest working set it ever saw, and plans made for one input shape are useless for the next:
        # without them peak memory follows the windows that run now, which is what the planner predicts.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        for key, value in ORT_CONFIG.items():
            options.add_session_config_entry(key, value)
        if fused_kernels and backend == "ort-cpu":
            from mgvq_export.ops import register_ort_kernels

            register_ort_kernels(options)
        try:
            # TF32, which CUDA convolutions use unless told otherwise, moves float32 codes between near-equal rows.
            settings = {"use_tf32": "0"} if backend == "ort-cuda" else {}
            self._session = ort.InferenceSession(
                str(path),
                options,
                providers=[provider],
                provider_options=[settings],
                disabled_optimizers=ORT_DISABLED_OPTIMIZERS,
            )
        except Exception as error:
            raise BackendError(f"{backend} cannot load {path.name}: {' '.join(str(error).split())[:300]}") from error
        if provider not in self._session.get_providers():
            # ONNX Runtime falls back to the CPU with a warning only.
            raise BackendError(
                f"{backend}: ONNX Runtime did not load {provider}; run mgvq-export doctor, or choose --backend ort-cpu"
            )
        self.inputs: Mapping[str, np.dtype] = {value.name: _dtype(value.type) for value in self._session.get_inputs()}
        self.outputs: Mapping[str, np.dtype] = {value.name: _dtype(value.type) for value in self._session.get_outputs()}

    def run(self, feeds: Mapping[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
        """The outputs (all, in the graph's order, when None). Float feeds are cast to the graph's type."""
        values = {name: np.ascontiguousarray(feeds[name], dtype) for name, dtype in self.inputs.items()}
        try:
            return self._session.run(outputs, values)
        except Exception as error:
            if "alloc" in str(error).lower() or isinstance(error, MemoryError):
                raise BackendError("ONNX Runtime ran out of memory; give a --memory-limit so that the image is tiled") from error
            raise


def _dtype(name: str) -> np.dtype[Any]:
    """numpy dtype of an ONNX Runtime type name such as ``tensor(float16)``."""
    kind = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))


class OrtSessions:
    """The sessions of one bundle and precision, each loaded when first used."""

    def __init__(self, bundle: Bundle, precision: str, backend: str, *, threads: int | None = None):
        self.bundle, self.precision, self.backend = bundle, precision, backend
        self._threads = threads
        self._loaded: dict[Part, OrtSession] = {}

    def __getitem__(self, part: Part) -> OrtSession:
        if part not in self._loaded:
            self._loaded[part] = OrtSession(self.bundle.graph_path(self.precision, part), self.backend, threads=self._threads)
        return self._loaded[part]

    def drop(self, part: Part) -> None:
        """Drop one session, if loaded, and its memory."""
        self._loaded.pop(part, None)

    def close(self) -> None:
        """Drop all sessions and their memory."""
        self._loaded.clear()
