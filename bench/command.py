"""``mgvq-export bench BUNDLE``: checks the options first, then measures and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from mgvq_export.bench.latency import DEFAULT_SIZE, BenchOptions, Size, bench, passes
from mgvq_export.bench.plots import check_plot, plot_latency
from mgvq_export.bench.record import Results
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike
from mgvq_export.core.units import parse_size

Watch = Callable[[str, int], AbstractContextManager[Callable[[str, float], None]]]


def run_bench(
    bundle: PathLike,
    *,
    sizes: Sequence[str] = (),
    image: Path | None = None,
    against: Sequence[str] = (),
    backends: tuple[str, ...] = ("auto",),
    precisions: tuple[str, ...] = (),
    tilings: tuple[str, ...] = ("auto",),
    tile: Size | None = None,
    memory_limit: str | None = None,
    threads: int | None = None,
    repeat: int = 10,
    checkpoint: str | None = None,
    output: Path | None = None,
    plot: Path | None = None,
    watch: Watch,
) -> Results:
    """Measure ``bundle``, and write the results to ``output`` and a figure to ``plot``, where given.

    Args:
        sizes: as WIDTHxHEIGHT; not together with ``image``.
        against: names of peers, each entry one or several with commas.
        watch: opens a progress bar from a title and a number of steps, as :func:`mgvq_export.commands.output.progress_bar` does.

    The others are fields of :class:`BenchOptions`. Raises as :func:`~mgvq_export.bench.latency.bench`; and, before anything is
    measured, :class:`InputError` when a file could not be written, :class:`BackendError` when the figure could not be drawn.
    """
    if image and sizes:
        raise InputError("both --image and --size are given; the image is taken at its own size: leave one of them out")
    wanted = tuple(dict.fromkeys(parse_size(size) for size in sizes)) or (DEFAULT_SIZE,)
    peers = tuple(dict.fromkeys(name for group in against for name in group.split(",") if name))
    options = BenchOptions(wanted, image, backends, precisions, tilings, tile, memory_limit, threads, peers, repeat, checkpoint)
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
