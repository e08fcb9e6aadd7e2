"""What is asked of the engine builder: one object carried whole, and the optimisation profiles that follow from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mgvq_export.core.errors import InputError
from mgvq_export.core.manifest import EngineOptions, Profile, TensorEntry
from mgvq_export.core.spec import TRUNKS, ModelSpec, Part, stride
from mgvq_export.core.units import Size
from mgvq_export.ops.trt_machine import TARGETS

#: Engines for untiled images, and for images in windows.
UNTILED_PARTS = (Part.ENCODER, Part.QUANTIZER, Part.DEQUANTIZER, Part.DECODER)
TILED_PARTS = (
    Part.ENCODER_TRUNK,
    Part.ENCODER_HEAD,
    Part.QUANTIZER,
    Part.DEQUANTIZER,
    Part.DECODER_HEAD,
    Part.DECODER_TRUNK,
)
BUILDER_LEVELS = range(6)  # tensorrt.IBuilderConfig.builder_optimization_level


@dataclass(frozen=True)
class BuildOptions:
    """Everything that decides what is built, except the bundle and the machine. Raises :class:`InputError` on contradictions.

    Attributes:
        precision: which graphs of the bundle.
        target: the library that is to run the engines: ``tensorrt``, or ``rtx`` for TensorRT for RTX.
        compute_capabilities: of the target ``rtx``: the only GPUs, such as ``8.6``, that the engines are to run on; empty: all that the
            library supports.
        parts: graphs to build; empty for the encoder, quantizer, dequantizer and decoder, or, with ``tile``, the trunks and
            heads in place of encoder and decoder.
        shapes: image sizes (height, width) in pixels, one profile each; sides are rounded up to whole latent cells, as the
            runtime pads images.
        tile: size in image pixels of the windows that the trunks run on, halo included; their only shape. The other parts
            still run over whole images and need ``shapes``.
        batch: largest batch, and the one kernels are chosen for; of windows when ``tile`` is given, else of images.
        builder_level: 0 (fastest build) to 5 (fastest engine).
        workspace: largest scratch memory of one layer in bytes; None for all of the GPU's.
        version_compatible: the engine also loads under later TensorRT versions, with its host code allowed.
        hardware_compatible: the engine also runs on other GPUs from Ampere on.
        detailed: keep every layer's details for the engine inspector.
    """

    precision: str = "fp16"
    parts: tuple[Part, ...] = ()
    shapes: tuple[Size, ...] = ()
    tile: Size | None = None
    batch: int = 1
    builder_level: int = 3
    workspace: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    detailed: bool = False
    target: str = "tensorrt"
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {str(part): part for part in Part}
        for part in self.parts:
            if str(part) not in known:
                raise InputError(f"no part {str(part)!r}; choose {', '.join(known)}")
        object.__setattr__(self, "parts", tuple(dict.fromkeys(known[str(part)] for part in self.parts)))
        object.__setattr__(self, "shapes", tuple(dict.fromkeys(tuple(shape) for shape in self.shapes)))
        for what, size in (*(("shape", shape) for shape in self.shapes), *([("tile", self.tile)] if self.tile else [])):
            if len(size) != 2 or not all(_is_count(side) for side in size):
                raise InputError(f"{what} is {size!r}; wanted height and width in pixels, both at least 1")
        if not _is_count(self.batch):
            raise InputError(f"batch is {self.batch!r}; wanted a whole number of at least 1")
        if self.builder_level not in BUILDER_LEVELS:
            raise InputError(f"builder level is {self.builder_level!r}; wanted 0 (fastest build) to 5 (fastest engine)")
        if self.workspace is not None and not _is_count(self.workspace):
            raise InputError(f"workspace is {self.workspace!r}; wanted bytes, at least 1")
        if not self.shapes and any(part not in TRUNKS or self.tile is None for part in self.wanted_parts):
            whole = (
                "the heads and the quantizer run once over the whole image" if self.tile else "engines are built for image sizes"
            )
            raise InputError(f"{whole}: give --size WxH, for example --size 2560x1440, once for each size")
        self._check_target()

    def _check_target(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"no target {self.target!r}; choose {', '.join(TARGETS)}")
        capabilities = sorted({_capability(each) for each in self.compute_capabilities}, key=lambda each: float(each))
        object.__setattr__(self, "compute_capabilities", tuple(capabilities))
        if self.target != "rtx":
            if capabilities:
                raise InputError(
                    "TensorRT builds for the GPU of this machine: --compute-capability is for --target rtx; leave it out, "
                    "or give --hardware-compatible for GPUs from Ampere on"
                )
            return
        if self.version_compatible:
            raise InputError(
                "TensorRT for RTX has no version-compatible engines: leave --version-compatible out, and build again for each version"
            )
        if self.hardware_compatible:
            raise InputError(
                "engines of TensorRT for RTX run on all GPUs it supports: leave --hardware-compatible out; --compute-capability "
                "narrows them"
            )

    @property
    def wanted_parts(self) -> tuple[Part, ...]:
        """The parts to build, in the order they run."""
        return self.parts or (TILED_PARTS if self.tile else UNTILED_PARTS)

    @property
    def builder(self) -> EngineOptions:
        """The options, as the manifest keeps them, that change an engine without changing its graph or shapes."""
        return EngineOptions(
            builder_level=self.builder_level,
            workspace_bytes=self.workspace,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
            detailed=self.detailed,
        )


def _capability(text: str) -> str:
    """``"86"`` or ``"8.6"`` -> ``"8.6"``. Raises :class:`InputError`."""
    match = re.fullmatch(r"(\d{1,2})\.?(\d)", text)
    if not match:
        raise InputError(f"compute capability is {text!r}; wanted a number such as 8.6 or 86")
    return f"{match[1]}.{match[2]}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def profiles(spec: ModelSpec, part: Part, inputs: Sequence[TensorEntry], options: BuildOptions) -> list[dict[str, Profile]]:
    """One profile per size the engine of ``part`` shall run: input name -> :class:`Profile`.

    Height and width are fixed in every profile, since kernels are chosen for one size; the batch goes from 1 to ``options.batch``.

    Args:
        inputs: the graph's inputs as the manifest describes them.

    Raises:
        InputError: a tile that is not whole cells of the trunk's feature map.
    """
    if options.tile is not None and part in TRUNKS:
        sizes: Sequence[Size] = [_whole_cells(options.tile, spec.trunk_stride)]
        batch = options.batch
    else:
        f = spec.downsample
        sizes = list(dict.fromkeys((-(-height // f) * f, -(-width // f) * f) for height, width in options.shapes))
        batch = 1 if options.tile is not None else options.batch
    found = []
    for size in sizes:
        shapes = {value.name: _shape(spec, value, size) for value in inputs}
        found.append({name: _profile(shape, batch) for name, shape in shapes.items() if None in shape})
    return found


def _whole_cells(tile: Size, cell: int) -> Size:
    for axis, side in zip(("height", "width"), tile, strict=True):
        if side % cell:
            raise InputError(
                f"tile {axis} is {side} px; wanted a multiple of {cell}, such as {max(1, round(side / cell)) * cell}"
            )
    return tile


def _shape(spec: ModelSpec, value: TensorEntry, size: Size) -> list[int | None]:
    """The shape of a graph's input for an image of ``size``; None for the batch."""
    height, width = (side // stride(spec, value.name) for side in size)
    sides = {"batch": None, "height": height, "width": width}
    return [dim if isinstance(dim, int) else sides[dim.rpartition("_")[2]] for dim in value.shape]


def _profile(shape: Sequence[int | None], batch: int) -> Profile:
    least = tuple(1 if dim is None else dim for dim in shape)
    most = tuple(batch if dim is None else dim for dim in shape)
    return Profile(least, most, most)
