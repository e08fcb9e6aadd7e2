"""What an evaluation found: the figures of the whole dataset, and their table, JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mgvq_export.core.bundle import package_version
from mgvq_export.core.files import PathLike, atomic_path, atomic_write_bytes
from mgvq_export.core.json_files import to_json
from mgvq_export.core.spec import ModelSpec
from mgvq_export.core.token_files import unpack_codes
from mgvq_export.evaluation.datasets import Dataset, Item
from mgvq_export.evaluation.figures import entropy_bits, frechet_distance, moments, psnr_of
from mgvq_export.evaluation.journal import Journal, Record
from mgvq_export.evaluation.perceptual import FEATURES
from mgvq_export.evaluation.protocol import Protocol
from mgvq_export.evaluation.published import SOURCE, compare
from mgvq_export.runtime.tokenizer import Tokenizer

FEW_IMAGES = 10_000  # below, the distance of a distribution from itself is far from 0 (arXiv 1911.07023)

_BAD_LISTED = 10
_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "rfid": 2}

#: Columns and rows of text.
Table = tuple[tuple[str, ...], list[list[str]]]

_BLOCK = 256  # images whose features are held at once


@dataclass(frozen=True)
class Results:
    """All figures of one evaluation.

    Attributes:
        facts: nothing in it depends on when or how often the run was stopped; :meth:`to_dict` is JSON-ready.
        images: (item, SHA-256) of the images evaluated.
        columns: figures of each image, in the same order.
        counts: how often each code was used, int64 [G, K].
        groups: counts of groups decoded with.
        notes: further remarks for people.
    """

    facts: dict[str, Any]
    images: tuple[tuple[Item, str], ...]
    columns: _Columns
    counts: np.ndarray
    groups: tuple[int, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def seconds_per_image(self) -> float:
        """Median time of the tokenizer alone: one encode and a decode for each count of groups."""
        return float(np.median(self.columns.seconds))

    def to_dict(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        return to_json(self.facts)

    def tables(self) -> list[tuple[str, Table]]:
        """(title, (columns, rows)) of all that is printed."""
        return [
            (f"{self.facts['model']}, {self.facts['images']['evaluated']} images at {self.facts['size']}", self.table()),
            ("By groups used", self.group_table()),
            (f"Codebook, {self.facts['codebook'][0]['tokens']} tokens per group", self.codebook_table()),
        ]

    def remarks(self) -> list[str]:
        """What else a reader must know: bad and enlarged images, why the paper's figures are absent, time per image."""
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
        """Columns and rows of the main figures; the paper's stand beside them only where they may."""
        paper = bool(self.facts["paper"]["figures"])
        rows = []
        for figure in self.facts["figures"]:
            name, value, unit = figure["name"], figure["value"], figure["unit"]
            cells = [_text(name, value, unit), *([_text(name, figure["paper"], unit)] if paper else [])]
            rows.append([name, *cells, figure["note"]])
        return ("figure", "value", *(("paper",) if paper else ()), "note"), rows

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
        return ("groups", "PSNR dB", "SSIM", "bits/pixel", "entropy bits/pixel"), rows

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
        return ("group", "codes used", "usage", "entropy bits", "perplexity"), rows

    def write(self, folder: PathLike) -> list[Path]:
        """``results.json`` and ``images.csv`` in ``folder``, each whole or not at all. Returns their paths."""
        results, images = Path(folder) / "results.json", Path(folder) / "images.csv"
        with atomic_path(images) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            rows = self._image_rows()
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(rows)
        atomic_write_bytes(results, (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode())
        return [results, images]

    def _image_rows(self) -> Iterator[list[Any]]:
        names = [
            f"{metric}_{n}" for metric in ("psnr_db", "mse", *(["ssim"] if self.columns.ssim.size else [])) for n in self.groups
        ]
        yield ["name", "sha256", "width", "height", *names, *(["lpips"] if self.columns.lpips.size else [])]
        tables = [self.columns.psnr, self.columns.mse, self.columns.ssim, self.columns.lpips[:, None]]
        measured = np.concatenate([table for table in tables if table.size], axis=1)
        for (item, sha256), size, values in zip(self.images, self.columns.sizes.tolist(), measured.tolist(), strict=True):
            yield [item.name, sha256, *size, *values]


def summarise(
    tokenizer: Tokenizer,
    dataset: Dataset,
    protocol: Protocol,
    journal: Journal,
    *,
    found: Sequence[tuple[Item, str]],
    bad: Sequence[tuple[Item, str]],
    unavailable: dict[str, str],
) -> Results:
    """The figures of the images ``found`` (item, SHA-256), all of them in ``journal``."""
    spec, hashes = tokenizer.spec, [sha256 for _, sha256 in found]
    columns = _Columns.read(journal, hashes, protocol)
    counts = _count_codes(journal, hashes, spec, protocol.size)
    run = {"size": protocol.size, "groups": protocol.groups[-1], "tiling": tokenizer.tiling.mode, "evaluated": len(found)}
    comparison = compare(tokenizer.bundle.manifest, dataset.declared, run)
    by_groups = _by_groups(columns, counts, spec, protocol)
    values = {"psnr": by_groups[-1]["psnr_db"], "ssim": by_groups[-1]["ssim"]}
    if "lpips" in journal.identity["metrics"]:
        values["lpips"] = _mean(columns.lpips)
    if "rfid" in journal.identity["metrics"]:
        values["rfid"] = _rfid(journal, hashes)
    figures = []
    for metric in protocol.metrics:
        value, note = values.get(metric), unavailable.get(metric, "")
        if metric == "rfid" and value is not None and len(found) < FEW_IMAGES:
            note = f"of {len(found)} images: biased upwards, not to be compared with figures of other numbers of images"
        if metric == "psnr":
            note = "of the mean squared error over all images"
        figures.append(_figure(metric, value, note, comparison.figures.get(metric)))
        if metric == "psnr":
            figures.append(_figure("psnr, mean of images", _mean(columns.psnr[:, -1]), "the mean of each image's own PSNR"))
    facts = {
        "model": spec.name,
        **{key: value for key, value in journal.identity.items() if key not in ("model", "groups", "metrics")},
        "dataset": {"path": str(dataset.path), "declared": dataset.declared, "found": dataset.found},
        "images": {
            "asked": len(dataset.items),
            "evaluated": len(found),
            "enlarged": int(np.sum(np.any(columns.sizes < protocol.size, axis=1))),
            "bad": [{"name": item.name, "reason": reason} for item, reason in bad],
        },
        "figures": figures,
        "paper": {"source": SOURCE, "figures": dict(comparison.figures), "absent_because": comparison.reason or None},
        "by_groups": by_groups,
        "codebook": _codebook(counts, spec),
        "plans": [{"plan": plan, "images": n} for plan, n in sorted(columns.plans.items())],
        "tools": {name: package_version(name) for name in ("mgvq-export", "Pillow", "scikit-image", "lpips", "clean-fid")},
    }
    return Results(facts, tuple(found), columns, counts, protocol.groups)


@dataclass(frozen=True)
class _Columns:
    """The journal's values, a row per image: float64 [images, counts of groups] or [images]; empty where not measured."""

    mse: np.ndarray
    ssim: np.ndarray
    lpips: np.ndarray
    seconds: np.ndarray
    sizes: np.ndarray  # width, height of the files
    plans: Counter[str]

    @classmethod
    def read(cls, journal: Journal, hashes: Sequence[str], protocol: Protocol) -> _Columns:
        n, counts, metrics = len(hashes), len(protocol.groups), journal.identity["metrics"]
        columns = cls(
            np.empty((n, counts)),
            np.empty((n if "ssim" in metrics else 0, counts)),
            np.empty(n if "lpips" in metrics else 0),
            np.empty(n),
            np.empty((n, 2), np.int64),
            Counter(),
        )
        for index, sha256 in enumerate(hashes):
            record = journal[sha256]
            columns.mse[index], columns.sizes[index] = record.mse, record.source_size
            columns.seconds[index] = record.seconds
            if record.ssim is not None and "ssim" in metrics:
                columns.ssim[index] = record.ssim
            if record.lpips is not None and "lpips" in metrics:
                columns.lpips[index] = record.lpips
            columns.plans[f"encoder {record.plan[0]}; decoder {record.plan[1]}"] += 1
        return columns

    @property
    def psnr(self) -> np.ndarray:
        """dB, of each image."""
        return np.array([[psnr_of(mse) for mse in row] for row in self.mse])


def _figure(name: str, value: float | None, note: str, paper: float | None = None) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "dB" if name.startswith("psnr") else "", "paper": paper, "note": note}


