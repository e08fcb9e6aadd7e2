"""The files that tokens are kept in: ``.safetensors`` and ``.npz``, both with a checksum, and bare ``.npy`` codes for other programs.

docs/token-file.md describes the format for programs that read it on their own.
"""

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

from mgvq_export.core.arrays import Array
from mgvq_export.core.errors import InputError, TokensError
from mgvq_export.core.files import PathLike, atomic_write_bytes, unreadable

FORMAT = "mgvq-tokens"
VERSION = 1
SUFFIXES = (".safetensors", ".npz", ".npy")

Codes = np.ndarray[Any, np.dtype[np.uint16]]
Stored = Array

_MAX_METADATA_BYTES = 64 * 1024
_KEYS = {
    *("format", "version", "encoding", "checksum"),
    *("model", "codebook_sha256", "height", "width", "groups", "codes_per_group", "downsample"),
}


@dataclass(frozen=True)
class TokenDescription:
    """What a token file says of its codes: the fields of :class:`~mgvq_export.core.tokens.Tokens` beside them."""

    image_size: tuple[int, int]
    model: str
    codebook_sha256: str
    codes_per_group: int
    downsample: int


def write_tokens(path: PathLike, codes: Codes, description: TokenDescription, *, packed: bool = False) -> None:
    """Write ``codes`` uint16 [G, h, w] to ``path``, whole or not at all; the suffix chooses the format.

    ``packed``: every code in as many bits as the largest needs, lowest bit first; for ``.safetensors`` only.
    Raises :class:`InputError` when it cannot be written.
    """
    suffix = _known_suffix(path)
    if packed and suffix != ".safetensors":
        raise InputError(f"cannot write {path}: packed codes need a .safetensors file; change the name or leave packed out")
    stored: Stored = codes.astype("<u2", copy=False)
    file = io.BytesIO()
    if suffix == ".npy":
        np.save(file, stored, allow_pickle=False)
    elif suffix == ".npz":
        described = json.dumps(_metadata("uint16", description, codes.shape[0], stored))
        np.savez(file, codes=stored, metadata=np.array(described))
    else:
        name = "codes_packed" if packed else "codes"
        stored = pack_codes(codes, code_bits(description.codes_per_group)) if packed else stored
        metadata = _metadata("packed" if packed else "uint16", description, codes.shape[0], stored)
        file.write(_safetensors(name, stored, metadata))
    atomic_write_bytes(path, file.getvalue())


