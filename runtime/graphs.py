"""What the backends that run single graphs share: loading when first used, and holding a graph to the manifest."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np

from mgvq_export.core.arrays import DType
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BundleError, shown
from mgvq_export.core.spec import Part

S = TypeVar("S")


class LazyGraphs(ABC, Generic[S]):
    """The sessions of one bundle and precision, each loaded when first used; a subclass says how."""

    def __init__(self) -> None:
        self._loaded: dict[Part, S] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def _load(self, part: Part) -> S:
        """The session of one graph."""

    def __getitem__(self, part: Part) -> S:
        found = self._loaded.get(part)
        if found is None:
            with self._lock:
                if part not in self._loaded:
                    self._loaded[part] = self._load(part)
                found = self._loaded[part]
        return found

    @abstractmethod
    def rest(self, part: Part) -> None:
        """Give back a part's working memory; its next run takes it again."""

    def drop(self, part: Part) -> None:
        """Drop one session, if loaded, and its memory."""
        self._loaded.pop(part, None)

    def close(self) -> None:
        """Drop all sessions and their memory; they are loaded again when used again."""
        self._loaded.clear()


def check_values(
    bundle: Bundle,
    precision: str,
    part: Part,
    inputs: Mapping[str, DType],
    outputs: Mapping[str, DType],
) -> None:
    """Raise :class:`BundleError` unless a graph takes and gives what its entry in the manifest says."""
    entry = bundle.graph(precision, part)
    for what, found, listed in (("takes", inputs, entry.inputs), ("gives", outputs, entry.outputs)):
        wanted = {value.name: np.dtype(value.dtype) for value in listed}
        if dict(found) != wanted:
            raise BundleError(
                f"{bundle.path / entry.file} {what} {_listed(found)}; the manifest says {_listed(wanted)}: export the bundle again"
            )


def _listed(values: Mapping[str, DType]) -> str:
    return ", ".join(f"{shown(name)} {dtype}" for name, dtype in values.items()) or "nothing"
