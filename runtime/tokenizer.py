"""The tokenizer: images to tokens and back, with any backend."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError, MgvqError
from mgvq_export.core.files import PathLike
from mgvq_export.core.tokens import Tokens
from mgvq_export.core.units import Size
from mgvq_export.runtime.backend import Array, Backend, GraphRunner, Progress, RunOptions, open_backend, silent
from mgvq_export.runtime.images import check_image, crop, pad_to_multiple
from mgvq_export.runtime.tiling.request import Tiling
from mgvq_export.runtime.tiling.windows import TrunkPlan

if TYPE_CHECKING:
    from mgvq_export.runtime.tensorrt.session import TensorRtOptions

T = TypeVar("T")


class OpenOptions(TypedDict, total=False):
    """Keyword arguments of :meth:`Tokenizer.open`, for those that pass them on."""

    backend: str
    precision: str | None
    threads: int | None
    tiling: str
    tile: int | tuple[int, int] | None
    memory_limit: str | int | None
    allow_host_code: bool


class Tokenizer:
    """Encodes images to :class:`~mgvq_export.core.tokens.Tokens` and decodes them, with the graphs of a bundle.

    A context manager; graphs are loaded when first used and dropped at the end, also of a tokenizer that is forgotten unclosed. A copy
    pickled to another process loads its own. ::

        with Tokenizer.open("bundle") as tokenizer:
            tokens = tokenizer.encode(image)
            again = tokenizer.decode(tokens)

    Attributes:
        bundle, spec: what it was opened over.
        implementation: the :class:`~mgvq_export.runtime.backend.Backend` that does the work.
        tiling: what was asked for.
    """

    def __init__(self, bundle: Bundle, implementation: Backend, options: RunOptions):
        """Use :meth:`open`."""
        self.bundle, self.spec = bundle, bundle.spec
        self._implementation, self._options = implementation, options

    @property
    def implementation(self) -> Backend:
        """What does the work."""
        return self._implementation

    @property
    def backend(self) -> str:
        """The backend's name, such as ``ort-cpu``."""
        return self._implementation.name

    @property
    def precision(self) -> str:
        """What the graphs compute with, such as ``fp32``."""
        return self._implementation.precision

    @property
    def tiling(self) -> Tiling:
        """Mode, tile and memory limit, as asked for."""
        return self._options.tiling

    @property
    def graphs(self) -> GraphRunner:
        """Runs single graphs on float arrays. Raises :class:`BackendError` where only whole images run (TensorRT engines)."""
        graphs = self._implementation.graphs
        if graphs is None:
            raise BackendError(
                f"{self.backend} runs whole images of the sizes its engines were built for; choose --backend ort-cpu or ort-cuda"
            )
        return graphs

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
        instrument: Callable[[GraphRunner], GraphRunner] | None = None,
    ) -> Tokenizer:
        """A tokenizer over ``bundle``.

        Args:
            backend: ``ort-cpu``, ``ort-cuda``, ``tensorrt``, or ``auto``: TensorRT when the bundle has engines that run on this
                machine, else the GPU when ONNX Runtime can use one, else the CPU.
            precision: ``fp32`` or ``fp16``; when None, with TensorRT that of the engines (``fp16`` first), else ``fp32`` if the bundle
                has it, else what it has.
            threads: CPU threads that one image's graphs run on; when None, all that this process may use (affinity, container quota).
            tiling: ``auto``: one window when it fits in memory, else exact windows; ``off``, ``exact``; or ``blend``, which changes
                the codes and is there for comparison.
            tile: side of the windows in image pixels, or ``(height, width)``; chosen by the memory limit when None.
            memory_limit: for the whole process, such as ``6GiB``; when None, what the process holds and 80 % of what is free.
                A limit given makes glibc return freed memory at once, in the whole process. With TensorRT it is for the memory that
                this tokenizer takes on the GPU; when None, 95 % of what is free there.
            tensorrt: how engines run, such as on which CUDA stream; used with TensorRT only.
            allow_host_code: also run version-compatible engines. They run code inside the engine file on the host: only for engines
                you trust.
            instrument: wraps what runs single graphs before it is used, to time or record its runs. Not used by backends that run whole images.

        Raises:
            InputError: an unknown tiling, a memory limit that is no size, or no number of threads.
            BundleError: no bundle, or it lacks the precision.
            BackendError: the backend is unknown, not installed, or did not load.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        # A relative path would mean another folder after the process has changed its own.
        bundle = replace(bundle, path=Path(bundle.path).absolute())
        options = RunOptions(
            precision,
            None if threads is None else _positive("threads", threads),
            Tiling.parse(tiling, tile, memory_limit),
            tensorrt,
            allow_host_code,
            instrument,
        )
        return cls(bundle, open_backend(backend, bundle, options), options)

    def with_tiling(
        self, tiling: str = "auto", *, tile: int | tuple[int, int] | None = None, memory_limit: str | int | None = None
    ) -> Tokenizer:
        """This tokenizer's loaded graphs under another tiling; arguments as :meth:`open` has them. Closing either closes both."""
        options = replace(self._options, tiling=Tiling.parse(tiling, tile, memory_limit))
        return Tokenizer(self.bundle, self._implementation.with_tiling(options.tiling), options)

    def __reduce__(self) -> tuple[object, ...]:
        # Loaded graphs stay behind: they belong to this process.
        return _reopen, (self.bundle, self.backend, replace(self._options, precision=self.precision))

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
        self._implementation.close()

    def encode_plan(self, height: int, width: int) -> TrunkPlan:
        """How an image of this size is encoded. Raises :class:`InputError` when it cannot be under the memory limit."""
        return self._implementation.plan_encode(self._padded(height, width))

    def decode_plan(self, height: int, width: int) -> TrunkPlan:
        """How an image of this size is decoded. Raises :class:`InputError` when it cannot be under the memory limit."""
        return self._implementation.plan_decode(self._padded(height, width))

    def _padded(self, height: int, width: int) -> Size:
        f = self.spec.downsample
        return -(-_positive("height", height) // f) * f, -(-_positive("width", width) // f) * f

    def encode(self, image: Array, *, plan: TrunkPlan | None = None, progress: Progress = silent) -> Tokens:
        """The tokens of ``image``, uint8 [H, W, 3], of any size; a Pillow image in mode RGB will do.

        Sides that are no multiple of f are extended by repeating the last row and column; the tokens remember the size.
        ``plan``: how, as :meth:`encode_plan` gave it for this size; made anew when None. Raises :class:`InputError` for any other array.
        """
        padded, size = pad_to_multiple(_as_image(image), self.spec.downsample)
        codes = self._implementation.encode(padded, plan or self.encode_plan(*size), progress)
        return self._tokens(codes, size)

    def _tokens(self, codes: Array, size: Size) -> Tokens:
        return Tokens.from_spec(self.spec, codes, size, self.bundle.codebook_sha256)

    def encode_batch(self, images: Sequence[Array], *, progress: Progress = silent) -> list[Tokens]:
        """:meth:`encode` of every image, in the order given, with the same codes.

        Images that have one size once padded run together, as many as the memory limit allows: for small ones that is faster.
        ``progress`` is called with the number of images done and of all.

        Raises :class:`InputError` for anything but uint8 [H, W, 3], naming its place, before any image is encoded.
        """
        padded = [pad_to_multiple(_as_image(image, f"image {place}"), self.spec.downsample) for place, image in enumerate(images)]
        codes = _by_size(padded, lambda one: one[0].shape[:2], self._encode_some, progress)
        return [self._tokens(one, size) for one, (_, size) in zip(codes, padded, strict=True)]

    def _encode_some(self, padded: Sequence[tuple[Array, Size]], progress: Progress) -> list[Array]:
        return self._implementation.encode_batch([image for image, _ in padded], progress)

    def decode(
        self, tokens: Tokens, *, groups: int | None = None, plan: TrunkPlan | None = None, progress: Progress = silent
    ) -> Array:
        """The image of ``tokens``, uint8 [H, W, 3].

        ``groups``: how many of the coarse-to-fine groups to use, 1 to G; all when None. ``plan``: how, as :meth:`decode_plan` gave
        it for this size; made anew when None. Raises :class:`TokensError` when the tokens belong to another codebook,
        :class:`InputError` when ``groups`` is out of range or ``tokens`` are none.
        """
        self._check_tokens(tokens)
        used = self.check_groups(groups)
        image = self._implementation.decode(tokens.codes, used, plan or self.decode_plan(*tokens.image_size), progress)
        return np.ascontiguousarray(crop(image, tokens.image_size))

    def decode_batch(self, tokens: Sequence[Tokens], *, groups: int | None = None, progress: Progress = silent) -> list[Array]:
        """:meth:`decode` of all ``tokens``, in the order given, with the same pixels up to the rounding of sums.

        Those of one size run together, as many as the memory limit allows. ``progress`` is called with the number of images done
        and of all. Raises as :meth:`decode`, before any image is decoded.
        """
        for place, one in enumerate(tokens):
            self._check_tokens(one, f"tokens {place}")
        used = self.check_groups(groups)

        def decode_some(some: Sequence[Tokens], told: Progress) -> list[Array]:
            return self._implementation.decode_batch([one.codes for one in some], used, told)

        images = _by_size(tokens, lambda one: one.grid_size, decode_some, progress)
        return [np.ascontiguousarray(crop(image, one.image_size)) for image, one in zip(images, tokens, strict=True)]

    def _check_tokens(self, tokens: Tokens, what: str = "tokens") -> None:
        if not isinstance(tokens, Tokens):
            got = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
            raise InputError(
                f"{what} is {got}; wanted Tokens: make them of codes [G, h, w] with "
                "Tokens.from_codes(tokenizer.bundle, codes, (height, width))"
            )
        tokens.check_model(self.spec, self.bundle.codebook_sha256)

    def check_groups(self, groups: int | None) -> int:
        """``groups``, or all of them when None. Raises :class:`InputError` when out of range."""
        if groups is None:
            return self.spec.groups
        if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)) or not 1 <= groups <= self.spec.groups:
            raise InputError(f"groups is {groups!r}; {self.spec.name} has {self.spec.groups}: choose 1 to {self.spec.groups}")
        return int(groups)


