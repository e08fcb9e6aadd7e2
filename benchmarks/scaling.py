"""How time and memory grow with the image and with the number of groups; writes the figure and tables of docs/performance.md.

    python -m mgvq_export.benchmarks.scaling [--side 256]... [--groups 1]... [--docs FOLDER] [-o FILE] [--redraw]

The images: the packaged demo model, squares of each side, in one window and in windows of 512 pixels. The groups: the quantizer
alone on 128x128 cells of 32 channels (a 1024x1024 image at f8), with G groups of 32 / G channels. Held fixed are, once, the rows
of all codebooks together (16,384, so K = 16,384 / G), and once K = 2,048. Every point runs in a process of its own.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mgvq_export.bench.latency import BenchOptions, bench
from mgvq_export.bench.plots import check_plot, new_figure, save_figure
from mgvq_export.bench.processes import Baseline, measure
from mgvq_export.bench.record import CEILING, Entry, Results, describe_bundle
from mgvq_export.bench.summary import heading
from mgvq_export.bench.timing import Percentiles, PowerLaw, fit_power_law
from mgvq_export.benchmarks.quantizer import SearchJob
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES = (256, 512, 1024, 2048, 4096)
GROUPS = (1, 2, 4, 8, 16, 32)
WINDOW = 512

CHANNELS, CELLS = 32, 128  # of the latent: channels, and cells along each side
ROWS_IN_ALL, ROWS_PER_GROUP = 16384, 2048

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"

_PIXELS_OF_A_SERIES = 2**22  # a point is repeated until so many pixels are done, but not less than twice


@dataclass(frozen=True)
class Series:
    """One curve: the points of one entry over sides or groups.

    Attributes:
        title: as the figure and the tables call it.
        name: the entries' name.
        over: ``pixels`` or ``groups``.
        stages: what is timed; empty for the memory that the pass adds.
    """

    title: str
    name: str
    over: Literal["pixels", "groups"]
    stages: tuple[str, ...] = ()

    def points(self, results: Results) -> tuple[list[float], list[float]]:
        """Pixels or groups, and seconds (medians) or bytes, in rising order; points that took nothing measurable are left out."""
        found = {}
        for entry in results.entries:
            if entry.name == self.name and not entry.skipped:
                value = Percentiles.of(entry.seconds(*self.stages)).p50 if self.stages else added_bytes(entry)
                if value > 0:
                    found[float(entry.facts[self.over])] = float(value)
        return [x for x, _ in sorted(found.items())], [y for _, y in sorted(found.items())]

    def law(self, results: Results) -> PowerLaw | None:
        """The power law of the points; None with fewer than three, of which nothing can be said."""
        x, y = self.points(results)
        return fit_power_law(x, y) if len(x) > 2 else None


WHOLE, TILED = "ort-cpu fp32 off", "ort-cpu fp32 exact"
FIXED_ROWS, FIXED_K = f"{ROWS_IN_ALL:,} rows in all", f"K = {ROWS_PER_GROUP:,}"
TIME_OF_IMAGES = (
    Series("encode, one window", WHOLE, "pixels", ("encode",)),
    Series("decode, one window", WHOLE, "pixels", ("decode",)),
    Series(f"encode, windows of {WINDOW}", TILED, "pixels", ("encode",)),
    Series(f"decode, windows of {WINDOW}", TILED, "pixels", ("decode",)),
)
MEMORY_OF_IMAGES = (
    Series("one window", WHOLE, "pixels"),
    Series(f"windows of {WINDOW}", TILED, "pixels"),
)
QUANTIZERS = (f"fused kernel, {FIXED_ROWS}", f"function body, {FIXED_ROWS}", f"fused kernel, {FIXED_K}")
#: Name -> baseline of the quantizer bench, and codes per group for so many groups.
BASELINES: dict[str, tuple[str, Callable[[int], int]]] = {
    QUANTIZERS[0]: ("fused kernel in ONNX Runtime", lambda groups: ROWS_IN_ALL // groups),
    QUANTIZERS[1]: ("function body in ONNX Runtime", lambda groups: ROWS_IN_ALL // groups),
    QUANTIZERS[2]: ("fused kernel in ONNX Runtime", lambda groups: ROWS_PER_GROUP),
}
TIME_OF_GROUPS = tuple(Series(name, name, "groups", ("search",)) for name in QUANTIZERS)
MEMORY_OF_GROUPS = tuple(Series(name, name, "groups") for name in QUANTIZERS)


def added_bytes(entry: Entry) -> int:
    """What a pass adds to the memory of a process that has loaded everything."""
    return entry.memory["peak_bytes"] - entry.memory["base_bytes"]


def measure_images(bundle: Bundle, sides: Iterable[int], say: Callable[[str], None]) -> list[Entry]:
    """Entries of squares, in one window and tiled; the group is the size."""
    entries = []
    for side in sides:
        say(f"{side}x{side}")
        repeat = min(9, max(2, _PIXELS_OF_A_SERIES // side**2))
        options = BenchOptions(
            sizes=((side, side),),
            backends=("ort-cpu",),
            precisions=("fp32",),
            tilings=("off", "exact"),
            tile=(WINDOW, WINDOW),
            repeat=repeat,
        )
        for entry in bench(bundle, options).entries:
            if entry.name != CEILING:
                entry.facts["pixels"] = side**2
            entries.append(entry)
    return entries


def measure_groups(groups: Sequence[int], repeat: int, say: Callable[[str], None]) -> list[Entry]:
    """Entries of the quantizer; the group is the number of groups."""
    entries = []
    for name, (baseline, rows) in BASELINES.items():
        say(name)
        sizes = {str(count): (count, rows(count), CHANNELS // count, CELLS, CELLS) for count in groups}
        found = measure([Baseline(count, SearchJob, (baseline, size)) for count, size in sizes.items()], repeat)
        for count, measured in found.items():
            _, codes, dim, _, _ = sizes[count]
            entries.append(
                Entry.of(name, f"G = {count}", measured, {"groups": int(count), "codes_per_group": codes, "group_dim": dim})
            )
    return entries


def image_table(results: Results) -> str:
    """Markdown: a row per size, the exponents last."""
    titles = [
        *(f"{series.title}, s" for series in TIME_OF_IMAGES),
        *(f"{series.title}, MiB added" for series in MEMORY_OF_IMAGES),
    ]
    return _table(
        results, "image", titles, (*TIME_OF_IMAGES, *MEMORY_OF_IMAGES), lambda pixels: "{0}x{0}".format(math.isqrt(int(pixels)))
    )


def group_table(results: Results) -> str:
    """Markdown: a row per number of groups, the exponents last."""
    titles = [
        *(f"{series.title}, ms" for series in TIME_OF_GROUPS),
        *(f"{series.title}, MiB added" for series in MEMORY_OF_GROUPS),
    ]
    return _table(results, "groups", titles, (*TIME_OF_GROUPS, *MEMORY_OF_GROUPS), lambda groups: f"{groups:.0f}")


def _table(results: Results, first: str, titles: Sequence[str], columns: Sequence[Series], label: Callable[[float], str]) -> str:
    curves = [dict(zip(*series.points(results), strict=True)) for series in columns]
    lines = [f"| {' | '.join([first, *titles])} |", "|---" * (len(titles) + 1) + "|"]
    for x in sorted({x for curve in curves for x in curve}):
        cells = [_cell(series, curve.get(x)) for series, curve in zip(columns, curves, strict=True)]
        lines.append(f"| {' | '.join([label(x), *cells])} |")
    laws = [str(law) if (law := series.law(results)) else "" for series in columns]
    lines.append(f"| **exponent** | {' | '.join(laws)} |")
    return "\n".join(lines)


def _cell(series: Series, value: float | None) -> str:
    if value is None:
        return "under 0.1" if not series.stages else ""
    if not series.stages:
        return f"{value / 2**20:.1f}" if value < 10 * 2**20 else f"{value / 2**20:.0f}"
    return f"{value:.3g}" if series.over == "pixels" else f"{1000 * value:.1f}"


def draw(results: Results, path: Path) -> None:
    """Time and memory over pixels, time and memory over groups: logarithmic axes, fitted lines dashed."""
    figure, axes = new_figure(11, 8.5, 2, 2)
    panels = (
        (axes[0, 0], TIME_OF_IMAGES, "seconds", 1, "pixels of the image"),
        (axes[0, 1], MEMORY_OF_IMAGES, "MiB added by a pass", 2**20, "pixels of the image"),
        (axes[1, 0], TIME_OF_GROUPS, "milliseconds", 1e-3, "groups (32 channels in all)"),
        (axes[1, 1], MEMORY_OF_GROUPS, "MiB added by a pass", 2**20, "groups (32 channels in all)"),
    )
    for axis, columns, unit, scale, below in panels:
        axis.set(xscale="log", yscale="log", xlabel=below, ylabel=unit)
        for number, series in enumerate(columns):
            x, y = series.points(results)
            law = series.law(results)
            label = f"{series.title}: exponent {law}" if law else series.title
            marker, colour = "osD^"[number % 4], ("#D94801", "#2171B5", "#FDAE6B", "#6BAED6")[number % 4]
            axis.plot(x, [value / scale for value in y], marker, color=colour, label=label, linestyle="none" if law else "-")
            if law:
                axis.plot(x, [law.factor * value**law.exponent / scale for value in x], "--", color=colour, linewidth=1)
        if columns[0].over == "pixels":
            _ticks(axis, [(side**2, str(side) + "²") for side in SIDES])
        else:
            _ticks(axis, [(count, str(count)) for count in GROUPS])
        axis.grid(True, which="major", alpha=0.3)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
        axis.legend(fontsize=8, frameon=False, loc="upper left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_title("Demo model: time", loc="left")
    axes[0, 1].set_title("Demo model: memory", loc="left")
    axes[1, 0].set_title("Quantizer alone: time", loc="left")
    axes[1, 1].set_title("Quantizer alone: memory", loc="left")
    figure.suptitle(heading(results), fontsize=9)
    save_figure(figure, path)


def _ticks(axis: Axes, places: Sequence[tuple[int, str]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    axis.set_xticks([place for place, _ in places], [label for _, label in places])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def replace_between(text: str, new: str) -> str:
    """``text`` with ``new`` between the two markers. Raises :class:`InputError` when it has not exactly one of each, in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before or END in after:
        raise InputError(f"the text has not one {BEGIN} and, after it, one {END}; write them where the tables shall stand")
    return f"{before}{begin}\n{new.strip()}\n{end}{after}"


