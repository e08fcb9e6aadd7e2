"""``decode``: token files become images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import BUNDLE, GROUPS, RUN_OPTIONS, folder_option
from mgvq_export.commands.run import Run
from mgvq_export.commands.verb import verb


@verb(
    BUNDLE,
    click.argument("tokens", nargs=-1, required=True, type=click.Path(path_type=Path)),
    folder_option("Folder to write to.", required=True),
    *RUN_OPTIONS,
    GROUPS,
)
def decode(bundle: Path, tokens: tuple[Path, ...], output: Path, groups: int | None, as_json: bool, **options: Any) -> None:
    """Turn token files into images, <name>.png."""
    from mgvq_export.core.tokens import Tokens
    from mgvq_export.runtime.image_files import write_image

    run = Run(bundle, tokens, output, ".png", as_json, options)
    run.tokenizer.check_groups(groups)
    for index, path in enumerate(tokens):
        start = time.perf_counter()
        loaded = Tokens.load(path)
        plan = run.tokenizer.decode_plan(*loaded.image_size)
        image = run.tokenizer.decode(loaded, groups=groups, plan=plan, progress=run.windows(index, path))
        write_image(run.target(path), image)
        note = f"{image.shape[1]}x{image.shape[0]}, {plan}"
        run.lines.add(run.target(path), time.perf_counter() - start, note, image_size=image.shape[:2], plan=str(plan))
    run.close()