def _reopen(bundle: Bundle, backend: str, options: RunOptions) -> Tokenizer:
    """The tokenizer that was pickled, in this process."""
    return Tokenizer(bundle, open_backend(backend, bundle, options), options)


def _as_image(image: object, what: str = "image") -> Array:
    """A checked uint8 [H, W, 3]; of a Pillow image, its pixels."""
    if not isinstance(image, np.ndarray) and hasattr(image, "__array_interface__"):
        image = np.asarray(image)
    return check_image(image, what)  # type: ignore[arg-type]  # it refuses what is no array


def _positive(what: str, value: object) -> int:
    """A whole number of at least 1, of any integer type. Raises :class:`InputError`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise InputError(f"{what} is {value!r}; wanted a whole number of at least 1")
    return number


def _by_size(
    items: Sequence[T],
    size_of: Callable[[T], Hashable],
    run: Callable[[Sequence[T], Progress], list[Array]],
    progress: Progress,
) -> list[Array]:
    """``run`` on the items of each size; the results in the order of the items."""
    places: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(size_of(item), []).append(place)
    results: dict[int, Array] = {}
    for same in places.values():
        before = len(results)
        found = run([items[place] for place in same], lambda done, _, before=before: progress(before + done, len(items)))  # type: ignore[misc]
        results.update(zip(same, found, strict=True))
    return [results[place] for place in range(len(items))]
