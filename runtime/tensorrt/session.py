"""A TensorRT session: engines, their contexts and CUDA graphs, and the memory they work in, on one stream.

A :class:`Step` is one engine at one input shape: an execution context, and after its second run a CUDA graph. TensorRT finishes
setting a context up during its first enqueue after a change of shape, so that one is not captured. A graph has
addresses and shapes inside: steps are never given another shape, and a change of address drops the graph.

All contexts share one scratch allocation: on one stream they never overlap in time.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, MgvqError
from mgvq_export.core.manifest import EngineRecord
from mgvq_export.core.spec import Part
from mgvq_export.core.types import Untyped
from mgvq_export.ops.trt_machine import Machine
from mgvq_export.runtime.tensorrt.contexts import make_context
from mgvq_export.runtime.tensorrt.cuda import Buffer, Cuda, DeviceBuffer, PinnedBuffer
from mgvq_export.runtime.tensorrt.engines import EngineLoader, LoadedEngine, Shape

_log = logging.getLogger("mgvq_export")

MOST_STEPS = 24  # contexts kept, each with a graph; an image size takes at most 12: both directions, two cuts, last batches
_SCRATCH = "scratch"
_LEAST_SCRATCH = 256  # bytes
_REPORT = "run mgvq-export doctor, and report it"


@dataclass(frozen=True)
class TensorRtOptions:
    """How engines run.

    Attributes:
        stream: handle of the CUDA stream to work on, no default stream; a stream of the session's own when None.
        cuda_graphs: record each step once and launch the recording afterwards: less work for the CPU per image.
        allow_host_code: load version-compatible engines, which run code of their own on the host.
    """

    stream: int | None = None
    cuda_graphs: bool = True
    allow_host_code: bool = False


class Step:
    """One engine at one input shape.

    Attributes:
        shapes: of all inputs and outputs, by name.
        dtypes: likewise.
        scratch_bytes: scratch memory it needs while it runs.
    """

    def __init__(self, loaded: LoadedEngine, profile: int, inputs: Mapping[str, Shape], cuda: Cuda, *, graphs: bool):
        self._loader, self._loaded, self._cuda = loaded.loader, loaded, cuda
        self.dtypes = loaded.inputs | loaded.outputs
        self._graph: Untyped = None
        self._warm = False  # whether it has run since shapes or addresses changed
        # TensorRT for RTX records graphs itself.
        self._capturable = graphs and loaded.loader.machine.target == "tensorrt"
        self._addresses: dict[str, int] = {}
        self._loader.errors.clear()
        self._context = context = make_context(loaded, cuda_graphs=graphs)
        self._check(context is not None, "make a context")
        context.error_recorder = self._loader.errors.recorder
        self._check(context.set_optimization_profile_async(profile, cuda.stream), f"take profile {profile}")
        for name, shape in inputs.items():
            self._check(context.set_input_shape(name, shape), f"take {name} of {list(shape)}")
        self._check(_shapes_known(context), "infer its shapes")
        self.shapes: dict[str, Shape] = {name: tuple(context.get_tensor_shape(name)) for name in self.dtypes}
        self._check(all(side >= 0 for shape in self.shapes.values() for side in shape), "infer its shapes")
        # Not nothing: a context whose engine takes scratch memory at some shape must be given some at every shape.
        self.scratch_bytes = max(_LEAST_SCRATCH, int(context.update_device_memory_size_for_shapes()))
        self._check(True, "tell its scratch memory")

    def nbytes(self, name: str) -> int:
        """Bytes of an input or output."""
        return int(np.prod(self.shapes[name])) * self.dtypes[name].itemsize

    def bind(self, addresses: Mapping[str, int], scratch: DeviceBuffer) -> None:
        """Where inputs and outputs lie, and the scratch memory, from now on. The stream must have nothing to do."""
        wanted = {**addresses, _SCRATCH: scratch.address}
        if wanted == self._addresses:
            return
        self._drop_graph()
        self._warm, self._addresses = False, {}
        self._loader.errors.clear()
        self._context.set_device_memory(scratch.address, scratch.size)
        for name in self.dtypes:
            self._check(self._context.set_tensor_address(name, addresses[name]), f"take the address of {name}")
        self._addresses = wanted

    def enqueue(self) -> None:
        """Queue one run on the stream: launch the graph, capture it first when it is time, or run plainly."""
        if self._warm and self._graph is None and self._capturable:
            self._capture()
        if self._graph is not None:
            self._cuda.launch_graph(self._graph)
        else:
            self._execute()
            self._warm = True

    def _execute(self) -> None:
        self._loader.errors.clear()
        self._check(self._context.execute_async_v3(self._cuda.stream), "run")

    def _capture(self) -> None:
        try:
            with self._cuda.captured() as graph:
                self._execute()
        except BackendError as error:
            # Some engines cannot be recorded, or there is no memory left for it. What ails the GPU itself fails the plain run too.
            self._capturable = False
            _log.warning("%s runs without a CUDA graph, which is slower on small images: %s", self._loaded.name, str(error))
        else:
            self._graph = graph[0]

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._cuda.destroy_graph(graph)

    def close(self) -> None:
        """Drop graph and context; the caller has waited for the stream."""
        try:
            self._drop_graph()
        finally:
            self._context = None

    def _check(self, ok: bool, what: str) -> None:
        """Raise when TensorRT said no, or reported an error in spite of its yes."""
        if not ok or self._loader.errors:
            self._loader.errors.raise_first(f"the engine {self._loaded.name} does not {what}", _REPORT)


def _shapes_known(context: Untyped) -> bool:
    try:
        return not context.infer_shapes()
    except RuntimeError:  # what the bindings raise when it is not only that something is missing
        return False


StepKey = tuple[Part, int, tuple[tuple[str, Shape], ...]]


class TensorRtSession:
    """Engines of one bundle and precision on this GPU. Not for two threads at once.

    Attributes:
        cuda: the stream and checked calls.
        records: the engines it may load, by part.
    """

    def __init__(self, bundle: Bundle, records: Mapping[Part, EngineRecord], machine: Machine, options: TensorRtOptions):
        self._bundle, self.records, self._options = bundle, dict(records), options
        self._engines: dict[Part, LoadedEngine] = {}
        self._steps: OrderedDict[StepKey, Step] = OrderedDict()
        self._buffers: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}
        self._closed = False
        self._loader = EngineLoader(machine, allow_host_code=options.allow_host_code)
        self.cuda = Cuda(options.stream)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around everything that queues work: whatever happens, nothing runs on the stream any more at the end."""
        if self._closed:
            raise BackendError("the session is closed; open the tokenizer again")
        self.cuda.use_device()
        try:
            yield
        except BaseException:
            with contextlib.suppress(MgvqError):  # the first error says more
                self.cuda.synchronize()
            raise
        self.cuda.synchronize()

    # ---- engines and steps

    def engine(self, part: Part) -> LoadedEngine:
        """The engine of ``part``, loaded when first asked for."""
        if part not in self._engines:
            self._engines[part] = self._loader.load(self._bundle, self.records[part])
        return self._engines[part]

    def step(self, part: Part, profile: int, inputs: Mapping[str, Shape]) -> Step:
        """The step of ``part`` at these input shapes; the one used longest ago makes room for a new one."""
        key = (part, profile, tuple(sorted(inputs.items())))
        if key not in self._steps:
            loaded = self.engine(part)
            while len(self._steps) >= MOST_STEPS:
                self.cuda.synchronize()
                _, oldest = self._steps.popitem(last=False)
                oldest.close()
            self._steps[key] = Step(loaded, profile, inputs, self.cuda, graphs=self._options.cuda_graphs)
        self._steps.move_to_end(key)
        return self._steps[key]

    def bind(self, step: Step, addresses: Mapping[str, int]) -> None:
        """Where inputs and outputs of ``step`` lie from now on. To be called once memory is reserved, before work is queued."""
        step.bind(addresses, self.buffer(_SCRATCH))

    def run(self, step: Step) -> None:
        """Queue one run of ``step``."""
        step.enqueue()

    # ---- memory

    def buffer(self, role: str) -> DeviceBuffer:
        """The device memory of a role, such as a map or the input of a batch of windows."""
        return self._buffers.setdefault(role, DeviceBuffer(self.cuda))

    def pinned(self, role: str) -> PinnedBuffer:
        """The host memory from and to which a role's content is copied."""
        return self._pinned.setdefault(role, PinnedBuffer(self.cuda))

    def reserve(self, sizes: Mapping[str, int], steps: Iterable[Step], host: Iterable[str]) -> None:
        """Grow the buffers to ``sizes`` by role, the scratch memory to what ``steps`` need, and the roles in ``host`` there too."""
        buffers: list[tuple[Buffer, int]] = [(self.buffer(role), size) for role, size in self.with_scratch(sizes, steps).items()]
        buffers += [(self.pinned(role), sizes[role]) for role in host]
        if any(size > buffer.size for buffer, size in buffers):
            self.cuda.synchronize()
            for buffer, size in buffers:
                buffer.grow(size)

    def with_scratch(self, sizes: Mapping[str, int], steps: Iterable[Step]) -> dict[str, int]:
        """``sizes`` and the scratch memory of ``steps``."""
        return {**sizes, _SCRATCH: max((step.scratch_bytes for step in steps), default=0)}

    def fits(self, sizes: Mapping[str, int], steps: Iterable[Step], share: float) -> tuple[int, bool]:
        """What the session holds with buffers of ``sizes``, by role, and the steps' scratch memory, engines included, in bytes.

        And whether what is missing of that takes no more than ``share`` of what is free.
        """
        sizes = self.with_scratch(sizes, steps)
        growth = sum(max(0, size - self.buffer(role).size) for role, size in sizes.items())
        held = sum(buffer.size for buffer in self._buffers.values())
        # An engine's file is nearly as large as its weights on the GPU.
        engines = sum(self.records[part].bytes for part in self._engines)
        return growth + held + engines, growth <= share * self.cuda.free_memory()

    def drop(self, parts: Collection[Part]) -> None:
        """Give the engines of ``parts`` back, with their contexts and graphs."""
        self.cuda.synchronize()
        for key in [key for key in self._steps if key[0] in parts]:
            self._steps.pop(key).close()
        for part in parts:
            self._engines.pop(part, None)

    def upload(self, role: str, array: np.ndarray) -> None:
        """Queue a copy of ``array`` to a role's memory, once per run. The array may be changed at once."""
        pinned = self.pinned(role)
        np.copyto(pinned.array(array.shape, array.dtype), array)
        self.cuda.upload(self.buffer(role).address, pinned.address, array.nbytes)

    def download(self, role: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """Queue a copy from a role's memory. The array is filled after the next :meth:`Cuda.synchronize`; copy it before the next run."""
        pinned = self.pinned(role)
        array = pinned.array(shape, dtype)
        self.cuda.download(pinned.address, self.buffer(role).address, array.nbytes)
        return array

    def release(self) -> None:
        """Give back all memory, contexts, graphs and engines; they come back as they are needed. Raises the first error once all is tried."""
        errors: list[MgvqError] = []

        def attempt(action: Callable[[], None]) -> None:
            try:
                action()
            except MgvqError as error:
                errors.append(error)

        attempt(self.cuda.use_device)
        attempt(self.cuda.synchronize)
        for step in self._steps.values():
            attempt(step.close)
        self._steps.clear()
        self._engines.clear()
        buffers: list[Buffer] = [*self._buffers.values(), *self._pinned.values()]
        for buffer in buffers:
            attempt(buffer.free)
        self._buffers.clear()
        self._pinned.clear()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Give everything back; the session cannot be used afterwards."""
        if self._closed:
            return
        self._closed = True
        try:
            self.release()
        finally:
            self.cuda.close()
