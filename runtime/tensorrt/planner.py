"""Which windows TensorRT engines can run: shapes come from the engines' profiles, the arithmetic from :mod:`.tiling`.

An engine runs the sizes it was built for and no others, so that there is little to choose: the whole image where engines hold it,
else windows of a size that a trunk was built for. Heads and quantizer always run over the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.manifest import EngineRecord
from mgvq_export.core.remedies import build_command, engine_sizes
from mgvq_export.core.spec import NETWORK_VALUES, ModelSpec, Part, stride
from mgvq_export.core.units import Size
from mgvq_export.ops.trt_machine import TARGETS, find_machine
from mgvq_export.runtime.tensorrt.engines import Shape
from mgvq_export.runtime.tensorrt.records import missing_reason
from mgvq_export.runtime.tiling.costs import Costs
from mgvq_export.runtime.tiling.request import Tiling
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan

#: The value that enters each part, and the one that leaves it.
VALUES = NETWORK_VALUES | {Part.QUANTIZER: ("latent", "codes"), Part.DEQUANTIZER: ("codes", "quantized")}


@dataclass(frozen=True)
class Direction:
    """Encoding or decoding: the parts it can be made of."""

    verb: str
    whole: Part
    trunk: Part
    cut: tuple[Part, Part]
    head: Part
    quantizer: Part

    @property
    def encodes(self) -> bool:
        """Whether this is the direction from images to codes."""
        return self.quantizer is Part.QUANTIZER


ENCODE = Direction(
    "encode",
    Part.ENCODER,
    Part.ENCODER_TRUNK,
    (Part.ENCODER_TRUNK_FINE, Part.ENCODER_TRUNK_COARSE),
    Part.ENCODER_HEAD,
    Part.QUANTIZER,
)
DECODE = Direction(
    "decode",
    Part.DECODER,
    Part.DECODER_TRUNK,
    (Part.DECODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE),
    Part.DECODER_HEAD,
    Part.DEQUANTIZER,
)


def map_shape(value: str, batch: int, channels: int, size: Size) -> Shape:
    """The shape an engine gives a value whose map is of ``size``: images are [B, H, W, 3], all else [B, C, h, w]."""
    return (batch, *size, 3) if value == "image" else (batch, channels, *size)


def find_profile(record: EngineRecord, value: str, batch: int, size: Size) -> int | None:
    """The profile of an engine that holds ``batch`` maps of ``size`` of its input ``value``, or None."""
    for index, profile in enumerate(record.profiles):
        if value not in profile or len(profile[value].min) != 4:  # not of this release
            continue
        least, most = profile[value].min, profile[value].max
        shape = map_shape(value, batch, least[1], size)
        if all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True)):
            return index
    return None


@dataclass(frozen=True)
class EnginePlans:
    """The plans that some engines can run.

    Attributes:
        bundle: where they are from.
        precision: of all of them.
        records: their manifest entries, by part.
        tiling: what the user asked for; its limit is not looked at here.
    """

    bundle: Bundle
    precision: str
    records: Mapping[Part, EngineRecord]
    tiling: Tiling

    @property
    def spec(self) -> ModelSpec:
        """The network of the bundle."""
        return self.bundle.spec

    @property
    def target(self) -> str:
        """The library of the engines, a key of :data:`~mgvq_export.ops.trt_machine.TARGETS`."""
        return next(iter(self.records.values())).target

    def candidates(self, direction: Direction, size: Size) -> list[TrunkPlan]:
        """All plans for an image of ``size``, sides multiples of f; the least work first, of equal work the largest batch.

        Raises:
            InputError: blended tiles, which engines do not run.
            BackendError: no engine holds the image; the message names the sizes there are and the command that adds one.
        """
        if self.tiling.mode == "blend":
            raise InputError(
                f"tiling blend is there for comparison and does not run on {TARGETS[self.target]}; choose --backend ort-cpu or ort-cuda"
            )
        found: list[TrunkPlan] = []
        if self._holds(direction.quantizer, size):
            if self.tiling.tile is None and self._holds_whole(direction, size):
                part = direction.trunk
                found.append(TrunkPlan(((part, self._plan(part, size, None, 1)),)))
            if self.tiling.mode != "off" and self._holds(direction.head, size):
                found += self._tiled(direction, size)
        if not found:
            raise self._too_large(direction, size)
        found.sort(key=lambda plan: (plan.tiling_overhead, -plan.steps[0][1].batch))
        return found

    def _tiled(self, direction: Direction, size: Size) -> Iterator[TrunkPlan]:
        for step in self._windows(direction.trunk, size):
            yield TrunkPlan((step,), 0, step[1].tiling_overhead)
        first, second = (list(self._windows(part, size)) for part in direction.cut)
        costs = Costs(self.spec)
        for steps in ((a, b) for a in first for b in second):
            yield TrunkPlan(steps, 0, costs.overhead(steps))

    def _windows(self, part: Part, size: Size) -> Iterator[tuple[Part, TilePlan]]:
        """The plans of one trunk part: for every window it was built for, all batches worth trying."""
        if part not in self.records:
            return
        scale = stride(self.spec, VALUES[part][0])
        for window, most in dict.fromkeys(engine_sizes(self.spec, self.records[part])):
            if self.tiling.tile not in (None, window):
                continue
            try:
                plan = self._plan(part, size, (window[0] // scale, window[1] // scale), 1)
            except InputError:  # larger than the image, or nothing left inside the halo
                continue
            # As many together as the engine takes, in batches of about equal size; then fewer, for less memory.
            count = len(plan.windows)
            rounds = -(-count // most)
            while True:
                batch = -(-count // rounds)
                yield part, replace(plan, batch=batch)
                if batch == 1:
                    break
                rounds = min(count, 2 * rounds)

    def _plan(self, part: Part, size: Size, window: Size | None, batch: int) -> TilePlan:
        scale = stride(self.spec, VALUES[part][0])
        whole = (size[0] // scale, size[1] // scale)
        reach = self.bundle.reach(part)
        if window is None or window == whole:
            return TilePlan.fit(whole, reach, scale=scale)
        return TilePlan(whole, window, reach, batch=batch, scale=scale)

    def _holds(self, part: Part, size: Size) -> bool:
        value = VALUES[part][0]
        scale = stride(self.spec, value)
        return (
            part in self.records and find_profile(self.records[part], value, 1, (size[0] // scale, size[1] // scale)) is not None
        )

    def _holds_whole(self, direction: Direction, size: Size) -> bool:
        return self._holds(direction.whole, size) or (self._holds(direction.trunk, size) and self._holds(direction.head, size))

    def chain(self, direction: Direction, plan: TrunkPlan, size: Size) -> list[tuple[Part, TilePlan | None]]:
        """The parts that run ``plan``, in order; with None, over the whole map at once."""
        if all(len(tiles.windows) == 1 for _, tiles in plan.steps) and self._holds(direction.whole, size):
            network: list[tuple[Part, TilePlan | None]] = [(direction.whole, None)]
        elif direction.encodes:
            network = [*plan.steps, (direction.head, None)]
        else:
            network = [(direction.head, None), *plan.steps]
        return [*network, (direction.quantizer, None)] if direction.encodes else [(direction.quantizer, None), *network]

    def smaller(self, direction: Direction, size: Size, plan: TrunkPlan) -> list[TrunkPlan]:
        """The plans that run fewer pixels at once than ``plan``."""
        return [other for other in self.candidates(direction, size) if _footprint(other) < _footprint(plan)]

    def _too_large(self, direction: Direction, size: Size) -> BackendError:
        """The image fits in no engine: what they hold, and what to build."""
        height, width = size
        if direction.quantizer not in self.records and any(
            (record.target, record.precision, record.part) == (self.target, self.precision, direction.quantizer)
            for record in self.bundle.engines
        ):
            machine = find_machine(self.target)
            return BackendError(missing_reason(self.bundle, self.precision, machine, part=direction.quantizer))
        held = self._whole_sizes(direction)
        trunks = [part for part in (direction.trunk, *direction.cut) if part in self.records]
        windows = dict.fromkeys(window for part in trunks for window in self._in_pixels(part) if window not in held)
        have = [f"images of {_listed(held)}"] if held else []
        have += [f"windows of {_listed(list(windows))}"] if windows else []
        asked = ""
        if self.tiling.tile is not None:
            asked = f" in windows of {_listed([self.tiling.tile])}"
        elif self.tiling.mode == "off":
            asked = " in one piece"
        tile = None if self.tiling.mode == "off" else self.tiling.tile or next(iter(windows), None)
        # As it was built so far: the batch is of windows where there are some, else of images.
        like = [part for part in trunks if tile in self._in_pixels(part)] + (trunks if tile else [])
        like += [direction.quantizer, direction.whole, direction.head, *self.records]
        record = next(self.records[part] for part in like if part in self.records)
        if tile is not None:
            tile = (_whole_cells(tile[0], self.spec.trunk_stride), _whole_cells(tile[1], self.spec.trunk_stride))
        # All sizes in one command: building an engine anew replaces the sizes it had.
        build = build_command(self.bundle.path, self.spec, record, shapes=list(dict.fromkeys([*held, size])), tile=tile)
        return BackendError(
            f"no {TARGETS[self.target]} engines here {direction.verb} an image of height x width {height}x{width}{asked}; "
            f"they hold {' and '.join(have) or 'nothing of use'}: {build}, or choose another --backend"
        )

    def _whole_sizes(self, direction: Direction) -> list[Size]:
        """Image sizes that every part needed for an image in one piece, or its head, holds."""
        parts = [part for part in (direction.whole, direction.head) if part in self.records]
        sizes = dict.fromkeys(size for part in parts for size in self._in_pixels(part))
        return [size for size in sizes if self._holds(direction.quantizer, size)]

    def _in_pixels(self, part: Part) -> list[Size]:
        return [size for size, _ in engine_sizes(self.spec, self.records[part])]


def _footprint(plan: TrunkPlan) -> int:
    """Image pixels that run together, at most."""
    return max(tiles.window[0] * tiles.window[1] * tiles.scale**2 * tiles.batch for _, tiles in plan.steps)


def _whole_cells(side: int, stride: int) -> int:
    return -(-side // stride) * stride


def _listed(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes)
