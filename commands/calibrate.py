"""``calibrate``: a precision for every node, chosen by measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import BUNDLE, CHECKPOINT, FORCE, OneOf
from mgvq_export.commands.output import echo_json, echo_tables, progress_bar
from mgvq_export.commands.protect import check_targets
from mgvq_export.commands.verb import verb
from mgvq_export.core.budgets import DEFAULT_BUDGETS


def _default(budget: str) -> str:
    """The defaults of a budget, as the help shows them: of 8 bits, and of fp16."""
    of_8_bits, of_fp16 = (getattr(DEFAULT_BUDGETS[precision], budget) for precision in ("int8", "fp16"))
    return f"[default: {of_8_bits:g}; fp16: {of_fp16:g}]"


@verb(
    BUNDLE,
    click.argument("images", nargs=-1, type=click.Path(path_type=Path)),
    click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The plan, a JSON file."),
    click.option(
        "--precision", type=OneOf(("int8", "fp16", "fp8")), default="int8", show_default=True, help="fp8 is experimental."
    ),
    CHECKPOINT,
    click.option("--min-code-agreement", type=float, help=f"Share of codes equal to fp32's. {_default('min_code_agreement')}"),
    click.option("--min-psnr", type=float, help=f"dB, decoder against fp32 on the same codes. {_default('min_psnr')}"),
    click.option("--max-psnr-drop", type=float, help=f"dB lost against the photos. {_default('max_psnr_drop')}"),
    click.option(
        "--parts", default="decoder", show_default=True, help="What goes into 8 bits: decoder, encoder, or both with a comma."
    ),
    click.option(
        "--base", type=OneOf(("fp16", "fp32")), default="fp16", show_default=True, help="Type of the rest in an 8-bit plan."
    ),
    click.option(
        "--measured-islands", is_flag=True, help="Norms and attention may be fp16; only for images no larger than a window."
    ),
    click.option(
        "--held-out",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Image or folder to measure on; may be repeated. [default: sample photos]",
    ),
    click.option(
        "--windows", type=int, default=64, show_default=True, help="Windows, squares cut from IMAGES, that ranges are taken from."
    ),
    click.option("--window-size", type=int, default=256, show_default=True, help="Their side in pixels."),
    click.option("--search-windows", type=int, default=8, show_default=True, help="How many of them plans are measured on."),
    click.option(
        "--margin",
        type=float,
        default=0.25,
        show_default=True,
        help="Share of the allowed loss to keep in hand for other images.",
    ),
    click.option("--name", help="Of the plan, and of its folder in a bundle. [default: the precision]"),
    click.option(
        "--report-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Report, plots, state of an interrupted run. [default: <plan>-report beside the plan]",
    ),
    FORCE,
    resumes=True,
)
def calibrate(bundle: Path, images: tuple[Path, ...], output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Choose a precision for every node by measuring on IMAGES (files and folders), and write the plan.

    \b
    mgvq-export calibrate bundle photos -o int8.json --min-psnr 45
    mgvq-export export checkpoint.pt -o bundle-int8 --precision fp32 --plan int8.json

    Exit code 1: the plan misses its budgets on the held-out images; it is written all the same. Run the same command again to go
    on with a calibration that was stopped.
    """
    from mgvq_export.calibration.report import run as run_calibration

    if output.absolute().parent.is_dir():  # else it is refused with the folder to make
        check_targets([output], inputs=images, force=force)
    with progress_bar("calibrate", 1000) as update:
        found = run_calibration(bundle, images, output, progress=lambda step, share: update(step, 1000 * share), **options)
    if as_json:
        echo_json(found.facts)
    else:
        echo_tables(found.tables, between="after")
        click.echo("\n".join([*found.notes, *map(str, found.files)]))
    found.raise_if_failed()
