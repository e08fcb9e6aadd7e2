"""Engine files -> engines in memory, safely.

An engine is a program: deserialising a forged one can do anything. So its bytes are compared with the hash in the manifest
first, what lies outside a bundle is loaded only when the user trusts it, and host code inside an engine stays off unless allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError
from mgvq_export.core.files import PathLike, unreadable
from mgvq_export.core.manifest import EngineRecord
from mgvq_export.core.remedies import build_command
from mgvq_export.core.types import Untyped
from mgvq_export.ops.trt_machine import TARGETS, Machine, find_machine, import_tensorrt, process_logger
from mgvq_export.runtime.tensorrt.errors import ErrorLog
from mgvq_export.runtime.tensorrt.records import (
    HOST_CODE,
    PERMISSION,
    engine_problems,
    find_record,
    needs_host_code,
    without_host_code,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadedEngine:
    """A deserialised engine.

    Attributes:
        engine: ``tensorrt.ICudaEngine``.
        record: its entry in the bundle's manifest; None for a file of no bundle.
        name: what messages call it, e.g. ``fp16/encoder``.
        inputs, outputs: numpy dtypes by name.
        loader: TensorRT's runtime and error recorder, which must live as long as the engine.
    """

    engine: Untyped
    record: EngineRecord | None
    name: str
    inputs: dict[str, np.dtype]
    outputs: dict[str, np.dtype]
    loader: EngineLoader = field(repr=False)


def load_engine(path: PathLike, *, trust: bool = False, allow_host_code: bool = False) -> LoadedEngine:
    """The engine in the file ``path``.

    Args:
        trust: load a file that lies in no bundle, so its hash cannot be checked.
        allow_host_code: let the engine run code of its own on the host, which version-compatible ones need.

    Raises:
        InputError: no such file, or it lies outside a bundle and is not trusted.
        BundleError: the file has changed since it was built.
        BackendError: no TensorRT or GPU, an engine of another version or GPU, or TensorRT refuses it.
    """
    found = find_record(path)
    loader = EngineLoader(find_machine(found[1].target if found else "tensorrt"), allow_host_code=allow_host_code)
    if found is not None:
        return loader.load(*found)
    if not Path(path).is_file():
        raise InputError(f"cannot read {path}: no such file; give the path of an engine")
    if not trust:
        raise InputError(
            f"{path} lies in no bundle, so nothing says who made it, and an engine can run code: pass trust if you made it yourself"
        )
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return loader.deserialize(data, Path(path).name, None)


class EngineLoader:
    """The runtime of TensorRT, or TensorRT for RTX, on this machine.

    Raises BackendError, as all methods do, when TensorRT does not start.
    """

    def __init__(self, machine: Machine, *, allow_host_code: bool = False):
        self.machine = machine
        self.allow_host_code = allow_host_code
        self.trt = trt = import_tensorrt(machine.target)
        self.errors = ErrorLog(trt)
        self.errors.clear()  # the logger keeps errors of earlier uses of TensorRT
        try:
            self.runtime = runtime = trt.Runtime(process_logger(trt))
        except Exception as error:  # the bindings raise TypeError when the library gives no runtime
            raise BackendError(
                f"{TARGETS[machine.target]} does not start ({self.errors.first(str(error))}); check the driver with nvidia-smi"
            ) from error
        runtime.error_recorder = self.errors.recorder
        if allow_host_code:
            runtime.engine_host_code_allowed = True

    def load(self, bundle: Bundle, record: EngineRecord) -> LoadedEngine:
        """The engine of ``record``, once versions, GPU, permissions and bytes are found right."""
        name = f"{record.precision}/{record.part}"
        remedy = f"build it again: {build_command(bundle.path, bundle.spec, record)}"
        problems = engine_problems(record, self.machine)
        if problems:
            raise BackendError(f"the engine {name} cannot run here: {problems[0]}; {remedy}")
        if needs_host_code(record) and not self.allow_host_code:
            raise BackendError(
                f"the engine {name} is not loaded: {HOST_CODE}; {PERMISSION}, or build it without: "
                f"{build_command(bundle.path, bundle.spec, without_host_code(record))}"
            )
        loaded = self.deserialize(bundle.read_file(record), name, record)
        found = (loaded.inputs | loaded.outputs, loaded.engine.num_optimization_profiles)
        wanted = {value.name: np.dtype(value.dtype) for value in (*record.inputs, *record.outputs)}
        if found != (wanted, max(1, len(record.profiles))):
            raise BundleError(f"the engine {name} is not what the manifest says (inputs, outputs or profiles differ); {remedy}")
        return loaded

    def deserialize(self, data: bytes, name: str, record: EngineRecord | None) -> LoadedEngine:
        """The engine in ``data``, without checking it: the caller has found that it may be trusted."""
        self.errors.clear()
        engine = self.runtime.deserialize_cuda_engine(data)
        if engine is None:
            self.errors.raise_first(
                f"{TARGETS[self.machine.target]} {self.machine.tensorrt} cannot load the engine {name}", "build it again"
            )
        trt = self.trt
        inputs: dict[str, np.dtype] = {}
        outputs: dict[str, np.dtype] = {}
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            if engine.get_tensor_location(tensor) != trt.TensorLocation.DEVICE:
                raise BackendError(f"the engine {name} wants {tensor} in host memory; build it again with this release")
            side = inputs if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT else outputs
            side[tensor] = _dtype(trt, engine.get_tensor_dtype(tensor), name)
        return LoadedEngine(engine, record, name, inputs, outputs, self)


def _dtype(trt: ModuleType, dtype: Untyped, name: str) -> np.dtype:
    known = {
        trt.float32: "float32",
        trt.float16: "float16",
        trt.int32: "int32",
        trt.int64: "int64",
        trt.uint8: "uint8",
        trt.bool: "bool",
    }
    if dtype not in known:
        raise BackendError(f"the engine {name} has an input or output of type {dtype}; wanted {', '.join(known.values())}")
    return np.dtype(known[dtype])
