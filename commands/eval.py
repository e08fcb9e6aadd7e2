"""``eval``: how good reconstructions are on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import BUNDLE, MAX_PIXELS, RUN_OPTIONS, OneOf, folder_option, tokenizer_options
from mgvq_export.commands.output import echo_json, echo_tables, progress_bar
from mgvq_export.commands.verb import verb

METRICS = ("psnr", "ssim", "lpips", "rfid")
BENCHMARKS = ("imagenet-val", "uhdbench")


@verb(
    BUNDLE,
    click.argument("dataset", type=click.Path(path_type=Path)),
    folder_option("Folder to write to.", required=True),
    *RUN_OPTIONS,
    click.option("--size", metavar="WxH", help="Crop in pixels. [default: that of the declared benchmark, else 256x256]"),
    click.option("--groups", metavar="N,N", help="Decode with so many groups each. [default: 1, 2, 4, ... and all]"),
    click.option("--metric", "metrics", multiple=True, type=OneOf(METRICS), help="May be repeated. [default: all]"),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take a sample of N images."),
    click.option("--seed", type=int, default=0, show_default=True, help="Which sample."),
    click.option("--root", type=click.Path(path_type=Path), help="Folder of a JSON list's paths. [default: the list's own]"),
    click.option("--dataset", "declared", type=OneOf(BENCHMARKS), help="The benchmark that DATASET is. [default: none]"),
    MAX_PIXELS,
    resumes=True,
)
def eval(bundle: Path, dataset: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Reconstruct the images of DATASET (a folder or a JSON list) and measure: PSNR, SSIM, LPIPS, rFID, use of the codebook.

    Run the same command again to go on with an evaluation that was stopped.

    \b
    mgvq-export eval bundle photos -o scores
    mgvq-export eval bundle ILSVRC2012/val -o scores --dataset imagenet-val
    mgvq-export eval bundle UHDBench/UHDBench.json -o scores --size 2560x1440 --limit 100
    """
    from mgvq_export.evaluation.command import EvaluationOptions, run_evaluation

    wanted = EvaluationOptions(run=tokenizer_options(options), **options)
    results, files = run_evaluation(bundle, dataset, output, wanted, watch=progress_bar)
    if as_json:
        return echo_json(results.to_dict() | {"files": [str(file) for file in files]})
    echo_tables(results.tables(), between="after")
    click.echo("\n".join([*results.remarks(), *map(str, files)]))