def write_docs(results: Results, docs: Path) -> None:
    """The figure ``scaling.png``, and the tables between the markers of ``performance.md``, both in ``docs``."""
    page = docs / "performance.md"
    tables = f"Taken {results.date[:10]}: {heading(results)}.\n\n{image_table(results)}\n\n{group_table(results)}\n"
    text = replace_between(page.read_text(encoding="utf-8"), tables)
    draw(results, docs / "scaling.png")
    atomic_write_bytes(page, text.encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(
        prog="python -m mgvq_export.benchmarks.scaling", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--side", type=int, action="append", help="of the images; may be repeated (default: 256 to 4096)")
    parser.add_argument("--groups", type=int, action="append", choices=GROUPS, help="may be repeated (default: 1 to 32)")
    parser.add_argument("--repeat", type=int, default=7, help="timed searches of each quantizer (default 7)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder with performance.md")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "bench" / "results" / "scaling.json", help="all samples")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: figure and tables again from the samples")
    options = parser.parse_args(arguments)
    check_plot(options.docs / "scaling.png")  # before minutes of measuring
    replace_between((options.docs / "performance.md").read_text(encoding="utf-8"), "")
    if options.redraw:
        results = Results.load(options.output)
    else:
        results = measure_all(options.side or SIDES, options.groups or GROUPS, options.repeat)
        results.save(options.output)
    write_docs(results, options.docs)
    print(f"{options.output}\n{options.docs / 'scaling.png'}\n{options.docs / 'performance.md'}")


def measure_all(sides: Sequence[int], groups: Sequence[int], repeat: int) -> Results:
    """All points, of the demo model exported for the purpose."""
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.model.checkpoint import load_checkpoint

    def say(what: str) -> None:
        print(what, flush=True)

    with tempfile.TemporaryDirectory(prefix="mgvq-scaling-") as folder:
        bundle = export_bundle(load_checkpoint("demo"), Path(folder) / "demo")
        results = Results(
            "scaling", measure_images(bundle, sides, say), {"window": WINDOW, "repeat": repeat}, describe_bundle(bundle)
        )
    results.entries += measure_groups(groups, repeat, say)
    return results


if __name__ == "__main__":
    main()