def read_tokens(path: PathLike) -> tuple[Codes, TokenDescription]:
    """The codes uint16 [G, h, w] in a ``.safetensors`` or ``.npz`` file that :func:`write_tokens` wrote, and what it says of them.

    Raises :class:`TokensError` when the file is damaged in any byte that matters, is no token file or has a newer version;
    :class:`InputError` when it cannot be read or has another suffix. Memory follows the size of the file, never what its
    header claims.
    """
    suffix = _known_suffix(path)
    if suffix == ".npy":
        raise InputError(f"cannot load {path}: .npy holds bare codes without their model; load the .safetensors or .npz file")
    try:
        with Path(path).open("rb"):
            pass  # whatever goes wrong after this is the content's fault
        metadata, stored = _read_npz(path) if suffix == ".npz" else _read_safetensors(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except TokensError as error:
        raise TokensError(f"{path}: {error}") from error
    if metadata["encoding"] == "packed":
        stored = unpack_codes(stored, code_bits(int(metadata["codes_per_group"])), _codes_shape(metadata))
    size = (int(metadata["height"]), int(metadata["width"]))
    counts = (int(metadata["codes_per_group"]), int(metadata["downsample"]))
    return stored, TokenDescription(size, metadata["model"], metadata["codebook_sha256"], *counts)


def pack_codes(codes: Codes, bits: int) -> Stored:
    """``codes`` (uint16, any shape, in C order) with ``bits`` bits each, lowest bit first: uint8 [ceil(n * bits / 8)]."""
    rows = np.unpackbits(np.ascontiguousarray(codes, "<u2").reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(rows[:, :bits], bitorder="little")


def unpack_codes(packed: Stored, bits: int, shape: tuple[int, ...]) -> Stored:
    """The uint16 codes of that shape that :func:`pack_codes` packed."""
    count = int(np.prod(shape))
    rows = np.zeros((count, 16), np.uint8)
    rows[:, :bits] = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(rows, axis=1, bitorder="little").view("<u2").astype(np.uint16, copy=False).reshape(shape)


def grid_of(image_size: tuple[int, int], downsample: int) -> tuple[int, int]:
    """(h, w): cells of the code map of an image (height, width)."""
    return -(-image_size[0] // downsample), -(-image_size[1] // downsample)


def code_bits(codes_per_group: int) -> int:
    """Bits that hold one code, 0 to ``codes_per_group - 1``."""
    return max(1, (codes_per_group - 1).bit_length())


def _metadata(encoding: str, description: TokenDescription, groups: int, stored: Stored) -> dict[str, str]:
    values = {
        "format": FORMAT,
        "version": VERSION,
        "encoding": encoding,
        "model": description.model,
        "codebook_sha256": description.codebook_sha256,
        "height": description.image_size[0],
        "width": description.image_size[1],
        "groups": groups,
        "codes_per_group": description.codes_per_group,
        "downsample": description.downsample,
    }
    metadata = {key: str(value) for key, value in values.items()}
    return metadata | {"checksum": _checksum(metadata, stored)}


def _known_suffix(path: PathLike) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path} has the suffix {suffix!r}; token files are {', '.join(SUFFIXES)}")
    return suffix


def _checksum(metadata: dict[str, str], stored: Stored) -> str:
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
    return int(metadata["groups"]), *grid_of((int(metadata["height"]), int(metadata["width"])), int(metadata["downsample"]))


def _stored_as(metadata: dict[str, str]) -> tuple[str, str, list[int]]:
    """Name, dtype (as safetensors calls it) and shape that the stored array must have."""
    shape = _codes_shape(metadata)
    if metadata["encoding"] == "uint16":
        return "codes", "U16", list(shape)
    bits = shape[0] * shape[1] * shape[2] * code_bits(int(metadata["codes_per_group"]))
    return "codes_packed", "U8", [-(-bits // 8)]


def _check_stored(metadata: dict[str, str], found: tuple[str, str, list[int]]) -> None:
    wanted = _stored_as(metadata)
    if found != wanted:
        got, expected = (f"{name!r} {dtype} {shape}" for name, dtype, shape in (found, wanted))
        raise TokensError(f"token file is damaged: it holds {got}; its metadata needs {expected}")


def _check_checksum(metadata: dict[str, str], stored: Stored) -> None:
    checksum = _checksum(metadata, stored)
    if checksum != metadata["checksum"]:
        raise TokensError(f"token file is damaged: its content has checksum {checksum[:12]}; wanted {metadata['checksum'][:12]}")


def _safetensors(name: str, stored: Stored, metadata: dict[str, str]) -> bytes:
    # The library writes metadata in an order that changes from run to run; equal tokens shall be equal files.
    dtype = {"<u2": "U16", "|u1": "U8"}[stored.dtype.str]
    entry = {"dtype": dtype, "shape": list(stored.shape), "data_offsets": [0, stored.nbytes]}
    header = json.dumps({"__metadata__": metadata, name: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + stored.tobytes()


def _read_safetensors(path: PathLike) -> tuple[dict[str, str], Stored]:
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


def _read_npz(path: PathLike) -> tuple[dict[str, str], Stored]:
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


def _npy(data: bytes, kind: str) -> Stored:
    """The array in the bytes of a .npy file; ``numpy.load`` would allocate what the header claims, without checking it."""
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
