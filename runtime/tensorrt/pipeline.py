"""Encoding and decoding with TensorRT engines: one stream, maps on the device from the image to the codes and back.

The host sends one image (or the codes) and takes one result. Between the parts nothing leaves the device: windows are cut from a
map and what is kept of them is put into the next one by copies on the device. The windows are those of the plan, so that the
result is the one of the whole image (see :mod:`.tiling`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.spec import Part, stride
from mgvq_export.ops.trt_machine import find_machine
from mgvq_export.runtime.pipeline import Progress, silent
from mgvq_export.runtime.tensorrt.cuda import DeviceMap, OutOfDeviceMemory
from mgvq_export.runtime.tensorrt.engines import Shape, missing_reason, usable_engines
from mgvq_export.runtime.tensorrt.planner import DECODE, ENCODE, VALUES, Direction, EnginePlans, find_profile, map_shape
from mgvq_export.runtime.tensorrt.session import Step, TensorRtOptions, TensorRtSession
from mgvq_export.runtime.tiling.planner import Size, Tiling, format_bytes
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan, Window

SHARE_OF_FREE = 0.95  # of the device memory that is free: TensorRT and CUDA graphs take a little beside what is asked for
NON_FINITE = "non_finite"
_WINDOWS_IN, _WINDOWS_OUT, _FLAG, _FLAGS = "windows in", "windows out", "flag", "flags"

#: The parts whose windows a plan counts, or what stands for all of them.
_COUNTED = {*ENCODE.cut, *DECODE.cut, ENCODE.trunk, DECODE.trunk, ENCODE.whole, DECODE.whole}
_SMALLER = "build engines for smaller windows: mgvq-export build BUNDLE --size WxH --tile N"

_log = logging.getLogger("mgvq_export")


@dataclass(frozen=True)
class Stage:
    """One part of a run, ready: its steps by number of windows (1 when it runs over the whole map), and both maps' shapes."""

    part: Part
    tiles: TilePlan | None
    steps: Mapping[int, Step]
    source: str
    target: str
    source_shape: Shape
    target_shape: Shape

    @property
    def any_step(self) -> Step:
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


@dataclass(frozen=True)
class _Job:
    """One call: direction and image size, what goes in by name, and the value that comes out."""

    direction: Direction
    size: Size
    feeds: Mapping[str, np.ndarray]
    target: str
    progress: Progress


@dataclass
class _Counter:
    """Tells ``progress`` how many windows are done, and waits for them before it does: not where nobody listens, nor for the last."""

    total: int
    progress: Progress
    wait: Callable[[], None]
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        if self.done < self.total and self.progress is not silent:
            self.wait()
            self.progress(self.done, self.total)

    def finish(self) -> None:
        self.progress(self.total, self.total)


