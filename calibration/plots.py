"""Plots of ranges, and of quality over work in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.calibration.effects import Effect
from mgvq_export.calibration.search import Search
from mgvq_export.calibration.statistics import FP16_MAX, FP16_NORMAL, TensorStatistics
from mgvq_export.core.budgets import Budgets
from mgvq_export.core.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from mgvq_export.calibration.plan_search import Calibration

_DPI = 130
_LABELS = 50  # at most, along the axis of the values


def write_plots(found: Calibration, folder: Path) -> list[Path]:
    """Write ``ranges-encoder.png``, ``ranges-decoder.png`` and, for each search of convolutions, ``curve-*.png``."""
    figures = {f"ranges-{side}.png": ranges_figure(values, side) for side, values in found.ranges.sides.items()}
    for title, one in found.searches.items():
        if title in ("encoder", "decoder"):
            figures[f"curve-{title}.png"] = curve_figure(found, title, one)
    for name, figure in figures.items():
        with atomic_path(folder / name) as path:
            figure.savefig(path, dpi=_DPI)
    return [folder / name for name in figures]


def ranges_figure(values: Mapping[str, TensorStatistics], side: str) -> Figure:
    """Largest, 99.9 % and median magnitude of every value of a graph, from input to output, beside float16's limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots()
    rows = list(values.values())
    x = np.arange(len(rows))
    for label, colour, heights in (
        ("largest", "tab:red", [row.largest for row in rows]),
        ("99.9 % below", "tab:orange", [row.percentile(99.9) for row in rows]),
        ("median", "tab:blue", [row.percentile(50) for row in rows]),
    ):
        axes.plot(
            x,
            [height if height > 0 else np.nan for height in heights],
            ".-",
            markersize=3,
            linewidth=0.8,
            color=colour,
            label=label,
        )
    axes.axhline(FP16_MAX, color="black", linewidth=0.8)
    axes.text(0, FP16_MAX * 1.15, "largest float16", fontsize=8)
    axes.axhline(FP16_NORMAL, color="black", linewidth=0.8, linestyle="--")
    axes.text(0, FP16_NORMAL * 1.15, "below: float16 loses bits", fontsize=8)
    ticks = _block_starts(list(values))
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=60, ha="right", fontsize=7)
    axes.set_xlim(-1, len(rows))
    axes.set_yscale("log")
    axes.set_ylabel("magnitude")
    axes.set_title(f"Values of the {side}, input to output ({rows[0].count:,} input values)", fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _block_starts(names: Sequence[str]) -> dict[int, str]:
    """Index of the first value of every block of layers -> the block's name; none so close that labels overlap."""
    found: dict[int, str] = {}
    last = ""
    for index, name in enumerate(names):
        parts = name.split("/")[0].split(".")
        block = ".".join(parts[: 5 if "stages" in parts else 2])
        if block != last and (not found or index - max(found) >= len(names) / _LABELS):
            found[index] = block
        last = block
    return found


def curve_figure(found: Calibration, side: str, one: Search) -> Figure:
    """Quality over the share of convolution work in 8 bits: the search's curve, the plain plan, the held-out images, the budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    decoder = side == "decoder"

    def points(pairs: Sequence[tuple[float, Effect]]) -> tuple[list[float], list[float]]:
        shown = [(100 * share, effect.quality(side)) for share, effect in pairs if np.isfinite(effect.quality(side))]
        return [x for x, _ in shown], [y for _, y in shown]

    axes.plot(*points([(point.share, point.effect) for point in one.curve]), ".-", label="search, calibration windows")
    if side == found.compared:
        axes.plot(*points(found.curve_held_out), "s", fillstyle="none", label="same plans, held-out images")
    if one.chosen:
        axes.plot(
            *points([(one.chosen.share, one.chosen.effect)]), "o", markersize=11, fillstyle="none", color="black", label="chosen"
        )
    if found.baseline and side == found.compared:
        share, here, there = found.baseline
        axes.plot(*points([(share, here)]), "x", color="tab:red", label="all but first and last, scales from max")
        axes.plot(*points([(share, there)]), "+", color="tab:red", label="the same, held-out images")
    _budget_line(axes, found.plan.budgets, decoder)
    axes.set_xlabel(f"convolution work of the {side} in {found.plan.kind(side)}, %")
    axes.set_ylabel("PSNR against fp32 on the same codes, worst image, dB" if decoder else "codes equal to fp32's, %")
    axes.set_title("What 8 bits cost (everything else in fp32)", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _budget_line(axes, budgets: Budgets, decoder: bool) -> None:
    limit = budgets.min_psnr if decoder else None if budgets.min_code_agreement is None else 100 * budgets.min_code_agreement
    if limit is not None:
        axes.axhline(limit, color="gray", linestyle=":", label=f"budget {limit:g}")
