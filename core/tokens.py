"""Tokens: the codes of one image, with what is needed to decode them, and the files they are kept in."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgvq_export.core.errors import InputError, TokensError
from mgvq_export.core.files import PathLike, atomic_write_bytes, unreadable
from mgvq_export.core.spec import MAX_CODES_PER_GROUP, MAX_GROUPS, ModelSpec

FORMAT = "mgvq-tokens"
VERSION = 1
SUFFIXES = (".safetensors", ".npz", ".npy")

_MAX_METADATA_BYTES = 64 * 1024
_KEYS = {
    *("format", "version", "encoding", "checksum"),
    *("model", "codebook_sha256", "height", "width", "groups", "codes_per_group", "downsample"),
}


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

    codes: np.ndarray
    image_size: tuple[int, int]
    model: str
    codebook_sha256: str
    codes_per_group: int
    downsample: int

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise TokensError(f"model of the tokens is {self.model!r}; wanted a non-empty name")
        if not isinstance(self.codebook_sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.codebook_sha256):
            raise TokensError(
                f"codebook_sha256 of the tokens is {self.codebook_sha256!r}; wanted 64 lower-case hexadecimal digits"
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
        wanted = _grid(self.image_size, self.downsample)
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
        return _code_bits(self.codes_per_group)

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

    def _identity(self) -> tuple[Any, ...]:
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
        suffix = _known_suffix(path)
        if packed and suffix != ".safetensors":
            raise InputError(f"cannot write {path}: packed codes need a .safetensors file; change the name or leave packed out")
        codes = self.codes.astype("<u2", copy=False)
        file = io.BytesIO()
        if suffix == ".npy":
            np.save(file, codes, allow_pickle=False)
        elif suffix == ".npz":
            described = json.dumps(self._metadata("uint16", codes))
            np.savez(file, codes=codes, metadata=np.array(described))
        else:
            name, stored = ("codes_packed", pack_codes(codes, self.code_bits)) if packed else ("codes", codes)
            file.write(_safetensors(name, stored, self._metadata("packed" if packed else "uint16", stored)))
        atomic_write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path: PathLike) -> Tokens:
        """The tokens in the ``.safetensors`` or ``.npz`` file that :meth:`save` wrote.

        Raises :class:`TokensError` when the file is damaged in any byte that matters, is no token file or has a newer
        version; :class:`InputError` when it cannot be read or has another suffix. Memory follows the size of the file,
        never what its header claims.
        """
        suffix = _known_suffix(path)
        if suffix == ".npy":
            raise InputError(f"cannot load {path}: .npy holds bare codes without their model; load the .safetensors or .npz file")
        try:
            with Path(path).open("rb"):
                pass  # whatever goes wrong after this is the content's fault
            metadata, stored = _read_npz(path) if suffix == ".npz" else _read_safetensors(path)
            if metadata["encoding"] == "packed":
                stored = unpack_codes(stored, _code_bits(int(metadata["codes_per_group"])), _codes_shape(metadata))
            return cls(
                stored,
                (int(metadata["height"]), int(metadata["width"])),
                metadata["model"],
                metadata["codebook_sha256"],
                int(metadata["codes_per_group"]),
                int(metadata["downsample"]),
            )
        except OSError as error:
            raise unreadable(path, error) from error
        except TokensError as error:
            raise TokensError(f"{path}: {error}") from error

    def _metadata(self, encoding: str, stored: np.ndarray) -> dict[str, str]:
        values = {
            "format": FORMAT,
            "version": VERSION,
            "encoding": encoding,
            "model": self.model,
            "codebook_sha256": self.codebook_sha256,
            "height": self.image_size[0],
            "width": self.image_size[1],
            "groups": self.groups,
            "codes_per_group": self.codes_per_group,
            "downsample": self.downsample,
        }
        metadata = {key: str(value) for key, value in values.items()}
        return metadata | {"checksum": _checksum(metadata, stored)}


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """``codes`` (uint16, any shape, in C order) with ``bits`` bits each, lowest bit first: uint8 [ceil(n * bits / 8)]."""
    rows = np.unpackbits(np.ascontiguousarray(codes, "<u2").reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(rows[:, :bits], bitorder="little")


def unpack_codes(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The uint16 codes of that shape that :func:`pack_codes` packed."""
    count = int(np.prod(shape))
    rows = np.zeros((count, 16), np.uint8)
    rows[:, :bits] = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(rows, axis=1, bitorder="little").view("<u2").astype(np.uint16, copy=False).reshape(shape)


def _known_suffix(path: PathLike) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path} has the suffix {suffix!r}; token files are {', '.join(SUFFIXES)}")
    return suffix


