"""NVIDIA's two libraries and the GPU of this process: what an engine is bound to. Neither library is imported until it is asked for.

TensorRT builds on the GPU that runs the engine. TensorRT for RTX has the same API; it builds on any machine, without a GPU, and finishes
the engine on the user's GPU. This module is the one place that chooses between them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from dataclasses import dataclass
from types import ModuleType
from typing import cast

from mgvq_export.core.errors import BackendError
from mgvq_export.core.types import Untyped

#: The libraries that engines are built for, by the names of ``build --target`` and of the records in a bundle's manifest.
TARGETS = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
OLDEST = (10, 16, 1)  # earlier ones read past the arguments of kernels embedded ahead of time, or lack parser flags
_KEPT_ERRORS = 32
_ACTIVATION = re.compile(r"Total Activation Memory: (\d+) bytes")
#: The extra brings what is made for CUDA 13, which a driver of CUDA 12 cannot run.
FOR_CUDA_12 = "pip install tensorrt-cu12 'cuda-bindings==12.*' nvidia-cuda-nvrtc-cu12"
_INSTALL = f"pip install 'mgvq-export[tensorrt]' on a machine with a GPU, or with a driver of CUDA 12: {FOR_CUDA_12}"


@dataclass(frozen=True)
class Machine:
    """What an engine is bound to.

    Attributes:
        tensorrt: version of the library, as in its ``__version__``.
        gpu, compute_capability: as the driver names it, and such as ``9.0``; empty for engines that are built for no one GPU.
        target: the library, a key of :data:`TARGETS`.
    """

    tensorrt: str
    gpu: str = ""
    compute_capability: str = ""
    target: str = "tensorrt"

    @property
    def folder(self) -> str:
        """Name of its folder inside ``engines``."""
        if self.target == "rtx":
            return f"rtx-{self.tensorrt}"
        return f"{re.sub(r'[^a-z0-9]+', '-', self.gpu.lower()).strip('-')}-trt{self.tensorrt}"

    def __str__(self) -> str:
        library = f"{TARGETS[self.target]} {self.tensorrt}"
        return f"{self.gpu} with {library}" if self.gpu else library


def import_tensorrt(target: str = "tensorrt") -> ModuleType:
    """The module ``tensorrt`` or, for the target ``rtx``, ``tensorrt_rtx``.

    Raises :class:`BackendError`, with the remedy, when it is missing or its libraries do not load.
    """
    name, install = ("tensorrt_rtx", "pip install 'mgvq-export[rtx]'") if target == "rtx" else ("tensorrt", _INSTALL)
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
    if target != "rtx" and importlib.util.find_spec("tensorrt_rtx"):
        install += "; TensorRT for RTX is installed, for GeForce and RTX GPUs: --target rtx builds its engines"
    raise BackendError(f"{TARGETS[target]} is not usable ({reason}): {install}")


def find_machine(target: str = "tensorrt") -> Machine:
    """The library and the GPU of this process. Raises :class:`BackendError` with the remedy when one is missing or too old."""
    trt = import_tensorrt(target)
    if target == "tensorrt":
        check_version(trt)
    gpu, capability = find_gpu()
    return Machine(trt.__version__, gpu, capability, target)


def find_rtx_library() -> Machine:
    """TensorRT for RTX, which needs no GPU to build. Raises :class:`BackendError` with the remedy when it is missing."""
    return Machine(import_tensorrt("rtx").__version__, target="rtx")


def rtx_capabilities() -> dict[str, Untyped]:
    """The compute capabilities that TensorRT for RTX can build for, such as ``8.6``, and the member of its enum for each."""
    members = import_tensorrt("rtx").ComputeCapability.__members__
    numbers = {name: re.fullmatch(r"SM(\d+)(\d)", name) for name in members}
    return {f"{match[1]}.{match[2]}": members[name] for name, match in numbers.items() if match}


def check_version(trt: Untyped) -> None:
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
    return cast(ModuleType, cudart)


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


def _refuse_old_driver(cudart: Untyped) -> None:
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
def process_logger(trt: Untyped) -> Untyped:
    """The one logger of this process: TensorRT keeps using the first it was given, and may do so after its builder is gone.

    Its ``errors`` are TensorRT's last ones, oldest first; clear them before TensorRT is asked for something.
    Its ``activation_bytes`` is the device memory that the last engine built needs for activations; None: TensorRT did not say.
    """

    class Messages(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types here
        """Keeps TensorRT's errors, which say why it gave nothing, and the memory that it plans."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.activation_bytes: int | None = None

        def log(self, level: Untyped, message: str) -> None:
            if level in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
                del self.errors[:-_KEPT_ERRORS]
            elif match := _ACTIVATION.search(message):
                self.activation_bytes = max(int(match[1]), self.activation_bytes or 0)

    return Messages()
