"""The results of an evaluation: figures of the whole dataset, printed as tables, written as JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np

from mgvq_export.core.files import PathLike, atomic_path, atomic_write_bytes
from mgvq_export.core.json_files import to_json
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject
from mgvq_export.evaluation.columns import Columns
from mgvq_export.evaluation.datasets import Item

_BAD_LISTED = 10
_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "rfid": 2}

#: Columns and rows of text.


class RunIdentity(TypedDict):
    """All that decides the figures of one image; ``size`` is WIDTHxHEIGHT, ``tiling`` the mode and (height, width) of a tile."""

    protocol: int
    model: str
    precision: str
    backend: str
    tiling: list[object]
    size: str
    groups: tuple[int, ...]
    metrics: list[str]
    codebook_sha256: str
    graphs_sha256: str


class Figure(TypedDict):
    """One figure of the dataset: None where it was not measured, and the paper's, where it may be compared."""

    name: str
    value: float | None
    unit: str
    paper: float | None
    note: str


class GroupRow(TypedDict):
    """Quality and rate when the first ``groups`` groups are decoded."""

    groups: int
    psnr_db: float
    ssim: float | None
    bits_per_pixel: float
    entropy_bits_per_pixel: float


class GroupCodes(TypedDict):
    """How the codes of one group are used; ``usage`` is the share of them seen at least once, 0 to 1."""

    group: int
    codes: int
    used: int
    usage: float
    tokens: int
    bits: int
    entropy_bits: float
    perplexity: float


class BadImage(TypedDict):
    """An image that could not be read."""

    name: str
    reason: str


class ImageCounts(TypedDict):
    """How many images were asked for, evaluated, and smaller than the crop; and those left out."""

    asked: int
    evaluated: int
    enlarged: int
    bad: list[BadImage]


class DatasetFacts(TypedDict):
    """The dataset: its path, the benchmark that the user declared, and how many images it has."""

    path: str
    declared: str | None
    found: int


class PaperFacts(TypedDict):
    """The paper's figures by metric, or why they are absent."""

    source: str
    figures: dict[str, float]
    absent_because: str | None


class PlanCount(TypedDict):
    """How many images were run with a plan of windows."""

    plan: str
    images: int


class EvaluationFacts(TypedDict):
    """What ``results.json`` holds; nothing in it depends on when or how often the run was stopped."""

    model: str
    protocol: int
    precision: str
    backend: str
    tiling: list[object]
    size: str
    codebook_sha256: str
    graphs_sha256: str
    dataset: DatasetFacts
    images: ImageCounts
    figures: list[Figure]
    paper: PaperFacts
    by_groups: list[GroupRow]
    codebook: list[GroupCodes]
    plans: list[PlanCount]
    tools: dict[str, str | None]


