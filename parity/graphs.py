"""Runs the graphs of a bundle step by step on float arrays, so that every intermediate result can be compared."""

from __future__ import annotations

import numpy as np

from mgvq_export.core.spec import Part, ReceptiveField
from mgvq_export.runtime.backend import Session
from mgvq_export.runtime.images import to_float
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan, smallest_window
from mgvq_export.runtime.tokenizer import Tokenizer

_WINDOWS = 3  # along each axis, when a map is cut to compare tiled with untiled
_ROWS_AT_ONCE = 1024  # codebook rows probed at once: bounds what the oracle holds


def run(session: Session, output: str | None = None, **feeds: np.ndarray) -> np.ndarray:
    """One output of a graph (its first when not named)."""
    return session.run(feeds, None if output is None else [output])[0]


def chain(tokenizer: Tokenizer, values: np.ndarray, *parts: Part) -> np.ndarray:
    """``values`` through graphs of one input and one output each."""
    for part in parts:
        session = tokenizer.graphs[part]
        (name,) = session.inputs
        values = session.run({name: values})[0]
    return values


def latent_of(tokenizer: Tokenizer, image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3], sides multiples of f -> latent [1, G*d, h, w]."""
    return chain(tokenizer, to_float(image), Part.ENCODER_TRUNK, Part.ENCODER_HEAD)


def codes_of(tokenizer: Tokenizer, latent: np.ndarray) -> np.ndarray:
    """Latent [B, G*d, h, w] -> codes int32 [B, G, h, w]."""
    return run(tokenizer.graphs[Part.QUANTIZER], "codes", latent=latent)


def lookup(tokenizer: Tokenizer, codes: np.ndarray, groups: int | None = None) -> np.ndarray:
    """Codes int32 [B, G, h, w] -> quantized [B, G*d, h, w] from the first ``groups`` groups (all when None)."""
    used = np.array(codes.shape[1] if groups is None else groups, np.int64)
    return run(tokenizer.graphs[Part.DEQUANTIZER], codes=codes, groups=used)


def pixels_of(tokenizer: Tokenizer, codes: np.ndarray, groups: int | None = None) -> np.ndarray:
    """Codes int32 [B, G, h, w] -> image float32 [B, 3, H, W], not clipped."""
    quantized = lookup(tokenizer, codes, groups)
    return chain(tokenizer, quantized, Part.DECODER_HEAD, Part.DECODER_TRUNK).astype(np.float32)


def codebook_of(tokenizer: Tokenizer) -> np.ndarray:
    """The unit rows float32 [G, K, d], read through the dequantizer by decoding every code once.

    Exact when the graphs are float32. The quantizer graph is not used, so it can be compared with these rows.
    """
    spec = tokenizer.spec
    codes = np.broadcast_to(np.arange(spec.codes_per_group, dtype=np.int32), (1, spec.groups, 1, spec.codes_per_group))
    rows = lookup(tokenizer, codes)[0].reshape(spec.groups, spec.group_dim, spec.codes_per_group)
    return np.ascontiguousarray(rows.transpose(0, 2, 1), np.float32)


def window_plan(size: tuple[int, int], reach: ReceptiveField, *, scale: int = 1) -> TilePlan:
    """About three windows along each axis of a map [height, width]; one where the map is too small.

    The windows are as small as possible: more seams are compared.
    """
    sides = []
    for side in size:
        kept = -(-(side - 2 * reach.halo) // (_WINDOWS * reach.stride_in)) * reach.stride_in
        sides.append(max(smallest_window(reach), kept + 2 * reach.halo))
    return TilePlan.fit(size, reach, (sides[0], sides[1]), batch=2, scale=scale)


def tiled_latent(tokenizer: Tokenizer, image: np.ndarray, plan: TilePlan) -> np.ndarray:
    """:func:`latent_of`, by the runtime's own pipeline, window by window."""
    return tokenizer.implementation.latent(image, TrunkPlan(((Part.ENCODER_TRUNK, plan),)))


def tiled_pixels(tokenizer: Tokenizer, codes: np.ndarray, plan: TilePlan) -> np.ndarray:
    """:func:`pixels_of` for one image, window by window. The runtime's pipeline gives 8-bit pixels only; this keeps the floats."""
    features = chain(tokenizer, lookup(tokenizer, codes), Part.DECODER_HEAD)
    height, width = plan.output_size
    image = np.full((1, 3, height, width), np.nan, np.float32)
    for window in plan.windows:
        found = chain(tokenizer, features[(slice(None), slice(None), *window.source)], Part.DECODER_TRUNK)
        image[(slice(None), slice(None), *window.kept)] = found[(slice(None), slice(None), *window.crop)]
    return image


def tiled_image(tokenizer: Tokenizer, codes: np.ndarray, plan: TilePlan) -> np.ndarray:
    """Codes int32 [1, G, h, w] -> uint8 [H, W, 3], by the runtime's own pipeline, window by window."""
    return tokenizer.implementation.decode(codes[0], codes.shape[1], TrunkPlan(((Part.DECODER_TRUNK, plan),)))


def probe_latents(codebook: np.ndarray, dtype: np.dtype) -> list[np.ndarray]:
    """Latents [1, G*d, 1, n] of the cases where rules decide, and of every codebook row, so that every row is tested.

    The first holds zeros of both signs, values that are not finite, and random values small and large; the others the rows
    themselves, some at a time.
    """
    groups, count, dim = codebook.shape
    channels = groups * dim
    rng = np.random.default_rng(0)
    random = rng.standard_normal((channels, 64))
    broken = random[:, :48].copy()
    for position in range(48):
        broken[rng.integers(channels), position] = (np.nan, np.inf, -np.inf)[position % 3]
    zeros = np.zeros((channels, 16))
    zeros[:, 8:] = -0.0
    rows = codebook.transpose(0, 2, 1).reshape(channels, count)
    probes = [np.concatenate([zeros, broken, random, random * 1e-3, random * 1e3], axis=1)]
    probes += [rows[:, start : start + _ROWS_AT_ONCE] for start in range(0, count, _ROWS_AT_ONCE)]
    return [probe.astype(dtype)[None, :, None, :] for probe in probes]