def _text(name: str, value: float | None, unit: str) -> str:
    """A figure with the digits that people quote."""
    return "-" if value is None else f"{value:.{_DIGITS[name.split(',')[0]]}f} {unit}".strip()


def _mean(values: Iterable[float]) -> float:
    """The mean, the same to the last bit in any order."""
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _by_groups(columns: _Columns, counts: np.ndarray, spec: ModelSpec, protocol: Protocol) -> list[dict[str, Any]]:
    per_pixel = _tokens_per_image(spec, protocol.size) / (protocol.size[0] * protocol.size[1])
    entropies = [entropy_bits(group) for group in counts]
    rows = []
    for index, groups in enumerate(protocol.groups):
        rows.append(
            {
                "groups": groups,
                "psnr_db": psnr_of(_mean(columns.mse[:, index])),
                "ssim": _mean(columns.ssim[:, index]) if columns.ssim.size else None,
                "bits_per_pixel": groups * spec.code_bits * per_pixel,
                "entropy_bits_per_pixel": math.fsum(entropies[:groups]) * per_pixel,
            }
        )
    return rows


def _codebook(counts: np.ndarray, spec: ModelSpec) -> list[dict[str, Any]]:
    rows = []
    for group, seen in enumerate(counts):
        bits = entropy_bits(seen)
        rows.append(
            {
                "group": group + 1,
                "codes": spec.codes_per_group,
                "used": int(np.count_nonzero(seen)),
                "usage": np.count_nonzero(seen) / spec.codes_per_group,
                "tokens": int(seen.sum()),
                "bits": spec.code_bits,
                "entropy_bits": bits,
                "perplexity": 2.0**bits,
            }
        )
    return rows


