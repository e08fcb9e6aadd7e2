"""A run over many files: reading, computing and writing overlap; one bad file does not end it; results come in the order given."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import click

from mgvq_export.commands.inputs import STANDARD, Job
from mgvq_export.commands.output import Lines, progress_bar, say
from mgvq_export.commands.protect import check_targets
from mgvq_export.core.errors import BundleError, InputError, MgvqError
from mgvq_export.core.files import make_folder
from mgvq_export.core.types import JsonObject

if TYPE_CHECKING:
    import numpy as np

_READERS = min(4, os.cpu_count() or 1)
_AHEAD_FILES, _AHEAD_BYTES = 16, 8_000_000  # of files read before they are needed; one at least
_BATCH_FILES, _BATCH_BYTES = 16, 2_000_000  # of files that are computed together, where they have been read already

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Work(Generic[In, Out]):
    """What a verb does with files.

    Attributes:
        read: the content of a file, in a thread of its own.
        compute: the results of some contents, in their order; called with a callback for (done, in all).
        write: writes a result to a file, in a thread of its own.
        describe: what is said of a result: a note for people, and facts for JSON.
    """

    read: Callable[[Path], In]
    compute: Callable[[Sequence[In], Callable[[int, int], None]], list[Out]]
    write: Callable[[Path, Out], None]
    describe: Callable[[In, Out], tuple[str, JsonObject]]


class FilesFailed(MgvqError):
    """Some files of a run failed. It has no text: each has had its line. ``exit_code`` 2."""


@dataclass
class _Pending(Generic[In, Out]):
    """A result on its way to the disk."""

    job: Job
    content: In
    result: Out
    seconds: float
    written: Future[float]


def run_files(
    jobs: Sequence[Job],
    work: Work[In, Out],
    lines: Lines,
    *,
    force: bool = False,
    skip_existing: bool = False,
) -> None:
    """Do ``work`` for every job; a line for each as it is finished, the number of images per second at the end.

    A file that cannot be read or computed gets a line on standard error, and the others go on. Raises :class:`FilesFailed` at the end if
    there was one; at once :class:`InputError` when a result cannot be written, or must not be (:func:`check_targets`).
    """
    skipped = [job for job in jobs if skip_existing and job.target != STANDARD and job.target.exists()]
    todo = [job for job in jobs if job not in set(skipped)]
    sources = [job.source for job in jobs if job.source != STANDARD]
    check_targets([job.target for job in todo if job.target != STANDARD], inputs=sources, force=force)
    for job in skipped:
        lines.add_facts({"input": str(job.source), "path": str(job.target), "skipped": True}, "")
    start = time.perf_counter()
    run = _FilesRun(work, lines)
    try:
        with progress_bar("", len(todo)) as run.update, _without_warnings():
            run.all(todo)
    finally:
        lines.close()
    seconds = time.perf_counter() - start
    if len(jobs) > 1 and not lines.machine_readable:
        parts = [f"{run.done} files", *([f"{run.failed} failed"] if run.failed else [])]
        parts += [f"{len(skipped)} skipped"] if skipped else []
        say(f"{', '.join(parts)}  {seconds:.2f} s  {run.done / max(seconds, 1e-9):.3g} images/s", err=lines.data_on_stdout)
    if run.failed:
        raise FilesFailed


class _FilesRun(Generic[In, Out]):
    """The state of :func:`run_files`."""

    def __init__(self, work: Work[In, Out], lines: Lines):
        self.work, self.lines = work, lines
        self.done = self.failed = 0
        self.update: Callable[[str, float], None] = lambda description, done: None
        self._pending: deque[_Pending[In, Out]] = deque()

    def all(self, jobs: Sequence[Job]) -> None:
        """Read, compute and write all jobs."""
        with _pool(_READERS, "mgvq-read") as readers, _pool(1, "mgvq-write") as self._writer:
            index = 0
            for batch in self._batches(jobs, readers):
                self._compute(batch, index)
                index += len(batch)
                while self._pending and (self._pending[0].written.done() or len(self._pending) > _AHEAD_FILES):
                    self._finish()
            while self._pending:
                self._finish()

    def _batches(self, jobs: Sequence[Job], readers: ThreadPoolExecutor) -> Iterator[list[tuple[Job, Future[tuple[In, float]]]]]:
        """The jobs in order, some at a time: those computed together. Reading goes on ahead."""
        waiting = deque((job, _size(job.source)) for job in jobs)
        reading: deque[tuple[Job, int, Future[tuple[In, float]]]] = deque()
        while waiting or reading:
            while waiting and _fits(waiting[0][1], [size for _, size, _ in reading], _AHEAD_FILES, _AHEAD_BYTES):
                job, size = waiting.popleft()
                reading.append((job, size, readers.submit(_timed, self.work.read, job.source)))
            job, size, content = reading.popleft()
            batch, sizes = [(job, content)], [size]
            while reading and reading[0][2].done() and _fits(reading[0][1], sizes, _BATCH_FILES, _BATCH_BYTES):
                job, size, content = reading.popleft()
                batch.append((job, content))
                sizes.append(size)
            yield batch

    def _compute(self, batch: Sequence[tuple[Job, Future[tuple[In, float]]]], index: int) -> None:
        read: list[tuple[Job, In, float]] = []
        for place, (job, content) in enumerate(batch):
            self.update(job.source.name, index + place)
            try:
                found, seconds = content.result()
                read.append((job, found, seconds))
            except (MgvqError, MemoryError) as error:
                self._compute_read(read, index)  # those before it first: lines come in the order of the files
                self._fail(job, error)
                read, index = [], index + place
        self._compute_read(read, index)

    def _compute_read(self, read: Sequence[tuple[Job, In, float]], index: int) -> None:
        if not read:
            return
        name = read[0][0].source.name if len(read) == 1 else f"{read[0][0].source.name} and {len(read) - 1} more"

        def progress(done: int, total: int) -> None:
            self.update(f"{name} {done}/{total}", index + len(read) * done / total)

        start = time.perf_counter()
        try:
            results = self.work.compute([content for _, content, _ in read], progress)
        except (MgvqError, MemoryError) as error:
            if isinstance(error, BundleError):  # all the others would fail of it too
                raise
            if len(read) == 1:
                self._fail(read[0][0], error)
            else:  # which of them it was shows one by one
                for place, one in enumerate(read):
                    self._compute_read([one], index + place)
            return
        seconds = (time.perf_counter() - start) / len(read)
        for (job, content, reading), result in zip(read, results, strict=True):
            written = self._writer.submit(self._write, job.target, result)
            self._pending.append(_Pending(job, content, result, reading + seconds, written))

    def _write(self, target: Path, result: Out) -> float:
        start = time.perf_counter()
        self.work.write(target, result)
        return time.perf_counter() - start

    def _finish(self) -> None:
        """Wait for the oldest result to be written, and say so."""
        one = self._pending.popleft()
        seconds = one.seconds + one.written.result()
        note, facts = self.work.describe(one.content, one.result)
        self.done += 1
        if one.job.target == STANDARD:
            self.lines.add_facts({"input": str(one.job.source), "path": "-", "seconds": round(seconds, 3), **facts}, f"-  {note}")
        else:
            self.lines.add(one.job.target, seconds, note, input=str(one.job.source), **facts)

    def _fail(self, job: Job, error: Exception) -> None:
        self.failed += 1
        while self._pending:  # lines come in the order of the files
            self._finish()
        reason = str(error) if isinstance(error, MgvqError) else "out of memory; give a smaller --memory-limit"
        known = reason if str(job.source) in reason else f"{job.source}: {reason}"
        if click.get_current_context().meta.get("debug"):
            traceback.print_exception(error)
        say(f"error: {known}", err=True)
        if self.lines.machine_readable:
            self.lines.add_facts({"input": str(job.source), "error": known}, "")


def _timed(read: Callable[[Path], In], path: Path) -> tuple[In, float]:
    if path.exists() and not path.is_file() and path != STANDARD:  # reading a pipe may never end
        raise InputError(f"cannot read {path}: it is a device or pipe; give files, or - for standard input")
    start = time.perf_counter()
    return read(path), time.perf_counter() - start


def _fits(size: int, others: Sequence[int], most: int, most_bytes: int) -> bool:
    return not others or (len(others) < most and sum(others) + size <= most_bytes)


def _size(path: Path) -> int:
    return path.stat().st_size if path != STANDARD and path.is_file() else 0


@contextlib.contextmanager
def _pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged files that it then refuses: one line is enough
        yield


def standard_bytes(path: Path) -> bytes | None:
    """What standard input holds, when ``path`` says so; else None."""
    return sys.stdin.buffer.read() if path == STANDARD else None


def write_to(target: Path, suffix: str, save: Callable[[Path], None]) -> None:
    """Let ``save`` write ``target``, or, for standard output, a file with ``suffix`` that is then copied there."""
    if target != STANDARD:
        make_folder(target.parent)  # late: bad input leaves no empty folder behind
        return save(target)
    with tempfile.TemporaryDirectory(prefix="mgvq-") as folder:
        file = Path(folder) / f"result{suffix}"
        save(file)
        sys.stdout.buffer.write(file.read_bytes())
        sys.stdout.buffer.flush()


def read_image_or_standard_input(path: Path, max_pixels: int | None) -> np.ndarray:
    """The image at ``path``, or on standard input, uint8 [H, W, 3]. Raises :class:`InputError`."""
    from mgvq_export.runtime.image_files import MAX_PIXELS, decode_image, read_image

    data = standard_bytes(path)
    if data is None:
        return read_image(path, max_pixels=max_pixels or MAX_PIXELS)
    return decode_image(data, "standard input", max_pixels=max_pixels or MAX_PIXELS)
