"""A verb: a command whose errors are one line on standard error, and whose exit code says which kind they are."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import click

from mgvq_export.core.errors import MgvqError

BAD_INPUT, INTERNAL, INTERRUPTED = 2, 3, 130

# Optional packages -> the extra that brings them.
EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "ml_dtypes": "export",
    "huggingface_hub": "export",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "cuda": "tensorrt",
    "jinja2": "report",
    "matplotlib": "report",
    "skimage": "report",
    "pyarrow": "dataset",
    "webdataset": "dataset",
    "ray": "dataset",
}


class Verb(click.Command):
    """A command whose errors are one line: exit code 2 for bad input, 1 for a failed check, 3 for a bug.

    ``resumes``: the same command, given again, goes on where it was interrupted.
    """

    def __init__(self, *args: Any, resumes: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.resumes = resumes

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb. What it raises becomes one line and an exit code."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe or a full disk shows here, not while Python ends
            return result
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as stop:
            go_on = "; run the same command again to go on" if self.resumes else ""
            said = str(stop) or "interrupted"
            click.echo(f"{said}; nothing half-written is left{go_on}", err=True)
            ctx.exit(getattr(stop, "code", INTERRUPTED))
        except Exception as error:
            if ctx.meta.get("debug"):
                traceback.print_exc()
            line, code = explain(error, ctx.info_name or "mgvq-export")
            if line:
                click.echo(line, err=True)
            ctx.exit(code)


def explain(error: Exception, verb: str) -> tuple[str, int]:
    """The line to print for ``error`` (empty for none) and the exit code."""
    if isinstance(error, MgvqError):
        return f"error: {error}" if str(error) else "", error.exit_code
    if isinstance(error, BrokenPipeError):  # the reader of standard output has closed it
        _forget_standard_output()
        return "", BAD_INPUT
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        _forget_standard_output()
        return f"error: cannot write to standard output: {error.strerror}", BAD_INPUT
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in EXTRAS:
        return f"error: {verb} needs {package}: pip install 'mgvq-export[{EXTRAS[package]}]'", BAD_INPUT
    if isinstance(error, MemoryError):
        return "error: out of memory; give a smaller --memory-limit or close other programs", BAD_INPUT
    return f"internal error: {type(error).__name__}: {error}; please report it with the output of --debug", INTERNAL


def unknown_verb(name: str, known: Iterable[str]) -> str:
    """What to say of a verb that does not exist: the nearest name, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"no command {name!r}; " + (f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}")


def _forget_standard_output() -> None:
    """What is still buffered for a closed or full standard output goes nowhere: Python would complain about it at its end."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file, as under a test runner
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def verb(*options: Callable, resumes: bool = False, name: str | None = None) -> Callable[[Callable], Verb]:
    """A :class:`Verb` with ``options`` and, last, ``--json`` and ``--debug``, from a function that takes ``as_json`` among the rest.

    ``resumes``: as in :class:`Verb`. ``name``: of the command, where it is not the function's.
    """

    def decorate(function: Callable) -> Verb:
        debug = click.option("--debug", is_flag=True, help="Show tracebacks.", expose_value=False, callback=_keep_debug)
        as_json = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON on standard output.")
        for option in (debug, as_json, *reversed(options)):
            function = option(function)
        return click.command(name, cls=Verb, resumes=resumes)(function)

    return decorate


def _keep_debug(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta["debug"] = value
    return value
