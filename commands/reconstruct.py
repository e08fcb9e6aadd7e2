"""``reconstruct``: images go through the tokenizer and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mgvq_export.commands.options import BUNDLE, GROUPS, IMAGES, MAX_PIXELS, RUN_OPTIONS, folder_option
from mgvq_export.commands.run import Run
from mgvq_export.commands.verb import verb


@verb(BUNDLE, IMAGES, folder_option("Folder to write to.", required=True), *RUN_OPTIONS, GROUPS, MAX_PIXELS)
def reconstruct(
    bundle: Path,
    images: tuple[Path, ...],
    output: Path,
    groups: int | None,
    max_pixels: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Encode and decode images, <name>.png, and print the PSNR."""
    from mgvq_export.parity.metrics import psnr
    from mgvq_export.runtime.image_files import write_image

    run = Run(bundle, images, output, ".png", as_json, options)
    run.tokenizer.check_groups(groups)
    for index, path in enumerate(images):
        start = time.perf_counter()
        image = run.read(path, max_pixels)
        again = run.tokenizer.decode(run.tokenizer.encode(image, progress=run.windows(index, path)), groups=groups)
        write_image(run.target(path), again)
        psnr_db = psnr(again, image)
        run.lines.add(run.target(path), time.perf_counter() - start, f"{psnr_db:.2f} dB", psnr_db=psnr_db)
    run.close()