def _whole(name: str, value: object, largest: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1 or (largest and value > largest):
        raise TokensError(
            f"{name} of the tokens is {value!r}; wanted a whole number of at least 1"
            + (f", at most {largest}" if largest else "")
        )
    return int(value)


def _grid(image_size: tuple[int, int], downsample: int) -> tuple[int, int]:
    return -(-image_size[0] // downsample), -(-image_size[1] // downsample)


def _code_bits(codes_per_group: int) -> int:
    return max(1, (codes_per_group - 1).bit_length())


def _checksum(metadata: dict[str, str], stored: np.ndarray) -> str:
    described = {key: value for key, value in metadata.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(stored, stored.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _check_metadata(metadata: object) -> dict[str, str]:
    """Refuse metadata that version 1 cannot have. The values are believed only after the checksum has been compared."""
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise TokensError(f"is no token file; wanted one with the format {FORMAT!r} in its metadata")
    version = metadata.get("version")
    if isinstance(version, str) and re.fullmatch(r"[0-9]{1,9}", version) and int(version) > VERSION:
        raise TokensError(f"token file of version {version}; this program reads version {VERSION}: upgrade mgvq-export")
    if version != str(VERSION):
        raise TokensError(f"token file is damaged: version is {version!r}; wanted {str(VERSION)!r}")
    if set(metadata) != _KEYS or not all(isinstance(value, str) for value in metadata.values()):
        raise TokensError(f"token file is damaged: metadata has {sorted(metadata)}; wanted {sorted(_KEYS)}")
    if metadata["encoding"] not in ("uint16", "packed"):
        raise TokensError(f"token file is damaged: encoding is {metadata['encoding']!r}; wanted 'uint16' or 'packed'")
    for key in ("height", "width", "groups", "codes_per_group", "downsample"):
        if not re.fullmatch(r"[1-9][0-9]{0,8}", metadata[key]):
            raise TokensError(f"token file is damaged: {key} is {metadata[key][:20]!r}; wanted a whole number of at least 1")
    return metadata


def _codes_shape(metadata: dict[str, str]) -> tuple[int, int, int]:
    return int(metadata["groups"]), *_grid((int(metadata["height"]), int(metadata["width"])), int(metadata["downsample"]))


def _stored_as(metadata: dict[str, str]) -> tuple[str, str, list[int]]:
    """Name, dtype (as safetensors calls it) and shape that the stored array must have."""
    shape = _codes_shape(metadata)
    if metadata["encoding"] == "uint16":
        return "codes", "U16", list(shape)
    bits = shape[0] * shape[1] * shape[2] * _code_bits(int(metadata["codes_per_group"]))
    return "codes_packed", "U8", [-(-bits // 8)]


def _check_stored(metadata: dict[str, str], found: tuple[str, str, list[int]]) -> None:
    wanted = _stored_as(metadata)
    if found != wanted:
        got, expected = (f"{name!r} {dtype} {shape}" for name, dtype, shape in (found, wanted))
        raise TokensError(f"token file is damaged: it holds {got}; its metadata needs {expected}")


def _check_checksum(metadata: dict[str, str], stored: np.ndarray) -> None:
    checksum = _checksum(metadata, stored)
    if checksum != metadata["checksum"]:
        raise TokensError(f"token file is damaged: its content has checksum {checksum[:12]}; wanted {metadata['checksum'][:12]}")


def _safetensors(name: str, stored: np.ndarray, metadata: dict[str, str]) -> bytes:
    # The library writes metadata in an order that changes from run to run; equal tokens shall be equal files.
    dtype = {"<u2": "U16", "|u1": "U8"}[stored.dtype.str]
    entry = {"dtype": dtype, "shape": list(stored.shape), "data_offsets": [0, stored.nbytes]}
    header = json.dumps({"__metadata__": metadata, name: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + stored.tobytes()


def _read_safetensors(path: PathLike) -> tuple[dict[str, str], np.ndarray]:
    from safetensors import SafetensorError, safe_open

    # safe_open checks the header against the size of the file before it gives out anything.
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = _check_metadata(file.metadata())
            names = list(file.keys())
            if len(names) != 1:
                raise TokensError(f"token file is damaged: it holds {len(names)} tensors; wanted one")
            view = file.get_slice(names[0])
            _check_stored(metadata, (names[0], view.get_dtype(), list(view.get_shape())))
            stored = file.get_tensor(names[0])
    except SafetensorError as error:
        raise TokensError(f"is no token file, or a damaged one: {error}") from error
    _check_checksum(metadata, stored)
    return metadata, stored


def _read_npz(path: PathLike) -> tuple[dict[str, str], np.ndarray]:
    data = Path(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if sorted(entries) != ["codes.npy", "metadata.npy"] or len(archive.infolist()) != 2:
                raise TokensError(f"is no token file: it holds {sorted(entries)[:4]}; wanted codes.npy and metadata.npy")
            for entry in entries.values():
                # Stored entries cannot be larger than the file that holds them; compressed ones could grow without bound.
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(data):
                    raise TokensError(f"{entry.filename} is compressed; wanted a file as Tokens.save writes it")
            if entries["metadata.npy"].file_size > _MAX_METADATA_BYTES:
                raise TokensError(f"token file is damaged: metadata of {entries['metadata.npy'].file_size} bytes")
            metadata = _check_metadata(json.loads(str(_npy(archive.read("metadata.npy"), "U"))))
            stored = _npy(archive.read("codes.npy"), "u")
    except (
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        OverflowError,
    ) as error:
        raise TokensError(f"is no token file, or a damaged one: {' '.join(str(error).split())}") from error
    _check_stored(metadata, ("codes", "U16" if stored.dtype == np.dtype("<u2") else str(stored.dtype), list(stored.shape)))
    _check_checksum(metadata, stored)
    return metadata, stored


def _npy(data: bytes, kind: str) -> np.ndarray:
    """The array in the bytes of a .npy file; ``numpy.load`` would believe the header and allocate what it claims."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"array format {version}; wanted (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    body = data[file.tell() :]
    count = 1
    for length in shape:
        count *= length
    if dtype.kind != kind or fortran or count < 0 or count * dtype.itemsize != len(body):
        raise ValueError(f"array of {dtype} {list(shape)} in {len(body)} bytes")
    return np.frombuffer(body, dtype).reshape(shape)
