"""Every contestant in a process of its own, run on demand: its peak memory is its own, and nobody's threads stand in another's way."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from mgvq_export.bench.timing import take_turns
from mgvq_export.core.errors import BackendError, MgvqError
from mgvq_export.runtime.tiling.memory import forget_peak, peak_bytes, resident_bytes

#: ONNX Runtime's threads keep looking for work for some 20 ms after a run; the next contestant waits until they sleep.
SETTLE_SECONDS = 0.05

# Module -> what to install for it, where the names differ.
_INSTALL = {"torch": "'mgvq-export[export]'", "onnx": "'mgvq-export[export]'", "faiss": "faiss-cpu"}

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Job(Protocol):
    """What a contestant does, in its own process."""

    def warm_up(self) -> None:
        """Load libraries, compile, start threads: what is no part of a pass."""

    def run(self) -> dict[str, float]:
        """One pass: seconds by stage."""

    def outcome(self) -> dict[str, Any]:
        """Facts about the first full pass, for the parent."""


@dataclass(frozen=True)
class Contestant:
    """A name, and a function of some module with arguments that can be pickled, which makes the :class:`Job`.

    ``optional``: when it cannot run, the reason is a result; otherwise it is an error.
    """

    name: str
    build: Callable[..., Job]
    arguments: tuple[Any, ...]
    optional: bool = False


@dataclass
class Measured:
    """What was found of one contestant.

    Attributes:
        samples: stage -> seconds of every round.
        base_bytes: resident memory of its process, loaded and warmed up, before the first full pass.
        peak_bytes: the highest during that pass.
        outcome: what the job says about that pass.
        skipped: why it could not run; then everything else is empty.
    """

    samples: dict[str, list[float]]
    base_bytes: int = 0
    peak_bytes: int = 0
    outcome: dict[str, Any] | None = None
    skipped: str | None = None


def measure(
    contestants: Sequence[Contestant],
    rounds: int,
    *,
    threads: int | None = None,
    progress: Callable[[str, int], None] = lambda name, done: None,
) -> dict[str, Measured]:
    """Load each contestant, run it once for its memory, then ``rounds`` times in turns.

    Args:
        threads: told to the libraries that read it from the environment; all cores when None.
        progress: called with the name and the number of passes done, of ``len(contestants) * (rounds + 1)``.

    Raises :class:`BackendError` when a contestant that is not optional fails, with its reason.
    """
    with contextlib.ExitStack() as stack:
        children: dict[str, _Child] = {}
        found: dict[str, Measured] = {}
        for done, contestant in enumerate(contestants):
            progress(contestant.name, done)
            child = stack.enter_context(_start(contestant, threads))
            first = child.first()
            found[contestant.name] = first
            if first.skipped is None:
                children[contestant.name] = child
            elif not contestant.optional:
                raise BackendError(f"{contestant.name}: {first.skipped}")
        passes = take_turns(
            {name: child.run for name, child in children.items()},
            rounds,
            settle=lambda: time.sleep(SETTLE_SECONDS),
            progress=lambda name, done: progress(name, len(contestants) + done),
        )
        for name, laps in passes.items():
            found[name].samples = {stage: [lap[stage] for lap in laps] for stage in laps[0]} if laps else {}
        return found


class _Child:
    def __init__(self, name: str, pipe: Connection):
        self.name, self._pipe = name, pipe

    def first(self) -> Measured:
        return Measured({}, **self._receive())

    def run(self) -> dict[str, float]:
        self._pipe.send("run")
        answer = self._receive()
        if "skipped" in answer:
            raise BackendError(f"{self.name}: {answer['skipped']}")
        return answer

    def _receive(self) -> dict[str, Any]:
        try:
            return self._pipe.recv()
        except EOFError:
            return {"skipped": "its process ended without a word; most often it was stopped because memory ran out"}


@contextlib.contextmanager
def _start(contestant: Contestant, threads: int | None) -> Iterator[_Child]:
    context = multiprocessing.get_context("spawn")  # forked children would inherit the parent's libraries and memory
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(contestant.build, contestant.arguments, other), daemon=True)
    with _environment(threads):
        process.start()
    other.close()  # else the parent would wait for ever for a child that died
    try:
        yield _Child(contestant.name, pipe)
        pipe.close()  # the child reads the end of the pipe and leaves
    except BaseException:
        process.terminate()  # it may be in the middle of a pass that takes minutes
        raise
    finally:
        process.join()


@contextlib.contextmanager
def _environment(threads: int | None) -> Iterator[None]:
    if threads is None:
        yield
        return
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(build: Callable[..., Job], arguments: tuple[Any, ...], pipe: Connection) -> None:
    """A child's life: build, warm up, one pass for the memory, then a pass per request until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the children
    try:
        job = build(*arguments)
        job.warm_up()
        base = resident_bytes()
        forget_peak()
        job.run()
        pipe.send({"base_bytes": base, "peak_bytes": peak_bytes(), "outcome": job.outcome()})
        while pipe.recv() == "run":
            pipe.send(job.run())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send({"skipped": reason(error)})


def reason(error: Exception) -> str:
    """Why something could not run, in one line."""
    if isinstance(error, MgvqError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        return f"{package} is not installed: pip install {_INSTALL.get(package, package)}"
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {text[:300]}"
