"""Chooses the windows: the least predicted time whose predicted memory stays under the limit.

Memory is predicted from the network's sizes and the backend's :class:`~mgvq_export.runtime.tiling.costs.CostModel`
(``benchmarks/tiling.py`` measures its figures). Time is work, counted as multiplications of the convolutions, plus what every run and
every copied byte costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import ModelSpec, Part, ReceptiveField
from mgvq_export.core.units import Size, format_bytes
from mgvq_export.runtime.tiling.costs import CostModel, Costs
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan, smallest_window

_HEADROOM = 1.05  # predictions were seen 3 % low at worst
_MOST_WINDOWS = 32  # per axis, when searching
_TIE = 1.01  # predicted times this near are equal: fewer windows then


@dataclass(frozen=True)
class Planner:
    """Plans for one network on one backend.

    Attributes:
        spec: the network.
        reaches: strides and receptive field of the trunk parts it has.
        base_bytes: memory taken before anything runs: the process, its libraries and the weights.
        limit: bytes that may be used in all; None for no limit.
        tiling: ``auto`` (one window when it fits), ``off``, ``exact`` or ``blend``.
        tile: height and width of the windows in image pixels; None to choose.
        model: what the backend's runs cost.
    """

    spec: ModelSpec
    reaches: dict[Part, ReceptiveField]
    base_bytes: int = 0
    limit: int | None = None
    tiling: str = "auto"
    tile: Size | None = None
    model: CostModel = field(default_factory=CostModel)

    @property
    def costs(self) -> Costs:
        """What a pixel costs in each part of this network."""
        return Costs(self.spec, self.model)

    def encode(self, size: Size) -> TrunkPlan:
        """The plan to encode an image of ``size``, padded to whole latent cells.

        Raises :class:`InputError` with the smallest limit or the nearest tile that would do.
        """
        return self._plan(size, Part.ENCODER_TRUNK, (Part.ENCODER_TRUNK_FINE, Part.ENCODER_TRUNK_COARSE))

    def decode(self, size: Size) -> TrunkPlan:
        """The plan to decode to an image of ``size``, padded to whole latent cells. Raises as :meth:`encode`."""
        return self._plan(size, Part.DECODER_TRUNK, (Part.DECODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE))

    def _plan(self, size: Size, trunk: Part, cut: tuple[Part, Part]) -> TrunkPlan:
        if self.tiling == "blend":
            return self._blend(size, trunk)
        whole = self._finish(size, ((trunk, self._whole(size, trunk)),))
        if self.tile is None and self.tiling in ("auto", "off") and self._fits(whole):
            return replace(whole, together=self._together(size, whole))
        if self.tiling == "off":
            raise self._too_small(size, whole.peak_bytes, "untiled")
        candidates = list(self._candidates(size, (trunk,)))
        if self.tile is None and all(part in self.reaches for part in cut):
            candidates += self._candidates(size, cut)
        fitting = [plan for plan in candidates if self._fits(plan)]
        if not fitting:
            raise self._too_small(size, min(plan.peak_bytes for plan in candidates), "with the smallest windows")
        timed = [(sum(self._seconds(*step) for step in plan.steps), plan) for plan in fitting]
        least = min(seconds for seconds, _ in timed)
        ties = [(plan.total, seconds, plan) for seconds, plan in timed if seconds <= _TIE * least]
        return min(ties, key=lambda tie: tie[:2])[2]

    def _seconds(self, part: Part, plan: TilePlan) -> float:
        """Predicted time of a part's windows: runs, work, and the copies into and out of windows."""
        speed = self.model.speed
        pixels = plan.size[0] * plan.size[1] * plan.scale**2  # of the image
        count, ran = plan.count, plan.tiling_overhead * pixels
        copied = self._input_bytes(part) * ran + self._output_bytes(part) * pixels if count > 1 else 0.0
        return -(-count // plan.batch) * speed.run + self.costs.work(part) * ran / speed.work + copied / speed.copying

    def _fits(self, plan: TrunkPlan) -> bool:
        return self.limit is None or plan.peak_bytes * _HEADROOM <= self.limit

    def _together(self, size: Size, whole: TrunkPlan) -> int:
        """How many images run together: as many as have :attr:`CostModel.together` pixels, and fit."""
        most = max(1, self.model.together // (size[0] * size[1]))
        if self.limit is None:
            return most
        each = whole.peak_bytes - self.base_bytes - self.model.reserve_bytes
        free = self.limit / _HEADROOM - self.base_bytes - self.model.reserve_bytes
        return max(1, min(most, int(free / each)))

    def _too_small(self, size: Size, least: int, how: str) -> InputError:
        return InputError(
            f"memory limit of {format_bytes(self.limit or 0)} is too small for an image of {size[1]}x{size[0]}; {how} it needs "
            f"{format_bytes(int(least * _HEADROOM) + 1, up=True)}"
        )

    def _whole(self, size: Size, part: Part) -> TilePlan:
        scale = self._scale(part)
        return TilePlan.fit((size[0] // scale, size[1] // scale), self.reaches[part], scale=scale)

    def _scale(self, part: Part) -> int:
        """Image pixels per input pixel of a trunk part."""
        if part in (Part.ENCODER_TRUNK, Part.ENCODER_TRUNK_FINE):
            return 1
        if part in (Part.ENCODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE):
            return 1 << (self.spec.inner_stage or 0)
        return self.spec.trunk_stride

    def _candidates(self, size: Size, parts: tuple[Part, ...]) -> Iterator[TrunkPlan]:
        if self.tile is not None:
            scale = self._scale(parts[0])
            for axis, side in zip(("height", "width"), self.tile, strict=True):
                stride = self.spec.trunk_stride
                if side % stride or side < stride:
                    nearest = max(smallest_window(self.reaches[parts[0]]) * scale, round(side / stride) * stride)
                    raise InputError(f"tile {axis} is {side} px; wanted a multiple of {stride}, such as {nearest}")
            tile = (self.tile[0] // scale, self.tile[1] // scale)
            plan = TilePlan.fit((size[0] // scale, size[1] // scale), self.reaches[parts[0]], tile, scale=scale)
            for batch in self._batches(plan.count):
                yield self._finish(size, ((parts[0], replace(plan, batch=batch)),))
            return
        if len(parts) == 1:
            for plan in self._grids(size, parts[0]):
                yield self._finish(size, ((parts[0], plan),))
            return
        # Each part's cheapest windows under the limit do not depend on the other's, so they are searched apart: with the
        # smallest windows in the other step, a plan's peak is that of its own step.
        grids = {part: list(self._grids(size, part)) for part in parts}
        smallest = {part: min(plans, key=lambda plan: plan.window[0] * plan.window[1]) for part, plans in grids.items()}
        chosen = []
        for part in parts:
            ordered = sorted(grids[part], key=lambda plan: self._seconds(part, plan))
            steps = [tuple((other, plan if other is part else smallest[other]) for other in parts) for plan in ordered]
            fitting = (dict(step)[part] for step in steps if self._fits(self._finish(size, step)))
            chosen.append((part, next(fitting, smallest[part])))
        yield self._finish(size, tuple(chosen))

    def _batches(self, count: int) -> list[int]:
        """How many windows may run together, in batches of about equal size."""
        return sorted({-(-count // -(-count // most)) for most in self.model.batches})

    def _grids(self, size: Size, part: Part) -> Iterator[TilePlan]:
        """Balanced plans for every number of windows per axis that the halo allows."""
        scale, reach = self._scale(part), self.reaches[part]
        sides = []
        for length in (size[0] // scale, size[1] // scale):
            found = {length}
            for count in range(2, _MOST_WINDOWS + 1):
                kept = -(-(length - 2 * reach.halo) // (count * reach.stride_in)) * reach.stride_in
                if smallest_window(reach) <= kept + 2 * reach.halo < length:
                    found.add(kept + 2 * reach.halo)
            sides.append(sorted(found))
        for height in sides[0]:
            for width in sides[1]:
                yield TilePlan((size[0] // scale, size[1] // scale), (height, width), reach, scale=scale)

    def _blend(self, size: Size, trunk: Part) -> TrunkPlan:
        """Independent tiles of whole latent cells, an eighth of the tile overlapping on either side."""
        f = self.spec.downsample
        tile = self.tile or (512, 512)
        overlap = max(1, min(tile) // (8 * f))
        if trunk is Part.ENCODER_TRUNK:
            plan = TilePlan.fit(size, ReceptiveField(f, 1, overlap * f, overlap * f), tile, mode="blend")
        else:
            cells = (size[0] // f, size[1] // f)
            for axis, side in zip(("height", "width"), tile, strict=True):
                if side % f:
                    raise InputError(f"tile {axis} is {side} px; wanted a multiple of {f}, such as {max(f, round(side / f) * f)}")
            plan = TilePlan.fit(
                cells, ReceptiveField(1, f, overlap, overlap), (tile[0] // f, tile[1] // f), mode="blend", scale=f
            )
        return TrunkPlan(((trunk, plan),), self.base_bytes, plan.tiling_overhead)

    def _finish(self, size: Size, steps: tuple[tuple[Part, TilePlan], ...]) -> TrunkPlan:
        return TrunkPlan(steps, self._peak(size, steps), self.costs.overhead(steps))

    def _peak(self, size: Size, steps: tuple[tuple[Part, TilePlan], ...]) -> int:
        """Bytes at the worst moment: in a trunk step, or in the head, whichever holds more."""
        spec, costs = self.spec, self.costs
        pixels = size[0] * size[1]
        encoder = str(steps[0][0]).startswith("encoder")
        image, features = 3.0 * pixels, costs.map_bytes(spec.head_stage) * pixels
        inner = costs.map_bytes(spec.inner_stage) * pixels if spec.inner_stage is not None else 0.0
        head = Part.ENCODER_HEAD if encoder else Part.DECODER_HEAD
        moments = [features + costs.working_bytes(head) * pixels + (image if encoder else 0)]
        for index, (part, plan) in enumerate(steps):
            area = plan.window[0] * plan.window[1] * plan.scale**2 * plan.batch
            held = image + (features if encoder == (index == len(steps) - 1) or len(steps) == 1 else 0)
            held += inner if len(steps) == 2 else 0
            into = (
                self._input_bytes(part) * area if plan.count > 1 or part in (Part.ENCODER_TRUNK, Part.ENCODER_TRUNK_FINE) else 0
            )
            if plan.count == 1 and encoder and len(steps) == 1:
                held = image  # the only window's output is the map; the working set has it
            moments.append(held + into + costs.working_bytes(part) * area)
        return int(self.base_bytes + self.model.reserve_bytes + max(moments))

    def _input_bytes(self, part: Part) -> float:
        if part in (Part.ENCODER_TRUNK, Part.ENCODER_TRUNK_FINE):
            return 3.0 * self.model.itemsize
        inner = part in (Part.ENCODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE)
        return self.costs.map_bytes((self.spec.inner_stage or 0) if inner else self.spec.head_stage)

    def _output_bytes(self, part: Part) -> float:
        if part in (Part.DECODER_TRUNK, Part.DECODER_TRUNK_FINE):
            return 3.0 * self.model.itemsize
        inner = part in (Part.ENCODER_TRUNK_FINE, Part.DECODER_TRUNK_COARSE)
        return self.costs.map_bytes((self.spec.inner_stage or 0) if inner else self.spec.head_stage)
