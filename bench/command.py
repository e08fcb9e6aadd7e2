"""What ``mgvq-export bench BUNDLE`` does with its words: checks them all first, measures, writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mgvq_export.bench.latency import DEFAULT_SIZE, BenchOptions, bench, passes
from mgvq_export.bench.plots import check_plot, plot_latency
from mgvq_export.bench.record import Results
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike
from mgvq_export.core.units import parse_size

Watch = Callable[[str, int], AbstractContextManager[Callable[[str, float], None]]]


def run_bench(bundle: PathLike, words: Mapping[str, Any], *, output: Path | None, plot: Path | None, watch: Watch) -> Results:
    """Measure ``bundle`` as ``words`` say, and write the results to ``output`` and a figure to ``plot``, where given.

    Args:
        words: the fields of :class:`BenchOptions`; ``sizes`` as WIDTHxHEIGHT, each of ``against`` one or several peers with commas.
        watch: opens a progress bar from a title and a number of steps, as :func:`mgvq_export.commands.output.progress_bar` does.

    Raises as :func:`~mgvq_export.bench.latency.bench`; and, before anything is measured, :class:`InputError` when a file could
    not be written, :class:`BackendError` when the figure could not be drawn.
    """
    if words["image"] and words["sizes"]:
        raise InputError("both --image and --size are given; the image is taken at its own size: leave one of them out")
    sizes = tuple(parse_size(size) for size in words["sizes"]) or (DEFAULT_SIZE,)
    against = tuple(dict.fromkeys(name for group in words["against"] for name in group.split(",") if name))
    options = BenchOptions(**{**words, "sizes": tuple(dict.fromkeys(sizes)), "against": against})
    for path in (output, plot):
        if path is not None:
            _check_file(path)
    if plot is not None:
        check_plot(plot)
    with watch("bench", passes(options)) as update:
        results = bench(bundle, options, progress=update)
    if output is not None:
        results.save(output)
    if plot is not None:
        plot_latency(results, plot)
    return results


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.absolute().parent}; create it first")
