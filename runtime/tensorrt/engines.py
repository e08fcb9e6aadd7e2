"""TensorRT engines on disk -> in memory: which of a bundle's engines run on this machine, and loading them safely.

An engine is a program: deserialising a forged one can do anything. So its bytes are compared with the hash in the manifest
first, what lies outside a bundle is loaded only when the user trusts it, and host code inside an engine stays off unless allowed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mgvq_export.core.bundle import MANIFEST, Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError
from mgvq_export.core.files import PathLike, unreadable
from mgvq_export.core.manifest import EngineRecord
from mgvq_export.core.remedies import build_command, build_pattern, engine_sizes
from mgvq_export.core.spec import TRUNKS, Part
from mgvq_export.ops.cuda_kernel import kernel_source_sha256
from mgvq_export.ops.trt_machine import Machine, find_machine, import_tensorrt, process_logger, version_numbers
from mgvq_export.runtime.tensorrt.cuda import OutOfDeviceMemory

Shape = tuple[int, ...]

_AMPERE = (8, 0)  # hardware-compatible engines run from here on
_OTHER_GRAPHS = "it was built from other graphs than the bundle has now"
_HOST_CODE = "it is version-compatible and so runs code of its own on the host"
_PERMISSION = "if you trust whoever built it, give encode, decode, reconstruct, eval or inspect --allow-host-code (in Python allow_host_code=True)"
#: What TensorRT and CUDA say when the GPU's memory does not suffice.
_OUT_OF_MEMORY = re.compile("out of memory|OutOfMemory|could not be allocated", re.IGNORECASE)


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

    engine: Any
    record: EngineRecord | None
    name: str
    inputs: dict[str, np.dtype]
    outputs: dict[str, np.dtype]
    loader: EngineLoader = field(repr=False)


def engine_problems(record: EngineRecord, machine: Machine) -> list[str]:
    """Why the engine of ``record`` cannot run on ``machine``: a plain sentence each; empty when it can."""
    options, problems = record.options, []
    built, here = record.tensorrt, machine.tensorrt
    if built != here:
        if not options.version_compatible:
            problems.append(f"it was built with TensorRT {built}, here is {here}")
        elif version_numbers(built) > version_numbers(here):
            problems.append(f"it was built with TensorRT {built}, here is {here}, which is older")
    gpu, capability = record.gpu, record.compute_capability
    if (gpu, capability) != (machine.gpu, machine.compute_capability):
        if not options.hardware_compatible:
            problems.append(f"it was built on {gpu} ({capability}), here is {machine.gpu} ({machine.compute_capability})")
        elif version_numbers(machine.compute_capability) < _AMPERE:
            problems.append(f"it runs on GPUs from compute capability 8.0 on, {machine.gpu} has {machine.compute_capability}")
    return problems


def usable_engines(
    bundle: Bundle, precision: str, machine: Machine, *, allow_host_code: bool = False
) -> dict[Part, EngineRecord]:
    """The engines of ``bundle`` that can run on ``machine`` and were built from what it and this release have now, by part.

    Of several, one without code of its own for the host wins, then one built on this very machine over a compatible one.

    Args:
        allow_host_code: take engines with code of their own for the host as well; loading them takes the permission again.
    """
    found: dict[Part, tuple[tuple[bool, bool], EngineRecord]] = {}
    for record in bundle.engines:
        part = record.known_part
        if part is None or record.precision != precision or _unusable(bundle, record, machine, allow_host_code):
            continue
        here = (record.gpu, record.tensorrt) == (machine.gpu, machine.tensorrt)
        rank = (not needs_host_code(record), here)
        if part not in found or rank > found[part][0]:
            found[part] = (rank, record)
    return {part: record for part, (_, record) in found.items()}


def missing_reason(
    bundle: Bundle, precision: str, machine: Machine, *, allow_host_code: bool = False, part: Part | None = None
) -> str:
    """Why :func:`usable_engines` gives nothing, or none of ``part``, in one line with the remedy."""
    records = [record for record in bundle.engines if record.precision == precision]
    if not records:
        others = sorted({record.precision for record in bundle.engines} - {precision})
        there = f" (it has {', '.join(others)} ones)" if others else ""
        return (
            f"{bundle.path} has no {precision} TensorRT engines{there}; build them here: {build_pattern(bundle.path, precision)}"
        )
    record = [record for record in records if part is None or record.part == part][-1]
    problem = _unusable(bundle, record, machine, allow_host_code)
    permission = ""
    if problem == _HOST_CODE:
        permission, record = f"{_PERMISSION}, or ", _without_host_code(record)
    build = _build_all(bundle, record) if part is None else build_command(bundle.path, bundle.spec, record)
    return (
        f"the {precision} TensorRT engines of {bundle.path} do not run here: of {record.part}, {problem}; "
        f"{permission}build them here: {build}"
    )


def _unusable(bundle: Bundle, record: EngineRecord, machine: Machine, allow_host_code: bool) -> str:
    """Why the engine of ``record`` is not to be run on ``machine``, in a plain sentence; empty when it is."""
    for problem in engine_problems(record, machine):
        return problem
    entry = bundle.manifest.precisions.get(record.precision)
    graph = entry.graphs.get(record.known_part) if entry and record.known_part else None
    if entry is None or graph is None or (record.graph_sha256, record.weights_sha256) != (graph.sha256, entry.weights.sha256):
        return _OTHER_GRAPHS
    if record.kernel and record.kernel.source_sha256 != kernel_source_sha256():
        return "the quantizer's GPU kernel inside it is not the one of this release"
    return _HOST_CODE if needs_host_code(record) and not allow_host_code else ""


def needs_host_code(record: EngineRecord) -> bool:
    """Whether the engine of ``record`` runs code of its own on the host."""
    return record.options.version_compatible


def _without_host_code(record: EngineRecord) -> EngineRecord:
    return replace(record, options=replace(record.options, version_compatible=False))


def _build_all(bundle: Bundle, like: EngineRecord) -> str:
    """The command that builds what was built with the engine ``like``, in one piece or in windows, with its options."""
    key = (like.precision, like.gpu, like.tensorrt)
    together = {each.known_part: each for each in bundle.engines if (each.precision, each.gpu, each.tensorrt) == key}
    held = {part: engine_sizes(bundle.spec, each) for part, each in together.items() if part is not None}
    shapes = list(dict.fromkeys(size for part, sizes in held.items() if part not in TRUNKS for size, _ in sizes))
    whole = [part for part in held if part in (Part.ENCODER, Part.DECODER)]
    trunks = [part for part, sizes in held.items() if part in TRUNKS and len(sizes) == 1]
    if not shapes or not (whole or trunks):
        return build_command(bundle.path, bundle.spec, like)
    part = (whole or trunks)[0]
    record = replace(together[part], options=like.options)  # the batch is of images, or of windows
    return build_command(bundle.path, bundle.spec, record, shapes=shapes, tile=None if whole else held[part][0][0])


def find_record(path: PathLike) -> tuple[Bundle, EngineRecord] | None:
    """The bundle that ``path`` lies in, and the engine's entry in its manifest; None for a file that no bundle vouches for."""
    path = Path(path).resolve()
    for folder in path.parents:
        if not (folder / MANIFEST).is_file():
            continue
        try:
            bundle = Bundle.open(folder)
        except BundleError:
            continue
        for record in bundle.engines:
            if (folder / record.file).resolve() == path:
                return bundle, record
    return None


