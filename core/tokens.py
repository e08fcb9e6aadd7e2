"""Tokens: the codes of one image, with what is needed to decode them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from mgvq_export.core.errors import InputError, TokensError, shown
from mgvq_export.core.files import PathLike
from mgvq_export.core.spec import MAX_CODES_PER_GROUP, MAX_GROUPS, ModelSpec
from mgvq_export.core.token_files import Codes, TokenDescription, code_bits, grid_of, read_tokens, write_tokens

if TYPE_CHECKING:
    from mgvq_export.core.bundle import Bundle

#: Order of the dimensions of plain codes: groups, rows and columns.
Layout = Literal["ghw", "hwg"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """The codes of one image. Immutable, and checked at construction: contradictions raise :class:`TokensError`.

    Attributes:
        codes: uint16 [G, h, w], each 0 to ``codes_per_group - 1``; a read-only copy of what was given.
        image_size: (height, width) of the image in pixels; h and w are that divided by ``downsample``, rounded up.
        model: name of the model that made the codes, e.g. ``mgvq-f16c32-g8``.
        codebook_sha256: hash of that model's codebook, 64 lower-case hexadecimal digits.
        codes_per_group: K.
        downsample: image pixels per cell of the code map, along each axis (f).
    """

    codes: Codes
    image_size: tuple[int, int]
    model: str
    codebook_sha256: str
    codes_per_group: int
    downsample: int

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise TokensError(f"model of the tokens is {shown(self.model)}; wanted a non-empty name")
        if not isinstance(self.codebook_sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.codebook_sha256):
            raise TokensError(
                f"codebook_sha256 of the tokens is {shown(self.codebook_sha256)}; wanted 64 lower-case hexadecimal digits"
            )
        object.__setattr__(self, "codes_per_group", _whole("codes_per_group", self.codes_per_group, MAX_CODES_PER_GROUP))
        object.__setattr__(self, "downsample", _whole("downsample", self.downsample))
        if not isinstance(self.image_size, (tuple, list)) or len(self.image_size) != 2:
            raise TokensError(f"image_size of the tokens is {self.image_size!r}; wanted (height, width)")
        height, width = (
            _whole(name, value) for name, value in zip(("image height", "image width"), self.image_size, strict=True)
        )
        object.__setattr__(self, "image_size", (height, width))
        self._check_codes()
        codes = self.codes.copy(order="C")
        codes.flags.writeable = False
        object.__setattr__(self, "codes", codes)

    def _check_codes(self) -> None:
        codes = self.codes
        if not isinstance(codes, np.ndarray) or codes.dtype != np.uint16:
            got = codes.dtype if isinstance(codes, np.ndarray) else type(codes).__name__
            raise TokensError(f"codes are {got}; wanted a numpy array of uint16: use codes.astype(numpy.uint16)")
        if codes.ndim != 3 or not 1 <= codes.shape[0] <= MAX_GROUPS:
            raise TokensError(f"codes have shape {list(codes.shape)}; wanted [groups, h, w] with 1 to {MAX_GROUPS} groups")
        wanted = grid_of(self.image_size, self.downsample)
        if codes.shape[1:] != wanted:
            raise TokensError(
                f"codes are {codes.shape[1]}x{codes.shape[2]} per group; an image of {self.image_size[0]}x{self.image_size[1]} "
                f"at {self.downsample} pixels per code needs {wanted[0]}x{wanted[1]}"
            )
        largest = int(codes.max())
        if largest >= self.codes_per_group:
            raise TokensError(f"largest code is {largest}; {self.model} has codes 0 to {self.codes_per_group - 1}")

    @classmethod
    def from_spec(cls, spec: ModelSpec, codes: np.ndarray, image_size: tuple[int, int], codebook_sha256: str) -> Tokens:
        """Tokens that a model described by ``spec`` made.

        ``codes`` may have any integer type, [G, h, w]. Raises :class:`TokensError` when they contradict ``spec``.
        """
        codes = np.asarray(codes)
        if codes.dtype.kind not in "iu":
            raise TokensError(f"codes are {codes.dtype}; wanted whole numbers")
        if codes.ndim == 3 and codes.shape[0] != spec.groups:
            raise TokensError(f"codes have {codes.shape[0]} groups; {spec.name} has {spec.groups}")
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= spec.codes_per_group):
            raise TokensError(
                f"codes run from {codes.min()} to {codes.max()}; {spec.name} has codes 0 to {spec.codes_per_group - 1}"
            )
        return cls(codes.astype(np.uint16), image_size, spec.name, codebook_sha256, spec.codes_per_group, spec.downsample)

    @classmethod
    def from_codes(
        cls, bundle: Bundle | PathLike, codes: np.ndarray, size: tuple[int, int] | None = None, *, layout: Layout = "ghw"
    ) -> Tokens:
        """Tokens of codes from elsewhere, such as a generator, for the model of ``bundle``.

        Args:
            codes: any integer type, [G, h, w], or [h, w, G] with ``layout="hwg"``.
            size: (height, width) of the image in pixels; all that the codes cover when None.

        Raises :class:`TokensError` when they contradict the model or the size, :class:`BundleError` when there is no bundle.
        """
        from mgvq_export.core.bundle import Bundle

        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        if layout not in LAYOUTS:
            raise InputError(f"layout is {layout!r}; choose {', '.join(LAYOUTS)}")
        codes = np.asarray(codes)
        if codes.ndim != 3:
            raise TokensError(f"codes have shape {list(codes.shape)}; wanted three dimensions, {' or '.join(LAYOUTS)}")
        groups = bundle.spec.groups
        if layout == "hwg":
            codes = np.moveaxis(codes, 2, 0)
        if codes.shape[0] != groups:
            other = next(name for name in LAYOUTS if name != layout)
            fits = codes.shape[2 if layout == "ghw" else 1] == groups
            raise TokensError(
                f"codes have {codes.shape[0]} groups; {bundle.spec.name} has {groups}"
                + (f": choose the layout {other}" if fits else "")
            )
        f = bundle.spec.downsample
        return cls.from_spec(bundle.spec, codes, size or (codes.shape[1] * f, codes.shape[2] * f), bundle.codebook_sha256)

    @property
    def groups(self) -> int:
        """G: quantizer groups."""
        return int(self.codes.shape[0])

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w): cells of the code map."""
        return int(self.codes.shape[1]), int(self.codes.shape[2])

    @property
    def code_bits(self) -> int:
        """Bits that hold one code."""
        return code_bits(self.codes_per_group)

    def __repr__(self) -> str:
        size = f"{self.image_size[0]}x{self.image_size[1]}"
        shape = list(self.codes.shape)
        return f"Tokens(model={self.model!r}, image {size}, codes uint16 {shape}, codebook {self.codebook_sha256[:12]})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokens):
            return NotImplemented
        return self._identity() == other._identity() and np.array_equal(self.codes, other.codes)

    def __hash__(self) -> int:
        return hash((self._identity(), self.codes.tobytes()))

    def _identity(self) -> tuple[object, ...]:
        return self.model, self.codebook_sha256, self.image_size, self.codes_per_group, self.downsample

    def check_codebook(self, model: str, codebook_sha256: str) -> None:
        """Raise :class:`TokensError` unless these tokens were made with the codebook of that hash (of the model ``model``)."""
        if self.codebook_sha256 != codebook_sha256:
            raise TokensError(
                f"tokens belong to {self.model} with codebook {self.codebook_sha256[:12]}; this is {model} with codebook "
                f"{codebook_sha256[:12]}: decode them with the bundle that encoded them"
            )

    def check_model(self, spec: ModelSpec, codebook_sha256: str) -> None:
        """Raise :class:`TokensError` unless the model of ``spec``, with the codebook of that hash, can decode these tokens."""
        self.check_codebook(spec.name, codebook_sha256)
        for name, ours, wanted in (
            ("groups", self.groups, spec.groups),
            ("codes per group", self.codes_per_group, spec.codes_per_group),
            ("pixels per code", self.downsample, spec.downsample),
        ):
            if ours != wanted:
                raise TokensError(
                    f"tokens have {ours} {name}; {spec.name} has {wanted}: decode them with the bundle that encoded them"
                )

    def save(self, path: PathLike, packed: bool = False) -> None:
        """Write the tokens to ``path``, whole or not at all; the suffix chooses the format.

        ``.safetensors``: tensor ``codes`` uint16 [G, h, w]; or with ``packed`` tensor ``codes_packed`` uint8 [n], every code
        in :attr:`code_bits` bits, lowest bit first. ``.npz``: arrays ``codes`` and ``metadata`` (JSON). ``.npy``: the
        bare codes, for other programs; :meth:`load` does not read it. Raises :class:`InputError` when it cannot be written.
        """
        write_tokens(path, self.codes, self._description(), packed=packed)

    @classmethod
    def load(cls, path: PathLike) -> Tokens:
        """The tokens in the ``.safetensors`` or ``.npz`` file that :meth:`save` wrote.

        Raises :class:`TokensError` when the file is damaged in any byte that matters, is no token file or has a newer
        version; :class:`InputError` when it cannot be read or has another suffix. Memory follows the size of the file,
        never what its header claims.
        """
        codes, found = read_tokens(path)
        try:
            return cls(codes, found.image_size, found.model, found.codebook_sha256, found.codes_per_group, found.downsample)
        except TokensError as error:
            raise TokensError(f"{path}: {error}") from error

    def _description(self) -> TokenDescription:
        return TokenDescription(self.image_size, self.model, self.codebook_sha256, self.codes_per_group, self.downsample)

    def __reduce__(self) -> tuple[object, ...]:
        # Through the constructor: what comes out of a pickle or a copy is checked and read-only again.
        return Tokens, (self.codes, self.image_size, self.model, self.codebook_sha256, self.codes_per_group, self.downsample)


def _whole(name: str, value: object, largest: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1 or (largest and value > largest):
        raise TokensError(
            f"{name} of the tokens is {shown(value)}; wanted a whole number of at least 1"
            + (f", at most {largest}" if largest else "")
        )
    return int(value)
