"""Sums up an evaluation: the figures of the whole dataset out of those of every image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from mgvq_export.core.bundle import package_version
from mgvq_export.core.spec import ModelSpec
from mgvq_export.evaluation.columns import Columns, count_codes, rfid, tokens_per_image
from mgvq_export.evaluation.datasets import Dataset, Item
from mgvq_export.evaluation.figures import entropy_bits, psnr_of
from mgvq_export.evaluation.journal import Journal
from mgvq_export.evaluation.protocol import Protocol
from mgvq_export.evaluation.published import SOURCE, Run, compare
from mgvq_export.evaluation.results import EvaluationFacts, Figure, GroupCodes, GroupRow, Results, RunIdentity
from mgvq_export.runtime.tokenizer import Tokenizer

FEW_IMAGES = 10_000  # below, the distance of a distribution from itself is far from 0 (arXiv 1911.07023)


def summarise(
    tokenizer: Tokenizer,
    dataset: Dataset,
    protocol: Protocol,
    journal: Journal,
    identity: RunIdentity,
    *,
    found: Sequence[tuple[Item, str]],
    bad: Sequence[tuple[Item, str]],
    unavailable: dict[str, str],
) -> Results:
    """The figures of the images ``found`` (item, SHA-256), all of them in ``journal``."""
    spec, hashes = tokenizer.spec, [sha256 for _, sha256 in found]
    columns = Columns.read(journal, hashes, protocol, identity["metrics"])
    counts = count_codes(journal, hashes, spec, protocol.size)
    run = Run(protocol.size, protocol.groups[-1], tokenizer.tiling.mode, len(found))
    comparison = compare(tokenizer.bundle.manifest, dataset.declared, run)
    by_groups = _by_groups(columns, counts, spec, protocol)
    values = {"psnr": by_groups[-1]["psnr_db"], "ssim": by_groups[-1]["ssim"]}
    if "lpips" in identity["metrics"]:
        values["lpips"] = _mean(columns.lpips)
    if "rfid" in identity["metrics"]:
        values["rfid"] = rfid(journal, hashes)
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
    facts: EvaluationFacts = {
        "model": identity["model"],
        "protocol": identity["protocol"],
        "precision": identity["precision"],
        "backend": identity["backend"],
        "tiling": identity["tiling"],
        "size": identity["size"],
        "codebook_sha256": identity["codebook_sha256"],
        "graphs_sha256": identity["graphs_sha256"],
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


def _figure(name: str, value: float | None, note: str, paper: float | None = None) -> Figure:
    return {"name": name, "value": value, "unit": "dB" if name.startswith("psnr") else "", "paper": paper, "note": note}


def _mean(values: Iterable[float]) -> float:
    """The mean; exactly the same in any order of values."""
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _by_groups(columns: Columns, counts: np.ndarray, spec: ModelSpec, protocol: Protocol) -> list[GroupRow]:
    per_pixel = tokens_per_image(spec, protocol.size) / (protocol.size[0] * protocol.size[1])
    entropies = [entropy_bits(group) for group in counts]
    rows: list[GroupRow] = []
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


def _codebook(counts: np.ndarray, spec: ModelSpec) -> list[GroupCodes]:
    rows: list[GroupCodes] = []
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
