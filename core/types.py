"""Types and choices that several rooms share."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

#: ``auto``: one window when it fits in memory, else exact windows; ``blend`` changes codes and is there to compare.
TilingMode = Literal["auto", "off", "exact", "blend"]
TILINGS: tuple[TilingMode, ...] = get_args(TilingMode)

#: A JSON object as :mod:`json` gives and takes it: values are None, booleans, numbers, text, lists, and objects again.
JsonObject = dict[str, object]

#: A value from a file whose type is still to be checked.
Unchecked: TypeAlias = Any

#: An object of a package that has no types, such as TensorRT, CUDA's bindings or Triton.
Untyped: TypeAlias = Any
