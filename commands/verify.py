"""``verify``: does a bundle compute what its network computes?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.inputs import IMAGE_SUFFIXES, find_files
from mgvq_export.commands.options import BACKENDS, BUNDLE, CHECKPOINT, FORCE, OneOf
from mgvq_export.commands.output import echo_json, echo_table, progress_bar
from mgvq_export.commands.protect import check_targets
from mgvq_export.commands.verb import verb

CHECKS = ("network", "precision", "backend", "quantizer", "decoder", "graphs", "batch", "tiling", "round-trip")


@verb(
    BUNDLE,
    click.argument("images", nargs=-1, type=click.Path(path_type=Path)),
    click.option("-r", "--recursive", is_flag=True, help="Take the sub-folders of folders too."),
    click.option("--backend", type=OneOf(BACKENDS), default="auto", show_default=True, help="Backend to verify."),
    CHECKPOINT,
    click.option(
        "--only", multiple=True, type=OneOf(CHECKS), metavar="CHECK", help=f"May be repeated: {', '.join(CHECKS)}. [default: all]"
    ),
    click.option("--strict", is_flag=True, help="Fail when anything is skipped."),
    FORCE,
    click.option("--bisect", is_flag=True, help="Also say at which nodes of the graphs differences arise."),
    click.option(
        "--report",
        "reports",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Write a report: .html (one page with pictures and charts), .md or .json; may be repeated.",
    ),
)
def verify(
    bundle: Path, images: tuple[Path, ...], recursive: bool, force: bool, bisect: bool, as_json: bool, **options: Any
) -> None:
    """Check that BUNDLE computes what its network computes, on IMAGES (files and folders) or on three sample photos.

    \b
    mgvq-export verify bundle --only network --only tiling photo.jpg
    mgvq-export verify bundle --report report.html
    """
    from mgvq_export.parity.verify import find_origins
    from mgvq_export.parity.verify import verify as verify_bundle

    images = tuple(find_files(images, IMAGE_SUFFIXES, recursive=recursive))
    check_targets(options["reports"], inputs=images, force=force)
    with progress_bar("verify", 14 if options["reports"] else 9) as update:
        report = verify_bundle(bundle, images, progress=update, **options)
    origins = find_origins(bundle, images, checkpoint=options["checkpoint"]) if bisect else None
    if as_json:
        echo_json(report.to_dict() | ({"bisect": origins.to_dict()} if origins else {}))
    else:
        echo_table(report.table())
        click.echo(report.summary())
        if origins:
            click.echo("\n" + "\n".join(origins.summary))
            if origins.origins:
                echo_table(origins.table())
    report.raise_if_failed()