@dataclass(frozen=True)
class Results:
    """All figures of one evaluation.

    Attributes:
        facts: what ``results.json`` holds, but for infinite figures.
        images: (item, SHA-256) of the images evaluated.
        columns: figures of each image, in the same order.
        counts: how often each code was used, int64 [G, K].
        groups: counts of groups decoded with.
        notes: further remarks.
    """

    facts: EvaluationFacts
    images: tuple[tuple[Item, str], ...]
    columns: Columns
    counts: np.ndarray
    groups: tuple[int, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def seconds_per_image(self) -> float:
        """Median time of the tokenizer alone: one encode and a decode for each count of groups."""
        return float(np.median(self.columns.seconds))

    def to_dict(self) -> JsonObject:
        """What ``results.json`` holds."""
        return to_json(self.facts)

    def tables(self) -> list[Table]:
        """All that is printed."""
        return [
            self.table(),
            self.group_table(),
            self.codebook_table(),
        ]

    def remarks(self) -> list[str]:
        """Remarks below the tables: bad and enlarged images, why the paper's figures are absent, time per image."""
        images, lines = self.facts["images"], []
        lines += [f"left out {entry['name']}: {entry['reason']}" for entry in images["bad"][:_BAD_LISTED]]
        if len(images["bad"]) > _BAD_LISTED:
            lines.append(f"left out {len(images['bad'])} images in all; results.json lists them")
        if images["enlarged"]:
            lines.append(f"{images['enlarged']} images are smaller than {self.facts['size']} and were enlarged")
        if reason := self.facts["paper"]["absent_because"]:
            lines.append(f"without the paper's figures: {reason}")
        else:
            lines.append(
                "the paper's PSNR is of pixels not rounded to 8 bits, its SSIM and rFID of truncated ones; these are of rounded ones"
            )
        lines.append(f"{self.seconds_per_image:.3f} s per image: encoding, and decoding {len(self.groups)} times (median)")
        return lines + self.notes

    def table(self) -> Table:
        """Columns and rows of the main figures; with the paper's where the runs may be compared."""
        paper = bool(self.facts["paper"]["figures"])
        rows = []
        for figure in self.facts["figures"]:
            name, value, unit = figure["name"], figure["value"], figure["unit"]
            cells = [_text(name, value, unit), *([_text(name, figure["paper"], unit)] if paper else [])]
            rows.append([name, *cells, figure["note"]])
        title = f"{self.facts['model']}, {self.facts['images']['evaluated']} images at {self.facts['size']}"
        return Table(("figure", "value", *(("paper",) if paper else ()), "note"), rows, title)

    def group_table(self) -> Table:
        """Quality and rate by how many groups are used."""
        rows = [
            [
                str(row["groups"]),
                f"{row['psnr_db']:.2f}",
                "-" if row["ssim"] is None else f"{row['ssim']:.4f}",
                f"{row['bits_per_pixel']:.3f}",
                f"{row['entropy_bits_per_pixel']:.3f}",
            ]
            for row in self.facts["by_groups"]
        ]
        return Table(("groups", "PSNR dB", "SSIM", "bits/pixel", "entropy bits/pixel"), rows, "By groups used")

    def codebook_table(self) -> Table:
        """Usage and entropy of each group."""
        rows = [
            [
                str(row["group"]),
                f"{row['used']} of {row['codes']}",
                f"{100 * row['usage']:.1f} %",
                f"{row['entropy_bits']:.2f} of {row['bits']}",
                f"{row['perplexity']:.0f}",
            ]
            for row in self.facts["codebook"]
        ]
        title = f"Codebook, {self.facts['codebook'][0]['tokens']} tokens per group"
        return Table(("group", "codes used", "usage", "entropy bits", "perplexity"), rows, title)

    def write(self, folder: PathLike) -> list[Path]:
        """``results.json`` and ``images.csv`` in ``folder``, each written atomically. Returns their paths."""
        results, images = Path(folder) / "results.json", Path(folder) / "images.csv"
        with atomic_path(images) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            rows = self._image_rows()
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(rows)
        atomic_write_bytes(results, (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode())
        return [results, images]

    def _image_rows(self) -> Iterator[list[str | int | float]]:
        names = [
            f"{metric}_{n}" for metric in ("psnr_db", "mse", *(["ssim"] if self.columns.ssim.size else [])) for n in self.groups
        ]
        yield ["name", "sha256", "width", "height", *names, *(["lpips"] if self.columns.lpips.size else [])]
        tables = [self.columns.psnr, self.columns.mse, self.columns.ssim, self.columns.lpips[:, None]]
        measured = np.concatenate([table for table in tables if table.size], axis=1)
        for (item, sha256), size, values in zip(self.images, self.columns.sizes.tolist(), measured.tolist(), strict=True):
            yield [item.name, sha256, *size, *values]


def _text(name: str, value: float | None, unit: str) -> str:
    """A figure with the usual number of digits."""
    return "-" if value is None else f"{value:.{_DIGITS[name.split(',')[0]]}f} {unit}".strip()
