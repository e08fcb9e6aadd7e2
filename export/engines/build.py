"""Build engines for TensorRT, or TensorRT for RTX, from a bundle's graphs into the bundle. Engines that are there already and still fit are kept."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import lock_descriptor

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.files import atomic_path, sha256_file
from mgvq_export.core.manifest import EngineRecord, KernelRecord
from mgvq_export.core.spec import Part
from mgvq_export.export.engines.builder import EngineJob, build_plan
from mgvq_export.export.engines.cache import BuildCache, engine_name, find_engine
from mgvq_export.export.engines.child import build_in_child
from mgvq_export.export.engines.options import BuildOptions, profiles
from mgvq_export.ops.cuda_kernel import kernel_architecture, kernel_source_sha256, nvrtc_version
from mgvq_export.ops.trt_machine import Machine, find_machine, find_rtx_library, rtx_capabilities
from mgvq_export.ops.trt_plugin import register_plugin


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        part: the engine being built.
        index, total: its number, from 0, and how many engines are asked for.
        phase: what TensorRT is doing, in its own words.
        share: how much of that phase is done, 0 to 1.
        elapsed_seconds: since this engine was begun.
        estimate_seconds: how long an engine like it took on this machine last time; None when there was none.
    """

    part: Part
    index: int
    total: int
    phase: str
    share: float
    elapsed_seconds: float
    estimate_seconds: float | None

    @property
    def share_of_engine(self) -> float:
        """How much of this engine is done, 0 to 1; 0 while there is no estimate to go by."""
        return min(0.99, self.elapsed_seconds / self.estimate_seconds) if self.estimate_seconds else 0.0

    def __str__(self) -> str:
        estimate = f" of about {self.estimate_seconds:.0f}" if self.estimate_seconds else ""
        phase = f": {self.phase} {self.share:.0%}" if self.phase else ""
        return f"{self.part}{phase}, {self.elapsed_seconds:.0f}{estimate} s"


@dataclass(frozen=True)
class Engine:
    """An engine in a bundle.

    Attributes:
        part: what it runs.
        path: its file.
        record: its entry in the manifest's ``engines``.
        reused: whether it was there already.
        reasons: why an earlier one was not used again; empty when there was none.
        seconds: how long it took, building or checking.
    """

    part: Part
    path: Path
    record: EngineRecord
    reused: bool
    reasons: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Task:
    job: EngineJob
    wanted: EngineRecord


def build_engines(
    bundle: Bundle,
    options: BuildOptions,
    *,
    progress: Callable[[BuildProgress], None] = lambda _: None,
    finished: Callable[[Engine], None] = lambda _: None,
    cache: BuildCache | None = None,
) -> list[Engine]:
    """Build the engines of ``options`` into ``bundle``, or reuse those that are there: Check / Reuse / Build / Record.

    Everything that can be refused without building is refused first. Each engine is written whole, then the manifest. After an
    error or Ctrl-C the engines finished so far stay, recorded; of the unfinished one nothing is left.

    Args:
        progress: called before each engine and at TensorRT's steps, from another thread.
        finished: called after each engine, kept or built, once it is in the manifest.
        cache: where timing caches and build times are kept; the user's cache folder by default.

    Raises:
        BackendError: TensorRT, the GPU or the kernel's compiler is missing or too old, or TensorRT fails.
        BundleError: the bundle lacks a graph, or a file has changed since the export.
        InputError: a tile of the wrong size, or a folder that cannot be written.
    """
    cache = cache or BuildCache.default()
    # Check
    for part in options.wanted_parts:
        bundle.graph(options.precision, part)
    machine = _find_builder(options)
    tasks = [_task(bundle, part, options, machine) for part in options.wanted_parts]
    if any(task.job.plugins for task in tasks):
        register_plugin(architecture=_architecture(machine))  # now: a missing compiler must not be found after an hour
    engines: list[Engine] = []

    def add(engine: Engine) -> None:
        engines.append(engine)
        finished(engine)

    for index, (part, task) in enumerate(zip(options.wanted_parts, tasks, strict=True)):
        start = time.perf_counter()
        # Reuse
        record, reasons = find_engine(bundle, task.wanted)
        if record is not None:
            path = bundle.path / record.file
            add(Engine(part, path, record, True, (), time.perf_counter() - start))
            continue
        # Build
        estimate = cache.estimate(task.wanted)

        report = partial(_report, progress, part, index, len(tasks), start, estimate)
        report("", 0.0)
        path = bundle.path / task.wanted.file
        kernel = kernel_source_sha256()
        with _folders_removed_on_error(path.parent, bundle.path), atomic_path(path) as temporary:
            if options.target == "rtx":
                built = build_in_child(task.job, temporary, report)
            else:
                built = build_plan(replace(task.job, timings=cache.timings(machine, kernel)), report)
                temporary.write_bytes(built.plan)
            seconds = time.perf_counter() - start
            record = replace(
                task.wanted,
                bytes=temporary.stat().st_size,
                sha256=sha256_file(temporary),
                build_seconds=round(seconds, 1),
                activation_bytes=built.activation_bytes,
                reproducible=options.target == "rtx",
            )
        # Record
        _add_record(bundle, record)
        if options.target == "tensorrt":
            cache.keep_timings(machine, kernel, built.timings)
        cache.keep_time(task.wanted, seconds)
        add(Engine(part, path, record, False, tuple(reasons), seconds))
    return engines


