"""What the user asked for: how an image is tiled, and under which memory limit."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass

from mgvq_export.core.errors import InputError
from mgvq_export.runtime.tiling.memory import resident_bytes

TILINGS = ("auto", "off", "exact", "blend")
SHARE_OF_FREE = 0.8  # the default limit: this share of what is free, beside what the process holds already

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

#: (height, width) in image pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """What the user asked for: mode, tile (height, width) in image pixels or None, limit in bytes or None."""

    mode: str = "auto"
    tile: Size | None = None
    limit: int | None = None

    @classmethod
    def parse(cls, mode: str = "auto", tile: int | Size | None = None, memory_limit: str | int | None = None) -> Tiling:
        """Check what can be checked before an image is known. Raises :class:`InputError`."""
        if mode not in TILINGS:
            raise InputError(f"tiling is {mode!r}; choose {', '.join(TILINGS)}")
        if mode == "off" and tile is not None:
            raise InputError("tiling is off, but a tile is given; leave one of them out")
        return cls(mode, None if tile is None else _tile(tile), None if memory_limit is None else parse_bytes(memory_limit))


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


def parse_bytes(text: str | int) -> int:
    """``"6GiB"``, ``"6G"``, ``"512MB"`` or a number of bytes -> bytes. Raises :class:`InputError`."""
    if hasattr(text, "__index__") and not isinstance(text, bool):
        value: float = operator.index(text)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*", str(text), re.IGNORECASE)
        if not match:
            raise InputError(f"memory limit is {text!r}; wanted a size such as 6GiB or 800MB")
        unit = _UNITS[match[2].upper()]
        if match[3] and match[3].lower() == "b" and match[2]:
            unit = 1000 ** round(unit.bit_length() / 10)
        value = float(match[1]) * unit
    if value <= 0:
        raise InputError(f"memory limit is {text!r}; wanted more than nothing")
    return int(value)


def format_bytes(count: int, *, up: bool = False) -> str:
    """``4.00GiB``, ``812MiB``; ``up``: rounded up, so that the value given suffices."""
    if count >= 2**30:
        value = count / 2**30
        return f"{-(-count * 100 // 2**30) / 100 if up else value:.2f}GiB"
    return f"{-(-count // 2**20) if up else round(count / 2**20)}MiB"


def default_limit() -> int:
    """What the process holds, and :data:`SHARE_OF_FREE` of what is free beside it, in bytes."""
    import psutil

    return resident_bytes() + int(SHARE_OF_FREE * psutil.virtual_memory().available)
