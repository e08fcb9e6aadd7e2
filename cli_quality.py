"""The verbs that measure: does a bundle compute what its network computes, how well, how fast, and in which precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgvq_export.commands import BUNDLE, verb
from mgvq_export.terminal import echo_json, echo_table, progress_bar


@verb(
    BUNDLE,
    click.argument("images", nargs=-1, type=click.Path(path_type=Path)),
    click.option("--backend", default="auto", show_default=True, help="Backend to verify."),
    click.option("--checkpoint", help="What the bundle was exported from. [default: the file it was exported from]"),
    click.option("--only", multiple=True, metavar="QUESTION", help="Ask this question only; may be repeated."),
    click.option("--bisect", is_flag=True, help="Also say at which nodes of the graphs differences arise."),
)
def verify(bundle: Path, images: tuple[Path, ...], bisect: bool, as_json: bool, debug: bool, **options: Any) -> None:
    """Check that BUNDLE computes what its network computes, on IMAGES or on three sample photos.

    \b
    Questions: network, precision, backend, quantizer, decoder, graphs, batch, tiling, round-trip.
    mgvq-export verify bundle --only network --only tiling photo.jpg
    """
    from mgvq_export.parity.verify import find_origins
    from mgvq_export.parity.verify import verify as verify_bundle

    with progress_bar("verify", 9) as update:
        report = verify_bundle(bundle, images, progress=update, **options)
    origins = find_origins(bundle, images, checkpoint=options["checkpoint"]) if bisect else None
    if as_json:
        echo_json(report.to_dict() | ({"bisect": origins.to_dict()} if origins else {}))
    else:
        echo_table(*report.table())
        click.echo(report.summary())
        if origins:
            click.echo("\n" + "\n".join(origins.summary))
            if origins.origins:
                echo_table(*origins.table(), title="Differences arise at")
    report.raise_if_failed()
