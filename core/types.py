"""The choices that several rooms share."""

from __future__ import annotations

from typing import Literal, get_args

#: ``auto``: one window when it fits in memory, else exact windows; ``blend`` changes codes and is there to compare.
TilingMode = Literal["auto", "off", "exact", "blend"]
TILINGS: tuple[TilingMode, ...] = get_args(TilingMode)
