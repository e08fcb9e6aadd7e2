"""Runs a tokenizer's graphs over the windows of a plan: trunk by windows, head once on the whole map.

Untiled is the plan with one window; nothing else distinguishes it. The host holds the image, the maps between graphs, and one
batch of windows. Stopping between windows (an exception from ``progress``, Ctrl-C) leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from mgvq_export.core.spec import Part
from mgvq_export.runtime.images import to_float, to_uint8
from mgvq_export.runtime.tiling import blend
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan, Window

#: Called after each batch of windows with (windows done, windows in all).
Progress = Callable[[int, int], None]

#: The input batch of some windows of a plan, in a dtype.
Load = Callable[[tuple[Window, ...], TilePlan, np.dtype], np.ndarray]

#: Takes the output of some windows, [len, C, h, w].
Store = Callable[[tuple[Window, ...], np.ndarray], None]


def silent(done: int, total: int) -> None:
    """The :data:`Progress` of nobody who wants to know."""


class Session(Protocol):
    """One loaded graph of any backend."""

    @property
    def inputs(self) -> Mapping[str, np.dtype]:
        """Names -> dtypes, in the graph's order."""

    def run(self, feeds: Mapping[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
        """The outputs named, or all, in order."""


class Sessions(Protocol):
    """The graphs of one bundle, by part."""

    def __getitem__(self, part: Part, /) -> Session: ...

    def drop(self, part: Part) -> None:
        """Forget a loaded graph, so that its memory can be returned."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Pipeline:
    """Encoding and decoding with host arrays between the graphs: the way of ONNX Runtime and PyTorch."""

    sessions: Sessions

    def close(self) -> None:
        """Drop the loaded graphs and their memory."""
        self.sessions.close()

    def encode(self, image: np.ndarray, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """uint8 [H, W, 3], H and W multiples of f -> codes int32 [G, H/f, W/f]."""
        if plan.mode == "blend":
            return blend.encode(self.sessions, image, plan.steps[0][1], progress)
        latent = self.latent(image, plan, progress)
        (codes,) = self.sessions[Part.QUANTIZER].run({"latent": latent}, ["codes"])
        return codes[0]

    def latent(self, image: np.ndarray, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """uint8 [H, W, 3] -> latent [1, G*d, H/f, W/f] in the graphs' float type."""
        features = self.encode_trunk(image, plan, progress)
        (latent,) = self.sessions[Part.ENCODER_HEAD].run({"features": features})
        return latent

    def encode_trunk(self, image: np.ndarray, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """uint8 [H, W, 3] -> features [1, C, H/s, W/s] in the graphs' float type, stitched from the windows of ``plan``."""
        steps = _Counter(plan.total, progress)
        (part, windows), *rest = plan.steps
        features = self._map(part, windows, partial(_load_pixels, image), steps)
        for part, windows in rest:
            features = self._map(part, windows, partial(_load_map, features), steps)
        return features

    def _map(self, part: Part, plan: TilePlan, load: Load, steps: _Counter) -> np.ndarray:
        """The output map of ``part``, [1, C, H, W], stitched from its windows."""
        stitched: np.ndarray | None = None

        def store(windows: tuple[Window, ...], found: np.ndarray) -> None:
            nonlocal stitched
            if len(plan.windows) == 1:
                stitched = found
                return
            if stitched is None:
                stitched = np.empty((1, found.shape[1], *plan.output_size), found.dtype)
            for window, values in zip(windows, found, strict=True):
                stitched[(0, slice(None), *window.kept)] = values[(slice(None), *window.crop)]

        self._run(part, plan, load, store, steps)
        assert stitched is not None  # a plan has at least one window
        return stitched

    def _run(self, part: Part, plan: TilePlan, load: Load, store: Store, steps: _Counter) -> None:
        """Run ``part`` on batches of windows; at any time one batch and its outputs are held."""
        session = self.sessions[part]
        ((name, dtype),) = session.inputs.items()
        for windows in plan.batches():
            store(windows, session.run({name: load(windows, plan, dtype)})[0])
            steps.add(len(windows))

    def decode(self, codes: np.ndarray, groups: int, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """Codes [G, h, w] -> uint8 [h*f, w*f, 3], from the first ``groups`` groups."""
        feeds: dict[str, np.ndarray] = {"codes": codes[None].astype(np.int32), "groups": np.array(groups, np.int64)}
        (quantized,) = self.sessions[Part.DEQUANTIZER].run(feeds)
        return self.reconstruct(quantized, plan, progress)

    def reconstruct(self, quantized: np.ndarray, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """Quantized latent [1, G*d, h, w] -> uint8 [h*f, w*f, 3]."""
        if plan.mode == "blend":
            return blend.reconstruct(self.sessions, quantized, plan.steps[0][1], progress)
        (features,) = self.sessions[Part.DECODER_HEAD].run({"quantized": quantized})
        return self.decode_trunk(features, plan, progress)

    def decode_trunk(self, features: np.ndarray, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """Features [1, C, h, w] -> uint8 [h*s, w*s, 3], in the windows of ``plan``."""
        counter = _Counter(plan.total, progress)
        *first, (last, pixels_plan) = plan.steps
        for part, windows in first:
            features = self._map(part, windows, partial(_load_map, features), counter)
        height, width = pixels_plan.output_size
        image = np.empty((height, width, 3), np.uint8)

        def store(group: tuple[Window, ...], found: np.ndarray) -> None:
            for window, pixels in zip(group, found, strict=True):
                to_uint8(pixels[(slice(None), *window.crop)], image[window.kept])

        self._run(last, pixels_plan, partial(_load_map, features), store, counter)
        return image


@dataclass
class _Counter:
    """Windows done so far, over all steps of a plan."""

    total: int
    progress: Progress
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total)


def _load_pixels(image: np.ndarray, windows: tuple[Window, ...], plan: TilePlan, dtype: np.dtype) -> np.ndarray:
    batch = np.empty((len(windows), 3, *plan.window), dtype)
    for index, window in enumerate(windows):
        to_float(image[window.source], batch[index : index + 1])
    return batch


def _load_map(values: np.ndarray, windows: tuple[Window, ...], plan: TilePlan, dtype: np.dtype) -> np.ndarray:
    if len(plan.windows) == 1:
        return values
    return np.concatenate([values[(slice(None), slice(None), *window.source)] for window in windows]).astype(dtype, copy=False)