def _find_builder(options: BuildOptions) -> Machine:
    """What the engines will be bound to. Raises :class:`BackendError` when it is missing, :class:`InputError` for unknown GPUs."""
    if options.target != "rtx":
        return find_machine()
    library = find_rtx_library()
    known = rtx_capabilities()
    for capability in options.compute_capabilities:
        if capability not in known:
            raise InputError(
                f"{library} builds for no GPU of compute capability {capability}; choose {', '.join(known)}, or TensorRT on such a "
                "GPU: --target tensorrt"
            )
    return library


def _report(
    progress: Callable[[BuildProgress], None],
    part: Part,
    index: int,
    total: int,
    start: float,
    estimate: float | None,
    phase: str,
    share: float,
) -> None:
    progress(BuildProgress(part, index, total, phase, share, time.perf_counter() - start, estimate))


def _task(bundle: Bundle, part: Part, options: BuildOptions, machine: Machine) -> _Task:
    """What to build for one part, and the record it will have."""
    try:
        from mgvq_export.export.engines.graphs import engine_graph  # onnx: only once TensorRT is known to be there
    except ImportError as error:
        raise BackendError(f"building engines needs onnx ({error}): pip install 'mgvq-export[{options.target}]'") from None
    path = bundle.graph_path(options.precision, part)
    graph = engine_graph(path, options.target)
    shapes = profiles(bundle.spec, part, graph.inputs, options)
    job = EngineJob(
        name=f"{options.precision}/{part}",
        model=graph.model,
        graph_path=path,
        values={value.name: value.dtype for value in (*graph.inputs, *graph.outputs)},
        plugins=graph.plugins,
        profiles=shapes,
        options=options,
        architecture=_architecture(machine) if graph.plugins else 0,
    )
    wanted = EngineRecord(
        part=str(part),
        precision=options.precision,
        file=engine_name(machine, options.precision, str(part)),
        graph_sha256=bundle.graph(options.precision, part).sha256,
        weights_sha256=bundle.entry(options.precision).weights.sha256,
        engine_graph_sha256=graph.sha256,
        target=options.target,
        compute_capabilities=options.compute_capabilities,
        tensorrt=machine.tensorrt,
        gpu=machine.gpu,
        compute_capability=machine.compute_capability,
        profiles=tuple(shapes),
        options=options.builder,
        kernel=_kernel(machine) if graph.plugins else None,
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
    )
    return _Task(job, wanted)


def _architecture(machine: Machine) -> int:
    return kernel_architecture(int(machine.compute_capability.replace(".", "")))


def _kernel(machine: Machine) -> KernelRecord:
    version = ".".join(map(str, nvrtc_version()))
    return KernelRecord(kernel_source_sha256(), version, _architecture(machine))


def _add_record(bundle: Bundle, record: EngineRecord) -> None:
    """Put ``record`` in the manifest in place of the one of the same file."""
    with _locked(bundle.path):
        bundle.add_engine(record)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Other builds wait here while one changes the manifest in ``folder``. The lock is on the folder: it leaves no file behind."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # file systems without locks, among them some of a network; folders on Windows
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)  # closing gives the lock back
            lock_descriptor(descriptor)
        yield


@contextlib.contextmanager
def _folders_removed_on_error(folder: Path, root: Path) -> Iterator[None]:
    """Make ``folder`` below ``root``; after an error those of its parents that are empty are gone again."""
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}; change the permissions of {root}") from error
        yield
    except BaseException:
        for empty in (folder, *folder.parents):
            if empty == root:
                break
            with contextlib.suppress(OSError):  # refused when it is not empty
                empty.rmdir()
        raise
