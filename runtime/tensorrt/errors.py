"""What TensorRT reports as errors, and how it becomes an exception of ours."""

from __future__ import annotations

import re
from types import ModuleType

from mgvq_export.core.errors import BackendError
from mgvq_export.core.types import Untyped
from mgvq_export.ops.trt_machine import process_logger
from mgvq_export.runtime.tensorrt.cuda import OutOfDeviceMemory

_NO_DRIVER = re.compile(r"cudaError 35\b|CUDA driver version is insufficient")
#: What TensorRT and CUDA say when the GPU's memory does not suffice.
_OUT_OF_MEMORY = re.compile("out of memory|OutOfMemory|could not be allocated", re.IGNORECASE)


class ErrorLog:
    """What TensorRT reports as errors: through a recorder, which it asks to be given, and through the process's logger."""

    def __init__(self, trt: ModuleType):
        self._logger = process_logger(trt)
        self._trt = trt
        self.recorder = error_recorder(trt)

    def clear(self) -> None:
        """Forget all errors so far."""
        self.recorder.clear()
        self._logger.errors.clear()

    def __bool__(self) -> bool:
        return bool(self.recorder.num_errors())

    def first(self, otherwise: str = "no reason given") -> str:
        """The first error on one line."""
        texts = [text for _, text in self.recorder.errors] + self._logger.errors
        return _shortened(texts[0] if texts else otherwise)

    def raise_first(self, what: str, remedy: str) -> None:
        """Raise what TensorRT reported: :class:`OutOfDeviceMemory` when that is the reason, else :class:`BackendError`."""
        reason, shortage = self.first(), self._shortage()
        self.clear()
        if shortage is not None:
            raise OutOfDeviceMemory(
                f"{what}: the GPU is out of memory ({_shortened(shortage)}); close other programs that use it"
            )
        if _NO_DRIVER.search(reason):
            remedy = "install or update NVIDIA's driver, and check that nvidia-smi lists a GPU"
        raise BackendError(f"{what}: {reason}; {remedy}")

    def _shortage(self) -> str | None:
        """The error that says that memory ran out, which need not be the first."""
        failed = self._trt.ErrorCodeTRT.FAILED_ALLOCATION
        errors = self.recorder.errors + [(None, text) for text in self._logger.errors]
        return next((text for code, text in errors if code == failed or _OUT_OF_MEMORY.search(text)), None)


def _shortened(text: str) -> str:
    return " ".join(text.split())[:400]


def error_recorder(trt: Untyped) -> Untyped:
    """An ``IErrorRecorder`` that keeps the errors it is told."""

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]  # TensorRT has no types
        """Keeps TensorRT's errors until they are cleared. TensorRT calls it from any thread; appending is atomic."""

        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.errors: list[tuple[Untyped, str]] = []

        def num_errors(self) -> int:
            return len(self.errors)

        get_num_errors = num_errors  # the name that TensorRT's C++ code calls it by

        def get_error_code(self, index: int) -> Untyped:
            return self.errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.errors.clear()

        def report_error(self, code: Untyped, text: str) -> bool:
            self.errors.append((code, text))
            return False

    return Recorder()
