"""The plots of an evaluation, PNG: quality of the images, quality by groups, use of the codebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.files import PathLike, atomic_path
from mgvq_export.evaluation.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GRAY = "#1f6f9f", "#c8641e", "#8a8a8a"


def write_plots(results: Results, folder: PathLike) -> list[Path]:
    """Three PNG files in ``folder``, each whole or not at all. Returns their paths. Needs matplotlib."""
    drawings = {"psnr.png": _psnr, "groups.png": _groups, "codebook.png": _codebook}
    paths = []
    for name, draw in drawings.items():
        path = Path(folder) / name
        figure = draw(results)
        figure.suptitle(_title(results), fontsize=10, color=_GRAY)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150)
        paths.append(path)
    return paths


def _figure(columns: int = 1) -> tuple[Figure, list[Axes]]:
    # Not pyplot, which has global state and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 if columns == 1 else 10.4, 4.2), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _title(results: Results) -> str:
    facts = results.facts
    return f"{facts['model']} {facts['precision']}, {facts['images']['evaluated']} images at {facts['size']}"


def _psnr(results: Results) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, (axis,) = _figure()
    values = results.columns.psnr[:, -1]
    values = values[np.isfinite(values)]
    overall = results.facts["by_groups"][-1]["psnr_db"]
    axis.hist(values, bins="auto" if len(values) > 30 else 10, color=_BLUE, edgecolor="white")
    if len(values):
        axis.axvline(overall, color=_ORANGE, label=f"of the mean squared error: {overall:.2f} dB")
        axis.axvline(values.mean(), color=_GRAY, linestyle="--", label=f"mean of images: {values.mean():.2f} dB")
        axis.legend(frameon=False)
    axis.set(xlabel="PSNR of one image, dB", ylabel="images")
    axis.yaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    return figure


def _groups(results: Results) -> Figure:
    rows = results.facts["by_groups"]
    curves = [([row["psnr_db"] for row in rows], "PSNR, dB", ".2f", _BLUE)]
    if ssim := [row["ssim"] for row in rows if row["ssim"] is not None]:
        curves.append((ssim, "SSIM", ".3f", _ORANGE))
    figure, axes = _figure(len(curves))
    counts = [row["groups"] for row in rows]
    for axis, (values, label, digits, colour) in zip(axes, curves, strict=True):
        axis.plot(counts, values, "o-", color=colour)
        for count, value in zip(counts, values, strict=True):  # the curve rises and flattens: there is room below it on the right
            axis.annotate(f"{value:{digits}}", (count, value), (5, -5), textcoords="offset points", va="top")
        axis.margins(0.1, 0.15)
        axis.set(xlabel="groups used, coarse to fine", ylabel=label, xticks=counts)
    return figure


def _codebook(results: Results) -> Figure:
    figure, (left, right) = _figure(2)
    rows = results.facts["codebook"]
    groups = np.array([row["group"] for row in rows])
    left.bar(groups - 0.2, [100 * row["usage"] for row in rows], 0.4, color=_BLUE, label="codes seen at least once")
    share = [100 * row["perplexity"] / row["codes"] for row in rows]
    left.bar(groups + 0.2, share, 0.4, color=_ORANGE, label="perplexity")
    left.set(xlabel="group", ylabel="% of the group's codes", xticks=groups, ylim=(0, 105))
    left.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
    colours = _colours(len(rows))
    for row, seen, colour in zip(rows, results.counts, colours, strict=True):
        ranked = np.sort(seen[seen > 0])[::-1] / seen.sum()
        right.plot(np.arange(1, len(ranked) + 1), ranked, color=colour, label=f"group {row['group']}")
    right.axhline(1 / rows[0]["codes"], color=_GRAY, linestyle=":", label="all codes alike")
    right.set(xlabel="codes, most used first", ylabel="share of the tokens", xscale="log", yscale="log")
    right.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _colours(count: int) -> np.ndarray:
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))
