"""TensorRT and the GPU of this process: what an engine is bound to. Nothing here imports TensorRT until it is asked for."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mgvq_export.core.errors import BackendError

OLDEST = (10, 16, 1)  # earlier ones read past the arguments of kernels embedded ahead of time, or lack parser flags
_KEPT_ERRORS = 32
#: The extra brings what is made for CUDA 13, which a driver of CUDA 12 cannot run.
FOR_CUDA_12 = "pip install tensorrt-cu12 'cuda-bindings==12.*' nvidia-cuda-nvrtc-cu12"
_INSTALL = f"pip install 'mgvq-export[tensorrt]' on a machine with a GPU, or with a driver of CUDA 12: {FOR_CUDA_12}"


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
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"TensorRT is not usable ({reason}): {_INSTALL}") from None
    return tensorrt


def find_machine() -> Machine:
    """TensorRT and GPU of this process. Raises :class:`BackendError` with the remedy when one is missing or too old."""
    trt = import_tensorrt()
    check_version(trt)
    gpu, capability = find_gpu()
    return Machine(trt.__version__, gpu, capability)


def check_version(trt: Any) -> None:
    """Raises :class:`BackendError` with the remedy when TensorRT is too old."""
    if version_numbers(trt.__version__) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(
            f"TensorRT {trt.__version__} is too old; wanted {oldest} or newer: pip install -U 'tensorrt>={oldest}', or with a driver "
            f"of CUDA 12: pip install -U 'tensorrt-cu12>={oldest}'"
        )


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
        elif int(status) == int(cudart.cudaError_t.cudaErrorInsufficientDriver):
            _refuse_old_driver(cudart)
    except RuntimeError as failure:  # the bindings find the driver at the first call
        raise BackendError(f"no usable GPU ({str(failure).splitlines()[0]}); {remedy}") from None
    if int(status) != 0:
        raise BackendError(f"no usable GPU ({status.name}); {remedy}")
    return properties.name.rstrip(b"\0").decode(), f"{properties.major}.{properties.minor}"


def _refuse_old_driver(cudart: Any) -> None:
    """Raises :class:`BackendError` when the driver is too old for the bindings. CUDA has the same status for no driver at all."""
    _, driver = cudart.cudaDriverGetVersion()
    _, bindings = cudart.cudaRuntimeGetVersion()
    if driver:
        older = f", or {FOR_CUDA_12}" if driver // 1000 == 12 < bindings // 1000 else ""
        raise BackendError(
            f"no usable GPU: its driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, cuda-bindings is for CUDA "
            f"{bindings // 1000}.{bindings % 1000 // 10}; update the driver{older}"
        )


def current_device() -> int | None:
    """CUDA's current device in this thread, or None where there is none."""
    try:
        cudart = import_cudart()
        status, device = cudart.cudaGetDevice()
    except (BackendError, RuntimeError):
        return None
    return device if int(status) == 0 else None


def use_device(device: int) -> None:
    """Make ``device`` CUDA's current device in this thread: every thread has its own, which is 0 at first."""
    cudart = import_cudart()
    (status,) = cudart.cudaSetDevice(device)
    if int(status) != 0:
        raise BackendError(f"GPU {device} cannot be used ({status.name}); check that nvidia-smi lists it")


@functools.cache
def process_logger(trt: Any) -> Any:
    """The one logger of this process: TensorRT keeps using the first it was given, and may do so after its builder is gone.

    Its ``errors`` are TensorRT's last ones, oldest first; whoever asks TensorRT for something clears them before.
    """

    class Messages(trt.ILogger):
        """Keeps TensorRT's errors; they say why it gave nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
                del self.errors[:-_KEPT_ERRORS]

    return Messages()
