"""TensorRT and the GPU of this process: what an engine is bound to. Nothing here imports TensorRT until it is asked for."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mgvq_export.errors import BackendError

OLDEST = (10, 16, 1)  # earlier ones read past the arguments of kernels embedded ahead of time, or lack parser flags
_KEPT_ERRORS = 32
_INSTALL = "pip install 'mgvq-export[tensorrt]' on a machine with a GPU"


@dataclass(frozen=True)
class Machine:
    """What an engine is bound to: TensorRT's version, the GPU's name and its compute capability."""

    tensorrt: str
    gpu: str
    compute_capability: str

    @property
    def folder(self) -> str:
        """Name of its folder inside ``engines``."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.gpu.lower()).strip('-')}-trt{self.tensorrt}"

    def __str__(self) -> str:
        return f"{self.gpu} with TensorRT {self.tensorrt}"


def import_tensorrt() -> ModuleType:
    """The ``tensorrt`` module. Raises BackendError, with the remedy, when it is missing or its libraries do not load."""
    try:
        import tensorrt
        import tensorrt.plugin
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"TensorRT is not usable ({reason}): {_INSTALL}") from None
    return tensorrt


def find_machine() -> Machine:
    """TensorRT and GPU of this process. Raises :class:`BackendError` with the remedy when one is missing or too old."""
    trt = import_tensorrt()
    if version_numbers(trt.__version__) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(
            f"TensorRT {trt.__version__} is too old; wanted {oldest} or newer: pip install -U 'tensorrt>={oldest}'"
        )
    gpu, capability = find_gpu()
    return Machine(trt.__version__, gpu, capability)


def version_numbers(version: str) -> tuple[int, ...]:
    """``"11.4.0.106"`` -> (11, 4, 0): what decides about compatibility."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def import_cudart() -> ModuleType:
    """``cuda.bindings.runtime``. Raises :class:`BackendError` with the remedy when it is not installed."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        raise BackendError(f"TensorRT engines need cuda-bindings ({error}): {_INSTALL}") from None
    return cudart


def find_gpu() -> tuple[str, str]:
    """Name and compute capability of the current CUDA device. Raises :class:`BackendError` when there is none."""
    remedy = "engines are built and run on an NVIDIA GPU: install NVIDIA's driver and check that nvidia-smi lists a GPU"
    cudart = import_cudart()
    try:
        status, device = cudart.cudaGetDevice()
        if int(status) == 0:
            status, properties = cudart.cudaGetDeviceProperties(device)
    except RuntimeError as failure:  # the bindings find the driver at the first call
        raise BackendError(f"no usable GPU ({str(failure).splitlines()[0]}); {remedy}") from None
    if int(status) != 0:
        raise BackendError(f"no usable GPU ({status.name}); {remedy}")
    return properties.name.rstrip(b"\0").decode(), f"{properties.major}.{properties.minor}"


@functools.cache
def process_logger(trt: Any) -> Any:
    """The one logger of this process: TensorRT keeps using the first it was given, and may do so after its builder is gone.

    Its ``errors`` are TensorRT's last ones, oldest first; whoever asks TensorRT for something clears them before.
    """
    severity = trt.ILogger.Severity

    class Messages(trt.ILogger):
        """Keeps TensorRT's errors; they say why it gave nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)
                del self.errors[:-_KEPT_ERRORS]

    return Messages()
