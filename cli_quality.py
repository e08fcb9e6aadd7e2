"""The verbs that measure: does a bundle compute what its network computes, how well, how fast, and in which precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgvq_export.commands import BUNDLE, MAX_PIXELS, RUN_OPTIONS, parse_tile, verb
from mgvq_export.terminal import echo_json, echo_table, progress_bar


@verb(
    BUNDLE,
    click.argument("images", nargs=-1, type=click.Path(path_type=Path)),
    click.option("--backend", default="auto", show_default=True, help="Backend to verify."),
    click.option("--checkpoint", help="What the bundle was exported from. [default: the file it was exported from]"),
    click.option("--only", multiple=True, metavar="QUESTION", help="Ask this question only; may be repeated."),
    click.option("--bisect", is_flag=True, help="Also say at which nodes of the graphs differences arise."),
    click.option(
        "--report",
        "reports",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Write a report: .html (one page with pictures and charts), .md or .json; may be repeated.",
    ),
)
def verify(bundle: Path, images: tuple[Path, ...], bisect: bool, as_json: bool, debug: bool, **options: Any) -> None:
    """Check that BUNDLE computes what its network computes, on IMAGES or on three sample photos.

    \b
    Questions: network, precision, backend, quantizer, decoder, graphs, batch, tiling, round-trip.
    mgvq-export verify bundle --only network --only tiling photo.jpg
    mgvq-export verify bundle --report report.html
    """
    from mgvq_export.parity.verify import find_origins
    from mgvq_export.parity.verify import verify as verify_bundle

    with progress_bar("verify", 14 if options["reports"] else 9) as update:
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


@verb(
    BUNDLE,
    click.argument("dataset", type=click.Path(path_type=Path)),
    *RUN_OPTIONS,
    click.option("--size", metavar="WxH", help="Crop in pixels. [default: that of the declared benchmark, else 256x256]"),
    click.option("--groups", metavar="N,N", help="Decode with so many groups each. [default: 1, 2, 4, ... and all]"),
    click.option("--metric", "metrics", multiple=True, help="psnr, ssim, lpips or rfid; may be repeated. [default: all]"),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take a sample of N images."),
    click.option("--seed", type=int, default=0, show_default=True, help="Which sample."),
    click.option("--root", type=click.Path(path_type=Path), help="Folder of a JSON list's paths. [default: the list's own]"),
    click.option("--dataset", "declared", help="The benchmark DATASET is: imagenet-val or uhdbench. [default: none]"),
    MAX_PIXELS,
)
def eval(bundle: Path, dataset: Path, output: Path, as_json: bool, debug: bool, **options: Any) -> None:
    """Reconstruct the images of DATASET (a folder or a JSON list) and measure: PSNR, SSIM, LPIPS, rFID, use of the codebook.

    Run the same command again to go on with an evaluation that was stopped.

    \b
    mgvq-export eval bundle photos -o scores
    mgvq-export eval bundle ILSVRC2012/val -o scores --dataset imagenet-val
    mgvq-export eval bundle UHDBench/UHDBench.json -o scores --size 2560x1440 --limit 100
    """
    from mgvq_export.evaluation.command import EvaluationOptions, run_evaluation

    names = ("backend", "precision", "threads", "tiling", "memory_limit")
    run = {name: options.pop(name) for name in names} | {"tile": parse_tile(options.pop("tile"))}
    wanted = EvaluationOptions(run=run, **options)
    results, files = run_evaluation(bundle, dataset, output, wanted, watch=progress_bar)
    if as_json:
        return echo_json(results.to_dict() | {"files": [str(file) for file in files]})
    for title, table in results.tables():
        echo_table(*table, title=title)
        click.echo()
    click.echo("\n".join([*results.remarks(), *map(str, files)]))
