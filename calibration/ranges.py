"""Ranges of every value inside encoder and decoder over many images, in one pass; memory does not grow with their number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from mgvq_export.calibration.crops import Crops
from mgvq_export.calibration.segments import SegmentedGraph
from mgvq_export.calibration.statistics import StoredStatistics, TensorStatistics
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike, atomic_write_bytes
from mgvq_export.core.json_files import JsonSource, convert_json, read_json
from mgvq_export.core.spec import Part
from mgvq_export.core.types import JsonObject
from mgvq_export.export.graphs.builder import WeightStore
from mgvq_export.export.graphs.parts import build_graph
from mgvq_export.model.network import MGVQ
from mgvq_export.runtime.images import to_float

FORMAT, VERSION = "mgvq-ranges", 1

#: The two graphs, by the beginning of their node names.
SIDES = {"encoder": Part.ENCODER, "decoder": Part.DECODER}

_MEMORY = 128 << 20  # bytes of values held at once
_BATCH = 2  # windows run together when they fit
_FILE_BYTES, _FILE_VALUES = 256 << 20, 50_000_000
_SAVED_EVERY = 4  # batches between two saves: the file takes some megabytes

#: Called with (windows done, windows in all).
Progress = Callable[[int, int], None]

Statistics = dict[str, TensorStatistics]


@dataclass
class Ranges:
    """Statistics of every float value of the fp32 encoder and decoder graphs, in graph order.

    Attributes:
        key: hash of the windows and the weights: ranges of equal key are equal.
        done: windows taken in so far.
        total: windows to take in.
        sides: ``encoder`` and ``decoder`` -> value name -> statistics. The input of a graph is one of its values.
    """

    key: str
    done: int
    total: int
    sides: dict[str, Statistics]

    def to_dict(self) -> JsonObject:
        """JSON-ready."""
        sides = {side: {name: one.to_dict() for name, one in values.items()} for side, values in self.sides.items()}
        return {"format": FORMAT, "version": VERSION, "key": self.key, "done": self.done, "total": self.total, "values": sides}

    @classmethod
    def load(cls, path: PathLike) -> Ranges:
        """The ranges in a file. Raises :class:`InputError` when it holds none."""
        return cls.parse(read_json(path, _source(path)), path)

    @classmethod
    def parse(cls, values: object, path: PathLike) -> Ranges:
        """:meth:`load` of what ``path`` holds as plain JSON values."""
        source = _source(path)
        if not isinstance(values, dict) or (values.get("format"), values.get("version")) != (FORMAT, VERSION):
            source.fail("holds no ranges")
        stored = convert_json(values, _StoredRanges, source)
        # Names are those of a graph's values; the file is continued only when its key matches.
        if set(stored.values) != set(SIDES) or stored.done > stored.total:
            source.fail("is damaged: it lacks a side, or has more windows than it should")
        sides = {side: {name: TensorStatistics.restore(one) for name, one in stored.values[side].items()} for side in SIDES}
        return cls(stored.key, stored.done, stored.total, sides)

    def save(self, path: PathLike) -> None:
        """Write the ranges as JSON, atomically."""
        atomic_write_bytes(path, json.dumps(self.to_dict(), separators=(",", ":")).encode())

    def value(self, name: str) -> TensorStatistics:
        """The statistics of a value of either graph by its name. Raises KeyError."""
        for values in self.sides.values():
            if name in values:
                return values[name]
        raise KeyError(name)

    def check_finite(self) -> None:
        """Raise :class:`InputError` when a value was not finite; it names the first such node in graph order."""
        for side, values in self.sides.items():
            for name, found in values.items():
                if found.nan or found.infinite:
                    what = f"{found.nan:,} NaN and {found.infinite:,} infinite" if found.nan else f"{found.infinite:,} infinite"
                    raise InputError(
                        f"the {side}'s float32 values are not finite; the first node is {name}: {what} of {found.count:,} values; "
                        "the checkpoint's weights do not work on these images, so no precision can"
                    )


def _source(path: PathLike) -> JsonSource:
    return JsonSource(str(path), "delete it and calibrate again", max_bytes=_FILE_BYTES, max_values=_FILE_VALUES)


@dataclass(frozen=True)
class _StoredRanges:
    key: Annotated[str, Meta(max_length=200)]
    done: Annotated[int, Meta(ge=0, le=2**31)]
    total: Annotated[int, Meta(ge=1, le=2**31)]
    values: dict[str, dict[Annotated[str, Meta(max_length=1000)], StoredStatistics]]


def collect(
    network: MGVQ, crops: Crops, key: str, *, path: Path | None = None, progress: Progress = lambda done, total: None
) -> Ranges:
    """The ranges of ``network`` on ``crops``: encoder on the pixels, decoder on the codes that the encoder gives for them.

    Args:
        key: hash of network and windows.
        path: file that keeps the state; found with the same ``key``, it is continued, and otherwise replaced. The result does
            not depend on where a run was stopped.

    Raises:
        InputError: an image cannot be used, or a value is not finite.
    """
    ranges = _continued(path, key, crops.count)
    if ranges.done == ranges.total:
        ranges.check_finite()
        return ranges
    batch = _batch(network, crops.size)
    graphs = _load(network, crops.size, batch)
    for number, pixels in enumerate(crops.batches(batch, ranges.done)):
        for side, name, values in _values(network, graphs, pixels):
            ranges.sides[side].setdefault(name, TensorStatistics()).add(values)
        ranges.done += len(pixels)
        ranges.check_finite()
        progress(ranges.done, ranges.total)
        if path is not None and ranges.done < ranges.total and number % _SAVED_EVERY == _SAVED_EVERY - 1:
            ranges.save(path)
    if path is not None:
        ranges.save(path)
    return ranges


def _continued(path: Path | None, key: str, total: int) -> Ranges:
    if path is not None and path.is_file():
        found = Ranges.load(path)
        if found.key == key and found.total == total:
            return found
    return Ranges(key, 0, total, {side: {} for side in SIDES})


def _batch(network: MGVQ, size: int) -> int:
    """Crops run together: fewer for wide networks, whose single values are large."""
    widest = network.spec.widths[network.spec.first_stage] * size * size * 4
    return max(1, min(_BATCH, _MEMORY // (8 * widest)))


def _load(network: MGVQ, size: int, batch: int) -> dict[str, SegmentedGraph]:
    f, channels = network.spec.downsample, network.spec.latent_channels
    shapes = {"encoder": (batch, 3, size, size), "decoder": (batch, channels, size // f, size // f)}
    weights = WeightStore()
    return {
        side: SegmentedGraph(build_graph(network, part, "fp32", weights), weights, shapes[side], _MEMORY)
        for side, part in SIDES.items()
    }


def _values(network: MGVQ, graphs: Mapping[str, SegmentedGraph], pixels: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """Side, name and values of everything computed for ``pixels`` uint8 [B, S, S, 3]."""
    import torch

    feed = output = np.concatenate([to_float(crop) for crop in pixels])
    for side, graph in graphs.items():
        yield side, graph.input, feed
        for name, output in graph.run(feed):
            yield side, name, output
        if side == "encoder":
            with torch.inference_mode():
                codes = network.quantize.encode(torch.from_numpy(output))
                feed = network.quantize.decode(codes).numpy()
