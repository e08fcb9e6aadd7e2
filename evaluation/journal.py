"""The journal of an evaluation: one line per image, so that a run that was stopped at any point goes on where it was.

``journal.jsonl`` holds a line that says which run it belongs to, then one line per image; ``journal.bin`` holds the codes of every
image and, for rFID, its features. A line names its part of ``journal.bin`` with a checksum, and is written after it. Whatever
a kill or a power cut left half-written is found that way and the image evaluated again.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import lock_descriptor

from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike, make_folder

LINES, DATA = "journal.jsonl", "journal.bin"
FORMAT = "mgvq-eval-journal"


class Journal:
    """The records of one run, by the SHA-256 of the image file. A context manager.

    ``sha256 in journal`` and ``journal[sha256]`` (the values of its line) take a few hundred bytes of memory per image; codes and
    features stay on the disk.
    """

    def __init__(self, folder: PathLike, identity: dict[str, Any]):
        """Open or begin the journal in ``folder``.

        Raises :class:`InputError` when the folder holds another run, something else, or cannot be written.
        """
        self.folder, self.identity = Path(folder), identity
        self._records: dict[str, bytes] = {}  # lines as they are: a tenth of the memory of their values
        known = self.folder / LINES
        if not known.is_file() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no evaluation; choose another folder with -o")
        make_folder(self.folder)
        with contextlib.ExitStack() as stack:  # closes them again when this is no journal of ours
            try:
                self._lines = stack.enter_context(known.open("a+b"))
                self._data = stack.enter_context((self.folder / DATA).open("a+b"))
                self._lock()
                self._read()
            except OSError as error:
                raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another folder with -o") from error
            self._files = stack.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.close()

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._records

    def __getitem__(self, sha256: str) -> dict[str, Any]:
        return json.loads(self._records[sha256])

    def append(self, sha256: str, values: dict[str, Any], data: bytes) -> None:
        """Add the record of one image. Raises :class:`InputError` when the disk does not take it."""
        try:
            at = self._data.seek(0, os.SEEK_END)
            self._data.write(data)
            self._data.flush()
            record = _line({"sha256": sha256, **values, "data": [at, len(data), zlib.crc32(data)]})
            self._lines.write(record)
            self._lines.flush()
        except OSError as error:
            raise InputError(
                f"cannot write to {self.folder}: {error.strerror or error}; free some space and run again"
            ) from error
        self._records[sha256] = record

    def data(self, sha256: str) -> bytes:
        """The bytes that came with a record."""
        at, size, _ = self[sha256]["data"]
        self._data.seek(at)
        return self._data.read(size)

    def _lock(self) -> None:
        if not lock_descriptor(self._lines.fileno(), blocking=False):
            raise InputError(f"another evaluation is writing to {self.folder}; wait for it or choose another folder with -o")

    def _read(self) -> None:
        self._lines.seek(0)
        *lines, _ = self._lines.read().split(b"\n")  # the last is what a stopped run had written of a line
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                if number == 1:
                    self._check_identity(dict(values), begun=len(lines) > 1)
                elif self._is_whole(*values["data"]):
                    self._records[values["sha256"]] = line
            except (ValueError, TypeError, KeyError):
                raise InputError(f"{self.folder / LINES} is damaged at line {number}; choose another folder with -o") from None
        self._lines.truncate(sum(len(line) + 1 for line in lines) if len(lines) > 1 else 0)
        if len(lines) < 2:
            self._lines.write(_line({"format": FORMAT, **self.identity}))
            self._lines.flush()

    def _check_identity(self, found: dict[str, Any], begun: bool) -> None:
        wanted = json.loads(json.dumps({"format": FORMAT, **self.identity}))
        other = [key for key in wanted if found.get(key) != wanted[key]]
        # A run without a single image is nobody's: its folder may be taken.
        if other and (begun or "format" in other):
            differing = "; ".join(f"{key} {_short(found.get(key))} there, {_short(wanted[key])} now" for key in other)
            raise InputError(
                f"{self.folder} holds another run ({differing}); choose another folder with -o, or repeat its options"
            )

    def _is_whole(self, at: int, size: int, checksum: int) -> bool:
        self._data.seek(at)
        return zlib.crc32(self._data.read(size)) == checksum


def _line(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
