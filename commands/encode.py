"""``encode``: images become token files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgvq_export.commands.inputs import IMAGE_SUFFIXES, find_jobs
from mgvq_export.commands.options import BUNDLE, FILE_OPTIONS, IMAGES, MAX_PIXELS, RUN_OPTIONS, tokenizer_options
from mgvq_export.commands.output import Lines
from mgvq_export.commands.plans import plan_facts
from mgvq_export.commands.run import Work, read_image_or_standard_input, run_files, write_to
from mgvq_export.commands.verb import verb
from mgvq_export.core.types import JsonObject

if TYPE_CHECKING:
    import numpy as np

    from mgvq_export.core.tokens import Tokens
    from mgvq_export.runtime.tiling.windows import TrunkPlan
    from mgvq_export.runtime.tokenizer import Tokenizer

    Planned = tuple[TrunkPlan, Tokens]


@verb(
    BUNDLE,
    IMAGES,
    *FILE_OPTIONS,
    *RUN_OPTIONS,
    click.option("--packed", is_flag=True, help="Pack codes to their bits."),
    click.option("--dry-run", is_flag=True, help="Only say how each image would run: windows, overhead, memory, time."),
    MAX_PIXELS,
)
def encode(
    bundle: Path,
    images: tuple[Path, ...],
    output: Path,
    recursive: bool,
    skip_existing: bool,
    force: bool,
    packed: bool,
    dry_run: bool,
    max_pixels: int | None,
    as_json: bool,
    json_lines: bool,
    **options: Any,
) -> None:
    """Turn IMAGES (files, folders, - for standard input) into token files, <name>.safetensors.

    \b
    mgvq-export encode bundle photo.jpg -o tokens
    mgvq-export encode bundle photos --recursive -o tokens --skip-existing
    mgvq-export encode bundle - -o - < photo.jpg > photo.safetensors
    """
    from mgvq_export.runtime.tokenizer import Tokenizer

    jobs = find_jobs(images, output, IMAGE_SUFFIXES, ".safetensors", recursive=recursive)
    lines = Lines(as_json, json_lines=json_lines, output=output)
    with Tokenizer.open(bundle, **tokenizer_options(options)) as tokenizer:
        if dry_run:
            from mgvq_export.commands import dry_run as plans

            return plans.dry_run(tokenizer, jobs, max_pixels, lines.machine_readable)
        run_files(jobs, _work(tokenizer, packed, max_pixels), lines, force=force, skip_existing=skip_existing)


def _work(tokenizer: Tokenizer, packed: bool, max_pixels: int | None) -> Work[np.ndarray, Planned]:
    def compute(images: Sequence[np.ndarray], progress: Callable[[int, int], None]) -> list[Planned]:
        plans = [tokenizer.encode_plan(*image.shape[:2]) for image in images]
        if len(images) == 1:
            return [(plans[0], tokenizer.encode(images[0], plan=plans[0], progress=progress))]
        return list(zip(plans, tokenizer.encode_batch(images, progress=progress), strict=True))

    def describe(_: np.ndarray, result: Planned) -> tuple[str, JsonObject]:
        plan, tokens = result
        (height, width), (rows, columns) = tokens.image_size, tokens.grid_size
        note = f"{width}x{height} -> {tokens.groups} x {columns}x{rows} codes, {plan}"
        return note, {"image_size": tokens.image_size, "codes": tokens.codes.shape, "plan": plan_facts(plan)}

    return Work(
        read=lambda path: read_image_or_standard_input(path, max_pixels),
        compute=compute,
        write=lambda target, result: write_to(target, ".safetensors", lambda file: result[1].save(file, packed=packed)),
        describe=describe,
    )
