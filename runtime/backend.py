"""The interface of everything that can run a bundle, and the table of what there is.

A backend is a folder with a ``backend.py`` that has ``open_backend``, and one line in :data:`BACKENDS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from mgvq_export.core.arrays import Array, DType
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import Part
from mgvq_export.core.units import Size
from mgvq_export.runtime.tiling.request import Tiling
from mgvq_export.runtime.tiling.windows import TrunkPlan

if TYPE_CHECKING:
    from mgvq_export.runtime.tensorrt.session import TensorRtOptions

#: Called with (done, total): of one image its windows, of a batch its images.
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """The no-op :data:`Progress`."""


class Session(Protocol):
    """One loaded graph of any backend."""

    @property
    def inputs(self) -> Mapping[str, DType]:
        """Names -> dtypes, in the graph's order."""

    def run(self, feeds: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
        """The outputs named, or all, in order. Raises :class:`BackendError` when the graph fails."""


class GraphRunner(Protocol):
    """The graphs of one bundle and precision by part, each loaded when first used."""

    def __getitem__(self, part: Part, /) -> Session: ...

    def drop(self, part: Part) -> None:
        """Forget a loaded graph, so that its memory can be returned."""

    def rest(self, part: Part) -> None:
        """Give back the working memory that a part kept for its next run, if it did."""

    def close(self) -> None:
        """Forget all loaded graphs; they are loaded again when used again."""


class Backend(Protocol):
    """Encodes and decodes padded images: what :class:`~mgvq_export.runtime.tokenizer.Tokenizer` works with.

    Sides of images are multiples of f. Plans and results are those of images one by one, whatever runs together.
    """

    @property
    def name(self) -> str:
        """The backend's name, a key of :data:`BACKENDS`."""

    @property
    def precision(self) -> str:
        """What its graphs compute with, such as ``fp32``."""

    @property
    def graphs(self) -> GraphRunner | None:
        """Runs single graphs, on float arrays of any size; None where only whole images run."""

    def plan_encode(self, size: Size) -> TrunkPlan:
        """How an image of ``size`` is encoded. Raises :class:`InputError` when it cannot be under the memory limit."""

    def plan_decode(self, size: Size) -> TrunkPlan:
        """How an image of ``size`` is decoded. Raises as :meth:`plan_encode`."""

    def encode(self, image: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """uint8 [H, W, 3] -> codes int32 [G, H/f, W/f]."""

    def decode(self, codes: Array, groups: int, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """Codes [G, h, w] -> uint8 [h*f, w*f, 3], from the first ``groups`` groups."""

    def encode_batch(self, images: Sequence[Array], progress: Progress = silent) -> list[Array]:
        """:meth:`encode` of images of one size, as many together as pays and the memory limit allows."""

    def decode_batch(self, codes: Sequence[Array], groups: int, progress: Progress = silent) -> list[Array]:
        """:meth:`decode` of codes of one size, as many together as pays and the memory limit allows."""

    def latent(self, image: Array, plan: TrunkPlan, progress: Progress = silent) -> Array:
        """uint8 [H, W, 3] -> latent [1, G*d, H/f, W/f] in the graphs' float type."""

    def latent_batch(self, images: Sequence[Array]) -> list[Array]:
        """:meth:`latent` of images of one size, [G*d, H/f, W/f] each, run together as by :meth:`encode_batch`."""

    def with_tiling(self, tiling: Tiling) -> Backend:
        """The same loaded graphs under another request for tiling."""

    def close(self) -> None:
        """Drop the loaded graphs and their memory."""


@dataclass(frozen=True)
class RunOptions:
    """What the user chose beside the backend's name.

    Attributes:
        precision: of the bundle's, or one that a backend makes of them (:attr:`Entry.precisions`); the backend's choice when None.
        threads: CPU threads of one run; all that this process may use when None.
        tiling: mode, tile and memory limit.
        tensorrt: how engines run.
        allow_host_code: run engines that contain code for the host.
        instrument: wraps the :class:`GraphRunner` before it is used, to time or record its runs; whole-image backends have none.
    """

    precision: str | None = None
    threads: int | None = None
    tiling: Tiling = field(default_factory=Tiling)
    tensorrt: TensorRtOptions | None = None
    allow_host_code: bool = False
    instrument: Callable[[GraphRunner], GraphRunner] | None = None


@dataclass(frozen=True)
class Entry:
    """One line of :data:`BACKENDS`.

    Attributes:
        module: has ``open_backend(name, bundle, options, *, required) -> Backend | None``. When the backend cannot run here, it
            raises :class:`BackendError` with the remedy if ``required``, else returns None.
        precisions: name -> the bundle's graphs it runs, for precisions that the backend makes at run time.
        on_host: whether it computes on the CPU, in the host's memory.
    """

    module: str
    precisions: Mapping[str, str] = field(default_factory=dict)
    on_host: bool = False


#: From the one that runs everywhere to the fastest: ``auto`` takes the last that can run.
BACKENDS: dict[str, Entry] = {
    "ort-cpu": Entry("mgvq_export.runtime.ort.backend", on_host=True),
    "openvino": Entry("mgvq_export.runtime.openvino.backend", {"bf16": "fp32", "bf16-all": "fp32"}, on_host=True),
    "ort-cuda": Entry("mgvq_export.runtime.ort.backend"),
    "tensorrt-rtx": Entry("mgvq_export.runtime.tensorrt.backend"),
    "tensorrt": Entry("mgvq_export.runtime.tensorrt.backend"),
}
AUTO = "auto"
ON_HOST = tuple(name for name, entry in BACKENDS.items() if entry.on_host)
CHOICES = (AUTO, *BACKENDS)


def open_backend(name: str, bundle: Bundle, options: RunOptions) -> Backend:
    """The backend called ``name`` over ``bundle``; for ``auto`` the fastest that can run here.

    Raises:
        BundleError: the bundle lacks the precision.
        BackendError: the backend is unknown, not installed, did not load, or cannot run the precision.
    """
    if name not in CHOICES:
        raise BackendError(f"no backend {name!r}; choose {', '.join(CHOICES)}")
    precision = options.precision
    able = [key for key, entry in BACKENDS.items() if precision in entry.precisions]
    if precision is not None and not able:
        bundle.graph(precision, Part.QUANTIZER)  # names the precisions it has when this one is missing
    if able and name not in (AUTO, *able):
        raise BackendError(f"precision {precision} does not run on {name}; choose --backend {' or '.join(able)}, or fp32")
    order = [name] if name != AUTO else [key for key in reversed(BACKENDS) if not able or key in able]
    for key in order:
        module = importlib.import_module(BACKENDS[key].module)
        required = key == order[-1]
        found = cast("Backend | None", module.open_backend(key, bundle, options, required=required))
        if found is not None:
            return found
    raise BackendError(f"no backend can run {bundle.path}; run mgvq-export doctor")  # unreachable: the last one raises its reason
