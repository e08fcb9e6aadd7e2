"""Plain arrays of codes, as a generator writes them: ``.npy``, or the one array of an ``.npz``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from mgvq_export.core.errors import TokensError
from mgvq_export.core.files import PathLike, unreadable

SUFFIXES = (".npy", ".npz")

_LARGEST = 2**31  # bytes of codes in one file


def read_codes(path: PathLike) -> np.ndarray:
    """The integers of any shape in a ``.npy`` file, or in an ``.npz`` file with one array or one called ``codes``.

    Nothing is unpickled, and memory follows the size of the file. Raises :class:`TokensError` when there are none, :class:`InputError` when
    the file cannot be read.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npz":
            return _from_archive(path)
        with path.open("rb") as file:
            codes = np.load(file, mmap_mode=None, allow_pickle=False) if _honest(file, path.stat().st_size) else None
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise TokensError(f"{path} holds no plain codes: {' '.join(str(error).split())[:200]}") from error
    return _integers(path, codes)


def _from_archive(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if "codes" not in entries and len(entries) != 1:
            raise TokensError(f"{path} holds {len(entries)} arrays; wanted one, or one called codes")
        entry = entries.get("codes") or next(iter(entries.values()))
        if entry.file_size > _LARGEST:
            raise TokensError(f"{path} holds {entry.file_size} bytes; wanted at most {_LARGEST}")
        data = io.BytesIO(archive.read(entry))
    return _integers(path, np.load(data, allow_pickle=False) if _honest(data, len(data.getbuffer())) else None)


def _honest(file: io.BufferedReader | io.BytesIO, size: int) -> bool:
    """Whether the array that the header claims is as large as the file: ``numpy.load`` allocates what it claims."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    count = 1
    for length in shape:
        count *= length
    honest = count * dtype.itemsize == size - file.tell()
    file.seek(0)
    return honest


def _integers(path: Path, codes: np.ndarray | None) -> np.ndarray:
    if codes is None:
        raise TokensError(f"{path} is damaged: its header does not fit its size")
    if codes.dtype.kind not in "iu":
        raise TokensError(f"{path} holds {codes.dtype}; codes are whole numbers")
    return codes
