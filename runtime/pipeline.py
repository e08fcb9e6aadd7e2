"""The backend that runs graph by graph with host arrays between: trunk by windows, head once on the whole map.

Untiled is the plan with one window; nothing else distinguishes it. The host holds the image, the maps between graphs, and one
batch of windows. Stopping between windows (an exception from ``progress``, Ctrl-C) leaves nothing behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import TRUNKS, Part
from mgvq_export.core.units import Size
from mgvq_export.runtime.backend import Array, GraphRunner, Progress, silent
from mgvq_export.runtime.images import to_float, to_uint8
from mgvq_export.runtime.tiling import blend
from mgvq_export.runtime.tiling.costs import CostModel
from mgvq_export.runtime.tiling.memory import default_limit, resident_bytes
from mgvq_export.runtime.tiling.planner import Planner
from mgvq_export.runtime.tiling.request import Tiling
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan, Window

#: The input batch of some windows of a plan, in a dtype.
Load = Callable[[tuple[Window, ...], TilePlan, "np.dtype[np.generic]"], Array]

#: Takes the output of some windows, [len, C, h, w].
Store = Callable[[tuple[Window, ...], Array], None]


@dataclass(frozen=True)
class HostBackend:
    """A :class:`~mgvq_export.runtime.backend.Backend` over single graphs.

    Attributes:
        bundle: the graphs' bundle.
        name: the backend's.
        precision: what the graphs compute with.
        graphs: runs them.
        tiling: what the user asked for.
        model: what runs cost, for plans.
        on_host: whether the graphs work in the host's memory, whose size then is the limit when none is given.
    """

    bundle: Bundle
    name: str
    precision: str
    graphs: GraphRunner
    tiling: Tiling = field(default_factory=Tiling)
    model: CostModel = field(default_factory=CostModel)
    on_host: bool = True

    def close(self) -> None:
        """Drop the loaded graphs and their memory."""
        self.graphs.close()

    def with_tiling(self, tiling: Tiling) -> HostBackend:
        """The same loaded graphs under another request for tiling."""
        return replace(self, tiling=tiling)

    # ---- plans

    def plan_encode(self, size: Size) -> TrunkPlan:
        """How an image of ``size`` is encoded. Raises :class:`InputError` when it cannot be under the memory limit."""
        parts = (Part.ENCODER_TRUNK, Part.ENCODER_HEAD, Part.QUANTIZER)
        return self._plan(parts, lambda planner: planner.encode(size))

    def plan_decode(self, size: Size) -> TrunkPlan:
        """How an image of ``size`` is decoded. Raises :class:`InputError` when it cannot be under the memory limit."""
        parts = (Part.DECODER_TRUNK, Part.DECODER_HEAD, Part.DEQUANTIZER)
        return self._plan(parts, lambda planner: planner.decode(size))

    def _plan(self, parts: tuple[Part, ...], find: Callable[[Planner], TrunkPlan]) -> TrunkPlan:
        """``find``'s plan; when memory is short, after giving back what earlier runs have kept."""
        plan: TrunkPlan | None = None
        with contextlib.suppress(InputError):  # raised below, if it is so with all memory given back
            plan = find(self._planner(parts))
        if (plan is None or plan.total > 1) and self.tiling.limit is None and self.tiling.mode == "auto":
            for part in Part:
                self.graphs.rest(part)
            plan = None
        plan = plan or find(self._planner(parts))
        if len(plan.steps) > 1:  # the two halves bring the same weights again
            self.graphs.drop(parts[0])
        return plan

    def _planner(self, parts: tuple[Part, ...]) -> Planner:
        for part in parts:  # their weights are then part of what the process is seen to hold
            self.graphs[part]
        limit, base = self.tiling.limit, resident_bytes()
        if limit is None and self.on_host:
            limit = default_limit()
        reaches = {part: self.bundle.reach(part) for part in TRUNKS if self.bundle.has_part(part)}
        return Planner(self.bundle.spec, reaches, base, limit, tiling=self.tiling.mode, tile=self.tiling.tile, model=self.model)

    # ---- batches

    def encode_batch(self, images: Sequence[Array], progress: Progress = silent) -> list[Array]:
        """:meth:`encode` of images of one size; those of one window run together, as many as the memory limit allows."""
        plan = self.plan_encode(images[0].shape[:2])
        codes: list[Array] = []
        for group in self._groups(images, plan):
            codes.extend(self._quantize(self._latents_together(group)) if plan.mode == "off" else [self.encode(group[0], plan)])
            progress(len(codes), len(images))
        return codes

    def latent_batch(self, images: Sequence[Array]) -> list[Array]:
        """:meth:`latent` of images of one size, [G*d, H/f, W/f] each; those of one window run together as in :meth:`encode_batch`."""
        plan = self.plan_encode(images[0].shape[:2])
        latents: list[Array] = []
        for group in self._groups(images, plan):
            latents.extend(self._latents_together(group) if plan.mode == "off" else self.latent(group[0], plan))
        return latents

    def decode_batch(self, codes: Sequence[Array], groups: int, progress: Progress = silent) -> list[Array]:
        """:meth:`decode` of codes of one size; those of one window run together, as many as the memory limit allows."""
        f = self.bundle.spec.downsample
        plan = self.plan_decode((codes[0].shape[1] * f, codes[0].shape[2] * f))
        images: list[Array] = []
        for group in self._groups(codes, plan):
            images += self._decode_together(group, groups) if plan.mode == "off" else [self.decode(group[0], groups, plan)]
            progress(len(images), len(codes))
        return images

    def _groups(self, items: Sequence[Array], plan: TrunkPlan) -> Iterator[Sequence[Array]]:
        """The items in order, as many together as run at once under ``plan``."""
        together = plan.together
        for start in range(0, len(items), together):
            yield items[start : start + together]

    def _latents_together(self, images: Sequence[Array]) -> Array:
        """The latents [B, G*d, h, w] of images of one size, in one run of every graph."""
        trunk = self.graphs[Part.ENCODER_TRUNK]
        ((name, dtype),) = trunk.inputs.items()
        batch = np.empty((len(images), 3, *images[0].shape[:2]), dtype)
        for index, image in enumerate(images):
            to_float(image, batch[index : index + 1])
        (features,) = trunk.run({name: batch})
        self._done(Part.ENCODER_TRUNK)
        (latents,) = self._whole(Part.ENCODER_HEAD, {"features": features})
        return latents

    def _quantize(self, latents: Array) -> Array:
        """Latents [B, G*d, h, w] -> codes int32 [B, G, h, w]."""
        (codes,) = self._whole(Part.QUANTIZER, {"latent": latents}, ["codes"])
        return codes

    def _decode_together(self, codes: Sequence[Array], groups: int) -> list[Array]:
        """Codes of one size, in one run of every graph."""
        feeds: dict[str, Array] = {"codes": np.stack(codes).astype(np.int32), "groups": np.array(groups, np.int64)}
        (quantized,) = self._whole(Part.DEQUANTIZER, feeds)
        (features,) = self._whole(Part.DECODER_HEAD, {"quantized": quantized})
        (pixels,) = self._whole(Part.DECODER_TRUNK, {"features": features})
        return [to_uint8(image) for image in pixels]

    def _whole(self, part: Part, feeds: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
        """One run of a part over whole maps."""
        found = self.graphs[part].run(feeds, outputs)
        self._done(part)
        return found

    def _done(self, part: Part) -> None:
        """A part has finished an image: under a memory limit, what the next part takes must find room."""
        if self.tiling.limit is not None:
            self.graphs.rest(part)

    # ---- one image

    def encode(self, image: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """uint8 [H, W, 3], H and W multiples of f -> codes int32 [G, H/f, W/f]."""
        if plan.mode == "blend":
            return blend.encode(self.graphs, image, plan.steps[0][1], progress)
        codes: Array = self._quantize(self.latent(image, plan, progress))[0]
        return codes

    def latent(self, image: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """uint8 [H, W, 3] -> latent [1, G*d, H/f, W/f] in the graphs' float type."""
        features = self.encode_trunk(image, plan, progress)
        (latent,) = self._whole(Part.ENCODER_HEAD, {"features": features})
        return latent

    def encode_trunk(self, image: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """uint8 [H, W, 3] -> features [1, C, H/s, W/s] in the graphs' float type, stitched from the windows of ``plan``."""
        steps = _Counter(plan.total, progress)
        (part, windows), *rest = plan.steps
        features = self._map(part, windows, partial(_load_pixels, image), steps)
        for part, windows in rest:
            features = self._map(part, windows, partial(_load_map, features), steps)
        return features

    def _map(self, part: Part, plan: TilePlan, load: Load, steps: _Counter) -> Array:
        """The output map of ``part``, [1, C, H, W], stitched from its windows."""
        stitched: Array | None = None

        def store(windows: tuple[Window, ...], found: Array) -> None:
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
        session = self.graphs[part]
        ((name, dtype),) = session.inputs.items()
        for windows in plan.batches():
            store(windows, session.run({name: load(windows, plan, dtype)})[0])
            steps.add(len(windows))
        self._done(part)

    def decode(self, codes: Array, groups: int, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """Codes [G, h, w] -> uint8 [h*f, w*f, 3], from the first ``groups`` groups."""
        feeds: dict[str, Array] = {"codes": codes[None].astype(np.int32), "groups": np.array(groups, np.int64)}
        (quantized,) = self._whole(Part.DEQUANTIZER, feeds)
        return self.reconstruct(quantized, plan, progress)

    def reconstruct(self, quantized: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """Quantized latent [1, G*d, h, w] -> uint8 [h*f, w*f, 3]."""
        if plan.mode == "blend":
            return blend.reconstruct(self.graphs, quantized, plan.steps[0][1], progress)
        (features,) = self._whole(Part.DECODER_HEAD, {"quantized": quantized})
        return self.decode_trunk(features, plan, progress)

    def decode_trunk(self, features: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """Features [1, C, h, w] -> uint8 [h*s, w*s, 3], in the windows of ``plan``."""
        counter = _Counter(plan.total, progress)
        *first, (last, pixels_plan) = plan.steps
        for part, windows in first:
            features = self._map(part, windows, partial(_load_map, features), counter)
        height, width = pixels_plan.output_size
        image = np.empty((height, width, 3), np.uint8)

        def store(group: tuple[Window, ...], found: Array) -> None:
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


def _load_pixels(image: Array, windows: tuple[Window, ...], plan: TilePlan, dtype: np.dtype[np.generic]) -> Array:
    batch = np.empty((len(windows), 3, *plan.window), dtype)
    for index, window in enumerate(windows):
        to_float(image[window.source], batch[index : index + 1])
    return batch


def _load_map(values: Array, windows: tuple[Window, ...], plan: TilePlan, dtype: np.dtype[np.generic]) -> Array:
    if len(plan.windows) == 1:
        return values
    return np.concatenate([values[(slice(None), slice(None), *window.source)] for window in windows]).astype(dtype, copy=False)


def default_precision(bundle: Bundle) -> str:
    """The precision to run when none is asked for: fp32 if the bundle has it, else its first."""
    return "fp32" if "fp32" in bundle.precisions else bundle.precisions[0]
