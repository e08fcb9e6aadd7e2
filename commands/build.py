"""``build``: a bundle's graphs become TensorRT engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import BUNDLE, PARTS, OneOf, SizeType, TileType
from mgvq_export.commands.output import Lines, progress_bar
from mgvq_export.commands.verb import verb
from mgvq_export.core.errors import InputError


def _refuse_shape(ctx: click.Context, _: click.Parameter, value: tuple[str, ...]) -> None:
    """``--shape`` was height first; ``--size`` is width first: the old words would build engines for other images."""
    if value:
        height, _x, width = value[0].lower().partition("x")
        meant = f"--size {width}x{height}" if height.isdecimal() and width.isdecimal() else "--size WxH"
        raise InputError(f"--shape is gone: sizes are width first; for --shape {value[0]} give {meant}")


@verb(
    BUNDLE,
    click.option(
        "--target",
        type=OneOf(("tensorrt", "rtx")),
        default="tensorrt",
        show_default=True,
        help="tensorrt, for the GPU of this machine; or rtx: TensorRT for RTX, for GeForce and RTX GPUs, built on any machine.",
    ),
    click.option(
        "--compute-capability",
        "capabilities",
        multiple=True,
        metavar="N",
        help="With --target rtx: build for these GPUs only, such as 8.6; may be repeated. [default: all it supports]",
    ),
    click.option("--precision", default="fp16", show_default=True, help="Graphs to build from: fp32, fp16, or a plan's name."),
    click.option(
        "--part",
        "parts",
        multiple=True,
        type=OneOf(PARTS),
        metavar="PART",
        help=f"One engine only; may be repeated: {', '.join(PARTS)}. [default: all that images need]",
    ),
    click.option("--size", "shapes", multiple=True, type=SizeType(), help="Image size; may be repeated, one profile each."),
    click.option("--shape", multiple=True, hidden=True, expose_value=False, callback=_refuse_shape),
    click.option("--tile", type=TileType(), help="Build trunks for windows of this size, halo included."),
    click.option("--batch", type=int, default=1, show_default=True, help="Largest batch of windows (with --tile) or images."),
    click.option("--builder-level", type=int, default=3, show_default=True, help="0: fastest build, 5: fastest engine."),
    click.option("--workspace", metavar="SIZE", help="Largest scratch memory, such as 4GiB. [default: all the GPU has]"),
    click.option("--version-compatible", is_flag=True, help="Engines load under later TensorRT versions too."),
    click.option("--hardware-compatible", is_flag=True, help="Engines run on other GPUs from Ampere on too."),
    click.option("--detailed", is_flag=True, help="Keep every layer's details for the engine inspector."),
)
def build(bundle: Path, workspace: str | None, capabilities: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Build TensorRT engines into BUNDLE, on the GPU that is to run them, or with --target rtx on any machine; those that still fit are kept.

    Give all sizes an engine is to hold in one command: building it anew replaces those it had.

    \b
    mgvq-export build bundle --size 2560x1440             whole images
    mgvq-export build bundle --size 2560x1440 --tile 768  trunks in windows
    mgvq-export build bundle --size 2560x1440 --target rtx
    """
    from mgvq_export.core.bundle import Bundle
    from mgvq_export.export.engines.build import Engine, build_engines
    from mgvq_export.export.engines.options import BuildOptions

    wanted = BuildOptions(workspace=_parse_workspace(workspace), compute_capabilities=capabilities, **options)
    lines = Lines(as_json)

    def finished(engine: Engine) -> None:
        note = "kept" if engine.reused else "; ".join(engine.reasons)
        lines.add(engine.path, engine.seconds, note, part=str(engine.part), reused=engine.reused, reasons=engine.reasons)

    with progress_bar("build", len(wanted.wanted_parts)) as update:
        build_engines(
            Bundle.open(bundle),
            wanted,
            progress=lambda step: update(str(step), step.index + step.share_of_engine),
            finished=finished,
        )
    lines.close()


def _parse_workspace(text: str | None) -> int | None:
    """``"4GiB"`` -> bytes. Raises :class:`InputError`."""
    from mgvq_export.core.units import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except InputError:
        raise InputError(
            f"workspace is {text!r}; wanted the largest scratch memory TensorRT may use, a size such as 4GiB or 800MB"
        ) from None
