"""Chooses the windows: the least predicted time whose predicted memory stays under the limit.

Memory is predicted from the network's sizes. ONNX Runtime without its arena holds three maps at a time in a stage of
residual blocks and six in a stage of attention blocks: measured per pixel on the CPU (``bench/tiling.py`` takes the figures
again). Time is work, counted as multiplications of the convolutions, plus what every run and every copied byte costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import ModelSpec, Part, Reach
from mgvq_export.runtime.tiling.memory import resident_bytes
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan, smallest_window

TILINGS = ("auto", "off", "exact", "blend")
SHARE_OF_FREE = 0.8  # the default limit: this share of what is free, beside what the process holds already

_HEADROOM = 1.05  # predictions were seen 3 % low at worst
_MOST_WINDOWS = 32  # per axis, when searching
_TIE = 1.01  # predicted times this near are equal: fewer windows then
_BATCHES = (1, 2, 4, 8)  # windows that run together on a GPU, when the tile is given
# Maps held at the worst moment in a stage. Attention blocks: the gated convolution's input, the same in the kernels' layout, the sum so
# far, and of one slice of the hidden channels values, gates, and what is made of them; a fifth more was measured.
_MAPS = {"res": 3.0, "evit": 6.2}
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

Size = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """What the user asked for: mode, tile (height, width) in image pixels or None, limit in bytes or None."""

    mode: str = "auto"
    tile: Size | None = None
    limit: int | None = None

    @classmethod
    def parse(cls, mode: str = "auto", tile: int | Size | None = None, memory_limit: str | int | None = None) -> Tiling:
        """Check what can be checked before an image is known. Raises :class:`InputError`."""
        if mode not in TILINGS:
            raise InputError(f"tiling is {mode!r}; choose {', '.join(TILINGS)}")
        if mode == "off" and tile is not None:
            raise InputError("tiling is off, but a tile is given; leave one of them out")
        if isinstance(tile, int):
            tile = (tile, tile)
        if tile is not None and (len(tile) != 2 or not all(isinstance(side, int) and side > 0 for side in tile)):
            raise InputError(f"tile is {tile!r}; wanted a side in pixels, or height and width")
        return cls(mode, tile, None if memory_limit is None else parse_bytes(memory_limit))


@dataclass(frozen=True)
class Speed:
    """How fast graphs run. Only the ratios decide, so that one core's figures serve for any number of them.

    Attributes:
        work: multiplications of convolutions per second.
        copying: bytes per second, between maps and windows.
        run: seconds that a run takes beside its work.
    """

    work: float
    copying: float
    run: float


#: By backend and bytes of a number. Measured on one core (AVX-512), where a window of 64 px runs at the speed of one of 512. Nobody
#: measured the GPU's: they are of a data sheet's order, with some hundred kernels to launch in a run.
SPEEDS = {
    ("ort-cpu", 4): Speed(5e10, 2e9, 2e-4),
    ("ort-cuda", 4): Speed(1e13, 1e10, 2e-3),
    ("ort-cuda", 2): Speed(5e13, 1e10, 2e-3),
}


@dataclass(frozen=True)
class Costs:
    """What one image pixel costs in each stage of a network: bytes and multiplications."""

    spec: ModelSpec
    itemsize: int = 4

    def map_bytes(self, stage: int) -> float:
        """Bytes of a map of ``stage``, per image pixel."""
        return self.itemsize * self.spec.widths[stage] / 4**stage

    def stages(self, part: Part) -> range:
        """Stages whose blocks run in a trunk or head part."""
        first, head, inner = self.spec.first_stage, self.spec.head_stage, self.spec.inner_stage
        if part in (Part.ENCODER_HEAD, Part.DECODER_HEAD):
            return range(head, len(self.spec.widths))
        if part in (Part.ENCODER_TRUNK_FINE, Part.DECODER_TRUNK_FINE):
            return range(first, inner or head)
        if part in (Part.ENCODER_TRUNK_COARSE, Part.DECODER_TRUNK_COARSE):
            return range(inner or first, head)
        return range(first, head) or range(first, head + 1)

    def working_bytes(self, part: Part) -> float:
        """Peak bytes per image pixel inside ``part``, without its input."""
        peaks = []
        for stage in self.stages(part):
            peaks.append(_MAPS[self.spec.blocks[stage]] * self.map_bytes(stage))
        return max(peaks)

    def work(self, part: Part) -> float:
        """Multiplications per image pixel in the convolutions of a trunk part."""
        widths, encoder = self.spec.widths, str(part).startswith("encoder")
        depths = self.spec.encoder_depths if encoder else self.spec.decoder_depths
        stages = self.stages(part)
        total = 0.0
        for stage in stages:
            total += depths[stage] * 2 * 9 * widths[stage] ** 2 / 4**stage
            if stage + 1 < len(widths):  # the resolution change to or from the next stage
                total += 9 * widths[stage] * widths[stage + 1] / 4 ** (stage + 1) * (1 if encoder else 4)
        if self.spec.first_stage in stages:
            total += 9 * 3 * widths[self.spec.first_stage] / 4**self.spec.first_stage
        return total


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
        itemsize: bytes of one number in the maps.
        backend: what runs the graphs: a key of :data:`SPEEDS` together with ``itemsize``.
    """

    spec: ModelSpec
    reaches: dict[Part, Reach]
    base_bytes: int = 0
    limit: int | None = None
    tiling: str = "auto"
    tile: Size | None = None
    itemsize: int = 4
    backend: str = "ort-cpu"

    @property
    def costs(self) -> Costs:
        return Costs(self.spec, self.itemsize)

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
            return whole
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
        speed = SPEEDS[self.backend, self.itemsize]
        pixels = plan.size[0] * plan.size[1] * plan.scale**2  # of the image
        count, ran = plan.count, plan.tiling_overhead * pixels
        copied = self._input_bytes(part) * ran + self._output_bytes(part) * pixels if count > 1 else 0.0
        return -(-count // plan.batch) * speed.run + self.costs.work(part) * ran / speed.work + copied / speed.copying

    def _fits(self, plan: TrunkPlan) -> bool:
        return self.limit is None or plan.peak_bytes * _HEADROOM <= self.limit

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
            return 2 ** (self.spec.inner_stage or 0)
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
        """How many windows may run together: one on a CPU, which it keeps busy; on a GPU more, in batches of about equal size."""
        if self.backend == "ort-cpu":
            return [1]
        return sorted({-(-count // -(-count // most)) for most in _BATCHES})

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
            plan = TilePlan.fit(size, Reach(f, 1, overlap * f, overlap * f), tile, mode="blend")
        else:
            cells = (size[0] // f, size[1] // f)
            for axis, side in zip(("height", "width"), tile, strict=True):
                if side % f:
                    raise InputError(f"tile {axis} is {side} px; wanted a multiple of {f}, such as {max(f, round(side / f) * f)}")
            plan = TilePlan.fit(cells, Reach(1, f, overlap, overlap), (tile[0] // f, tile[1] // f), mode="blend", scale=f)
        return TrunkPlan(((trunk, plan),), self.base_bytes, plan.tiling_overhead)

    def _finish(self, size: Size, steps: tuple[tuple[Part, TilePlan], ...]) -> TrunkPlan:
        works = [self.costs.work(part) for part, _ in steps]
        tax = sum(work * plan.tiling_overhead for work, (_, plan) in zip(works, steps, strict=True)) / sum(works)
        return TrunkPlan(steps, self._peak(size, steps), tax)

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
        return int(self.base_bytes + max(moments))

    def _input_bytes(self, part: Part) -> float:
        if part in (Part.ENCODER_TRUNK, Part.ENCODER_TRUNK_FINE):
            return 3.0 * self.itemsize
        inner = part in (Part.ENCODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE)
        return self.costs.map_bytes((self.spec.inner_stage or 0) if inner else self.spec.head_stage)

    def _output_bytes(self, part: Part) -> float:
        if part in (Part.DECODER_TRUNK, Part.DECODER_TRUNK_FINE):
            return 3.0 * self.itemsize
        inner = part in (Part.ENCODER_TRUNK_FINE, Part.DECODER_TRUNK_COARSE)
        return self.costs.map_bytes((self.spec.inner_stage or 0) if inner else self.spec.head_stage)


def parse_bytes(text: str | int) -> int:
    """``"6GiB"``, ``"6G"``, ``"512MB"`` or a number of bytes -> bytes. Raises :class:`InputError`."""
    if isinstance(text, int) and not isinstance(text, bool):
        value: float = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*", str(text), re.IGNORECASE)
        if not match:
            raise InputError(f"memory limit is {text!r}; wanted a size such as 6GiB or 800MB")
        unit = _UNITS[match[2].upper()]
        if match[3] and match[3].lower() == "b" and match[2]:
            unit = 1000 ** round(unit.bit_length() / 10)
        value = float(match[1]) * unit
    if value <= 0:
        raise InputError(f"memory limit is {text!r}; wanted more than nothing")
    return int(value)


def format_bytes(count: int, *, up: bool = False) -> str:
    """``4.00GiB``, ``812MiB``; ``up``: rounded up, so that the value given suffices."""
    if count >= 2**30:
        value = count / 2**30
        return f"{-(-count * 100 // 2**30) / 100 if up else value:.2f}GiB"
    return f"{-(-count // 2**20) if up else round(count / 2**20)}MiB"


def default_limit() -> int:
    """What the process holds, and :data:`SHARE_OF_FREE` of what is free beside it, in bytes."""
    import psutil

    return resident_bytes() + int(SHARE_OF_FREE * psutil.virtual_memory().available)
