"""Figures of bench results. matplotlib is loaded when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.bench.record import CEILING, Entry, Results
from mgvq_export.bench.summary import heading, ordered_stages
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.files import PathLike, atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

# Warm: encoding, cold: decoding, gray: files; neighbours differ in lightness, so that the bars can be told apart without colour too.
_SHADES = {
    "encode": ("#FDD0A2", "#D94801", "#FDAE6B", "#8C2D04", "#F16913", "#FEE6CE"),
    "decode": ("#C6DBEF", "#08306B", "#6BAED6", "#2171B5", "#DEEBF7", "#084594"),
    "": ("#969696", "#525252", "#D9D9D9", "#252525", "#BDBDBD"),
}


def check_plot(path: PathLike) -> None:
    """Raise, before anything is measured: :class:`InputError` for a suffix that is no format, :class:`BackendError` without matplotlib."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"cannot draw {path}: no figure format has the suffix {suffix!r}; choose {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BackendError("figures need matplotlib: pip install 'mgvq-export[report]'") from None


def new_figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure, its size in inches, and its axes [rows, columns]; matplotlib's global state is not used."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: PathLike) -> None:
    """Write ``figure``, atomically. Raises :class:`InputError` when it cannot be written."""
    data = io.BytesIO()
    kind = Path(path).suffix[1:].lower()
    written_by = {"Software" if kind == "png" else "Creator": "mgvq-export"}  # a later run replaces it without being told to
    figure.savefig(data, format=kind, dpi=130, metadata=written_by)
    atomic_write_bytes(path, data.getvalue())


def plot_latency(results: Results, path: PathLike) -> None:
    """Median times as stacked bars, a panel for each group, a bar for each entry, its stages in the order of the work."""
    check_plot(path)
    groups = {
        group: [entry for entry in entries if entry.samples and entry.name != CEILING]
        for group, entries in results.groups().items()
    }
    colours = _colours([stage for entries in groups.values() for entry in entries for stage, _ in _bars(entry)])
    heights = [max(1, len(entries)) for entries in groups.values()]
    figure, axes = new_figure(10, 1.8 + 0.45 * sum(heights) + 0.6 * len(groups), len(groups), 1)
    for axis, (group, entries) in zip(axes[:, 0], groups.items(), strict=True):
        _draw_bars(axis, entries, colours)
        axis.set_title(group, loc="left")
    axes[-1, 0].set_xlabel("milliseconds, median")
    handles = {label: handle for axis in axes[:, 0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(heading(results), fontsize=9)
    save_figure(figure, path)


def _colours(stages: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in dict.fromkeys(stages):
        kind = stage.partition("/")[0]
        shades = _SHADES.get(kind, _SHADES[""])
        taken = sum(colour in shades for colour in found.values())
        found[stage] = shades[taken % len(shades)]
    return found


def _draw_bars(axis: Axes, entries: Sequence[Entry], colours: dict[str, str]) -> None:
    for place, entry in enumerate(entries):
        left = 0.0
        for stage, milliseconds in _bars(entry):
            label = stage.replace("/", ": ").replace("_", " ")
            axis.barh(place, milliseconds, left=left, color=colours[stage], label=label, edgecolor="white", linewidth=0.5)
            left += milliseconds
        axis.text(left, place, f" {left:.0f}", va="center", fontsize=8)
    axis.set_yticks(range(len(entries)), [entry.name for entry in entries])
    axis.invert_yaxis()
    axis.margins(x=0.08)
    axis.spines[["top", "right"]].set_visible(False)


def _bars(entry: Entry) -> list[tuple[str, float]]:
    """(stage, median in milliseconds), with the parts of a stage in place of the stage."""
    stages = ordered_stages(entry)
    whole = {name.partition("/")[0] for name in stages if "/" in name}
    return [(stage, 1000 * float(np.median(entry.samples[stage]))) for stage in stages if stage not in whole]
