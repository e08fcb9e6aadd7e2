"""``encode``: images become token files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import BUNDLE, IMAGES, MAX_PIXELS, RUN_OPTIONS, folder_option
from mgvq_export.commands.run import Run
from mgvq_export.commands.verb import verb


@verb(
    BUNDLE,
    IMAGES,
    folder_option("Folder to write to.", required=True),
    *RUN_OPTIONS,
    click.option("--packed", is_flag=True, help="Pack codes to their bits."),
    MAX_PIXELS,
)
def encode(
    bundle: Path, images: tuple[Path, ...], output: Path, packed: bool, max_pixels: int | None, as_json: bool, **options: Any
) -> None:
    """Turn images into token files, <name>.safetensors."""
    run = Run(bundle, images, output, ".safetensors", as_json, options)
    for index, path in enumerate(images):
        start = time.perf_counter()
        image = run.read(path, max_pixels)
        plan = run.tokenizer.encode_plan(*image.shape[:2])
        tokens = run.tokenizer.encode(image, plan=plan, progress=run.windows(index, path))
        tokens.save(run.target(path), packed=packed)
        height, width = tokens.image_size
        note = f"{width}x{height} -> {tokens.groups} x {tokens.grid_size[1]}x{tokens.grid_size[0]} codes, {plan}"
        facts = {"image_size": tokens.image_size, "codes": tokens.codes.shape, "plan": str(plan)}
        run.lines.add(run.target(path), time.perf_counter() - start, note, **facts)
    run.close()
