"""The tokenizer: images to tokens and back, with any backend."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError, MgvqError
from mgvq_export.core.files import PathLike
from mgvq_export.core.spec import TRUNKS, Part
from mgvq_export.core.tokens import Tokens
from mgvq_export.ops.trt_machine import find_machine
from mgvq_export.runtime.images import check_image, crop, pad_to_multiple
from mgvq_export.runtime.ort.sessions import PROVIDERS, OrtSessions
from mgvq_export.runtime.pipeline import Pipeline, Progress, silent
from mgvq_export.runtime.tensorrt.engines import missing_reason, usable_engines
from mgvq_export.runtime.tensorrt.pipeline import TensorRtPipeline
from mgvq_export.runtime.tensorrt.session import TensorRtOptions, TensorRtSession
from mgvq_export.runtime.tiling.memory import resident_bytes, return_freed_memory
from mgvq_export.runtime.tiling.planner import Planner, Tiling, default_limit
from mgvq_export.runtime.tiling.windows import TrunkPlan

TENSORRT = "tensorrt"
BACKENDS = ("auto", *PROVIDERS, TENSORRT)


class Tokenizer:
    """Encodes images to :class:`~mgvq_export.core.tokens.Tokens` and decodes them, with the graphs of a bundle.

    A context manager; graphs are loaded when first used and dropped at the end, also of a tokenizer that is forgotten unclosed. ::

        with Tokenizer.open("bundle") as tokenizer:
            tokens = tokenizer.encode(image)
            again = tokenizer.decode(tokens)
    """

    def __init__(
        self,
        bundle: Bundle,
        pipeline: Pipeline | TensorRtPipeline,
        *,
        backend: str,
        precision: str,
        tiling: Tiling | None = None,
    ):
        """Use :meth:`open`."""
        self.tiling = tiling or Tiling()
        self.bundle, self.spec = bundle, bundle.spec
        self.backend, self.precision = backend, precision
        self.pipeline = pipeline

    @classmethod
    def open(
        cls,
        bundle: PathLike | Bundle,
        *,
        backend: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        tiling: str = "auto",
        tile: int | tuple[int, int] | None = None,
        memory_limit: str | int | None = None,
        tensorrt: TensorRtOptions | None = None,
        allow_host_code: bool = False,
    ) -> Tokenizer:
        """A tokenizer over ``bundle``.

        Args:
            backend: ``ort-cpu``, ``ort-cuda``, ``tensorrt``, or ``auto``: TensorRT when the bundle has engines that run on this
                machine, else the GPU when ONNX Runtime can use one, else the CPU.
            precision: ``fp32`` or ``fp16``; when None, with TensorRT that of the engines (``fp16`` first), else ``fp32`` if the bundle
                has it, else what it has.
            threads: CPU threads of one operator; all cores when None.
            tiling: ``auto``: one window when it fits in memory, else exact windows; ``off``, ``exact``; or ``blend``, which changes
                the codes and is there for comparison.
            tile: side of the windows in image pixels, or ``(height, width)``; chosen by the memory limit when None.
            memory_limit: for the whole process, such as ``6GiB``; when None, what the process holds and 80 % of what is free.
                A limit given makes glibc return freed memory at once, in the whole process. With TensorRT it is for the memory that
                this tokenizer takes on the GPU; when None, 95 % of what is free there.
            tensorrt: how engines run, such as on which CUDA stream; used with TensorRT only.
            allow_host_code: also run version-compatible engines. They run code inside the engine file on the host: only for engines
                you trust.

        Raises:
            InputError: an unknown tiling, or a memory limit that is no size.
            BundleError: no bundle, or it lacks the precision.
            BackendError: the backend is unknown, not installed, or did not load.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        if backend not in BACKENDS:
            raise BackendError(f"no backend {backend!r}; choose {', '.join(BACKENDS)}")
        if precision is not None:
            bundle.graph(precision, Part.QUANTIZER)  # names the precisions it has when this one is missing
        choice = Tiling.parse(tiling, tile, memory_limit)
        if backend == TENSORRT or (backend == "auto" and choice.mode != "blend"):
            options = tensorrt or TensorRtOptions()
            options = replace(options, allow_host_code=allow_host_code or options.allow_host_code)
            here = _engines_here(bundle, precision, backend, options.allow_host_code)
            if here is not None:
                pipeline = TensorRtPipeline(bundle, here, choice, options)
                # By the end of the process at the latest everything is given back, and a stream of the caller's may be gone by then.
                weakref.finalize(pipeline, _close_session, pipeline.session).atexit = False
                return cls(bundle, pipeline, backend=TENSORRT, precision=here, tiling=choice)
        precision = precision or ("fp32" if "fp32" in bundle.precisions else bundle.precisions[0])
        if backend == "auto":
            backend = _best_backend()
        if memory_limit is not None:
            return_freed_memory()
        sessions = OrtSessions(bundle, precision, backend, threads=threads)
        return cls(bundle, Pipeline(sessions), backend=backend, precision=precision, tiling=choice)

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except MgvqError:
            if error is None:  # else that one came first and says more
                raise

    def close(self) -> None:
        """Drop the loaded graphs and their memory."""
        self.pipeline.close()

    def encode_plan(self, height: int, width: int) -> TrunkPlan:
        """How an image of this size is encoded. Raises :class:`InputError` when it cannot be under the memory limit."""
        if isinstance(self.pipeline, TensorRtPipeline):
            return self.pipeline.encode_plan(self._padded(height, width))
        planner = self._planner(Part.ENCODER_TRUNK, Part.ENCODER_HEAD, Part.QUANTIZER)
        return self._ready(planner.encode(self._padded(height, width)), Part.ENCODER_TRUNK)

    def decode_plan(self, height: int, width: int) -> TrunkPlan:
        """How an image of this size is decoded. Raises :class:`InputError` when it cannot be under the memory limit."""
        if isinstance(self.pipeline, TensorRtPipeline):
            return self.pipeline.decode_plan(self._padded(height, width))
        planner = self._planner(Part.DECODER_TRUNK, Part.DECODER_HEAD, Part.DEQUANTIZER)
        return self._ready(planner.decode(self._padded(height, width)), Part.DECODER_TRUNK)

    def _planner(self, *parts: Part) -> Planner:
        sessions = self.pipeline.sessions
        for part in parts:  # their weights are then part of what the process is seen to hold
            sessions[part]
        limit, base = self.tiling.limit, resident_bytes()
        if limit is None and self.backend == "ort-cpu":  # the host's memory says nothing about the GPU's
            limit = default_limit()
        # ONNX Runtime's CPU kernels compute float16 graphs in float32 wherever they have no float16 form.
        itemsize = 2 if self.bundle.base(self.precision) == "fp16" and self.backend != "ort-cpu" else 4
        reaches = {part: self.bundle.reach(part) for part in TRUNKS if self.bundle.has_part(part)}
        mode, tile = self.tiling.mode, self.tiling.tile
        return Planner(self.spec, reaches, base, limit, tiling=mode, tile=tile, itemsize=itemsize, backend=self.backend)

    def _ready(self, plan: TrunkPlan, trunk: Part) -> TrunkPlan:
        if len(plan.steps) > 1:  # the two halves bring the same weights again
            self.pipeline.sessions.drop(trunk)
        return plan

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        f = self.spec.downsample
        return -(-height // f) * f, -(-width // f) * f

    def encode(self, image: np.ndarray, *, plan: TrunkPlan | None = None, progress: Progress = silent) -> Tokens:
        """The tokens of ``image``, uint8 [H, W, 3], of any size.

        Sides that are no multiple of f are extended by repeating the last row and column; the tokens remember the size.
        ``plan``: how, as :meth:`encode_plan` gave it for this size; made anew when None. Raises :class:`InputError` for any other array.
        """
        padded, size = pad_to_multiple(check_image(image), self.spec.downsample)
        codes = self.pipeline.encode(padded, plan or self.encode_plan(*size), progress)
        return Tokens.from_spec(self.spec, codes, size, self.bundle.codebook_sha256)

    def decode(
        self, tokens: Tokens, *, groups: int | None = None, plan: TrunkPlan | None = None, progress: Progress = silent
    ) -> np.ndarray:
        """The image of ``tokens``, uint8 [H, W, 3].

        ``groups``: how many of the coarse-to-fine groups to use, 1 to G; all when None. ``plan``: how, as :meth:`decode_plan` gave
        it for this size; made anew when None. Raises :class:`TokensError` when the tokens belong to another codebook, :class:`InputError` when ``groups`` is out of range.
        """
        tokens.check_model(self.spec, self.bundle.codebook_sha256)
        used = self.check_groups(groups)
        image = self.pipeline.decode(tokens.codes, used, plan or self.decode_plan(*tokens.image_size), progress)
        return np.ascontiguousarray(crop(image, tokens.image_size))

    def check_groups(self, groups: int | None) -> int:
        """``groups``, or all of them when None. Raises :class:`InputError` when out of range."""
        if groups is None:
            return self.spec.groups
        if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)) or not 1 <= groups <= self.spec.groups:
            raise InputError(f"groups is {groups!r}; {self.spec.name} has {self.spec.groups}: choose 1 to {self.spec.groups}")
        return int(groups)


