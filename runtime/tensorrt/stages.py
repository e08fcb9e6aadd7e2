"""One part of a TensorRT run after another: the engines' steps at the shapes of a plan, and the memory that they work in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mgvq_export.core.arrays import DType
from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import Part, stride
from mgvq_export.core.units import Size
from mgvq_export.runtime.backend import Progress, silent
from mgvq_export.runtime.tensorrt.cuda import DeviceMap
from mgvq_export.runtime.tensorrt.engines import Shape
from mgvq_export.runtime.tensorrt.planner import DECODE, ENCODE, VALUES, Direction, EnginePlans, find_profile, map_shape
from mgvq_export.runtime.tensorrt.session import Step, TensorRtSession
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan, Window

NON_FINITE = "non_finite"
FLAGS = "flags"
_WINDOWS_IN, _WINDOWS_OUT, _FLAG = "windows in", "windows out", "flag"

#: The parts whose windows a plan counts, or what stands for all of them.
_COUNTED = {*ENCODE.cut, *DECODE.cut, ENCODE.trunk, DECODE.trunk, ENCODE.whole, DECODE.whole}


@dataclass(frozen=True)
class Stage:
    """One part of a run, ready: its steps by number of windows (of images, when it runs over whole maps), and both maps' shapes."""

    part: Part
    tiles: TilePlan | None
    steps: Mapping[int, Step]
    source: str
    target: str
    source_shape: Shape
    target_shape: Shape

    @property
    def any_step(self) -> Step:
        """One of the steps: what they have in common can be asked of it."""
        return next(iter(self.steps.values()))

    @property
    def rounds(self) -> list[tuple[Window, ...]]:
        """Batches of windows; none when the part runs over the whole map."""
        return [] if self.tiles is None else list(self.tiles.batches())

    def role(self, name: str) -> str:
        """Which memory an input or output of the steps lies in: the map's own, or that of a batch of windows."""
        if name == NON_FINITE:
            return _FLAG
        return name if self.tiles is None else {self.source: _WINDOWS_IN, self.target: _WINDOWS_OUT}.get(name, name)


@dataclass
class Counter:
    """Tells ``progress`` how many windows are done, and waits for them before it does: not for the last, nor when ``progress`` is the no-op."""

    total: int
    progress: Progress
    wait: Callable[[], None]
    done: int = 0

    def add(self, count: int) -> None:
        """``count`` more windows are queued."""
        self.done += count
        if self.done < self.total and self.progress is not silent:
            self.wait()
            self.progress(self.done, self.total)

    def finish(self) -> None:
        """All windows are done."""
        self.progress(self.total, self.total)


