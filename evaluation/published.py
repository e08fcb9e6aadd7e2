"""The paper's figures, and whether a run may be compared with them.

Source: "Could VQ-VAE Beat VAE? A Generalizable Tokenizer with Multi-group Quantization", arXiv 2507.07997: its tables of
ImageNet (256x256) and UHDBench (2560x1440) reconstruction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mgvq_export.core.manifest import Manifest, SourceEntry
from mgvq_export.core.spec import VARIANTS

SOURCE = "arXiv 2507.07997"
HUB_REPOSITORY = "mkjia/MGVQ"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper: the crop as (width, height), how many images it has, model -> metric -> figure."""

    size: tuple[int, int]
    images: int
    figures: Mapping[str, Mapping[str, float]]


BENCHMARKS: dict[str, Benchmark] = {
    "imagenet-val": Benchmark(
        (256, 256),
        50_000,
        {
            "mgvq-f16c32-g4": {"rfid": 0.64, "psnr": 23.71, "ssim": 0.755},
            "mgvq-f16c32-g8": {"rfid": 0.49, "psnr": 24.70, "ssim": 0.787},
            "mgvq-f8c32-g4": {"rfid": 0.31, "psnr": 28.42, "ssim": 0.898},
            "mgvq-f8c32-g8": {"rfid": 0.27, "psnr": 29.96, "ssim": 0.918},
        },
    ),
    "uhdbench": Benchmark((2560, 1440), 2_293, {"mgvq-f16c32-g4": {"rfid": 1.59, "psnr": 28.27}}),
}


@dataclass(frozen=True)
class Comparison:
    """The paper's figures by metric, or none and the reason."""

    figures: Mapping[str, float]
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """What decides whether a run may be compared: the crop as (width, height), groups used, tiling mode, images evaluated."""

    size: tuple[int, int]
    groups: int
    tiling: str
    evaluated: int


def compare(manifest: Manifest, declared: str | None, run: Run) -> Comparison:
    """The paper's figures for the same checkpoint under the same protocol, if there are any.

    Args:
        manifest: of the bundle.
        declared: the benchmark that the user declares the dataset to be.
        run: how it was evaluated.
    """
    reason = _difference(manifest, declared, run)
    if reason or declared is None:
        return Comparison({}, reason)
    return Comparison(BENCHMARKS[declared].figures[manifest.spec.name])


def _difference(manifest: Manifest, declared: str | None, run: Run) -> str:
    model = manifest.spec.name
    if declared is None:
        return f"the dataset is not declared to be one of the paper's ({', '.join(f'--dataset {name}' for name in BENCHMARKS)})"
    benchmark = BENCHMARKS[declared]
    if model not in benchmark.figures:
        return f"the paper has no figure of {model} on {declared}"
    if manifest.spec != VARIANTS[model]:
        return f"the network is called {model} but has other sizes"
    if not _is_released(manifest.source, model):
        return f"the bundle was not exported from the released checkpoint of {model} (mgvq-export export {model} downloads it)"
    if run.size != benchmark.size:
        return f"the paper's crop is {benchmark.size[0]}x{benchmark.size[1]}"
    if run.groups != VARIANTS[model].groups:
        return f"the paper's figures use all {VARIANTS[model].groups} groups"
    if run.tiling == "blend":
        return "blended tiles change the codes"
    if run.evaluated != benchmark.images:
        return f"{run.evaluated} of the {benchmark.images} images of {declared} were evaluated"
    return ""


def _is_released(source: SourceEntry, model: str) -> bool:
    """Whether the checkpoint was downloaded from the authors' repository: a local file may be anything."""
    if not source.revision:
        return False
    file = f"{model.replace('-', '_')}.pt"
    return bool(re.fullmatch(rf"{model}|hf://{HUB_REPOSITORY}/{re.escape(file)}(@.+)?", source.name))