def record_problem(record: Record, identity: Mapping[str, Any], spec: ModelSpec, size: tuple[int, int]) -> str:
    """Why a journal's record cannot be one of the run ``identity``: figures missing or too many, too few bytes. Empty when it can."""
    groups, metrics = len(identity["groups"]), identity["metrics"]
    if len(record.mse) != groups or ("ssim" in metrics and len(record.ssim or ()) != groups):
        return f"mse and ssim must have {groups} figures"
    if "lpips" in metrics and record.lpips is None:
        return "it lacks the key lpips"
    if not all(text.isprintable() for text in record.plan):
        return "plan holds control characters"
    wanted = _packed_bytes(spec, size) + ("rfid" in metrics) * 2 * 4 * FEATURES
    return "" if record.data[1] == wanted else f"data: {record.data[1]:,} bytes; wanted {wanted:,}"


def _packed_bytes(spec: ModelSpec, size: tuple[int, int]) -> int:
    """Bytes of the packed codes of one image."""
    return -(-spec.groups * _tokens_per_image(spec, size) * spec.code_bits // 8)


def _count_codes(journal: Journal, hashes: Sequence[str], spec: ModelSpec, size: tuple[int, int]) -> np.ndarray:
    """How often each code was used: int64 [G, K]."""
    counts = np.zeros((spec.groups, spec.codes_per_group), np.int64)
    shape = spec.groups, _tokens_per_image(spec, size)
    packed_bytes = _packed_bytes(spec, size)
    for sha256 in hashes:
        packed = np.frombuffer(journal.data(sha256)[:packed_bytes], np.uint8)
        for group, codes in enumerate(unpack_codes(packed, spec.code_bits, shape)):
            counts[group] += np.bincount(codes, minlength=spec.codes_per_group)
    return counts


def _tokens_per_image(spec: ModelSpec, size: tuple[int, int]) -> int:
    """Positions of the code map."""
    return -(-size[0] // spec.downsample) * -(-size[1] // spec.downsample)


def _rfid(journal: Journal, hashes: Sequence[str]) -> float:
    def features(which: int) -> Callable[[], Iterator[np.ndarray]]:
        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, len(hashes), _BLOCK):
                both = [_features(journal.data(sha256)) for sha256 in hashes[start : start + _BLOCK]]
                yield np.stack([pair[which] for pair in both])

        return blocks

    return frechet_distance(moments(features(0)), moments(features(1)))


def _features(data: bytes) -> np.ndarray:
    """float32 [2, D]: of the original and the reconstruction; the last bytes of a record."""
    return np.frombuffer(data[-2 * 4 * FEATURES :], "<f4").reshape(2, FEATURES)
