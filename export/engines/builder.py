"""The builder of TensorRT, or of TensorRT for RTX: one graph in, the bytes of one engine out. It writes no files.

Networks are strongly typed: the graph's own types are the engine's types, in all versions alike, so no precision is set.
TF32 is off, because it moves codes between near-equal rows. Flags are taken by name: their numbers differ between versions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mgvq_export.core.errors import BackendError
from mgvq_export.core.manifest import Profile
from mgvq_export.core.types import Untyped
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.ops.trt_machine import (
    TARGETS,
    current_device,
    import_tensorrt,
    process_logger,
    rtx_capabilities,
    use_device,
)
from mgvq_export.ops.trt_plugin import register_plugin

#: Called with the phase TensorRT is in and the share of it that is done, 0 to 1, from another thread.
Report = Callable[[str, float], None]

#: What failed -> what to do about it.
_REMEDIES = {
    "does not start": "check the driver with nvidia-smi",
    "cannot parse the graph": "export the bundle again with this release",
    "refuses the options": "choose other options",
    "cannot build the engine": "free GPU memory, or try a smaller --size, --tile or --batch, or another --workspace",
}


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
        architecture: lowest compute capability, times ten, that the embedded kernel shall run on; of graphs with plugins.
        timings: serialized timing cache of earlier builds, or ``b""``.
    """

    name: str
    model: bytes
    graph_path: Path
    values: Mapping[str, str]
    plugins: int
    profiles: list[dict[str, Profile]]
    options: BuildOptions
    architecture: int = 0
    timings: bytes = b""

    @property
    def library(self) -> str:
        """The library that builds, as messages call it."""
        return TARGETS[self.options.target]


@dataclass(frozen=True)
class BuiltEngine:
    """What the builder gave.

    Attributes:
        plan: the serialized engine, a buffer.
        timings: the timing cache to keep for the next build; ``b""`` where there is none.
        activation_bytes: device memory for activations, as the builder planned it; None: not told.
    """

    plan: Untyped
    timings: bytes
    activation_bytes: int | None


def build_plan(job: EngineJob, report: Report = lambda phase, share: None) -> BuiltEngine:
    """Build one engine: Register / Parse / Configure / Build.

    TensorRT runs in a thread of its own, on the caller's current GPU, so that Ctrl-C reaches Python: the build is then cancelled at
    its next step and KeyboardInterrupt raised once TensorRT has stopped.

    Raises:
        BackendError: TensorRT refuses the graph, a type, an option or a profile, does not take the plugin, or fails to build.
    """
    trt = import_tensorrt(job.options.target)
    if job.plugins:
        register_plugin(architecture=job.architecture)  # before parsing: the parser looks it up
    monitor = _monitor(trt, report)
    device = current_device() if job.options.target == "tensorrt" else None
    results: list[BuiltEngine] = []
    failures: list[BaseException] = []
    stopped = threading.Event()  # not Thread.join, after whose interruption Python 3.11 takes the thread for finished

    def work() -> None:
        try:
            if device is not None:  # without any, TensorRT says what is wrong
                use_device(device)
            if not monitor.cancelled:
                results.append(_Build(trt, job).run(monitor))
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