def load_engine(path: PathLike, *, trust: bool = False, allow_host_code: bool = False) -> LoadedEngine:
    """The engine in the file ``path``.

    Args:
        trust: load a file that lies in no bundle, whose bytes nothing vouches for.
        allow_host_code: let the engine run code of its own on the host, which version-compatible ones need.

    Raises:
        InputError: no such file, or it lies outside a bundle and is not trusted.
        BundleError: the file has changed since it was built.
        BackendError: no TensorRT or GPU, an engine of another version or GPU, or TensorRT refuses it.
    """
    loader = EngineLoader(find_machine(), allow_host_code=allow_host_code)
    found = find_record(path)
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
    """TensorRT's runtime on this machine.

    Raises BackendError, as all methods do, when TensorRT does not start.
    """

    def __init__(self, machine: Machine, *, allow_host_code: bool = False):
        self.machine = machine
        self.allow_host_code = allow_host_code
        self.trt = trt = import_tensorrt()
        self.errors = ErrorLog(trt)
        self.errors.clear()  # the logger has those of whoever used TensorRT before
        try:
            self.runtime = runtime = trt.Runtime(process_logger(trt))
        except Exception as error:  # the bindings raise TypeError when the library gives no runtime
            raise BackendError(
                f"TensorRT does not start ({self.errors.first(str(error))}); check the driver with nvidia-smi"
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
                f"the engine {name} is not loaded: {_HOST_CODE}; {_PERMISSION}, or build it without: "
                f"{build_command(bundle.path, bundle.spec, _without_host_code(record))}"
            )
        loaded = self.deserialize(bundle.read_file(record), name, record)
        found = (loaded.inputs | loaded.outputs, loaded.engine.num_optimization_profiles)
        wanted = {value.name: np.dtype(value.dtype) for value in (*record.inputs, *record.outputs)}
        if found != (wanted, max(1, len(record.profiles))):
            raise BundleError(f"the engine {name} is not what the manifest says (inputs, outputs or profiles differ); {remedy}")
        return loaded

    def deserialize(self, data: bytes, name: str, record: EngineRecord | None) -> LoadedEngine:
        """The engine in ``data``, whatever it is: whoever calls this has found that it may be trusted."""
        self.errors.clear()
        engine = self.runtime.deserialize_cuda_engine(data)
        if engine is None:
            self.errors.raise_first(
                f"TensorRT {self.machine.tensorrt} cannot load the engine {name}", "build it again on this machine"
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


def _dtype(trt: ModuleType, dtype: Any, name: str) -> np.dtype:
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


class ErrorLog:
    """What TensorRT reports as errors: through a recorder, which it asks to be given, and through the process's logger."""

    def __init__(self, trt: ModuleType):
        self._logger = process_logger(trt)
        self._trt = trt
        self.recorder = _recorder(trt)

    def clear(self) -> None:
        self.recorder.clear()
        self._logger.errors.clear()

    def __bool__(self) -> bool:
        return self.recorder.num_errors() > 0

    def first(self, otherwise: str = "no reason given") -> str:
        """The first error on one line."""
        texts = [text for _, text in self.recorder.errors] + self._logger.errors
        return _one_line(texts[0] if texts else otherwise)

    def raise_first(self, what: str, remedy: str) -> None:
        """Raise what TensorRT reported: :class:`OutOfDeviceMemory` when that is the reason, else :class:`BackendError`."""
        reason, shortage = self.first(), self._shortage()
        self.clear()
        if shortage is not None:
            raise OutOfDeviceMemory(f"{what}: the GPU is out of memory ({_one_line(shortage)}); close other programs that use it")
        raise BackendError(f"{what}: {reason}; {remedy}")

    def _shortage(self) -> str | None:
        """The error that says that memory ran out, which need not be the first."""
        failed = self._trt.ErrorCodeTRT.FAILED_ALLOCATION
        errors = self.recorder.errors + [(None, text) for text in self._logger.errors]
        return next((text for code, text in errors if code == failed or _OUT_OF_MEMORY.search(text)), None)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]


def _recorder(trt: Any) -> Any:
    class Recorder(trt.IErrorRecorder):
        """Keeps TensorRT's errors until they are cleared. TensorRT calls it from any thread; appending is atomic."""

        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.errors: list[tuple[Any, str]] = []

        def num_errors(self) -> int:
            return len(self.errors)

        get_num_errors = num_errors  # the name that TensorRT's C++ code calls it by

        def get_error_code(self, index: int) -> Any:
            return self.errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.errors.clear()

        def report_error(self, code: Any, text: str) -> bool:
            self.errors.append((code, text))
            return False

    return Recorder()
