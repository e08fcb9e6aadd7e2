"""The tokenizer: images to tokens and back, with any backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgvq_export.bundle import Bundle
from mgvq_export.errors import BackendError, InputError
from mgvq_export.files import PathLike
from mgvq_export.runtime.images import check_image, crop, pad_to_multiple
from mgvq_export.runtime.ort import PROVIDERS, OrtSessions
from mgvq_export.runtime.pipeline import Pipeline, Progress
from mgvq_export.runtime.tiling import TilePlan
from mgvq_export.spec import Part
from mgvq_export.tokens import Tokens

BACKENDS = ("auto", *PROVIDERS)


def _silent(done: int, total: int) -> None:
    pass


class Tokenizer:
    """Encodes images to :class:`~mgvq_export.tokens.Tokens` and decodes them, with the graphs of a bundle.

    A context manager; graphs are loaded when first used and dropped at the end. ::

        with Tokenizer.open("bundle") as tokenizer:
            tokens = tokenizer.encode(image)
            again = tokenizer.decode(tokens)
    """

    def __init__(self, bundle: Bundle, pipeline: Pipeline, *, backend: str, precision: str):
        """Use :meth:`open`."""
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
    ) -> Tokenizer:
        """A tokenizer over ``bundle``.

        Args:
            backend: ``ort-cpu``, ``ort-cuda``, or ``auto``: the GPU when ONNX Runtime can use one, else the CPU.
            precision: ``fp32`` or ``fp16``; when None, ``fp32`` if the bundle has it, else what it has.
            threads: CPU threads of one operator; all cores when None.

        Raises:
            BundleError: no bundle, or it lacks the precision.
            BackendError: the backend is unknown, not installed, or did not load.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        if backend not in BACKENDS:
            raise BackendError(f"no backend {backend!r}; choose {', '.join(BACKENDS)}")
        if precision is None:
            precision = "fp32" if "fp32" in bundle.precisions else bundle.precisions[0]
        bundle.graph(precision, Part.QUANTIZER)  # names the precisions it has when this one is missing
        if backend == "auto":
            backend = _best_backend()
        sessions = OrtSessions(bundle, precision, backend, threads=threads)
        return cls(bundle, Pipeline(sessions), backend=backend, precision=precision)

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the loaded graphs and their memory."""
        self.pipeline.sessions.close()

    def encode_plan(self, height: int, width: int) -> TilePlan:
        """How an image of this size is encoded."""
        size = self._padded(height, width)
        return TilePlan.fit(size, self.bundle.reach(Part.ENCODER_TRUNK))

    def decode_plan(self, height: int, width: int) -> TilePlan:
        """How an image of this size is decoded."""
        stride = self.spec.trunk_stride
        rows, columns = self._padded(height, width)
        return TilePlan.fit((rows // stride, columns // stride), self.bundle.reach(Part.DECODER_TRUNK), scale=stride)

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        f = self.spec.downsample
        return -(-height // f) * f, -(-width // f) * f

    def encode(self, image: np.ndarray, *, progress: Progress = _silent) -> Tokens:
        """The tokens of ``image``, uint8 [H, W, 3], of any size.

        Sides that are no multiple of f are extended by repeating the last row and column; the tokens remember the size.
        Raises :class:`InputError` for any other array.
        """
        padded, size = pad_to_multiple(check_image(image), self.spec.downsample)
        codes = self.pipeline.encode(padded, self.encode_plan(*size), progress)
        return Tokens.from_spec(self.spec, codes, size, self.bundle.codebook_sha256)

    def decode(self, tokens: Tokens, *, groups: int | None = None, progress: Progress = _silent) -> np.ndarray:
        """The image of ``tokens``, uint8 [H, W, 3].

        ``groups``: how many of the coarse-to-fine groups to use, 1 to G; all when None. Raises :class:`TokensError` when the
        tokens belong to another codebook, :class:`InputError` when ``groups`` is out of range.
        """
        tokens.check_model(self.spec, self.bundle.codebook_sha256)
        used = self.check_groups(groups)
        image = self.pipeline.decode(tokens.codes, used, self.decode_plan(*tokens.image_size), progress)
        return np.ascontiguousarray(crop(image, tokens.image_size))

    def check_groups(self, groups: int | None) -> int:
        """``groups``, or all of them when None. Raises :class:`InputError` when out of range."""
        if groups is None:
            return self.spec.groups
        if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)) or not 1 <= groups <= self.spec.groups:
            raise InputError(f"groups is {groups!r}; {self.spec.name} has {self.spec.groups}: choose 1 to {self.spec.groups}")
        return int(groups)


def _best_backend() -> str:
    import onnxruntime as ort

    # Listing the provider says only that the wheel was built with it; a device file says that there is a GPU to use.
    gpu = "CUDAExecutionProvider" in ort.get_available_providers() and Path("/dev/nvidia0").exists()
    return "ort-cuda" if gpu else "ort-cpu"
