"""TensorRT's builder: one graph in, the bytes of one engine out. The only module that calls the builder; it writes no files.

Networks are strongly typed: the graph's own types are the engine's types, in TensorRT 10.16 and 11 alike, so no precision is set.
TF32 is off, because it moves codes between near-equal rows. Flags are taken by name: their numbers differ between versions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mgvq_export.core.errors import BackendError
from mgvq_export.export.engines.options import BuildOptions, Profile
from mgvq_export.ops.trt_machine import current_device, import_tensorrt, process_logger, use_device
from mgvq_export.ops.trt_plugin import register_plugin

#: Called with the phase TensorRT is in and the share of it that is done, 0 to 1, from another thread.
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class EngineJob:
    """One engine to build.

    Attributes:
        name: what messages call it, e.g. ``fp16/encoder``.
        model: the ONNX graph, serialized.
        graph_path: where the graph came from: its weights are looked for beside it.
        values: numpy dtype of every input and output by name, checked after parsing.
        plugins: how many plugin layers the network must have.
        profiles: per profile, the shapes of every dynamic input.
        options: how to build.
        architecture: lowest compute capability, times ten, that the embedded kernel shall run on.
        timings: serialized timing cache of earlier builds, or ``b""``.
    """

    name: str
    model: bytes
    graph_path: Path
    values: Mapping[str, str]
    plugins: int
    profiles: list[dict[str, Profile]]
    options: BuildOptions
    architecture: int
    timings: bytes = b""


def build_plan(job: EngineJob, report: Report = lambda phase, share: None) -> tuple[Any, bytes]:
    """Build one engine: Register / Parse / Configure / Build.

    TensorRT runs in a thread of its own, on the caller's current GPU, so that Ctrl-C reaches Python: the build is then cancelled at
    its next step and KeyboardInterrupt raised once TensorRT has stopped.

    Returns:
        The serialized engine (a buffer), and the timing cache to keep for the next build.

    Raises:
        BackendError: TensorRT refuses the graph, a type or a profile, does not take the plugin, or fails to build.
    """
    trt = import_tensorrt()
    if job.plugins:
        register_plugin(architecture=job.architecture)  # before parsing: the parser looks it up
    messages = process_logger(trt)
    messages.errors.clear()
    monitor = _monitor(trt, report)
    device = current_device()
    results: list[tuple[Any, bytes]] = []
    failures: list[BaseException] = []
    stopped = threading.Event()  # not Thread.join, after whose interruption Python 3.11 takes the thread for finished

    def work() -> None:
        try:
            if device is not None:  # without any, TensorRT says what is wrong
                use_device(device)
            if not monitor.cancelled:
                results.append(_build(trt, job, messages, monitor))
        except BaseException as error:  # raised again below, in the caller's thread
            failures.append(error)
        finally:
            stopped.set()

    # A daemon: a second Ctrl-C must not wait for TensorRT's next step.
    thread = threading.Thread(target=work, name="tensorrt-build", daemon=True)
    try:
        thread.start()
        while not stopped.wait(0.1):  # with a limit, because on some systems only then does Ctrl-C end the wait
            pass
    except KeyboardInterrupt:
        monitor.cancelled = True
        if thread.ident is not None:  # else it has not begun, and will see that it is cancelled
            stopped.wait()
        raise
    if monitor.failure is not None:
        raise monitor.failure
    if failures:
        raise failures[0]
    return results[0]


def _build(trt: ModuleType, job: EngineJob, messages: Any, monitor: Any) -> tuple[Any, bytes]:
    try:
        builder = trt.Builder(messages)
    except Exception as error:  # the bindings raise TypeError when the library gives no builder
        raise _failed(job, "TensorRT does not start", messages, str(error)) from error
    # Parse
    flags = (trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED, trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
    network = builder.create_network(sum(1 << int(flag) for flag in flags))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse(job.model, path=str(job.graph_path)):
        raise _failed(job, "TensorRT cannot parse the graph", messages, _parse_errors(parser))
    _check_network(trt, job, network)
    # Configure
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = job.options.builder_level
    config.profiling_verbosity = (
        trt.ProfilingVerbosity.DETAILED if job.options.detailed else trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    )
    if job.options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.options.workspace)
    if job.options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if job.options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    _add_profiles(job, builder, config)
    # A cache of another driver or GPU is refused, and a broken one gives None: both begin anew.
    timing_cache = config.create_timing_cache(job.timings)
    if timing_cache is None or not config.set_timing_cache(timing_cache, ignore_mismatch=False):
        timing_cache = config.create_timing_cache(b"")
        config.set_timing_cache(timing_cache, ignore_mismatch=False)
    config.progress_monitor = monitor
    # Build
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failed(job, "TensorRT cannot build the engine", messages, "no reason given")
    return plan, bytes(memoryview(timing_cache.serialize()))


def _add_profiles(job: EngineJob, builder: Any, config: Any) -> None:
    for shapes in job.profiles:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape.min, shape.opt, shape.max)
        if config.add_optimization_profile(profile) < 0:
            said = ", ".join(f"{name} {list(shape.min)} to {list(shape.max)}" for name, shape in shapes.items())
            raise BackendError(
                f"{job.name}: TensorRT refuses the optimisation profile {said}; choose another --size, --tile or --batch"
            )


def _check_network(trt: ModuleType, job: EngineJob, network: Any) -> None:
    """The parsed network has the plugin and the types of the graph."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    plugins = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    if plugins != job.plugins:
        raise BackendError(
            f"{job.name}: TensorRT {trt.__version__} made {plugins} plugin layers of {job.plugins} GroupedArgmin nodes; "
            "install a TensorRT this release supports (10.16.1 or newer), and report it if it is one"
        )
    types = {
        "float32": trt.float32,
        "float16": trt.float16,
        "int32": trt.int32,
        "int64": trt.int64,
        "uint8": trt.uint8,
    }
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    found = {tensor.name: tensor.dtype for tensor in tensors}
    for name, dtype in job.values.items():
        if found.get(name) != types[dtype]:
            raise BackendError(f"{job.name}: TensorRT made {name} {found.get(name)}; wanted {dtype}: export the bundle again")


