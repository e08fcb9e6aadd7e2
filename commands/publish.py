"""``publish``: a bundle becomes a model repository for Triton Inference Server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import BACKENDS, BUNDLE, OneOf, SizeType, folder_option
from mgvq_export.commands.output import Lines
from mgvq_export.commands.verb import verb
from mgvq_export.serving.options import DEVICES, SERVED_PIXELS, TARGETS, PublishOptions


@verb(
    BUNDLE,
    folder_option("Model repository to write.", required=True),
    click.option(
        "--target",
        type=OneOf(TARGETS),
        default="triton-python",
        show_default=True,
        help="Models that run this package, images of any size; or the bundle's engines, the sizes they hold.",
    ),
    click.option("--precision", help="fp32, fp16, or a plan's name. [default: fp32 if the bundle has it; of engines fp16]"),
    click.option("--device", type=OneOf(DEVICES), help="What the models run on. [default: cpu; engines gpu]"),
    click.option("--backend", type=OneOf(BACKENDS), default="auto", show_default=True, help="What runs the graphs."),
    click.option("--max-batch", type=int, default=8, show_default=True, help="Images run together at most."),
    click.option("--instances", type=int, default=1, show_default=True, help="Processes of each model."),
    click.option("--threads", type=int, help="CPU threads of one process. [default: all cores]"),
    click.option("--max-queue", type=int, default=64, show_default=True, help="Requests that may wait; more are rejected."),
    click.option("--size", "sizes", multiple=True, type=SizeType(), help="Image size to warm up with; may be repeated."),
    click.option("--max-pixels", type=int, default=SERVED_PIXELS, show_default=True, help="Largest image that is served."),
    click.option("--memory-limit", metavar="SIZE", help="Of each process, such as 4GiB. [default: 80 % of what is free]"),
    click.option("--model-version", "version", type=int, default=1, show_default=True, help="The version Triton serves."),
    click.option("--force", is_flag=True, help="Replace an existing repository."),
)
def publish(bundle: Path, output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Write BUNDLE as a model repository for Triton Inference Server.

    \b
    mgvq-export publish bundle -o models --size 256x256
    tritonserver --model-repository=models
    """
    from mgvq_export.core.bundle import Bundle
    from mgvq_export.serving.publish import publish as write_repository

    start = time.perf_counter()
    chosen = PublishOptions(**options)
    models = write_repository(Bundle.open(bundle), output, chosen, replace=force)
    lines = Lines(as_json)
    names = [model.name for model in models]
    note = f"{chosen.target}: {', '.join(names)}"
    lines.add(output, time.perf_counter() - start, note, target=chosen.target, models=names)
    lines.close()
