"""Encoding and decoding with TensorRT engines: one stream, maps on the device from the image to the codes and back.

The host sends one image (or the codes) and takes one result. Between the parts nothing leaves the device: windows are cut from a
map and what is kept of them is put into the next one by copies on the device. The windows are those of the plan, so that the
result is the one of the whole image (see :mod:`.tiling`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.spec import Part
from mgvq_export.core.units import Size, format_bytes
from mgvq_export.runtime.backend import Array, Progress, silent
from mgvq_export.runtime.tensorrt.cuda import OutOfDeviceMemory
from mgvq_export.runtime.tensorrt.planner import DECODE, ENCODE, VALUES, Direction, EnginePlans, find_profile
from mgvq_export.runtime.tensorrt.session import TensorRtSession
from mgvq_export.runtime.tensorrt.stages import FLAGS, Counter, Stages
from mgvq_export.runtime.tiling.request import Tiling
from mgvq_export.runtime.tiling.windows import TrunkPlan

SHARE_OF_FREE = 0.95  # of the device memory that is free: TensorRT and CUDA graphs take a little beside what is asked for
_SMALLER = "build engines for smaller windows: mgvq-export build BUNDLE --size WxH --tile N"

_log = logging.getLogger("mgvq_export")


@dataclass(frozen=True)
class _Job:
    """One call: direction and image size, what goes in by name, the value that comes out, and how many images run together."""

    direction: Direction
    size: Size
    feeds: Mapping[str, Array]
    target: str
    progress: Progress
    count: int = 1


class TensorRtBackend:
    """A :class:`~mgvq_export.runtime.backend.Backend` over the TensorRT engines of a bundle; calls from several threads wait for one another.

    Args:
        name: the backend's.
        bundle: with engines built on this machine.
        precision: which of them.
        session: runs them.
        tiling: what the user asked for; the limit is for device memory.
    """

    graphs = None  # engines run whole images of the sizes they were built for

    def __init__(self, name: str, bundle: Bundle, precision: str, session: TensorRtSession, tiling: Tiling | None = None):
        self.name, self.precision, self.bundle, self.spec = name, precision, bundle, bundle.spec
        self.tiling = tiling or Tiling()
        self.limit = self.tiling.limit
        self.plans = EnginePlans(bundle, precision, session.records, self.tiling)
        self.session = session
        self.stages = Stages(session, self.plans)
        self._lock = threading.Lock()
        self._crowded = False  # whether it was said that memory does not hold all that is run in turns
        self._chosen: dict[tuple[str, Size], TrunkPlan] = {}  # what was found to fit, and still holds its memory

    def with_tiling(self, tiling: Tiling) -> TensorRtBackend:
        """The same session under another request for tiling."""
        other = TensorRtBackend(self.name, self.bundle, self.precision, self.session, tiling)
        other._lock = self._lock
        return other

    def close(self) -> None:
        """Give engines, contexts, graphs and memory back."""
        with self._lock:
            self.session.close()

    # ---- plans

    def plan_encode(self, size: Size) -> TrunkPlan:
        """The plan to encode an image of ``size``, sides multiples of f: the least work that fits in the GPU's memory.

        Raises:
            BackendError: no engine holds the image, or memory is too small for every plan.
            InputError: the memory limit is too small, or blended tiles are asked for.
        """
        return self._plan(ENCODE, size)

    def plan_decode(self, size: Size) -> TrunkPlan:
        """The plan to decode to an image of ``size``. Raises as :meth:`plan_encode`."""
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
                    sizes, steps = self.stages.sizes(self.stages.make(direction, size, plan))
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

    def encode(self, image: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """uint8 [H, W, 3], H and W multiples of f -> codes int32 [G, H/f, W/f].

        When the GPU has too little memory after all, a smaller plan is taken and a warning logged.

        Raises:
            BackendError: the GPU or an engine fails, no smaller plan is left, or the latent holds values that are not finite.
        """
        codes: Array = self._run(_Job(ENCODE, image.shape[:2], {"image": image[None]}, "codes", progress), plan)[0]
        return codes

    def latent(self, image: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """uint8 [H, W, 3] -> latent [1, G*d, H/f, W/f] in the engines' float type. Memory and errors as in :meth:`encode`."""
        return self._run(_Job(ENCODE, image.shape[:2], {"image": image[None]}, "latent", progress), plan)

    def decode(self, codes: Array, groups: int, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """Codes [G, h, w] -> uint8 [h*f, w*f, 3], from the first ``groups`` groups. Memory and errors as in :meth:`encode`."""
        image: Array = self._run(_Job(DECODE, self._image_size(codes), _decode_feeds([codes], groups), "image", progress), plan)[
            0
        ]
        return image

    def encode_batch(self, images: Sequence[Array], progress: Progress = silent) -> list[Array]:
        """:meth:`encode` of images of one size, as many together as the engines were built for and memory holds."""

        def job(group: Sequence[Array]) -> _Job:
            return _Job(ENCODE, images[0].shape[:2], {"image": np.stack(group)}, "codes", silent, len(group))

        return self._batch(job, images, progress)

    def latent_batch(self, images: Sequence[Array]) -> list[Array]:
        """:meth:`latent` of images of one size, [G*d, H/f, W/f] each, run together as by :meth:`encode_batch`."""

        def job(group: Sequence[Array]) -> _Job:
            return _Job(ENCODE, images[0].shape[:2], {"image": np.stack(group)}, "latent", silent, len(group))

        return self._batch(job, images, silent)

    def decode_batch(self, codes: Sequence[Array], groups: int, progress: Progress = silent) -> list[Array]:
        """:meth:`decode` of codes of one size, as many together as the engines were built for and memory holds."""

        def job(group: Sequence[Array]) -> _Job:
            return _Job(DECODE, self._image_size(codes[0]), _decode_feeds(group, groups), "image", silent, len(group))

        return self._batch(job, codes, progress)

    def _batch(self, make_job: Callable[[Sequence[Array]], _Job], items: Sequence[Array], progress: Progress) -> list[Array]:
        first = make_job(items[:1])
        plan = self._plan(first.direction, first.size)
        together = self._together(first, plan, len(items))
        found: list[Array] = []
        while len(found) < len(items):
            try:
                found.extend(self._run(make_job(items[len(found) : len(found) + together]), plan))
            except OutOfDeviceMemory:
                if together == 1:
                    raise
                together = 1
            progress(len(found), len(items))
        return found

    def _together(self, job: _Job, plan: TrunkPlan, most: int) -> int:
        """How many images run at once: what every engine's profile holds and memory has room for, at most ``most``."""
        chain = self.plans.chain(job.direction, plan, job.size)
        if any(tiles is not None and len(tiles.windows) > 1 for _, tiles in chain):
            return 1
        while most > 1:
            if all(self._holds(part, most, job.size) for part, _ in chain):
                try:
                    with self._lock, self.session.running():
                        needed, fits = self.session.fits(
                            *self.stages.sizes(self.stages.make(job.direction, job.size, plan, most)), SHARE_OF_FREE
                        )
                    if fits and (self.limit is None or needed <= self.limit):
                        return most
                except OutOfDeviceMemory:
                    pass  # contexts alone take more than there is
            most -= 1
        return 1

    def _holds(self, part: Part, count: int, size: Size) -> bool:
        value = VALUES[part][0]
        return find_profile(self.plans.records[part], value, count, self.stages.map_size(value, size)) is not None

    def _image_size(self, codes: Array) -> Size:
        return codes.shape[1] * self.spec.downsample, codes.shape[2] * self.spec.downsample

    def _run(self, job: _Job, plan: TrunkPlan) -> Array:
        """The job's result; with a smaller plan when memory is too small for this one."""
        with self._lock:
            while True:
                try:
                    return self._run_once(job, plan)
                except OutOfDeviceMemory as error:
                    reason = str(error)
                # Outside of the handler, where the error no longer holds engines and contexts
                self._release()
                if job.count > 1:
                    raise OutOfDeviceMemory(reason)  # one by one may fit
                smaller = self._choose(job.direction, job.size, self.plans.smaller(job.direction, job.size, plan))
                _log.warning("%s; goes on to %s with %s instead of %s", reason, job.direction.verb, smaller, plan)
                plan = self._chosen[job.direction.verb, job.size] = smaller

    def _run_once(self, job: _Job, plan: TrunkPlan) -> Array:
        session = self.session
        with session.running():
            # Prepare: contexts and memory first, so that nothing is moved while the stream works
            stages = self.stages.make(job.direction, job.size, plan, job.count)
            if job.target == "latent":
                stages.pop()
            sizes, steps = self.stages.sizes(stages)
            session.reserve(sizes, steps, host=[*job.feeds, job.target, FLAGS])
            for stage in stages:
                for step in stage.steps.values():
                    session.bind(step, {name: session.buffer(stage.role(name)).address for name in step.dtypes})
            # Queue
            for name, array in job.feeds.items():
                session.upload(name, array)
            counter = Counter(plan.total, job.progress, session.cuda.synchronize)
            flags = 0
            for stage in stages:
                flags += self.stages.queue(stage, flags, counter)
            last = stages[-1]
            result = session.download(job.target, last.target_shape, last.any_step.dtypes[job.target])
            broken = session.download(FLAGS, (flags,), np.dtype(np.int32))
            # Wait
            session.cuda.synchronize()
            if broken.any():
                what = "latent" if job.direction.encodes else "decoded image"
                raise BackendError(
                    f"the {what} holds values that are not finite: {self.plans.precision} engines overflow on this input; try fp32"
                )
            counter.finish()
            return result.copy()


def _decode_feeds(codes: Sequence[Array], groups: int) -> dict[str, Array]:
    return {"codes": np.stack(codes).astype(np.int32), "groups": np.array(groups, np.int64)}
