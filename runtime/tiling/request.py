"""What the user asked for: how an image is tiled, and under which memory limit."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import cast

from mgvq_export.core.errors import InputError
from mgvq_export.core.types import TILINGS, TilingMode
from mgvq_export.core.units import Size, parse_bytes


@dataclass(frozen=True)
class Tiling:
    """What the user asked for: mode, tile (height, width) in image pixels or None, limit in bytes or None."""

    mode: TilingMode = "auto"
    tile: Size | None = None
    limit: int | None = None

    @classmethod
    def parse(cls, mode: str = "auto", tile: int | Size | None = None, memory_limit: str | int | None = None) -> Tiling:
        """Check what can be checked before an image is known. Raises :class:`InputError`."""
        if mode not in TILINGS:
            raise InputError(f"tiling is {mode!r}; choose {', '.join(TILINGS)}")
        if mode == "off" and tile is not None:
            raise InputError("tiling is off, but a tile is given; leave one of them out")
        chosen = cast(TilingMode, mode)
        return cls(chosen, None if tile is None else _tile(tile), None if memory_limit is None else parse_bytes(memory_limit))


def _tile(tile: object) -> Size:
    """Height and width of a tile given as one side or as both, in whole numbers of any type."""
    try:
        sides = (tile, tile) if not isinstance(tile, (tuple, list)) else tuple(tile)
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1 or isinstance(tile, bool):
        raise InputError(f"tile is {tile!r}; wanted a side in pixels, or height and width")
    return height, width