def _close_session(session: TensorRtSession) -> None:
    with contextlib.suppress(MgvqError):  # nobody is left to be told
        session.close()


def _engines_here(bundle: Bundle, precision: str | None, backend: str, allow_host_code: bool) -> str | None:
    """The precision (the one asked for, when one is) of which the bundle has engines that run on this machine.

    ``auto`` gets None where there are none, or where those of the quantizer, without which nothing runs, do not run. Raises
    :class:`BackendError`, saying why, when TensorRT was asked for by name and none run.
    """
    named = backend == TENSORRT
    if not bundle.engines and not named:
        return None  # without looking for TensorRT
    try:
        machine = find_machine()
    except BackendError:
        if named:
            raise
        return None
    names = _engine_precisions(bundle, precision)
    usable = {name: usable_engines(bundle, name, machine, allow_host_code=allow_host_code) for name in names}
    built = {(record.precision, record.part) for record in bundle.engines}
    ends = (Part.QUANTIZER, Part.DEQUANTIZER)
    whole = [name for name in names if usable[name] and all(part in usable[name] or (name, part) not in built for part in ends)]
    if whole or not named:
        return next(iter(whole), None)
    some = [name for name in names if usable[name]]
    if some:
        return some[0]
    nearest = next(
        (name for name in names if usable_engines(bundle, name, machine, allow_host_code=True)), names[0]
    )  # lacks but the permission
    raise BackendError(missing_reason(bundle, nearest, machine, allow_host_code=allow_host_code))


def _engine_precisions(bundle: Bundle, precision: str | None) -> list[str]:
    """Precisions to look for engines of: the one asked for; else those with engines first, and of these fp16, then fp32."""
    if precision is not None:
        return [precision]
    built = {record.precision for record in bundle.engines}
    return sorted(bundle.precisions, key=lambda name: (name not in built, name != "fp16", name != "fp32"))


def _best_backend() -> str:
    import onnxruntime as ort

    # Listing the provider says only that the wheel was built with it; a device file says that there is a GPU to use.
    gpu = "CUDAExecutionProvider" in ort.get_available_providers() and Path("/dev/nvidia0").exists()
    return "ort-cuda" if gpu else "ort-cpu"
