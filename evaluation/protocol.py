"""The evaluation protocol: how an image is prepared, and what is measured.

Preparation follows the evaluation of the released code (github.com/MKJia/MGVQ, evaluation/eval_aug.py): pixels as
stored, ``convert("RGB")``; one resize with Pillow's bicubic filter to the smallest size that covers the crop, aspect
kept; the centre. Pillow widens the filter by the scale when it makes an image smaller, so this resize is antialiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mgvq_export.core import units
from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import ModelSpec, group_counts

#: Recorded in every journal; raise it when a change affects figures.
VERSION = 1

METRICS = ("psnr", "ssim", "lpips", "rfid")

_LEAST_SIDE = 8  # the windows of SSIM have 7 pixels


@dataclass(frozen=True)
class Protocol:
    """How every image is prepared and measured.

    Attributes:
        size: (width, height) of the crop in pixels.
        groups: how many of the coarse-to-fine groups to decode with, ascending; the last is the one of the main figures.
        metrics: of :data:`METRICS`, in that order; psnr always.
        asked: metrics named by the user: an error when one is unavailable.
    """

    size: tuple[int, int]
    groups: tuple[int, ...]
    metrics: tuple[str, ...] = METRICS
    asked: tuple[str, ...] = ()

    @classmethod
    def parse(cls, spec: ModelSpec, size: str = "256x256", groups: str | None = None, metrics: Sequence[str] = ()) -> Protocol:
        """From the words of a command line: ``WIDTHxHEIGHT``, ``1,2,4`` (default: powers of two and all), metrics (default: all).

        Raises :class:`InputError`.
        """
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise InputError(f"no metric {', '.join(unknown)}; choose {', '.join(METRICS)}")
        chosen = tuple(name for name in METRICS if not metrics or name in metrics or name == "psnr")
        return cls(parse_size(size), _parse_groups(groups, spec), chosen, tuple(metrics))


def parse_size(text: str) -> tuple[int, int]:
    """``"2560x1440"`` -> (2560, 1440), width first. Raises :class:`InputError`."""
    height, width = units.parse_size(text)
    if not _LEAST_SIDE <= min(height, width) <= max(height, width) < 100_000:
        raise InputError(f"size is {text!r}; wanted WIDTHxHEIGHT such as 256x256 or 2560x1440, sides of at least {_LEAST_SIDE}")
    return width, height


def _parse_groups(text: str | None, spec: ModelSpec) -> tuple[int, ...]:
    if text is None:
        return group_counts(spec.groups)
    counts = [part.strip() for part in text.split(",")]
    if not all(count.isdecimal() and 1 <= int(count) <= spec.groups for count in counts):
        raise InputError(f"groups is {text!r}; {spec.name} has {spec.groups}: give numbers from 1 to {spec.groups} such as 1,2,4")
    return tuple(sorted({int(count) for count in counts}))


def resize_and_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3] for ``size`` (width, height): the preparation described above.

    An image smaller than the crop is enlarged by the same filter.
    """
    from PIL import Image

    width, height = size
    source_height, source_width = image.shape[:2]
    if source_width / source_height < width / height:
        scaled = width, round(source_height / source_width * width)
    else:
        scaled = round(source_width / source_height * height), height
    if scaled != (source_width, source_height):
        image = np.asarray(Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC))
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])
