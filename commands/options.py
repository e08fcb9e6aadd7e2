"""Options and arguments that several verbs share, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mgvq_export.core.errors import InputError
from mgvq_export.core.types import TILINGS
from mgvq_export.core.units import Size, parse_size

BACKENDS = ("auto", "ort-cpu", "openvino", "ort-cuda", "tensorrt-rtx", "tensorrt")
LAYOUTS = ("ghw", "hwg")
PARTS = (
    *("encoder", "encoder_trunk", "encoder_trunk_fine", "encoder_trunk_coarse", "encoder_head"),
    *("quantizer", "dequantizer"),
    *("decoder", "decoder_head", "decoder_trunk", "decoder_trunk_coarse", "decoder_trunk_fine"),
)

if TYPE_CHECKING:
    from mgvq_export.runtime.tokenizer import OpenOptions

F = TypeVar("F", bound=Callable)


class OneOf(click.Choice):
    """A closed choice, whose refusal is worded as the other errors are."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The choice. Raises :class:`InputError` with the list of those there are."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            raise InputError(f"{_name(param)} is {value!r}; choose {', '.join(map(str, self.choices))}") from None


class SizeType(click.ParamType):
    """``2560x1440``, width first, in pixels -> (height, width)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """The size as Python has it. Raises :class:`InputError` for anything else."""
        if isinstance(value, tuple):
            return value
        return parse_size(str(value), _name(param))


class TileType(SizeType):
    """``512`` or ``768x512``, width first, in pixels -> (height, width)."""

    name = "N|WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """The size as Python has it. Raises :class:`InputError` for anything else."""
        if isinstance(value, str) and value.isdecimal() and int(value):
            return int(value), int(value)
        try:
            return super().convert(value, param, ctx)
        except InputError:
            wanted = "wanted a side in pixels such as 512, or WIDTHxHEIGHT such as 768x512"
            raise InputError(f"{_name(param)} is {value!r}; {wanted}") from None


def _name(param: click.Parameter | None) -> str:
    return param.opts[0] if param is not None else "the value"


def folder_option(what: str, **kwargs: Any) -> Callable[[F], F]:
    """``-o``, ``--output`` of a verb that writes a folder."""
    return click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help=what, **kwargs)


FORCE = click.option("--force", is_flag=True, help="Replace files that this program did not write.")

#: Of the verbs that write a file for each file they read.
FILE_OPTIONS: Sequence[Callable[[F], F]] = (
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path, allow_dash=True),
        required=True,
        help="Folder to write to; - for stdout.",
    ),
    click.option("-r", "--recursive", is_flag=True, help="Take the sub-folders of folders too, and keep them in the output."),
    click.option("--skip-existing", is_flag=True, help="Leave out what has been written already."),
    FORCE,
    click.option("--json-lines", is_flag=True, help="Print one JSON object a line as files are finished."),
)

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
IMAGES = click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
GROUPS = click.option("--groups", type=int, help="Use only the first N coarse-to-fine groups. [default: all]")
MAX_PIXELS = click.option("--max-pixels", type=click.IntRange(min=1), help="Largest image accepted. [default: 512 million]")
CHECKPOINT = click.option("--checkpoint", help="What the bundle was exported from. [default: the file it was exported from]")
ALLOW_HOST_CODE = click.option(
    "--allow-host-code",
    is_flag=True,
    help="Also load version-compatible TensorRT engines. This runs code inside the engine file: only for engines you trust.",
)
TILE = click.option("--tile", type=TileType(), help="Size of the windows in pixels. [default: what the memory limit allows]")

#: How images are run: what :func:`tokenizer_options` takes out of a command's options.
RUN_OPTIONS: Sequence[Callable[[F], F]] = (
    click.option("--backend", type=OneOf(BACKENDS), default="auto", show_default=True, help="What runs the graphs."),
    click.option(
        "--precision",
        help="fp32, fp16, or a plan's name; with openvino also bf16 (decoder) and bf16-all. [default: fp32 if the bundle has it]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="CPU threads that the graphs of one image run on. [default: all that this process may use]",
    ),
    click.option(
        "--tiling", type=OneOf(TILINGS), default="auto", show_default=True, help="blend changes codes; it is there to compare."
    ),
    TILE,
    click.option(
        "--memory-limit",
        metavar="SIZE",
        help="For the whole process, with tensorrt on the GPU, such as 6GiB. [default: 80 % of what is free, of the GPU's 95 %]",
    ),
    ALLOW_HOST_CODE,
)


def tokenizer_options(options: dict[str, Any]) -> OpenOptions:
    """Takes what :data:`RUN_OPTIONS` say out of a command's ``options``, as ``Tokenizer.open`` has it."""
    return {
        "backend": options.pop("backend"),
        "precision": options.pop("precision"),
        "threads": options.pop("threads"),
        "tiling": options.pop("tiling"),
        "tile": options.pop("tile"),
        "memory_limit": options.pop("memory_limit"),
        "allow_host_code": options.pop("allow_host_code"),
    }
