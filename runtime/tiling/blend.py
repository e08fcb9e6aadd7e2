"""Tiles that know nothing of each other, for comparison only: what other tiled autoencoders do.

Every tile runs through the whole network, so its attention sees the tile instead of the image, and its codes differ from the
image's. Codes are taken from each tile's own kept region; pixels are feathered where tiles overlap.
"""

from __future__ import annotations

import numpy as np

from mgvq_export.core.spec import Part
from mgvq_export.runtime.backend import Array, GraphRunner, Progress
from mgvq_export.runtime.images import to_float, to_uint8
from mgvq_export.runtime.tiling.windows import TilePlan


def encode(graphs: GraphRunner, image: Array, plan: TilePlan, progress: Progress) -> Array:
    """uint8 [H, W, 3] -> codes int32 [G, H/f, W/f], tile by tile."""
    codes: Array | None = None
    for done, window in enumerate(plan.windows, 1):
        (features,) = graphs[Part.ENCODER_TRUNK].run({"image": to_float(image[window.source])})
        (latent,) = graphs[Part.ENCODER_HEAD].run({"features": features})
        (found,) = graphs[Part.QUANTIZER].run({"latent": latent}, ["codes"])
        if codes is None:
            codes = np.empty((found.shape[1], *plan.output_size), found.dtype)
        codes[(slice(None), *window.kept)] = found[(0, slice(None), *window.crop)]
        progress(done, len(plan.windows))
    assert codes is not None  # a plan has at least one window
    return codes


def reconstruct(graphs: GraphRunner, quantized: Array, plan: TilePlan, progress: Progress) -> Array:
    """Quantized latent [1, G*d, h, w] -> uint8 [h*f, w*f, 3]; overlapping tiles are averaged with linear ramps."""
    height, width = plan.output_size
    total, weights = np.zeros((3, height, width), np.float32), np.zeros((height, width), np.float32)
    for done, window in enumerate(plan.windows, 1):
        tile = np.ascontiguousarray(quantized[(slice(None), slice(None), *window.source)])
        (features,) = graphs[Part.DECODER_HEAD].run({"quantized": tile})
        (pixels,) = graphs[Part.DECODER_TRUNK].run({"features": features})
        rows, columns = (_ramp(source, size, plan) for source, size in zip(window.source, plan.size, strict=True))
        weight = rows[:, None] * columns[None]
        target = tuple(
            slice(source.start * plan.reach.stride_out, source.stop * plan.reach.stride_out) for source in window.source
        )
        total[(slice(None), *target)] += pixels[0].astype(np.float32) * weight
        weights[target] += weight
        progress(done, len(plan.windows))
    total /= weights
    image = np.empty((height, width, 3), np.uint8)
    to_uint8(total, image)
    return image


def _ramp(source: slice, size: int, plan: TilePlan) -> Array:
    """Weights along one axis of a tile: rising over the overlap, 1 inside and up to the image's edges."""
    stride = plan.reach.stride_out
    length, overlap = (source.stop - source.start) * stride, 2 * plan.reach.halo * stride
    position = np.arange(length, dtype=np.float32) + np.float32(0.5)
    weight = np.ones(length, np.float32)
    if source.start > 0:
        weight = np.minimum(weight, position / np.float32(overlap))
    if source.stop < size:
        weight = np.minimum(weight, (np.float32(length) - position) / np.float32(overlap))
    return weight
