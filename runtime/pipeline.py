"""Runs a tokenizer's graphs over the windows of a plan: trunk by windows, head once on the whole map.

Untiled is the plan with one window; nothing else distinguishes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mgvq_export.bundle import Bundle
from mgvq_export.runtime.images import to_float, to_uint8
from mgvq_export.runtime.tiling import TilePlan
from mgvq_export.spec import Part

#: Called after each batch of windows with (windows done, windows in all).
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


class Session(Protocol):
    """One loaded graph of any backend."""

    inputs: Mapping[str, np.dtype]
    outputs: Mapping[str, np.dtype]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
        """The outputs named, or all, in order."""


class Sessions(Protocol):
    """The graphs of one bundle, by part."""

    bundle: Bundle

    def __getitem__(self, part: Part) -> Session: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Pipeline:
    """Encoding and decoding with host arrays between the graphs: the way of ONNX Runtime and PyTorch."""

    sessions: Sessions

    def encode(self, image: np.ndarray, plan: TilePlan, progress: Progress = _silent) -> np.ndarray:
        """uint8 [H, W, 3], H and W multiples of f -> codes int32 [G, H/f, W/f]."""
        latent = self.latent(image, plan, progress)
        (codes,) = self.sessions[Part.QUANTIZER].run({"latent": latent}, ["codes"])
        return codes[0]

    def latent(self, image: np.ndarray, plan: TilePlan, progress: Progress = _silent) -> np.ndarray:
        """uint8 [H, W, 3] -> latent [1, G*d, H/f, W/f] in the graphs' float type."""
        features = self._encoder_trunk(image, plan, progress)
        (latent,) = self.sessions[Part.ENCODER_HEAD].run({"features": features})
        return latent

    def _encoder_trunk(self, image: np.ndarray, plan: TilePlan, progress: Progress) -> np.ndarray:
        trunk = self.sessions[Part.ENCODER_TRUNK]
        dtype = trunk.inputs["image"]
        features: np.ndarray | None = None
        done = 0
        for windows in plan.batches():
            batch = np.empty((len(windows), 3, *plan.window), dtype)
            for index, window in enumerate(windows):
                to_float(image[window.source], batch[index : index + 1])
            (maps,) = trunk.run({"image": batch})
            if len(plan.windows) == 1:
                features = maps
            else:
                if features is None:
                    features = np.empty((1, maps.shape[1], *plan.output_size), maps.dtype)
                for window, found in zip(windows, maps, strict=True):
                    features[(0, slice(None), *window.kept)] = found[(slice(None), *window.crop)]
            done += len(windows)
            progress(done, len(plan.windows))
        assert features is not None  # a plan has at least one window
        return features

    def decode(self, codes: np.ndarray, groups: int, plan: TilePlan, progress: Progress = _silent) -> np.ndarray:
        """Codes [G, h, w] -> uint8 [h*f, w*f, 3], from the first ``groups`` groups."""
        feeds = {"codes": codes[None].astype(np.int32), "groups": np.array(groups, np.int64)}
        (quantized,) = self.sessions[Part.DEQUANTIZER].run(feeds)
        return self.reconstruct(quantized, plan, progress)

    def reconstruct(self, quantized: np.ndarray, plan: TilePlan, progress: Progress = _silent) -> np.ndarray:
        """Quantized latent [1, G*d, h, w] -> uint8 [h*f, w*f, 3]."""
        (features,) = self.sessions[Part.DECODER_HEAD].run({"quantized": quantized})
        trunk = self.sessions[Part.DECODER_TRUNK]
        height, width = plan.output_size
        image = np.empty((height, width, 3), np.uint8)
        done = 0
        for windows in plan.batches():
            batch = np.concatenate([features[(slice(None), slice(None), *window.source)] for window in windows])
            (pixels,) = trunk.run({"features": batch})
            for window, found in zip(windows, pixels, strict=True):
                to_uint8(found[(slice(None), *window.crop)], image[window.kept])
            done += len(windows)
            progress(done, len(plan.windows))
        return image
