"""Which windows cover a map: the arithmetic of tiling, with no arrays in it.

A part of the network with a finite receptive field (:class:`mgvq_export.core.spec.ReceptiveField`) can be run window by window and
give exactly the result of one run over the whole map, if every output pixel is taken from a window that either holds
all the inputs the pixel depends on, or ends where the map ends (there the network's own zero padding is the truth).
:class:`TilePlan` places such windows. The same class serves the encoder (image -> features), the decoder
(features -> image), both halves of a trunk that is cut twice, and the blended tiles that exist for comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import Part, ReceptiveField

MODES = ("off", "exact", "blend")

Slices = tuple[slice, slice]


@dataclass(frozen=True)
class Window:
    """One rectangle of the map: what to read, which outputs to keep, and where they lie in the window's own output.

    Attributes:
        source: rows and columns of the input map, in input pixels.
        kept: rows and columns of the output map that this window fills, in output pixels.
        crop: the same rows and columns inside the window's own output.
    """

    source: Slices
    kept: Slices
    crop: Slices


@dataclass(frozen=True)
class TilePlan:
    """Windows of one shape whose kept regions cover the map exactly once.

    Along each axis, with everything counted in cells, a map of ``n``, windows of ``w`` and a halo of ``h``:

    1. ``w == n``: one window, no halo.
    2. Inner windows start ``w - 2h`` after one another; what is kept lies ``h`` inside the window.
    3. The last window is moved back so that it ends with the map; what it recomputes of its neighbour is dropped. At
       both ends of the map the window's edge is the map's edge and is kept.
    4. A map smaller than the tile asked for: the window shrinks to the map (:meth:`fit`), which is case 1. It is never
       padded out, because padding a map with zeros is not what the network does inside its trunk.

    Attributes:
        size: height and width of the input map, in input pixels; whole cells.
        window: height and width of every window, in input pixels; whole cells.
        reach: strides and receptive field of the part that runs.
        batch: windows that run together.
        mode: ``off`` (one window), ``exact``, or ``blend`` (the halo is then only an overlap to feather).
        scale: image pixels per input pixel (encoder trunk 1, decoder trunk 8); messages speak in image pixels.

    Raises:
        InputError: the map or window is no whole number of cells, the window is larger than the map, or it is too
            small to keep anything inside its halo.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    reach: ReceptiveField
    batch: int = 1
    mode: str = "exact"
    scale: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"tiling is {self.mode!r}; choose {', '.join(MODES)}")
        if self.batch < 1:
            raise InputError(f"batch is {self.batch}; wanted at least 1 window")
        for axis, size, window in zip(("height", "width"), self.size, self.window, strict=True):
            self._check_axis(axis, size, window)
        if self.mode == "off" and self.window != self.size:
            raise InputError(f"tiling is off, but the window {self._px(self.window)} is not the image {self._px(self.size)}")

    def _check_axis(self, axis: str, size: int, window: int) -> None:
        cell, scale = self.reach.stride_in, self.scale
        if size < cell:
            raise InputError(f"{axis} is {size * scale} px, less than one cell; wanted at least {cell * scale}")
        if size % cell:
            raise InputError(
                f"{axis} is {size * scale} px; wanted a multiple of {cell * scale}, such as {(size // cell + 1) * cell * scale}"
            )
        _check_tile(axis, window, self.reach, scale)
        if window > size:
            raise InputError(f"tile {axis} is {window * scale} px; the image has {size * scale}")
        if window < min(size, smallest_window(self.reach)):
            raise InputError(
                f"tile {axis} is {window * scale} px, but the halo takes {self.reach.halo * scale} on either side; "
                f"wanted at least {min(size, smallest_window(self.reach)) * scale}"
            )

    @classmethod
    def fit(
        cls,
        size: tuple[int, int],
        reach: ReceptiveField,
        tile: tuple[int, int] | None = None,
        *,
        mode: str = "exact",
        batch: int = 1,
        scale: int = 1,
        balance: bool = False,
    ) -> TilePlan:
        """The plan for a map with windows of ``tile``, shrunk along an axis where the map is smaller (case 4).

        Args:
            size: height and width of the input map, in input pixels.
            reach: strides and receptive field of the part.
            tile: height and width of the windows, in input pixels; None for one window, which is mode ``off``.
            mode, batch, scale: as in the class.
            balance: shrink the windows as far as the same number of them still covers the map. Less work; the
                shape then depends on the image, so leave it off where one engine shape must serve all images.

        Raises:
            InputError: as in the class, with the nearest value that works.
        """
        if tile is None:
            return cls(size, size, reach, batch=batch, mode="off", scale=scale)
        for axis, side in zip(("height", "width"), tile, strict=True):
            _check_tile(axis, side, reach, scale)
        plan = cls(size, (min(size[0], tile[0]), min(size[1], tile[1])), reach, batch=batch, mode=mode, scale=scale)
        if balance:
            height, width = (_balanced(n, w, reach) for n, w in zip(plan.size, plan.window, strict=True))
            plan = replace(plan, window=(height, width))
        return plan

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """All windows, row by row."""
        rows, columns = (_axis(n, w, self.reach) for n, w in zip(self.size, self.window, strict=True))
        return tuple(Window((row[0], column[0]), (row[1], column[1]), (row[2], column[2])) for row in rows for column in columns)

    def batches(self) -> Iterator[tuple[Window, ...]]:
        """The windows in order, ``batch`` at a time; the last group may be smaller."""
        for start in range(0, len(self.windows), self.batch):
            yield self.windows[start : start + self.batch]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        height, width = (_count(n, w, self.reach) for n, w in zip(self.size, self.window, strict=True))
        return height, width

    @property
    def count(self) -> int:
        """Windows in all, without making them."""
        rows, columns = self.grid
        return rows * columns

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output map, in output pixels."""
        return self._to_output(self.size)

    @property
    def output_window(self) -> tuple[int, int]:
        """Height and width of one window's output, in output pixels."""
        return self._to_output(self.window)

    @property
    def tiling_overhead(self) -> float:
        """Input pixels run over input pixels of the map: 1.0 for one window."""
        return self.count * self.window[0] * self.window[1] / (self.size[0] * self.size[1])

    def _to_output(self, size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = (n // self.reach.stride_in * self.reach.stride_out for n in size)
        return rows, columns

    def _px(self, size: tuple[int, int]) -> str:
        return f"{size[1] * self.scale}x{size[0] * self.scale}"

    def __str__(self) -> str:
        """``windows 6 of 1200x1200, halo 88, tiling overhead 1.31``: width x height, in image pixels."""
        if self.count == 1:
            return f"one window of {self._px(self.window)}"
        margin = "overlap" if self.mode == "blend" else "halo"
        width = self.reach.halo * self.scale * (2 if self.mode == "blend" else 1)
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"windows {self.count} of {self._px(self.window)}{batch}, {margin} {width}, tiling overhead {self.tiling_overhead:.2f}"


@dataclass(frozen=True)
class TrunkPlan:
    """How the trunk of one direction runs: as one graph, or cut in two (fine and coarse), each with its own windows.

    Attributes:
        steps: the parts in the order they run, each with its windows.
        peak_bytes: predicted peak of this process's memory; 0 when not predicted.
        tiling_overhead: work of all windows over work of one window, weighted by what a pixel costs in each part.
        together: images of this size that may run together, each in one window; 1 when it runs in windows.
    """

    steps: tuple[tuple[Part, TilePlan], ...]
    peak_bytes: int = 0
    tiling_overhead: float = 1.0
    together: int = 1

    @property
    def mode(self) -> str:
        """``off``, ``exact`` or ``blend``."""
        return next((plan.mode for _, plan in self.steps if plan.mode != "off"), "off")

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the last part's output, in its pixels."""
        return self.steps[-1][1].output_size

    @property
    def total(self) -> int:
        """Windows of all steps."""
        return sum(plan.count for _, plan in self.steps)

    def __str__(self) -> str:
        """One step: the plan itself; two: both, and the tiling overhead over both."""
        if len(self.steps) == 1:
            return str(self.steps[0][1])
        each = "; ".join(f"{str(part).rpartition('_')[2]}: {plan}" for part, plan in self.steps)
        return f"{each}; tiling overhead over both {self.tiling_overhead:.2f}"


def _check_tile(axis: str, side: int, reach: ReceptiveField, scale: int) -> None:
    cell = reach.stride_in
    if side % cell or side < cell:
        nearest = max(smallest_window(reach), round(side / cell) * cell)
        raise InputError(f"tile {axis} is {side * scale} px; wanted a multiple of {cell * scale}, such as {nearest * scale}")


def smallest_window(reach: ReceptiveField) -> int:
    """The smallest window, in input pixels, that keeps a cell between two halos."""
    return 2 * reach.halo + reach.stride_in


def _count(size: int, window: int, reach: ReceptiveField) -> int:
    """Windows along one axis: the first and the last keep ``window - halo``, those between keep two halos less."""
    if window == size:
        return 1
    return -(-(size - 2 * reach.halo) // (window - 2 * reach.halo))


def _balanced(size: int, window: int, reach: ReceptiveField) -> int:
    """The smallest window that covers the axis with as many windows as ``window`` needs."""
    count = _count(size, window, reach)
    if count == 1:
        return size
    kept = -(-(size - 2 * reach.halo) // (count * reach.stride_in)) * reach.stride_in
    return kept + 2 * reach.halo


def _axis(size: int, window: int, reach: ReceptiveField) -> list[tuple[slice, slice, slice]]:
    """Source, kept and crop along one axis; the cases are those of :class:`TilePlan`."""
    count = _count(size, window, reach)
    slices = []
    kept_from = 0
    for index in range(count):
        last = index == count - 1
        start = size - window if last else index * (window - 2 * reach.halo)  # cases 1 and 3, case 2
        kept_to = size if last else start + window - reach.halo
        slices.append(
            (slice(start, start + window), _scaled(kept_from, kept_to, reach), _scaled(kept_from - start, kept_to - start, reach))
        )
        kept_from = kept_to
    return slices


def _scaled(start: int, stop: int, reach: ReceptiveField) -> slice:
    return slice(start // reach.stride_in * reach.stride_out, stop // reach.stride_in * reach.stride_out)
