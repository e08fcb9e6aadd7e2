"""Charts of a report as SVG that takes the page's text colour, and maps of errors as coloured pictures. Needs matplotlib."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.parity.report.report_data import CodeMap, MemoryRow, Photo, TimeRow
from mgvq_export.parity.report.tables import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Legible on a light and on a dark page.
_COLOURS = ("#3b82c4", "#cf6f17", "#2f9e6e", "#c2527c", "#8468c9", "#8a8420")
_INK = "#010203"  # stands for the page's text colour while matplotlib draws
_COLOURMAP = "inferno"
_BIN = 4  # 8-bit steps per bar of the histogram

_STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "svg.hashsalt": "mgvq-export",  # the same figures give the same bytes
    "font.size": 9,
    "text.parse_math": False,  # a file name may hold dollar signs
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}


def error_histogram(photos: Sequence[Photo]) -> str:
    """Share of pixels and channels by absolute difference, one line per photo."""

    def draw(axes: Axes) -> None:
        last = max((photo.largest_error for photo in photos), default=0)
        edges = np.arange(0, last + 1 + _BIN, _BIN)
        for index, (photo, colour) in enumerate(zip(photos, _COLOURS, strict=False)):
            counts = np.add.reduceat(np.array([*photo.histogram, *[0] * edges[-1]], float), edges)[:-1]
            shares = np.where(counts > 0, counts / counts.sum(), np.nan)
            axes.stairs(shares, edges - 0.5, baseline=None, color=colour, label=_label(index, photo.name))
        axes.set(yscale="log", xlabel="absolute difference, 8-bit steps", ylabel=f"share of values, per {_BIN} steps")
        axes.legend()

    return _svg(draw, "Histogram of absolute differences between originals and reconstructions, logarithmic shares")


def quality_by_groups(photos: Sequence[Photo]) -> str:
    """PSNR against the number of groups used, one line per photo."""

    def draw(axes: Axes) -> None:
        counts = sorted({count for photo in photos for count in photo.psnr_by_groups})
        for index, (photo, colour) in enumerate(zip(photos, _COLOURS, strict=False)):
            axes.plot(*zip(*photo.psnr_by_groups.items(), strict=True), "o-", color=colour, label=_label(index, photo.name))
        axes.set(xscale="log", xlabel="groups used", ylabel="PSNR, dB")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.legend()

    return _svg(draw, "PSNR of each photo by the number of groups used")


def code_margins(maps: Sequence[CodeMap]) -> str:
    """Share of the differing codes whose margin is at most x, one line per comparison; the limit as a dashed line."""

    def draw(axes: Axes) -> None:
        comparisons = list(dict.fromkeys(one.comparison for one in maps))
        for comparison, colour in zip(comparisons, _COLOURS, strict=False):
            own = [one for one in maps if one.comparison == comparison]
            margins = np.sort(np.concatenate([one.margins for one in own]))
            margins = np.maximum(margins[np.isfinite(margins)], 1e-9)
            axes.plot(margins, np.arange(1, margins.size + 1) / max(margins.size, 1), color=colour, label=comparison)
            axes.axvline(own[0].limit, color=colour, linestyle="--", label=f"limit {own[0].limit:g}")
        axes.set(xscale="log", xlabel="margin", ylabel="share of differing codes", ylim=(0, 1.02))
        axes.legend()

    return _svg(draw, "Margins of the codes that differ: the share of them up to each margin, and the limit")


def times(rows: Sequence[TimeRow]) -> str:
    """Median seconds as bars, with lines from the fastest to the slowest run."""

    def draw(axes: Axes) -> None:
        for index, row in enumerate(rows):
            colour = _COLOURS[0] if row.direction == "encode" else _COLOURS[1]
            spread = [[row.median - min(row.seconds)], [max(row.seconds) - row.median]]
            axes.barh(index, row.median, xerr=spread, color=colour, ecolor=_INK, height=0.6)
        axes.set_yticks(range(len(rows)), [f"{row.precision} {row.direction}" for row in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="seconds", xlim=(0, None))

    return _svg(draw, "Seconds to encode and decode in each precision", height=0.8 + 0.32 * len(rows))


def peaks(rows: Sequence[MemoryRow]) -> str:
    """Predicted and measured peak memory side by side."""

    def draw(axes: Axes) -> None:
        for index, row in enumerate(rows):
            axes.barh(index - 0.2, row.predicted_bytes / 2**20, color=_COLOURS[4], height=0.36, label="predicted" * (not index))
            axes.barh(index + 0.2, row.measured_bytes / 2**20, color=_COLOURS[2], height=0.36, label="measured" * (not index))
        labels = [f"{row.direction}, {'one window' if row.limit_bytes is None else 'windows'}" for row in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="peak memory of the process, MiB")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)

    return _svg(draw, "Predicted and measured peak memory", height=1.2 + 0.5 * len(rows))


def heat_map(values: np.ndarray, top: float) -> np.ndarray:
    """Values [H, W] from 0 to ``top`` (larger ones as ``top``) -> colours, uint8 [H, W, 3]."""
    import matplotlib

    return matplotlib.colormaps[_COLOURMAP](np.clip(values / top, 0, 1), bytes=True)[..., :3]


def colour_scale(steps: int = 9) -> list[str]:
    """Colours of :func:`heat_map` from 0 to the top, as ``#rrggbb``."""
    return ["#" + bytes(colour).hex() for colour in heat_map(np.linspace(0, 1, steps)[None], 1.0)[0]]


def _label(index: int, name: str) -> str:
    name = printable(name)
    return f"{index + 1}: {name if len(name) < 24 else '…' + name[-22:]}"  # a label that begins with _ would be left out


def _svg(draw: Callable[[Axes], None], title: str, height: float = 2.6) -> str:
    """What ``draw`` puts on axes, as an ``svg`` element with ``title`` for screen readers."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedFormatter, FuncFormatter, NullFormatter

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", "Glyph")  # the page's fonts may have glyphs that matplotlib's own lacks
        figure = Figure(figsize=(4.4, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log" and not isinstance(axis.get_major_formatter(), FixedFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = text.replace("xlink:href", "href").replace(_INK, "currentColor")
    prefix = re.sub(r"\W+", "-", title.lower())[:24]  # matplotlib gives the same ids in every figure
    text = re.sub(r'id="([^"]*)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)
    return text.replace('role="img">', f'role="img" aria-label="{title}"><title>{title}</title>', 1)
