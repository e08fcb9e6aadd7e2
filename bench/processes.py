"""Runs each baseline in its own process, on demand: peak memory is measured per baseline, and their threads do not disturb each other."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import IO, TYPE_CHECKING, Protocol, TypedDict

from mgvq_export.bench.timing import take_turns
from mgvq_export.core.errors import BackendError, MgvqError
from mgvq_export.core.processes import python_command
from mgvq_export.runtime.tiling.memory import forget_peak, peak_bytes, resident_bytes

if TYPE_CHECKING:
    import numpy as np

    from mgvq_export.bench.record import EntryFacts

#: ONNX Runtime's threads spin for some 20 ms after a run; the next baseline waits until they sleep.
SETTLE_SECONDS = 0.05

# Module -> what to install for it, where the names differ.
_INSTALL = {"torch": "'mgvq-export[export]'", "onnx": "'mgvq-export[export]'", "faiss": "faiss-cpu"}

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


#: Part, shapes of its inputs, how often it ran.
GraphRuns = list[tuple[str, dict[str, tuple[int, ...]], int]]


class Outcome(TypedDict, total=False):
    """What a job reports of its first full pass: the codes, int [G, h, w], facts, and the graphs run to encode and to decode."""

    codes: np.ndarray
    facts: EntryFacts
    encode: GraphRuns
    decode: GraphRuns


class Job(Protocol):
    """The work of a baseline, in its own process."""

    def warm_up(self) -> None:
        """Load libraries, compile, start threads; not timed."""

    def run(self) -> dict[str, float]:
        """One pass: seconds by stage."""

    def outcome(self) -> Outcome:
        """Facts about the first full pass, for the parent."""


@dataclass(frozen=True)
class Baseline:
    """A name, and a function of some module with arguments that can be pickled, which makes the :class:`Job`.

    ``optional``: when it cannot run, the reason is recorded; otherwise it is raised as an error.
    """

    name: str
    build: Callable[..., Job]
    arguments: tuple[object, ...]
    optional: bool = False


@dataclass
class Measured:
    """The measurements of one baseline.

    Attributes:
        samples: stage -> seconds of every round.
        base_bytes: resident memory of its process, loaded and warmed up, before the first full pass.
        peak_bytes: the highest during that pass.
        outcome: what the job reports about that pass.
        skipped: why it could not run; then everything else is empty.
    """

    samples: dict[str, list[float]]
    base_bytes: int = 0
    peak_bytes: int = 0
    outcome: Outcome | None = None
    skipped: str | None = None


def measure(
    baselines: Sequence[Baseline],
    rounds: int,
    *,
    threads: int | None = None,
    progress: Callable[[str, int], None] = lambda name, done: None,
) -> dict[str, Measured]:
    """Load each baseline, run it once for its memory, then ``rounds`` times in turns.

    Args:
        threads: set in the environment for libraries that read it there; all cores when None.
        progress: called with the name and the number of passes done, of ``len(baselines) * (rounds + 1)``.

    Raises :class:`BackendError` when a baseline that is not optional fails, with its reason.
    """
    with contextlib.ExitStack() as stack:
        children: dict[str, _Child] = {}
        found: dict[str, Measured] = {}
        for done, baseline in enumerate(baselines):
            progress(baseline.name, done)
            child = stack.enter_context(_start(baseline, threads))
            first = child.first()
            found[baseline.name] = first
            if first.skipped is None:
                children[baseline.name] = child
            elif not baseline.optional:
                raise BackendError(f"{baseline.name}: {first.skipped}")
        passes = take_turns(
            {name: child.run for name, child in children.items()},
            rounds,
            settle=lambda: time.sleep(SETTLE_SECONDS),
            progress=lambda name, done: progress(name, len(baselines) + done),
        )
        for name, laps in passes.items():
            found[name].samples = {stage: [lap[stage] for lap in laps] for stage in laps[0]} if laps else {}
        return found


class _Child:
    def __init__(self, name: str, requests: IO[bytes], answers: IO[bytes]):
        self.name, self._requests, self._answers = name, requests, answers

    def first(self) -> Measured:
        answer = self._receive()
        assert isinstance(answer, Measured)
        return answer

    def run(self) -> dict[str, float]:
        with contextlib.suppress(BrokenPipeError):  # it ended; reading its answer reports that
            _send(self._requests, "run")
        answer = self._receive()
        if isinstance(answer, Measured):
            raise BackendError(f"{self.name}: {answer.skipped}")
        return answer

    def _receive(self) -> Measured | dict[str, float]:
        """What was measured of the first pass, or why it could not run; of a later pass its seconds by stage."""
        try:
            answer: Measured | dict[str, float] = pickle.load(self._answers)
            return answer
        except (EOFError, pickle.UnpicklingError):  # it ended before or in the middle of an answer
            return Measured({}, skipped="its process exited unexpectedly; possibly it ran out of memory")


@contextlib.contextmanager
def _start(baseline: Baseline, threads: int | None) -> Iterator[_Child]:
    # Not multiprocessing: its children import from the working folder, which cannot be prevented.
    command = python_command(__name__, function="serve")
    environment = os.environ | (dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads is not None else {})
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            _send(process.stdin, (_importable(baseline.build), baseline.arguments))
        yield _Child(baseline.name, process.stdin, process.stdout)
    except BaseException:
        process.terminate()  # it may be in the middle of a pass that takes minutes
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the child reads the end of its requests and leaves
        process.wait()
        process.stdout.close()


def _importable(build: Callable[..., Job]) -> tuple[str, str]:
    """Module and name under which a child finds ``build``; in a program started with ``-m`` its own module is called __main__."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if build.__module__ == "__main__" and spec else build.__module__
    return module, build.__qualname__


def _send(stream: IO[bytes], message: object) -> None:
    pickle.dump(message, stream)
    stream.flush()


def serve() -> None:
    """Runs in a child process: build, warm up, one pass for the memory, then a pass per request until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too and ends the children
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # output of libraries must not mix with the answers
        with contextlib.suppress(EOFError, BrokenPipeError):
            try:
                (module, name), arguments = pickle.load(requests)
                job = getattr(import_module(module), name)(*arguments)
                job.warm_up()
                base = resident_bytes()
                forget_peak()
                job.run()
                _send(answers, Measured({}, base, peak_bytes(), job.outcome()))
                while pickle.load(requests) == "run":
                    _send(answers, job.run())
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:
                _send(answers, Measured({}, skipped=reason(error)))


def reason(error: Exception) -> str:
    """Why something could not run, in one line."""
    if isinstance(error, MgvqError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        return f"{package} is not installed: pip install {_INSTALL.get(package, package)}"
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {text[:300]}"
