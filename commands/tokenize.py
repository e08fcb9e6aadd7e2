"""``tokenize``: a whole data set becomes shards of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import BUNDLE, MAX_PIXELS, RUN_OPTIONS, OneOf, folder_option, tokenizer_options
from mgvq_export.commands.output import echo_json, echo_table, human_size, progress_bar, say
from mgvq_export.commands.verb import verb
from mgvq_export.core.errors import MgvqError
from mgvq_export.core.tables import Table

FORMATS = ("parquet", "webdataset", "jsonl", "npy", "safetensors")
ENGINES = ("auto", "local", "ray")
_FAILURES_SHOWN = 5


class ImagesFailed(MgvqError):
    """The run is complete, and some images failed; each is in failures.parquet. ``exit_code`` 1."""

    exit_code = 1


@verb(
    BUNDLE,
    click.argument("source"),
    folder_option("Folder to write to.", required=True),
    click.option("--format", type=OneOf(FORMATS), default="parquet", show_default=True, help="Of the result."),
    *RUN_OPTIONS,
    click.option("--size", metavar="WxH", help="Resize to cover this size and take the centre. [default: images as they are]"),
    click.option(
        "--as-stored", is_flag=True, help="Read pixels as eval does: EXIF orientation, colour profile and alpha left aside."
    ),
    click.option(
        "--image-column", metavar="NAME", help="Parquet column, list key or tar member of the images. [default: found by name]"
    ),
    click.option("--key-column", metavar="NAME", help="The same, of the images' unique names."),
    click.option("--class-column", metavar="NAME", help="The same, of their classes."),
    click.option("--keep", multiple=True, metavar="NAME", help="Carry this column into the result. May be repeated."),
    click.option("--root", metavar="FOLDER", help="Folder of a list's paths. [default: the list's own]"),
    click.option(
        "--shard-size", type=click.IntRange(min=1), metavar="N", help="Images in a shard. [default: 1 % of all, 100 to 5000]"
    ),
    click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Most images encoded together."),
    click.option("--engine", type=OneOf(ENGINES), default="auto", show_default=True, help="auto: ray for 300 images or more."),
    click.option("--address", metavar="HOST:PORT", help="A running Ray cluster, or auto. [default: a Ray of its own]"),
    click.option(
        "--workers", type=click.IntRange(min=1), metavar="N", help="Processes on Ray. [default: all processors or GPUs]"
    ),
    click.option(
        "--gpus-per-worker", type=float, metavar="N", help="Also a fraction. [default: 1 where the backend runs on GPUs]"
    ),
    click.option(
        "--max-failures", type=click.IntRange(min=0), metavar="N", help="Stop when more images failed. [default: go on]"
    ),
    click.option("--retry-failed", is_flag=True, help="Do the shards of failed images again."),
    MAX_PIXELS,
    resumes=True,
)
def tokenize(
    bundle: Path,
    source: str,
    output: Path,
    image_column: str | None,
    key_column: str | None,
    class_column: str | None,
    keep: tuple[str, ...],
    max_pixels: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Tokenize the images of SOURCE: a folder, a list (.txt, .json, .jsonl), webdataset tars or Parquet files, here or at an address.

    Run the same command again to go on with a run that was stopped in any way. An image that cannot be read is a row of
    failures.parquet; the exit code is then 1.

    \b
    mgvq-export tokenize bundle photos -o tokens --size 256x256
    mgvq-export tokenize bundle 'shards/train-{000..099}.tar' -o tokens --format webdataset
    mgvq-export tokenize bundle s3://bucket/images -o tokens --max-failures 100
    """
    from mgvq_export.dataset.sources import Fields
    from mgvq_export.dataset.tokenize import FAILURES, TokenizeOptions, tokenize_dataset

    if max_pixels is not None:
        options["max_pixels"] = max_pixels
    fields = Fields(image_column, key_column, class_column, keep)
    wanted = TokenizeOptions(
        run=tokenizer_options(options), fields=fields, debug=bool(click.get_current_context().meta.get("debug")), **options
    )
    summary = tokenize_dataset(bundle, source, output, wanted, watch=progress_bar)
    counts = summary.manifest.counts
    if as_json:
        echo_json(
            {
                **vars(counts),
                "output": str(summary.output),
                "tokenized_now": summary.tokenized,
                "seconds": round(summary.seconds, 3),
                "images_per_second": round(summary.images_per_second, 3),
                "failures": [dict(zip(("key", "path", "reason"), failure, strict=True)) for failure in summary.failures],
            }
        )
    else:
        for key, _, reason in summary.failures[:_FAILURES_SHOWN]:
            say(f"failed: {key}: {reason}", err=True)
        rows = [
            ["images", f"{counts.images:,}, {counts.tokenized:,} tokenized"],
            ["codes", f"{counts.codes:,}"],
            ["bytes", human_size(counts.bytes)],
            ["images/s", f"{summary.images_per_second:.3g}, {summary.tokenized:,} in this run, {summary.seconds:.1f} s"],
            ["failures", f"{counts.failed:,}{f', in {summary.output / FAILURES}' if counts.failed else ''}"],
        ]
        echo_table(Table(("", str(summary.output)), rows))
    if counts.failed:
        raise ImagesFailed(
            f"{counts.failed} of {counts.images} images failed; {summary.output / FAILURES} says which and why, --retry-failed does them again"
        )
