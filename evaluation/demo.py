"""The demo: export, encode, decode and compare, on the packaged model and photos that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mgvq_export.core.files import make_folder
from mgvq_export.core.spec import group_counts
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject
from mgvq_export.parity.results import ParityReport
from mgvq_export.parity.verify import SAMPLES
from mgvq_export.runtime.image_files import read_image, write_image

SHEET_HEIGHT = 320  # pixels of one row of the contact sheet
CAPTION = 22


@dataclass
class DemoResult:
    """``facts`` as JSON-ready data, ``tables`` for people, and the comparison with PyTorch."""

    facts: JsonObject
    tables: list[Table]
    report: ParityReport

    def raise_if_failed(self) -> None:
        """Raise :class:`CheckFailed` when the graphs and the PyTorch network disagree."""
        self.report.raise_if_failed()


def sample_photos() -> list[Path]:
    """The packaged photos; the demo model was not trained on them."""
    return sorted(SAMPLES.glob("*.jpg"))


def run_demo(output: Path, say: Callable[[str], None]) -> DemoResult:
    """Export the demo model to ``output``, encode and decode the sample photos, compare with PyTorch, draw a contact sheet.

    ``say`` is called with one line per step. Raises :class:`InputError` when ``output`` cannot be written.
    """
    from mgvq_export.core.tokens import Tokens
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.model.checkpoint import load_checkpoint
    from mgvq_export.parity.metrics import psnr
    from mgvq_export.parity.verify import compare_with_network
    from mgvq_export.runtime.tokenizer import Tokenizer

    make_folder(output)
    start = time.perf_counter()
    checkpoint = load_checkpoint("demo")
    bundle = export_bundle(checkpoint, output / "bundle", precisions=("fp32", "fp16"), replace=True)
    say(f"exported {bundle.path}  {time.perf_counter() - start:.1f} s")
    photos = [read_image(path) for path in sample_photos()]
    rows, strips, figures = [], [], []
    with Tokenizer.open(bundle) as tokenizer:
        counts = group_counts(bundle.spec.groups)
        for path, photo in zip(sample_photos(), photos, strict=True):
            start = time.perf_counter()
            token_file = output / f"{path.stem}.safetensors"
            tokenizer.encode(photo).save(token_file, packed=True)
            tokens = Tokens.load(token_file)
            decoded = [tokenizer.decode(tokens, groups=n) for n in counts]
            write_image(output / f"{path.stem}.png", decoded[-1])
            seconds = time.perf_counter() - start
            quality = [psnr(image, photo) for image in decoded]
            bits = 8 * token_file.stat().st_size / (photo.shape[0] * photo.shape[1])
            figures.append({"photo": path.name, "psnr_db": dict(zip(counts, quality, strict=True)), "file_bits_per_pixel": bits})
            rows.append([path.stem, f"{photo.shape[1]}x{photo.shape[0]}", *(f"{value:.2f}" for value in quality), f"{bits:.2f}"])
            captions = [
                path.stem,
                *(f"{n} of {counts[-1]} groups, {value:.1f} dB" for n, value in zip(counts, quality, strict=True)),
            ]
            strips.append((captions, [photo, *decoded]))
            say(f"encoded, decoded {path.name}  {seconds:.1f} s")
        network = checkpoint.network()
        report = compare_with_network(tokenizer, network, [photo[:256, :256] for photo in photos])
    sheet = output / "contact-sheet.png"
    write_image(sheet, contact_sheet(strips))
    say(f"drew {sheet}")
    columns = ("photo", "size", *(f"{n} group{'s' * (n > 1)}" for n in counts), "bits/pixel")
    tables: list[Table] = [
        Table(columns, rows, "PSNR in dB by groups used (photos held out from training)"),
        replace(report.table(), title="ONNX Runtime against PyTorch"),
    ]
    facts: JsonObject = {"bundle": str(bundle.path), "contact_sheet": str(sheet), "photos": figures, "parity": report.to_dict()}
    return DemoResult(facts, tables, report)


def contact_sheet(strips: Sequence[tuple[Sequence[str], Sequence[np.ndarray]]]) -> np.ndarray:
    """One row per (captions, images): every image scaled to one height, its caption below. Returns uint8 [H, W, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    rows = []
    for captions, images in strips:
        scaled = [Image.fromarray(image) for image in images]
        scaled = [image.resize((round(image.width * SHEET_HEIGHT / image.height), SHEET_HEIGHT)) for image in scaled]
        row = Image.new("RGB", (sum(image.width + 4 for image in scaled), SHEET_HEIGHT + CAPTION), "white")
        left = 0
        for caption, image in zip(captions, scaled, strict=True):
            row.paste(image, (left, 0))
            ImageDraw.Draw(row).text((left + 2, SHEET_HEIGHT + 2), caption, fill="black", font=font)
            left += image.width + 4
        rows.append(row)
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return np.asarray(sheet)