def _parse_errors(parser: Any) -> str:
    """The first error with its node, and how many more there are."""
    if parser.num_errors == 0:
        return "no reason given"
    parser_error = parser.get_error(0)
    where = f"node {parser_error.node_name() or parser_error.node()} ({parser_error.node_operator()}): "
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    return f"{where}{parser_error.desc()}{more}"


def _failed(job: EngineJob, what: str, messages: Any, otherwise: str) -> BackendError:
    """One line: what failed and TensorRT's own first error."""
    reason = " ".join((otherwise if what.endswith("graph") else next(iter(messages.errors), otherwise)).split())[:400]
    remedies = {
        "TensorRT does not start": "check the driver with nvidia-smi",
        "TensorRT cannot parse the graph": "export the bundle again with this release",
        "TensorRT cannot build the engine": "free GPU memory, or try a smaller --size, --tile or --batch, or another --workspace",
    }
    return BackendError(f"{job.name}: {what}: {reason}; {remedies[what]}")


def _monitor(trt: Any, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings have no types
        """Passes progress on and cancels. TensorRT calls it from threads of its own, several at once."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self.failure: BaseException | None = None
            self._lock = threading.Lock()
            self._phases: dict[str, int] = {}  # outermost phases and their numbers of steps

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                with self._lock:
                    self._phases[phase_name] = num_steps
                self._report(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if steps := self._phases.get(phase_name):
                self._report(phase_name, min(1.0, (step + 1) / steps))
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                steps = self._phases.pop(phase_name, None)
            if steps is not None:
                self._report(phase_name, 1.0)

        def _report(self, phase: str, share: float) -> None:
            if self.cancelled:
                return
            try:
                report(phase, share)
            except BaseException as error:  # must not reach TensorRT's C++ code; raised again when it has stopped
                self.failure, self.cancelled = error, True

    return Monitor()
