"""What all commands share: errors in one line, common options, and how a run over many files goes."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

import mgvq_export
from mgvq_export.commands.output import Lines, progress_bar
from mgvq_export.core.errors import InputError, MgvqError
from mgvq_export.core.files import make_folder

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


# Optional packages -> the extra that brings them.
EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "ml_dtypes": "export",
    "huggingface_hub": "export",
    "tensorrt": "tensorrt",
    "cuda": "tensorrt",
    "jinja2": "report",
    "matplotlib": "report",
    "skimage": "report",
}


class Verb(click.Command):
    """A command whose errors are one line: exit code 2 for bad input, 1 for a failed check, 3 for a bug.

    ``resumes``: the same command, given again, goes on where it was interrupted.
    """

    def __init__(self, *args: Any, resumes: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.resumes = resumes

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            go_on = "; run the same command again to go on" if self.resumes else ""
            click.echo(f"interrupted; nothing half-written is left{go_on}", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            if isinstance(error, MgvqError):
                click.echo(f"error: {error}", err=True)
                ctx.exit(error.exit_code)
            package = (getattr(error, "name", None) or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
            if package in EXTRAS:
                click.echo(f"error: {ctx.info_name} needs {package}: pip install 'mgvq-export[{EXTRAS[package]}]'", err=True)
                ctx.exit(2)
            if isinstance(error, MemoryError):
                click.echo("error: out of memory; give a smaller --memory-limit or close other programs", err=True)
                ctx.exit(2)
            click.echo(f"internal error: {type(error).__name__}: {error}; please report it with the output of --debug", err=True)
            ctx.exit(3)


#: The verbs as ``--help`` lists them.
SECTIONS = {
    "Make a bundle": ("models", "export", "calibrate", "build"),
    "Run it": ("encode", "decode", "reconstruct"),
    "Measure it": ("verify", "eval", "bench"),
    "Look around": ("inspect", "doctor", "demo"),
}


class Verbs(click.Group):
    """A group that lists its commands in the order of the work, under :data:`SECTIONS`."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            commands = [(name, command) for name in names if (command := self.get_command(ctx, name))]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in commands])


@click.group(cls=Verbs, context_settings=CONTEXT)
@click.version_option(mgvq_export.__version__, prog_name="mgvq-export")
def main() -> None:
    """Take a trained MGVQ image tokenizer to production.

    \b
    mgvq-export demo                            the whole way on the packaged model
    mgvq-export export demo -o bundle           checkpoint -> ONNX graphs
    mgvq-export encode bundle photo.jpg -o out  image -> tokens
    mgvq-export decode bundle out/photo.safetensors -o out
    """


def verb(*options: Callable, group: click.Group | None = None, resumes: bool = False) -> Callable:
    """A command of ``group`` (of the program when None) with ``options`` and, last, ``--json`` and ``--debug``.

    ``resumes``: as in :class:`Verb`.
    """

    def decorate(function: Callable) -> click.Command:
        debug = click.option("--debug", is_flag=True, expose_value=True, help="Show tracebacks.")
        as_json = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON on standard output.")
        for option in (debug, as_json, *reversed(options)):
            function = option(function)
        return (group or main).command(cls=Verb, resumes=resumes)(function)

    return decorate


BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
ALLOW_HOST_CODE = click.option(
    "--allow-host-code",
    is_flag=True,
    help="Also load version-compatible TensorRT engines. This runs code inside the engine file: only for engines you trust.",
)
RUN_OPTIONS = (
    click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to."),
    click.option("--backend", default="auto", show_default=True, help="auto, ort-cpu, ort-cuda or tensorrt."),
    click.option("--precision", help="fp32, fp16, or a plan's name. [default: fp32 if the bundle has it]"),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one operator. [default: all cores]"),
    click.option("--tiling", default="auto", show_default=True, help="auto, off, exact, or blend (changes codes; to compare)."),
    click.option("--tile", metavar="N|HxW", help="Size of the windows in pixels. [default: what the memory limit allows]"),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        help="For the whole process, with tensorrt on the GPU, such as 6GiB. [default: 80 % of what is free, of the GPU's 95 %]",
    ),
    ALLOW_HOST_CODE,
)
IMAGES = click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
GROUPS = click.option("--groups", type=int, help="Use only the first N coarse-to-fine groups. [default: all]")
MAX_PIXELS = click.option("--max-pixels", type=click.IntRange(min=1), help="Largest image accepted. [default: 512 million]")


def parse_tile(text: str | None) -> tuple[int, int] | None:
    """``"512"`` or ``"512x768"`` (height x width) -> (height, width). Raises :class:`InputError`."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise InputError(f"tile is {text!r}; wanted a side in pixels such as 512, or HxW such as 512x768")
    return int(sides[0]), int(sides[-1])


def parse_workspace(text: str | None) -> int | None:
    """``"4GiB"`` -> bytes. Raises :class:`InputError`."""
    from mgvq_export.runtime.tiling.planner import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except InputError:
        raise InputError(
            f"workspace is {text!r}; wanted the largest scratch memory TensorRT may use, a size such as 4GiB or 800MB"
        ) from None


def tokenizer_options(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what :data:`RUN_OPTIONS` say of the tokenizer out of a command's ``options``, as ``Tokenizer.open`` has it."""
    names = ("backend", "precision", "threads", "tiling", "memory_limit", "allow_host_code")
    return {name: options.pop(name) for name in names} | {"tile": parse_tile(options.pop("tile"))}


class Run:
    """What encode, decode and reconstruct share: the tokenizer, the file names, the progress bar."""

    def __init__(self, bundle: Path, inputs: Sequence[Path], output: Path, suffix: str, options: dict[str, Any]):
        from mgvq_export.runtime.tokenizer import Tokenizer

        self.output, self.suffix = output, suffix
        by_name: dict[Path, Path] = {}
        for path in inputs:
            if not path.is_file():
                raise InputError(f"cannot read {path}: {'it is a folder' if path.is_dir() else 'no such file'}; give files")
            other = by_name.setdefault(self.target(path), path)
            if other is not path:
                raise InputError(f"{other} and {path} would both be written to {self.target(path)}; rename one or run them apart")
        self.lines = Lines(options["as_json"])
        self._stack = contextlib.ExitStack()
        chosen = tokenizer_options(options)
        self.tokenizer = self._stack.enter_context(Tokenizer.open(bundle, **chosen))
        self._update = self._stack.enter_context(progress_bar("", len(inputs)))
        click.get_current_context().call_on_close(self._stack.close)

    def target(self, path: Path) -> Path:
        return self.output / f"{path.stem}{self.suffix}"

    def read(self, path: Path, max_pixels: int | None) -> Any:
        from mgvq_export.runtime.image_files import MAX_PIXELS, read_image

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged files that it then refuses: one line is enough
            return read_image(path, max_pixels=max_pixels or MAX_PIXELS)

    def windows(self, index: int, path: Path) -> Callable[[int, int], None]:
        """The progress callback of one input."""
        make_folder(self.output)  # late: bad input leaves no empty folder behind
        self._update(path.name, index)
        return lambda done, total: self._update(f"{path.name} {done}/{total}", index + done / total)

    def close(self) -> None:
        self._stack.close()
        self.lines.close()