@dataclass(frozen=True)
class Stages:
    """Makes the stages of a plan and queues them.

    Attributes:
        session: has the engines' steps and the memory.
        plans: what the engines hold.
    """

    session: TensorRtSession
    plans: EnginePlans

    def make(self, direction: Direction, size: Size, plan: TrunkPlan, count: int = 1) -> list[Stage]:
        """The stages of ``plan``, their contexts made, for ``count`` images in one window each."""
        return [self._stage(part, tiles, size, count) for part, tiles in self.plans.chain(direction, plan, size)]

    def _stage(self, part: Part, tiles: TilePlan | None, size: Size, images: int) -> Stage:
        source, target = VALUES[part]
        if tiles is not None and len(tiles.windows) == 1:
            tiles = None
        whole_in, whole_out = (self.map_size(value, size) for value in (source, target))
        counts = [images] if tiles is None else sorted({len(windows) for windows in tiles.batches()})
        steps = {count: self._step(part, source, count, whole_in if tiles is None else tiles.window) for count in counts}
        one = next(iter(steps.values()))
        shapes = [
            map_shape(value, images, one.shapes[value][1], whole) for value, whole in ((source, whole_in), (target, whole_out))
        ]
        stage = Stage(part, tiles, steps, source, target, shapes[0], shapes[1])
        if tiles is None and one.shapes[target] != stage.target_shape:
            raise BackendError(
                f"the engine {part} gives {target} of {list(one.shapes[target])}; wanted {list(stage.target_shape)}: build it again"
            )
        return stage

    def map_size(self, value: str, size: Size) -> Size:
        """Height and width of a value's map, for an image of ``size``."""
        scale = stride(self.plans.spec, value)
        return size[0] // scale, size[1] // scale

    def _step(self, part: Part, value: str, count: int, size: Size) -> Step:
        record = self.plans.records[part]
        profile = find_profile(record, value, count, size)
        if profile is None:  # a plan made for other engines
            raise BackendError(
                f"the engine {part} does not hold {count} x {value} of height x width {size[0]}x{size[1]}; make the plan with encode_plan "
                "or decode_plan of this tokenizer"
            )
        channels = record.profiles[profile][value].min[1]
        return self.session.step(part, profile, {value: map_shape(value, count, channels, size)})

    def sizes(self, stages: list[Stage]) -> tuple[dict[str, int], list[Step]]:
        """Bytes of every role's memory, and all steps."""
        sizes: dict[str, int] = {_FLAG: 0, FLAGS: 0}

        def at_least(role: str, size: int) -> None:
            sizes[role] = max(sizes.get(role, 0), size)

        for stage in stages:
            for value, shape in ((stage.source, stage.source_shape), (stage.target, stage.target_shape)):
                at_least(value, int(np.prod(shape)) * stage.any_step.dtypes[value].itemsize)
            for step in stage.steps.values():
                for name in step.dtypes:
                    at_least(stage.role(name), step.nbytes(name))
            if NON_FINITE in stage.any_step.dtypes:
                sizes[FLAGS] += 4 * (stage.source_shape[0] if stage.tiles is None else len(stage.tiles.windows))
        if not sizes[FLAGS]:
            raise BackendError(
                "the engines do not tell whether values are finite: they are of an earlier release; build them again with mgvq-export build"
            )
        return sizes, [step for stage in stages for step in stage.steps.values()]

    def queue(self, stage: Stage, flags: int, counter: Counter) -> int:
        """Queue one stage; returns how many images or latents told whether they are finite, from place ``flags`` on."""
        session = self.session
        told = 0
        if not stage.rounds:
            session.run(stage.any_step)
            told = self._keep_flags(stage.any_step, flags)
            if stage.part in _COUNTED:
                counter.add(1)
            return told
        source = device_map(session.buffer(stage.source).address, stage.source_shape, stage.any_step.dtypes[stage.source])
        target = device_map(session.buffer(stage.target).address, stage.target_shape, stage.any_step.dtypes[stage.target])
        for windows in stage.rounds:
            step = stage.steps[len(windows)]
            for index, window in enumerate(windows):
                cut = self._window(step, stage.source, _WINDOWS_IN, index)
                session.cuda.copy_box(cut, (0, 0), source, _corner(window.source), (cut.rows, cut.columns))
            session.run(step)
            for index, window in enumerate(windows):
                found = self._window(step, stage.target, _WINDOWS_OUT, index)
                rows, columns = (side.stop - side.start for side in window.kept)
                session.cuda.copy_box(target, _corner(window.kept), found, _corner(window.crop), (rows, columns))
            told += self._keep_flags(step, flags + told)
            counter.add(len(windows))
        return told

    def _keep_flags(self, step: Step, place: int) -> int:
        """The flags are overwritten by the next batch, and a captured step cannot be given another place to write to."""
        if NON_FINITE not in step.dtypes:
            return 0
        size = step.nbytes(NON_FINITE)
        self.session.cuda.copy(self.session.buffer(FLAGS).address + 4 * place, self.session.buffer(_FLAG).address, size)
        return size // 4

    def _window(self, step: Step, value: str, role: str, index: int) -> DeviceMap:
        """One window of a batch."""
        shape, dtype = step.shapes[value], step.dtypes[value]
        one = device_map(self.session.buffer(role).address, shape, dtype)
        return replace(one, address=one.address + index * one.bytes)


def device_map(address: int, shape: Shape, dtype: DType) -> DeviceMap:
    """The map of the first of a batch: uint8 [B, H, W, 3], or [B, C, H, W] of any type."""
    _, *sides = shape
    if dtype == np.uint8:
        rows, columns, channels = sides
        return DeviceMap(address, 1, rows, columns, channels)
    planes, rows, columns = sides
    return DeviceMap(address, planes, rows, columns, dtype.itemsize)


def _corner(slices: tuple[slice, slice]) -> tuple[int, int]:
    return slices[0].start, slices[1].start
