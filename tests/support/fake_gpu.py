"""A GPU that is none: CUDA's runtime calls and TensorRT's runtime objects on host memory, stricter than the real ones.

Work queued on the stream runs when the stream is waited for and not before, so that whoever reads too early reads rubbish. Every
address is checked against the memory that is allocated at that moment. New memory is full of rubbish, and so is the scratch
memory after every run of an engine. Engines run their ONNX graph in ONNX Runtime, at the addresses they were given.

Every call is counted, and the one with number ``fail_at`` fails: CUDA calls with a status, TensorRT's with False, None or
an exception of the bindings, and a report to the error recorder.
"""

import ctypes
import enum
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

ALIGNMENT = 256
RUBBISH = 0xCD
MACHINE = ("NVIDIA H200", "9.0")

OK = real.cudaError_t.cudaSuccess
FAILED = real.cudaError_t.cudaErrorUnknown
NO_MEMORY = real.cudaError_t.cudaErrorMemoryAllocation


class Gpu:
    """Memory, one stream, and what happened to them.

    Attributes:
        memory: bytes in all.
        calls: names of the calls, in order.
        fail_at: number of the call that fails; None for none.
        computes: run the engines' graphs; else their outputs are zeros, which is faster.
        not_capturable: engines refuse to run while the stream is captured.
        sticky: after one failure every call fails, as after an error that ends a GPU's context.
        silent_error: a report to the recorder at the next run, which then still answers True.
        non_finite: engines say that their values are not finite.
        compiled: of every context of TensorRT for RTX, whether its kernels were compiled anew.
    """

    def __init__(self, memory: int = 1 << 30, fail_at: int | None = None, computes: bool = True):
        self.memory, self.fail_at, self.computes = memory, fail_at, computes
        self.calls: list[str] = []
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.graphs: set[int] = set()
        self.executables: set[int] = set()
        self.streams: set[int] = set()
        self.contexts = 0
        self.not_capturable = self.sticky = False
        self.silent_error = ""
        self.non_finite = False
        self.compiled: list[bool] = []  # of every context of TensorRT for RTX: whether its kernels were compiled anew
        self.failed_in_capture = False
        self._next = 1000
        self.cudart = Cudart(self)

    def fails(self, name: str) -> bool:
        """Count a call; whether it is the one to fail."""
        self.calls.append(name)
        number = len(self.calls) - 1
        if number != self.fail_at and not (self.sticky and self.fail_at is not None and number > self.fail_at):
            return False
        self.failed_in_capture = self.captured is not None
        return True

    @property
    def used(self) -> int:
        return sum(len(block) - ALIGNMENT for block in self.device.values())

    def leaks(self) -> dict[str, int]:
        """What is still allocated, by kind."""
        kinds = ("device", "pinned", "graphs", "executables", "streams")
        left = {kind: len(getattr(self, kind)) for kind in kinds} | {"contexts": self.contexts}
        return {kind: count for kind, count in left.items() if count}

    def allocate(self, kind: dict[int, Any], size: int) -> int:
        block = (ctypes.c_uint8 * (size + ALIGNMENT))()
        ctypes.memset(block, RUBBISH, size + ALIGNMENT)
        address = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        kind[address] = block
        return address

    def check(self, kind: dict[int, Any], address: int, size: int) -> None:
        """The bytes lie in one live allocation."""
        for start, block in kind.items():
            if start <= address and address + size <= start + len(block) - ALIGNMENT:
                return
        raise AssertionError(f"{size} bytes at {address} are not in memory that is allocated")

    def submit(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def handle(self, kind: set[int]) -> int:
        self._next += 1
        kind.add(self._next)
        return self._next

    def run_queue(self) -> None:
        assert self.captured is None, "waiting for a stream that is being captured"
        while self.queue:
            self.queue.pop(0)()


class Cudart:
    """Stands for ``cuda.bindings.runtime``: structs and enums are its own."""

    def __init__(self, gpu: Gpu):
        self.gpu = gpu

    def __getattr__(self, name: str) -> Any:
        value = getattr(real, name)
        assert not name.startswith("cuda") or isinstance(value, (type, int)), f"{name} is not faked"
        return value

    def _answer(self, name: str, *values: Any, otherwise: Any = FAILED) -> Any:
        return (otherwise, *(None for _ in values)) if self.gpu.fails(name) else None

    def cudaGetDevice(self):
        return self._answer("cudaGetDevice", 0) or (OK, 0)

    def cudaSetDevice(self, device):
        return self._answer("cudaSetDevice") or (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == real.cudaStreamNonBlocking
        return self._answer("cudaStreamCreateWithFlags", 0) or (OK, self.gpu.handle(self.gpu.streams))

    def cudaStreamDestroy(self, stream):
        self.gpu.streams.remove(stream)  # gone even when the call fails: nothing better can be done with it
        assert not self.gpu.queue, "the stream is destroyed while it works"
        return self._answer("cudaStreamDestroy") or (OK,)

    def cudaStreamSynchronize(self, stream):
        assert stream in self.gpu.streams
        failed = self._answer("cudaStreamSynchronize")
        self.gpu.run_queue()
        return failed or (OK,)

    def cudaMemGetInfo(self):
        return self._answer("cudaMemGetInfo", 0, 0) or (OK, self.gpu.memory - self.gpu.used, self.gpu.memory)

    def cudaMalloc(self, size):
        assert size > 0
        if self.gpu.used + size > self.gpu.memory:
            self.gpu.fails("cudaMalloc")
            return NO_MEMORY, None
        return self._answer("cudaMalloc", 0, otherwise=NO_MEMORY) or (OK, self.gpu.allocate(self.gpu.device, size))

    def cudaHostAlloc(self, size, flags):
        return self._answer("cudaHostAlloc", 0, otherwise=NO_MEMORY) or (OK, self.gpu.allocate(self.gpu.pinned, size))

    def _free(self, name: str, kind: dict[int, Any], address: int):
        assert not self.gpu.queue, "memory is freed while the stream works"
        del kind[address]  # also when the call fails, as above
        return self._answer(name) or (OK,)

    def cudaFree(self, address):
        return self._free("cudaFree", self.gpu.device, address)

    def cudaFreeHost(self, address):
        return self._free("cudaFreeHost", self.gpu.pinned, address)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert stream in self.gpu.streams
        gpu, kinds = self.gpu, real.cudaMemcpyKind
        spaces = {
            kinds.cudaMemcpyHostToDevice: (gpu.device, gpu.pinned),
            kinds.cudaMemcpyDeviceToHost: (gpu.pinned, gpu.device),
            kinds.cudaMemcpyDeviceToDevice: (gpu.device, gpu.device),
        }[kind]

        def work():
            for space, address in zip(spaces, (target, source), strict=True):
                gpu.check(space, address, size)
            ctypes.memmove(target, source, size)

        failed = self._answer("cudaMemcpyAsync")
        if not failed:
            gpu.submit(work)
        return failed or (OK,)

    def cudaMemcpy3DAsync(self, p, stream):
        assert stream in self.gpu.streams and p.kind == real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        extent = (p.extent.width, p.extent.height, p.extent.depth)
        sides = [
            (int(ptr.ptr), ptr.pitch, ptr.ysize, pos.x, pos.y, pos.z) for ptr, pos in ((p.dstPtr, p.dstPos), (p.srcPtr, p.srcPos))
        ]

        def work():
            views = []
            for address, pitch, rows, x, y, z in sides:
                assert x + extent[0] <= pitch and y + extent[1] <= rows
                size = pitch * rows * (z + extent[2])
                self.gpu.check(self.gpu.device, address, size)
                flat = np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8).reshape(-1, rows, pitch)
                views.append(flat[z : z + extent[2], y : y + extent[1], x : x + extent[0]])
            views[0][...] = views[1]

        failed = self._answer("cudaMemcpy3DAsync")
        if not failed:
            self.gpu.submit(work)
        return failed or (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert self.gpu.captured is None and mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        failed = self._answer("cudaStreamBeginCapture")
        if not failed:
            self.gpu.captured = []
        return failed or (OK,)

    def cudaStreamEndCapture(self, stream):
        work, self.gpu.captured = self.gpu.captured, None
        if work is None:
            return FAILED, None
        failed = self._answer("cudaStreamEndCapture", None)
        return failed or (OK, Graph(self.gpu.handle(self.gpu.graphs), work))

    def cudaGraphInstantiate(self, graph, flags):
        assert graph.handle in self.gpu.graphs and graph.work, "an empty graph"
        return self._answer("cudaGraphInstantiate", 0) or (OK, Graph(self.gpu.handle(self.gpu.executables), graph.work))

    def cudaGraphDestroy(self, graph):
        self.gpu.graphs.remove(graph.handle)
        return self._answer("cudaGraphDestroy") or (OK,)

    def cudaGraphExecDestroy(self, graph):
        assert not self.gpu.queue, "a graph is destroyed while the stream works"
        self.gpu.executables.remove(graph.handle)
        return self._answer("cudaGraphExecDestroy") or (OK,)

    def cudaGraphLaunch(self, graph, stream):
        assert graph.handle in self.gpu.executables and stream in self.gpu.streams
        failed = self._answer("cudaGraphLaunch")
        if not failed:
            for work in graph.work:
                self.gpu.submit(work)
        return failed or (OK,)


class Graph:
    def __init__(self, handle: int, work: list[Callable[[], None]]):
        self.handle, self.work = handle, work


# ---- TensorRT's runtime


class ErrorCodeTRT(enum.Enum):
    FAILED_ALLOCATION = enum.auto()
    FAILED_EXECUTION = enum.auto()


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = enum.auto()
    USER_MANAGED = enum.auto()


class TensorLocation(enum.Enum):
    DEVICE = enum.auto()
    HOST = enum.auto()


class TensorIOMode(enum.Enum):
    INPUT = enum.auto()
    OUTPUT = enum.auto()


class IErrorRecorder:
    pass


class CudaGraphStrategy(enum.Enum):
    DISABLED = enum.auto()
    WHOLE_GRAPH_CAPTURE = enum.auto()


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = enum.auto()
    EAGER = enum.auto()


class ComputeCapability(enum.Enum):
    NONE = enum.auto()
    CURRENT = enum.auto()
    SM86 = enum.auto()
    SM89 = enum.auto()


def install(recorder: Any, gpu: Gpu) -> None:
    """Give the fake ``tensorrt`` module of ``recorder`` a runtime on ``gpu``, and its builder real plans."""
    kinds = (ErrorCodeTRT, ExecutionContextAllocationStrategy, TensorLocation, TensorIOMode, IErrorRecorder)
    kinds += (CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy, ComputeCapability)  # of TensorRT for RTX only
    recorder.module.__dict__.update({kind.__name__: kind for kind in kinds})
    recorder.module.__dict__.update({"bool": "DataType.bool", "Runtime": lambda logger: Runtime(gpu, logger)})


def make_plan(network: Any, config: Any) -> bytes:
    """What the fake builder writes: everything the fake engine needs."""
    return pickle.dumps({"model": network.model, "path": network.path, "profiles": config.profiles})


class Runtime:
    def __init__(self, gpu: Gpu, logger: Any):
        self.gpu, self.logger, self.error_recorder = gpu, logger, None
        self.engine_host_code_allowed = False
        if gpu.fails("Runtime"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def report(self, text: str, code: ErrorCodeTRT = ErrorCodeTRT.FAILED_EXECUTION) -> None:
        self.error_recorder.report_error(code, f"{text}\nof more than one line")

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        failed = self.gpu.fails("deserialize_cuda_engine")
        try:
            plan = None if failed else pickle.loads(data)
        except pickle.UnpicklingError:
            plan = None
        if plan is None:
            self.report("Serialization (version tag does not match)")
            return None
        return Engine(self, plan)


_sessions: dict[str, Any] = {}


def session(plan: dict[str, Any]) -> Any:
    """The ONNX Runtime session of a plan, one for all engines of the same graph."""
    import onnxruntime as ort

    from mgvq_export.ops import register_ort_kernels

    key = hashlib.sha256(plan["model"] + plan["path"].encode()).hexdigest()
    if key not in _sessions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        register_ort_kernels(options)
        path = Path(plan["path"]).with_suffix(f".{key[:8]}.onnx")  # beside the weights it refers to
        path.write_bytes(with_float_latent(plan["model"]))
        _sessions[key] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return _sessions[key]


def with_float_latent(model: bytes) -> bytes:
    """The graph with a cast before GroupedArgmin where its latent is float16: ONNX Runtime's kernel takes float32 only."""
    import onnx

    proto = onnx.load_model_from_string(model)
    halves = {value.name for value in proto.graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    for index, node in enumerate(proto.graph.node):
        if node.op_type == "GroupedArgmin" and node.input[0] in halves:
            cast = onnx.helper.make_node("Cast", [node.input[0]], ["latent/to_float"], to=onnx.TensorProto.FLOAT)
            node.input[0] = "latent/to_float"
            proto.graph.node.insert(index, cast)
            break
    return proto.SerializeToString()


def shape_of(value: Any) -> tuple[Any, ...]:
    return tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)


class Engine:
    def __init__(self, runtime: Runtime, plan: dict[str, Any]):
        self.runtime, self.profiles = runtime, plan["profiles"]
        self.session = session(plan)
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.host_input = False
        self.busy_profiles: set[int] = set()

    num_io_tensors = property(lambda self: len(self.inputs) + len(self.outputs))
    num_optimization_profiles = property(lambda self: len(self.profiles))

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def dtype(self, name: str) -> np.dtype:
        kind = (self.inputs | self.outputs)[name].type.removeprefix("tensor(").removesuffix(")")
        return np.dtype({"float": "float32"}.get(kind, kind))

    def get_tensor_dtype(self, name: str) -> str:
        return f"DataType.{self.dtype(name).name}"

    def create_runtime_config(self) -> Any:
        return None if self.runtime.gpu.fails("create_runtime_config") else RuntimeConfig(self)

    def create_execution_context(self, how: Any) -> Any:
        """``how``: the strategy, or of TensorRT for RTX, which compiles now, its configuration."""
        if isinstance(how, RuntimeConfig):
            how.compile()
            how = how.strategy
        assert how is ExecutionContextAllocationStrategy.USER_MANAGED
        if self.runtime.gpu.fails("create_execution_context"):
            return None
        return Context(self)


class RuntimeConfig:
    """Of TensorRT for RTX: how a context is made. What it compiles is in its cache afterwards."""

    def __init__(self, engine: "Engine"):
        self.engine, self.cache, self.strategy = engine, None, None
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return RuntimeCache(self.engine)

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True

    def compile(self) -> None:
        assert self.cuda_graph_strategy is not None and self.dynamic_shapes_kernel_specialization_strategy is not None
        gpu = self.engine.runtime.gpu
        gpu.compiled.append(self.cache is None or not self.cache.data)
        if self.cache is not None:
            self.cache.data = self.cache.data or b"kernels"


class RuntimeCache:
    """What TensorRT for RTX has compiled. It refuses all but what it wrote, and says so."""

    def __init__(self, engine: "Engine"):
        self.engine, self.data = engine, b""

    def deserialize(self, blob: bytes) -> bool:
        if blob != b"kernels":
            self.engine.runtime.report("the runtime cache does not fit")
            return False
        self.data = blob
        return True

    def serialize(self) -> bytes:
        return self.data


class Context:
    """Asserts the order TensorRT demands: profile, shapes, memory and addresses, run; captured only after a plain run."""

    def __init__(self, engine: Engine):
        self.engine, self.gpu = engine, engine.runtime.gpu
        self.gpu.contexts += 1
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.warm_for: Any = None

    def __del__(self):
        self.gpu.contexts -= 1

    def _no(self, name: str) -> bool:
        if self.gpu.fails(name):
            self.engine.runtime.report(f"{name} failed")
            return True
        return False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.gpu.streams and not self.shapes
        if self._no("set_optimization_profile_async"):
            return False
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None and not self.addresses
        if self._no("set_input_shape"):
            return False
        least, _, most = self.engine.profiles[self.profile][name]
        if not all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True)):
            self.engine.runtime.report(f"{name} {shape} is outside profile {self.profile}")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        if self._no("infer_shapes"):
            raise RuntimeError("shape inference failed")
        missing = [name for name, value in self.engine.inputs.items() if -1 in shape_of(value) and name not in self.shapes]
        if missing:
            return missing
        dims: dict[str, int] = {}
        for name, shape in self.shapes.items():
            for dim, side in zip(self.engine.inputs[name].shape, shape, strict=True):
                if isinstance(dim, str):
                    assert dims.setdefault(dim, side) == side
                else:
                    assert dim == side
        (source,) = self.shapes or {"": ()}
        for name, value in (self.engine.inputs | self.engine.outputs).items():
            self.shapes.setdefault(name, tuple(self._side(dim, dims, name, source, axis) for axis, dim in enumerate(value.shape)))
        return []

    def _side(self, dim: Any, dims: dict[str, int], name: str, source: str, axis: int) -> int:
        """A dimension of an output: known, or of a map of another resolution than the input's."""
        if isinstance(dim, int):
            return dim
        if dim in dims:
            return dims[dim]
        strides = {"": 1, "inner": 4, "feature": 8, "latent": 16}  # of the tests' network
        kinds = {"image": "", "inner_features": "inner", "features": "feature"}
        kind, _, side = dim.rpartition("_")
        ours = next(length for key, length in dims.items() if key.rpartition("_")[2] == side)
        return ours * strides[kinds.get(source, "latent")] // strides[kind]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def update_device_memory_size_for_shapes(self) -> int:
        self._no("update_device_memory_size_for_shapes")
        return self.scratch_bytes()

    def scratch_bytes(self) -> int:
        """What the fake engines ask for: eight bytes per number of their input, the quantizer nothing."""
        return 0 if "latent" in self.engine.inputs else 8 * int(np.prod(next(iter(self.shapes.values()))))

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % ALIGNMENT == 0
        self._no("set_device_memory")
        self.scratch = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.shapes
        if self._no("set_tensor_address"):
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self.gpu.streams
        assert set(self.addresses) == set(self.engine.inputs | self.engine.outputs), "an address is missing"
        assert self.scratch[1] >= max(1, self.scratch_bytes()), "too little scratch memory, of which there must always be some"
        state = (dict(self.addresses), self.scratch)
        if self.gpu.captured is not None:
            assert self.warm_for == state, "captured without a plain run since the last change"
            if self.gpu.not_capturable:
                self.engine.runtime.report("this engine cannot be captured")
                return False
        if self._no("execute_async_v3"):
            return False
        if self.gpu.silent_error:
            self.engine.runtime.report(self.gpu.silent_error)
            self.gpu.silent_error = ""
        self.warm_for = state
        # Bound now: a captured run keeps the addresses it was captured with.
        self.gpu.submit(lambda: run(self.engine, dict(self.shapes), *state))
        return True


def run(engine: Engine, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int], scratch: tuple[int, int]) -> None:
    gpu = engine.runtime.gpu
    arrays = {}
    for name, address in addresses.items():
        dtype = engine.dtype(name)
        size = int(np.prod(shapes[name])) * dtype.itemsize
        assert address % ALIGNMENT == 0
        gpu.check(gpu.device, address, size)
        arrays[name] = np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shapes[name])
    gpu.check(gpu.device, *scratch)
    ctypes.memset(scratch[0], RUBBISH, scratch[1])  # before the outputs are written: it may overlap nothing
    if gpu.computes:
        found = engine.session.run(list(engine.outputs), {name: arrays[name].copy() for name in engine.inputs})
    else:
        found = [np.zeros(shapes[name], engine.dtype(name)) for name in engine.outputs]
    for name, values in zip(engine.outputs, found, strict=True):
        arrays[name][...] = 1 if gpu.non_finite and name == "non_finite" else values
    ctypes.memset(scratch[0], RUBBISH, scratch[1])