class TensorRtPipeline:
    """Encodes and decodes with the TensorRT engines of a bundle; calls from several threads wait for one another.

    Args:
        bundle: with engines built on this machine.
        precision: which of them.
        tiling: what the user asked for; the limit is for device memory.
        options: how engines run.

    Raises:
        BackendError: no GPU, no TensorRT, one too old, or no engines that run here; each with the remedy.
        InputError: a stream that cannot be used.
    """

    def __init__(self, bundle: Bundle, precision: str, tiling: Tiling | None = None, options: TensorRtOptions | None = None):
        machine = find_machine()
        options = options or TensorRtOptions()
        records = usable_engines(bundle, precision, machine, allow_host_code=options.allow_host_code)
        if not records:
            raise BackendError(missing_reason(bundle, precision, machine, allow_host_code=options.allow_host_code))
        self.spec, self.limit = bundle.spec, (tiling or Tiling()).limit
        self.plans = EnginePlans(bundle, precision, records, tiling or Tiling())
        self.session = TensorRtSession(bundle, records, machine, options)
        self._lock = threading.Lock()
        self._crowded = False  # whether it was said that memory does not hold all that is run in turns
        self._chosen: dict[tuple[str, Size], TrunkPlan] = {}  # what was found to fit, and still holds its memory

    @property
    def sessions(self) -> Any:
        """Other pipelines' sessions run single graphs on arrays of any size; engines cannot."""
        raise BackendError(
            "TensorRT engines run whole images of the sizes they were built for; choose --backend ort-cpu or ort-cuda"
        )

    def close(self) -> None:
        """Give engines, contexts, graphs and memory back."""
        with self._lock:
            self.session.close()

    # ---- plans

    def encode_plan(self, size: Size) -> TrunkPlan:
        """The plan to encode an image of ``size``, sides multiples of f: the least work that fits in the GPU's memory.

        Raises:
            BackendError: no engine holds the image, or memory is too small for every plan.
            InputError: the memory limit is too small, or blended tiles are asked for.
        """
        return self._plan(ENCODE, size)

    def decode_plan(self, size: Size) -> TrunkPlan:
        """The plan to decode to an image of ``size``. Raises as :meth:`encode_plan`."""
        return self._plan(DECODE, size)

    def _plan(self, direction: Direction, size: Size) -> TrunkPlan:
        with self._lock:
            key = (direction.verb, size)
            if key not in self._chosen:
                self._chosen[key] = self._choose(direction, size, self.plans.candidates(direction, size))
            return self._chosen[key]

    def _choose(self, direction: Direction, size: Size, candidates: list[TrunkPlan]) -> TrunkPlan:
        """The first candidate that fits beside what the session holds; else beside nothing."""
        least = 0
        for index, plan in enumerate(candidates):
            try:
                with self.session.running():
                    sizes, steps = self._sizes(self._stages(direction, size, plan))
                    needed, fits = self.session.fits(sizes, steps, SHARE_OF_FREE)
            except OutOfDeviceMemory:
                self._release()
                continue
            if fits and (self.limit is None or needed <= self.limit):
                return replace(plan, peak_bytes=needed)
            least = min(least or needed, needed)
            self._drop_engines(direction, size, plan, candidates[index + 1 : index + 2])
        what = f"an image of height x width {size[0]}x{size[1]}"
        if self._chosen and candidates:
            if not self._crowded:
                _log.warning("GPU memory does not hold %s beside what came before: engines are loaded anew at each change", what)
            self._crowded = True
            self._release()
            return self._choose(direction, size, candidates)
        if self.limit is not None and least > self.limit:
            raise InputError(
                f"memory limit of {format_bytes(self.limit)} is too small for {what} on the GPU; it needs "
                f"{format_bytes(least, up=True)} of GPU memory, or {_SMALLER}"
            )
        needs = f"; it needs {format_bytes(least, up=True)}" if least else ""
        raise BackendError(f"too little free GPU memory for {what}{needs}: close other programs that use the GPU, or {_SMALLER}")

    def _drop_engines(self, direction: Direction, size: Size, plan: TrunkPlan, following: list[TrunkPlan]) -> None:
        """Drop the engines of ``plan`` that neither the plan tried next nor those in use need: their weights take memory."""
        unneeded = {part for part, _ in self.plans.chain(direction, plan, size)}
        for other in following:
            unneeded -= {part for part, _ in self.plans.chain(direction, other, size)}
        for (verb, used_size), used in self._chosen.items():
            used_direction = ENCODE if verb == ENCODE.verb else DECODE
            unneeded -= {part for part, _ in self.plans.chain(used_direction, used, used_size)}
        self.session.drop(unneeded)

    def _release(self) -> None:
        self._chosen.clear()
        self.session.release()

    # ---- running

    def encode(self, image: np.ndarray, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """uint8 [H, W, 3], H and W multiples of f -> codes int32 [G, H/f, W/f].

        When the GPU has too little memory after all, a smaller plan is taken and a warning logged.

        Raises:
            BackendError: the GPU or an engine fails, no smaller plan is left, or the latent holds values that are not finite.
        """
        return self._run(_Job(ENCODE, image.shape[:2], {"image": image[None]}, "codes", progress), plan)[0]

    def latent(self, image: np.ndarray, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """uint8 [H, W, 3] -> latent [1, G*d, H/f, W/f] in the engines' float type. Memory and errors as in :meth:`encode`."""
        return self._run(_Job(ENCODE, image.shape[:2], {"image": image[None]}, "latent", progress), plan)

    def decode(self, codes: np.ndarray, groups: int, plan: TrunkPlan, progress: Progress = silent) -> np.ndarray:
        """Codes [G, h, w] -> uint8 [h*f, w*f, 3], from the first ``groups`` groups. Memory and errors as in :meth:`encode`."""
        size = (codes.shape[1] * self.spec.downsample, codes.shape[2] * self.spec.downsample)
        feeds: dict[str, np.ndarray] = {"codes": codes[None].astype(np.int32), "groups": np.array(groups, np.int64)}
        return self._run(_Job(DECODE, size, feeds, "image", progress), plan)[0]

    def _run(self, job: _Job, plan: TrunkPlan) -> np.ndarray:
        """The job's result; with a smaller plan when memory is too small for this one."""
        with self._lock:
            while True:
                try:
                    return self._run_once(job, plan)
                except OutOfDeviceMemory as error:
                    reason = str(error)
                # Outside of the handler, where the error no longer holds engines and contexts
                self._release()
                smaller = self._choose(job.direction, job.size, self.plans.smaller(job.direction, job.size, plan))
                _log.warning("%s; goes on to %s with %s instead of %s", reason, job.direction.verb, smaller, plan)
                plan = self._chosen[job.direction.verb, job.size] = smaller

    def _run_once(self, job: _Job, plan: TrunkPlan) -> np.ndarray:
        session = self.session
        with session.running():
            # Prepare: contexts and memory first, so that nothing is moved while the stream works
            stages = self._stages(job.direction, job.size, plan)
            if job.target == "latent":
                stages.pop()
            sizes, steps = self._sizes(stages)
            session.reserve(sizes, steps, host=[*job.feeds, job.target, _FLAGS])
            for stage in stages:
                for step in stage.steps.values():
                    session.bind(step, {name: session.buffer(stage.role(name)).address for name in step.dtypes})
            # Queue
            for name, array in job.feeds.items():
                session.upload(name, array)
            counter = _Counter(plan.total, job.progress, session.cuda.synchronize)
            flags = 0
            for stage in stages:
                flags += self._queue(stage, flags, counter)
            last = stages[-1]
            result = session.download(job.target, last.target_shape, last.any_step.dtypes[job.target])
            broken = session.download(_FLAGS, (flags,), np.dtype(np.int32))
            # Wait
            session.cuda.synchronize()
            if broken.any():
                what = "latent" if job.direction.encodes else "decoded image"
                raise BackendError(
                    f"the {what} holds values that are not finite: {self.plans.precision} engines overflow on this input; try fp32"
                )
            counter.finish()
            return result.copy()

    def _queue(self, stage: Stage, flags: int, counter: _Counter) -> int:
        """Queue one stage; returns how many images or latents told whether they are finite, from place ``flags`` on."""
        session = self.session
        told = 0
        if not stage.rounds:
            session.run(stage.steps[1])
            told = self._keep_flags(stage.steps[1], flags)
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
        self.session.cuda.copy(self.session.buffer(_FLAGS).address + 4 * place, self.session.buffer(_FLAG).address, size)
        return size // 4

    def _window(self, step: Step, value: str, role: str, index: int) -> DeviceMap:
        """One window of a batch."""
        shape, dtype = step.shapes[value], step.dtypes[value]
        one = device_map(self.session.buffer(role).address, shape, dtype)
        return replace(one, address=one.address + index * one.bytes)

    # ---- what a plan takes

    def _stages(self, direction: Direction, size: Size, plan: TrunkPlan) -> list[Stage]:
        """The stages of ``plan``, their contexts made."""
        return [self._stage(part, tiles, size) for part, tiles in self.plans.chain(direction, plan, size)]

    def _stage(self, part: Part, tiles: TilePlan | None, size: Size) -> Stage:
        source, target = VALUES[part]
        if tiles is not None and len(tiles.windows) == 1:
            tiles = None
        whole_in, whole_out = (self._map_size(value, size) for value in (source, target))
        counts = [1] if tiles is None else sorted({len(windows) for windows in tiles.batches()})
        steps = {count: self._step(part, source, count, whole_in if tiles is None else tiles.window) for count in counts}
        one = next(iter(steps.values()))
        shapes = [map_shape(value, 1, one.shapes[value][1], whole) for value, whole in ((source, whole_in), (target, whole_out))]
        stage = Stage(part, tiles, steps, source, target, shapes[0], shapes[1])
        if tiles is None and one.shapes[target] != stage.target_shape:
            raise BackendError(
                f"the engine {part} gives {target} of {list(one.shapes[target])}; wanted {list(stage.target_shape)}: build it again"
            )
        return stage

    def _map_size(self, value: str, size: Size) -> Size:
        scale = stride(self.spec, value)
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

    def _sizes(self, stages: list[Stage]) -> tuple[dict[str, int], list[Step]]:
        """Bytes of every role's memory, and all steps."""
        sizes: dict[str, int] = {_FLAG: 0, _FLAGS: 0}

        def at_least(role: str, size: int) -> None:
            sizes[role] = max(sizes.get(role, 0), size)

        for stage in stages:
            for value, shape in ((stage.source, stage.source_shape), (stage.target, stage.target_shape)):
                at_least(value, int(np.prod(shape)) * stage.any_step.dtypes[value].itemsize)
            for step in stage.steps.values():
                for name in step.dtypes:
                    at_least(stage.role(name), step.nbytes(name))
            if NON_FINITE in stage.any_step.dtypes:
                sizes[_FLAGS] += 4 * (1 if stage.tiles is None else len(stage.tiles.windows))
        if not sizes[_FLAGS]:
            raise BackendError(
                "the engines do not tell whether values are finite: they are of an earlier release; build them again with mgvq-export build"
            )
        return sizes, [step for stage in stages for step in stage.steps.values()]


def device_map(address: int, shape: Shape, dtype: np.dtype) -> DeviceMap:
    """The map of the first of a batch: uint8 [B, H, W, 3], or [B, C, H, W] of any type."""
    _, *sides = shape
    if dtype == np.uint8:
        rows, columns, channels = sides
        return DeviceMap(address, 1, rows, columns, channels)
    planes, rows, columns = sides
    return DeviceMap(address, planes, rows, columns, dtype.itemsize)


def _corner(slices: tuple[slice, slice]) -> tuple[int, int]:
    return slices[0].start, slices[1].start
