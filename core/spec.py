"""What an MGVQ network is: sizes as data, the six released variants, and the parts it is cut into.

Source: "Could VQ-VAE Beat VAE? A Generalizable Tokenizer with Multi-group Quantization"
(arXiv 2507.07997), released at github.com/MKJia/MGVQ.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mgvq_export.core.errors import InputError, SpecError, shown
from mgvq_export.core.json_files import JsonSource, check_plain, parse_json, read_bounded
from mgvq_export.core.types import JsonObject, Unchecked

HEAD_DIM = 32  # channels of one attention head
EXPANSION = 4  # hidden width of the gated convolution, per channel
MAX_GROUPS = 32
MAX_CODES_PER_GROUP = 65536  # codes are stored as uint16
# Far above any network that was trained: a spec decides how much is allocated, and may come from somebody else's file.
MAX_STAGES, MAX_DEPTH, MAX_WIDTH, MAX_NAME = 12, 1024, 65536, 200
_MAX_FILE_BYTES = 64 * 1024


class Part(str, enum.Enum):
    """The ONNX graphs of a bundle. The value is the graph's file stem.

    The runtime runs ``trunk`` (convolutions only, finite receptive field, may be tiled) and then ``head``
    (global attention, once on the whole map). ``encoder`` and ``decoder`` are both composed, for people who want
    one file. ``*_fine`` and ``*_coarse`` are the trunk cut once more at its inner resolution change.
    """

    ENCODER = "encoder"
    ENCODER_TRUNK = "encoder_trunk"
    ENCODER_TRUNK_FINE = "encoder_trunk_fine"
    ENCODER_TRUNK_COARSE = "encoder_trunk_coarse"
    ENCODER_HEAD = "encoder_head"
    QUANTIZER = "quantizer"
    DEQUANTIZER = "dequantizer"
    DECODER = "decoder"
    DECODER_HEAD = "decoder_head"
    DECODER_TRUNK = "decoder_trunk"
    DECODER_TRUNK_COARSE = "decoder_trunk_coarse"
    DECODER_TRUNK_FINE = "decoder_trunk_fine"

    def __str__(self) -> str:
        return self.value


#: The parts that may run in windows.
TRUNKS = tuple(part for part in Part if "_trunk" in part.value)

#: The value that enters each part of the network, and the one that leaves it.
NETWORK_VALUES: dict[Part, tuple[str, str]] = {
    Part.ENCODER: ("image", "latent"),
    Part.ENCODER_TRUNK: ("image", "features"),
    Part.ENCODER_TRUNK_FINE: ("image", "inner_features"),
    Part.ENCODER_TRUNK_COARSE: ("inner_features", "features"),
    Part.ENCODER_HEAD: ("features", "latent"),
    Part.DECODER: ("quantized", "image"),
    Part.DECODER_HEAD: ("quantized", "features"),
    Part.DECODER_TRUNK: ("features", "image"),
    Part.DECODER_TRUNK_COARSE: ("features", "inner_features"),
    Part.DECODER_TRUNK_FINE: ("inner_features", "image"),
}


@dataclass(frozen=True)
class ReceptiveField:
    """How far the inputs of one cell of a part lie from the cell: what exact tiling needs to know.

    A cell is the smallest block on which input and output line up: ``stride_in`` input pixels and ``stride_out``
    output pixels along each axis (encoder trunk 8 and 1, decoder trunk 1 and 8). The outputs of a cell depend on its
    own inputs, on ``before`` more above (left of) it and on ``after`` more below (right of) it, and on no others.
    """

    stride_in: int
    stride_out: int
    before: int
    after: int

    def __post_init__(self) -> None:
        for name, least in (("stride_in", 1), ("stride_out", 1), ("before", 0), ("after", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(f"reach: {name} is {shown(value)}; wanted a whole number of at least {least}")

    @property
    def halo(self) -> int:
        """Input pixels a window needs around what is kept from it, rounded up to whole cells."""
        return -(-max(self.before, self.after) // self.stride_in) * self.stride_in


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of one MGVQ network. Immutable; contradictions raise :class:`SpecError` at construction.

    Stage ``i`` works at 1 / 2**i of the image's resolution with ``widths[i]`` channels. Stage 0 may be empty
    (depth 0, as in all released variants); then the image projection itself halves the resolution.

    Attributes:
        name: what the model is called, e.g. ``mgvq-f16c32-g8``.
        widths: channels of each stage; for ``evit`` stages a multiple of 32 (one attention head).
        encoder_depths, decoder_depths: blocks of each stage.
        blocks: kind of each stage, ``res`` (convolutions) or ``evit`` (global linear attention); no ``res`` after ``evit``.
        groups: quantizer groups G, 1 to 32.
        codebook_size: rows over all groups, G * K.
        latent_channels: channels of the latent, G * d.
    """

    name: str
    widths: tuple[int, ...]
    encoder_depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    blocks: tuple[str, ...]
    groups: int
    codebook_size: int
    latent_channels: int = 32

    def __post_init__(self) -> None:
        for field in ("widths", "encoder_depths", "decoder_depths", "blocks"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        self._check_types()
        self._check_stages()
        self._check_quantizer()

    def _check_types(self) -> None:
        if not isinstance(self.name, str) or not self.name.isprintable() or not 1 <= len(self.name) <= MAX_NAME:
            raise SpecError(f"model name is {shown(self.name)}; wanted 1 to {MAX_NAME} printable characters")
        if len(self.widths) > MAX_STAGES:
            raise SpecError(f"{self.name}: {len(self.widths)} stages; wanted at most {MAX_STAGES}")
        numbers = {"groups": self.groups, "codebook_size": self.codebook_size, "latent_channels": self.latent_channels}
        numbers |= {f"widths[{i}]": width for i, width in enumerate(self.widths)}
        for name, value in numbers.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SpecError(f"{self.name}: {name} is {shown(value)}; wanted a whole number of at least 1")
            most = MAX_GROUPS * MAX_CODES_PER_GROUP if name == "codebook_size" else MAX_WIDTH
            if value > most:
                raise SpecError(f"{self.name}: {name} is {shown(value)}; wanted at most {most}")

    def _check_stages(self) -> None:
        stages = len(self.widths)
        if stages < 2:
            raise SpecError(f"{self.name}: {stages} stage(s); wanted at least 2, since stage 0 works on the image itself")
        for field in ("encoder_depths", "decoder_depths", "blocks"):
            if len(getattr(self, field)) != stages:
                raise SpecError(f"{self.name}: {len(getattr(self, field))} {field} for {stages} widths; wanted one per stage")
        if (self.encoder_depths[0] == 0) != (self.decoder_depths[0] == 0):
            raise SpecError(
                f"{self.name}: encoder depth of stage 0 is {self.encoder_depths[0]}, the decoder's {self.decoder_depths[0]}; "
                "wanted both zero or both positive"
            )
        for field in ("encoder_depths", "decoder_depths"):
            for stage, depth in enumerate(getattr(self, field)):
                if not isinstance(depth, int) or isinstance(depth, bool) or not (stage > 0) <= depth <= MAX_DEPTH:
                    raise SpecError(
                        f"{self.name}: {field}[{stage}] is {shown(depth)}; wanted {int(stage > 0)} to {MAX_DEPTH} blocks"
                    )
        for stage, kind in enumerate(self.blocks):
            if kind not in ("res", "evit"):
                raise SpecError(f"{self.name}: blocks[{stage}] is {shown(kind)}; choose res or evit")
            if kind == "res" and "evit" in self.blocks[:stage]:
                raise SpecError(
                    f"{self.name}: stage {stage} is res after an evit stage; wanted all res stages before all evit stages"
                )
            if kind == "evit" and self.widths[stage] % HEAD_DIM:
                raise SpecError(
                    f"{self.name}: width {self.widths[stage]} of evit stage {stage} is no multiple of the head size {HEAD_DIM}"
                )
        first = self.first_stage
        if first and self.widths[first] % 4:
            raise SpecError(
                f"{self.name}: width {self.widths[first]} of stage {first} is no multiple of 4 (pixel-unshuffle by 2)"
            )
        for fine, coarse in zip(self.widths[first:], self.widths[first + 1 :], strict=False):
            if coarse % 4 or (4 * fine) % coarse:
                raise SpecError(
                    f"{self.name}: stages of width {fine} and {coarse} cannot follow one another; wanted the coarser a "
                    f"multiple of 4 that divides 4 x {fine} = {4 * fine}"
                )
        if self.widths[-1] % self.latent_channels:
            raise SpecError(f"{self.name}: last width {self.widths[-1]} is no multiple of latent_channels {self.latent_channels}")

    def _check_quantizer(self) -> None:
        if self.groups > MAX_GROUPS:
            raise SpecError(f"{self.name}: {self.groups} groups; wanted 1 to {MAX_GROUPS}")
        if self.latent_channels % self.groups:
            raise SpecError(f"{self.name}: {self.latent_channels} latent channels cannot be split into {self.groups} groups")
        if self.codebook_size % self.groups:
            raise SpecError(f"{self.name}: codebook of {self.codebook_size} rows cannot be split into {self.groups} groups")
        if self.codes_per_group > MAX_CODES_PER_GROUP:
            raise SpecError(f"{self.name}: {self.codes_per_group} codes per group; wanted at most {MAX_CODES_PER_GROUP}")

    @property
    def first_stage(self) -> int:
        """Index of the first stage with blocks: 0, or 1 when stage 0 is empty."""
        return 0 if self.encoder_depths[0] else 1

    @property
    def head_stage(self) -> int:
        """Index of the stage where the head begins: the first ``evit`` stage, else the last stage."""
        return max(self.first_stage, self.blocks.index("evit") if "evit" in self.blocks else len(self.blocks) - 1)

    @property
    def downsample(self) -> int:
        """Image pixels per latent cell, along each axis (f)."""
        return 1 << (len(self.widths) - 1)

    @property
    def trunk_stride(self) -> int:
        """Image pixels per cell of the trunk's feature map, along each axis (8 for all released variants)."""
        return 1 << self.head_stage

    @property
    def trunk_channels(self) -> int:
        """Channels of the feature map between trunk and head."""
        return self.widths[self.head_stage]

    @property
    def inner_stage(self) -> int | None:
        """The stage before which the trunk can be cut once more, or None when the trunk has one resolution change."""
        return self.first_stage + 1 if self.head_stage > self.first_stage + 1 else None

    @property
    def codes_per_group(self) -> int:
        """K: codes are 0 to K - 1 in every group."""
        return self.codebook_size // self.groups

    @property
    def group_dim(self) -> int:
        """d: channels of one group."""
        return self.latent_channels // self.groups

    @property
    def code_bits(self) -> int:
        """Bits that hold one code."""
        return max(1, (self.codes_per_group - 1).bit_length())

    @property
    def bits_per_token(self) -> int:
        """Bits of one latent cell, all groups together."""
        return self.groups * self.code_bits

    @property
    def parts(self) -> tuple[Part, ...]:
        """The graphs of the network: all, or all but the inner cut of the trunk."""
        inner = {part for part, values in NETWORK_VALUES.items() if "inner_features" in values}
        return tuple(part for part in Part if self.inner_stage is not None or part not in inner)

    def to_dict(self) -> JsonObject:
        """The spec as JSON-ready values; :meth:`from_dict` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: object) -> ModelSpec:
        """The spec in ``values``. Raises :class:`SpecError` on unknown or missing keys and on contradictions."""
        known = cls.check_keys(values)
        for name in ("widths", "encoder_depths", "decoder_depths", "blocks"):
            if not isinstance(known[name], (list, tuple)):
                raise SpecError(f"model spec: {name} is {shown(known[name])}; wanted a list with one entry per stage")
        return cls(**known)

    @classmethod
    def check_keys(cls, values: object) -> Mapping[str, Unchecked]:
        """``values``, whose types are still to be checked. Raises :class:`SpecError` when ``values`` is no object with the keys of a spec."""
        if not isinstance(values, Mapping):
            raise SpecError(f"model spec is a {type(values).__name__}; wanted an object with the keys of ModelSpec")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = shown(", ".join(sorted(str(name) for name in set(values) - set(fields))), 200, quoted=False)
        missing = sorted(name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values)
        if unknown or missing:
            raise SpecError(
                f"model spec has unknown keys [{unknown}] and lacks {missing}; wanted exactly {', '.join(fields)} (latent_channels optional)"
            )
        return values

    @classmethod
    def from_file(cls, path: str | Path) -> ModelSpec:
        """The spec in a JSON or YAML file. Raises :class:`SpecError` when it cannot be read."""
        source = JsonSource(str(path), "give a spec as ModelSpec.to_dict has it", SpecError, max_bytes=_MAX_FILE_BYTES)
        try:
            data = read_bounded(path, source.max_bytes)
        except InputError as error:
            raise SpecError(str(error)) from error
        if Path(path).suffix.lower() not in (".yaml", ".yml"):
            return cls.from_dict(parse_json(data, source))
        import yaml  # rarely needed: keeps `import mgvq_export` light

        try:
            values = yaml.safe_load(data)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible dates
            source.fail(f"is no valid YAML: {shown(' '.join(str(error).split()), 200, quoted=False)}", error)
        check_plain(values, source)
        return cls.from_dict(values)


def stride(spec: ModelSpec, value: str) -> int:
    """Image pixels per pixel of a value's map, along each axis."""
    strides = {"image": 1, "inner_features": 1 << (spec.inner_stage or 0), "features": spec.trunk_stride}
    return strides.get(value, spec.downsample)


def _released(downsample: int, groups: int, mix: bool = False) -> ModelSpec:
    extra = {8: 0, 16: 1, 32: 2}[downsample]
    group_size = {4: 8192, 8: 2048}[groups]
    return ModelSpec(
        name=f"mgvq-f{downsample}c32-g{groups}" + ("-mix" if mix else ""),
        widths=(128, 256, 512, 512) + (1024,) * extra,
        encoder_depths=(0, 4, 8, 2) + (2,) * extra,
        decoder_depths=(0, 5, 10, 2) + (2,) * extra,
        blocks=("res", "res", "res", "evit") + ("evit",) * extra,
        groups=groups,
        codebook_size=groups * group_size,
    )


#: The six released variants by name. Their checkpoints are ``mkjia/MGVQ`` on the Hugging Face hub.
VARIANTS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _released(8, 4),
        _released(8, 8),
        _released(16, 4),
        _released(16, 8),
        _released(16, 4, mix=True),
        _released(32, 8, mix=True),
    )
}


def variant(name: str) -> ModelSpec:
    """The released variant called ``name``. Raises :class:`SpecError` that lists the known names."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise SpecError(f"no model {shown(name)}; choose {', '.join(VARIANTS)}") from None


def group_counts(groups: int) -> tuple[int, ...]:
    """How many of ``groups`` groups are worth showing, ascending: 1, 2, 4, ... and all."""
    return (*(2**n for n in range(groups.bit_length()) if 2**n < groups), groups)
