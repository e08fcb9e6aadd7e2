"""``reconstruct``: images go through the tokenizer and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgvq_export.commands.inputs import IMAGE_SUFFIXES, find_jobs
from mgvq_export.commands.options import BUNDLE, FILE_OPTIONS, GROUPS, IMAGES, MAX_PIXELS, RUN_OPTIONS, tokenizer_options
from mgvq_export.commands.output import Lines
from mgvq_export.commands.run import Work, read_image_or_standard_input, run_files, write_to
from mgvq_export.commands.verb import verb
from mgvq_export.core.types import JsonObject

if TYPE_CHECKING:
    import numpy as np

    from mgvq_export.runtime.tokenizer import Tokenizer


@verb(BUNDLE, IMAGES, *FILE_OPTIONS, *RUN_OPTIONS, GROUPS, MAX_PIXELS)
def reconstruct(
    bundle: Path,
    images: tuple[Path, ...],
    output: Path,
    recursive: bool,
    skip_existing: bool,
    force: bool,
    groups: int | None,
    max_pixels: int | None,
    as_json: bool,
    json_lines: bool,
    **options: Any,
) -> None:
    """Encode and decode IMAGES (files, folders, - for standard input), <name>.png, and print the PSNR.

    \b
    mgvq-export reconstruct bundle photos -o reconstructions
    """
    from mgvq_export.runtime.tokenizer import Tokenizer

    jobs = find_jobs(images, output, IMAGE_SUFFIXES, ".png", recursive=recursive)
    lines = Lines(as_json, json_lines=json_lines, output=output)
    with Tokenizer.open(bundle, **tokenizer_options(options)) as tokenizer:
        tokenizer.check_groups(groups)
        run_files(jobs, _work(tokenizer, groups, max_pixels), lines, force=force, skip_existing=skip_existing)


def _work(tokenizer: Tokenizer, groups: int | None, max_pixels: int | None) -> Work[np.ndarray, np.ndarray]:
    from mgvq_export.parity.metrics import psnr
    from mgvq_export.runtime.image_files import write_image

    def compute(images: Sequence[np.ndarray], progress: Callable[[int, int], None]) -> list[np.ndarray]:
        def half(offset: float) -> Callable[[int, int], None]:
            return lambda done, total: progress(round(50 * done / total + offset), 100)

        if len(images) == 1:
            return [tokenizer.decode(tokenizer.encode(images[0], progress=half(0)), groups=groups, progress=half(50))]
        tokens = tokenizer.encode_batch(images, progress=half(0))
        return tokenizer.decode_batch(tokens, groups=groups, progress=half(50))

    def describe(image: np.ndarray, again: np.ndarray) -> tuple[str, JsonObject]:
        psnr_db = psnr(again, image)
        return f"{psnr_db:.2f} dB", {"image_size": image.shape[:2], "psnr_db": psnr_db}

    return Work(
        read=lambda path: read_image_or_standard_input(path, max_pixels),
        compute=compute,
        write=lambda target, again: write_to(target, ".png", lambda file: write_image(file, again)),
        describe=describe,
    )
