"""Sizes as people write them: bytes such as ``6GiB``, and images such as ``2560x1440``."""

from __future__ import annotations

import operator
import re

from mgvq_export.core.errors import InputError, shown

Size = tuple[int, int]  # height, width

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"\s*([0-9]{1,9})\s*x\s*([0-9]{1,9})\s*", re.IGNORECASE)
_BYTES = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMGT]?)(i?B)?\s*", re.IGNORECASE)


def parse_size(text: str, what: str = "size") -> Size:
    """``"2560x1440"``, width x height in pixels -> (1440, 2560), height first, both at least 1.

    Raises :class:`InputError`, which calls the size ``what``.
    """
    match = _SIZE.fullmatch(text)
    if not match or not int(match[1]) or not int(match[2]):
        raise InputError(f"{what} is {shown(text)}; wanted WIDTHxHEIGHT in pixels such as 2560x1440")
    return int(match[2]), int(match[1])


def parse_bytes(text: str | int, what: str = "memory limit") -> int:
    """``"6GiB"``, ``"6G"``, ``"512MB"`` or a number of bytes -> bytes, at least 1. Raises :class:`InputError`, which calls it ``what``."""
    if hasattr(text, "__index__") and not isinstance(text, bool):
        value: float = operator.index(text)
    else:
        match = _BYTES.fullmatch(str(text))
        if not match:
            raise InputError(f"{what} is {shown(text)}; wanted a size such as 6GiB or 800MB")
        unit = _UNITS[match[2].upper()]
        if match[3] and match[3].lower() == "b" and match[2]:
            unit = 1000 ** round(unit.bit_length() / 10)
        value = float(match[1]) * unit
        if not match[2] and not match[3] and 0 < value < 2**20:
            raise InputError(f"{what} is {shown(text)}, which is so many bytes; give it with a unit, such as {match[1]}GiB")
    if not 0 < value < 2**63:
        raise InputError(f"{what} is {shown(text)}; wanted more than nothing, such as 6GiB")
    return int(value)


def format_bytes(count: int, *, up: bool = False) -> str:
    """``4.00GiB``, ``812MiB``; ``up``: rounded up, so that the value given suffices."""
    if count >= 2**30:
        value = count / 2**30
        return f"{-(-count * 100 // 2**30) / 100 if up else value:.2f}GiB"
    return f"{-(-count // 2**20) if up else round(count / 2**20)}MiB"
