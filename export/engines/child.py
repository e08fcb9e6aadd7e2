"""Builds an engine in a process of its own.

TensorRT for RTX ends the process on some impossible sizes, so a build must not run in the caller's. And the order in which it writes
an engine's outputs follows from addresses in memory: the child's allocator is told to keep no lists of freed blocks for its threads, with
which addresses come in the same order each time. So two builds give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
from pathlib import Path
from typing import IO

from mgvq_export.core.errors import BackendError, MgvqError
from mgvq_export.core.processes import python_command
from mgvq_export.export.engines.builder import BuiltEngine, EngineJob, Report, build_plan

_ALLOCATOR = "glibc.malloc.tcache_count=0"


def build_in_child(job: EngineJob, path: Path, report: Report = lambda phase, share: None) -> BuiltEngine:
    """:func:`~mgvq_export.export.engines.builder.build_plan` in a child process that writes the engine to ``path``.

    Returns what the builder gave, without the plan. Ctrl-C ends the child at once.

    Raises:
        BackendError: as ``build_plan``, or the child exited unexpectedly.
    """
    tunables = [value for value in (os.environ.get("GLIBC_TUNABLES"), _ALLOCATOR) if value]
    environment = os.environ | {"GLIBC_TUNABLES": ":".join(tunables), "PYTHONHASHSEED": "0"}
    command = python_command(__name__, function="serve")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it ended; receiving says so
            pickle.dump((job, path), process.stdin)
            process.stdin.close()
        return _receive(job, process, process.stdout, report)
    except BaseException:
        process.kill()  # it may be in the middle of a build that takes minutes
        raise
    finally:
        process.wait()
        process.stdout.close()


def _receive(job: EngineJob, process: subprocess.Popen[bytes], answers: IO[bytes], report: Report) -> BuiltEngine:
    while True:
        try:
            kind, *values = pickle.load(answers)
        except (EOFError, pickle.UnpicklingError):
            status = process.wait()
            how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
            raise BackendError(
                f"{job.name}: {job.library} cannot build the engine: its process exited unexpectedly ({how}), possibly for want of "
                "memory; try a smaller --size, --tile or --batch"
            ) from None
        if kind == "progress":
            report(*values)
        elif kind == "failed":
            raise BackendError(*values)
        else:
            return BuiltEngine(*values)


def serve() -> None:
    """A child's life: read the job, build, write the engine, say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the child
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what libraries print must not get between the answers
        with contextlib.suppress(EOFError, BrokenPipeError):
            job, path = pickle.load(requests)
            try:
                built = build_plan(job, lambda phase, share: _send(answers, "progress", phase, share))
                path.write_bytes(built.plan)
                _send(answers, "built", None, built.timings, built.activation_bytes)
            except MgvqError as error:
                _send(answers, "failed", str(error))
            except OSError as error:
                _send(
                    answers,
                    "failed",
                    f"{job.name}: cannot write {path}: {error.strerror}; free some space, or change the permissions",
                )


def _send(stream: IO[bytes], *message: object) -> None:
    pickle.dump(message, stream)
    stream.flush()
