"""Errors at the borders of windows: error and step of the mean colour, compared with the interior."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mgvq_export.core.errors import InputError


@dataclass(frozen=True)
class Seams:
    """Errors of a tiled image against the untiled one, in 8-bit steps.

    Attributes:
        border_error: mean absolute difference of pixels beside a border.
        interior_error: the same, of all other pixels.
        border_step: mean over borders and channels of the jump of the mean difference across the border. A colour shift
            between neighbouring windows shows here even where each pixel is off by little.
        interior_step: the same across lines midway between borders: the level without a border.
    """

    border_error: float
    interior_error: float
    border_step: float
    interior_step: float

    def __str__(self) -> str:
        return (
            f"error {self.border_error:.3f} at borders, {self.interior_error:.3f} inside; "
            f"colour step {self.border_step:.3f} at borders, {self.interior_step:.3f} inside (8-bit steps)"
        )


def measure_seams(tiled: np.ndarray, untiled: np.ndarray, borders: tuple[Sequence[int], Sequence[int]], width: int = 8) -> Seams:
    """Compare two images, uint8 [H, W, 3], around the borders of windows.

    Args:
        borders: rows and columns where a window's kept region begins (0 excluded).
        width: pixels on either side that count as beside a border.

    Raises:
        InputError: images of different size, no border, or a border nearer than ``width`` to an edge.
    """
    if tiled.shape != untiled.shape:
        raise InputError(f"images of {list(tiled.shape)} and {list(untiled.shape)} cannot be compared; wanted one size")
    for axis, lines in enumerate(borders):
        for line in lines:
            if not width <= line <= tiled.shape[axis] - width:
                raise InputError(f"border {line} lies less than {width} px from an edge of {tiled.shape[axis]}")
    if not any(len(lines) for lines in borders):
        raise InputError("there are no borders: the plan has one window")
    difference = tiled.astype(np.float32) - untiled
    beside = np.zeros(tiled.shape[:2], bool)
    border_steps, interior_steps = [], []
    for axis, lines in enumerate(borders):
        turned, mask = (difference, beside) if axis == 0 else (difference.transpose(1, 0, 2), beside.T)
        edges = [0, *sorted(lines), len(turned)]
        for line in edges[1:-1]:
            mask[line - width : line + width] = True
            border_steps.append(_step(turned, line, width))
        for first, second in itertools.pairwise(edges):
            middle = (first + second) // 2
            if width <= middle <= len(turned) - width:
                interior_steps.append(_step(turned, middle, width))
    error = np.abs(difference).mean(axis=2)
    inside = error[~beside]
    return Seams(
        float(error[beside].mean()),
        float(inside.mean()) if inside.size else 0.0,
        float(np.mean(border_steps)),
        float(np.mean(interior_steps)) if interior_steps else 0.0,
    )


def _step(difference: np.ndarray, line: int, width: int) -> float:
    """Jump of the mean difference across ``line``, averaged over stretches of ``8 * width`` pixels along it and the channels."""
    jump = difference[line : line + width].mean(axis=0) - difference[line - width : line].mean(axis=0)  # [W, 3]
    stretches = np.array_split(jump, max(1, len(jump) // (8 * width)))
    return float(np.mean([np.abs(stretch.mean(axis=0)).mean() for stretch in stretches]))