class _Build:
    """One run of the builder. Each phase clears the library's errors first, so that the error quoted is the phase's own."""

    def __init__(self, trt: ModuleType, job: EngineJob):
        self.trt, self.job = trt, job
        self.messages = process_logger(trt)

    def run(self, monitor: Untyped) -> BuiltEngine:
        trt, job = self.trt, self.job
        self.messages.errors.clear()
        self.messages.activation_bytes = None
        try:
            builder = trt.Builder(self.messages)
        except Exception as error:  # the bindings raise TypeError when the library gives no builder
            raise self.failed("does not start", str(error)) from error
        # Parse
        network = self.made(builder.create_network(self.network_flags()), "does not start")
        parser = trt.OnnxParser(network, self.messages)
        self.messages.errors.clear()
        if not parser.parse(job.model, path=str(job.graph_path)):
            raise self.failed("cannot parse the graph", *_parse_errors(parser))
        self.check_network(network)
        # Configure
        config = self.made(builder.create_builder_config(), "does not start")
        self.configure(config)
        self.add_profiles(builder, config)
        timing_cache = self.timing_cache(config) if job.options.target == "tensorrt" else None
        config.progress_monitor = monitor
        # Build
        self.messages.errors.clear()
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self.failed("cannot build the engine", "no reason given")
        timings = b"" if timing_cache is None else bytes(memoryview(timing_cache.serialize()))
        return BuiltEngine(plan, timings, self.messages.activation_bytes)

    def made(self, value: Untyped, what: str) -> Untyped:
        """What a factory of the library gave; it gives None when it fails."""
        if value is None:
            raise self.failed(what, "no reason given")
        return value

    def network_flags(self) -> int:
        trt = self.trt
        flags = [trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED]
        if self.job.plugins:  # TensorRT for RTX has neither the plugins nor the flag
            flags.append(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
        return sum(1 << int(flag) for flag in flags)

    def configure(self, config: Untyped) -> None:
        trt, options = self.trt, self.job.options
        config.clear_flag(trt.BuilderFlag.TF32)
        config.builder_optimization_level = options.builder_level
        config.profiling_verbosity = (
            trt.ProfilingVerbosity.DETAILED if options.detailed else trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        )
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.compute_capabilities:
            self.choose_gpus(config)

    def choose_gpus(self, rtx_config: Untyped) -> None:
        known, wanted = rtx_capabilities(), self.job.options.compute_capabilities
        self.messages.errors.clear()
        rtx_config.num_compute_capabilities = len(wanted)
        for index, capability in enumerate(wanted):
            if not rtx_config.set_compute_capability(known[capability], index):
                raise self.failed("refuses the options", f"compute capability {capability}")

    def timing_cache(self, config: Untyped) -> Untyped:
        # A cache of another driver or GPU is refused; a broken one gives None or is empty: all begin anew.
        timing_cache = config.create_timing_cache(self.job.timings)
        if timing_cache is None or not config.set_timing_cache(timing_cache, ignore_mismatch=False):
            timing_cache = config.create_timing_cache(b"")
            config.set_timing_cache(timing_cache, ignore_mismatch=False)
        return timing_cache

    def add_profiles(self, builder: Untyped, config: Untyped) -> None:
        for shapes in self.job.profiles:
            self.messages.errors.clear()
            profile = self.made(builder.create_optimization_profile(), "does not start")
            for name, shape in shapes.items():
                profile.set_shape(name, shape.min, shape.opt, shape.max)
            if config.add_optimization_profile(profile) < 0:
                said = ", ".join(f"{name} {list(shape.min)} to {list(shape.max)}" for name, shape in shapes.items())
                raise BackendError(
                    f"{self.job.name}: {self.job.library} refuses the optimisation profile {said}; "
                    "choose another --size, --tile or --batch"
                )

    def check_network(self, network: Untyped) -> None:
        """The parsed network has the plugin and the types of the graph."""
        trt, job = self.trt, self.job
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
                raise BackendError(
                    f"{job.name}: {job.library} made {name} {found.get(name)}; wanted {dtype}: export the bundle again"
                )

    def failed(self, what: str, reason: str, logged_first: bool = True) -> BackendError:
        """One line: what failed, and why: the first error logged in this phase (``logged_first``), or else ``reason``."""
        if logged_first:
            reason = next(iter(self.messages.errors), reason)
        remedy = _REMEDIES[what]
        if "Turing" in reason:
            remedy = "leave compute capability 7.5 out of --compute-capability"
        elif self.job.options.target == "rtx" and what == "cannot build the engine":
            remedy = remedy.removeprefix("free GPU memory, or ")
        return BackendError(f"{self.job.name}: {self.job.library} {what}: {' '.join(reason.split())[:400]}; {remedy}")


def _parse_errors(parser: Untyped) -> tuple[str, bool]:
    """The first error with its node, and how many more there are; and whether what was logged says more: it is of no node."""
    if parser.num_errors == 0:
        return "no reason given", True
    parser_error = parser.get_error(0)
    if parser_error.node() < 0:
        return parser_error.desc(), True
    where = f"node {parser_error.node_name() or parser_error.node()} ({parser_error.node_operator()})"
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    return f"{where}: {parser_error.desc()}{more}", False


def _monitor(trt: Untyped, report: Report) -> Untyped:
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
