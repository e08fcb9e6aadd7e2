"""The journal of an evaluation: one line per image, so that a run can be stopped at any point and continued.

``journal.jsonl`` has a line with the identity of the run, then one line per image; ``journal.bin`` holds the codes of every
image and, for rFID, its features. A line has the position and checksum of its part of ``journal.bin``, and is written after it. So
parts that a kill or a power cut left incomplete are found, and their images evaluated again.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated

from filelock import lock_descriptor
from msgspec import Meta

from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.files import PathLike, make_folder
from mgvq_export.core.json_files import JsonSource, convert_json, parse_json

LINES, DATA = "journal.jsonl", "journal.bin"
FORMAT = "mgvq-eval-journal"


_LONGEST_LINE = 1 << 20  # bytes

Size = Annotated[int, Meta(ge=0, le=2**48)]
Error = Annotated[float, Meta(ge=0, le=255**2)]


@dataclass(frozen=True)
class Record:
    """The line of one image.

    Attributes:
        sha256: of its file.
        data: where its bytes are in ``journal.bin``: position, size, CRC-32.
        mse, ssim: for each number of groups; lpips: of all groups; empty or None where not measured.
        seconds: of encoding and decoding.
        source_size: width and height of the file.
        plan: how it was encoded and decoded, as text.
    """

    sha256: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[0-9a-f]*$")]
    data: tuple[Size, Size, Annotated[int, Meta(ge=0, lt=2**32)]]
    mse: list[Error]
    ssim: list[Annotated[float, Meta(ge=-1, le=1)]] | None = None
    lpips: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    seconds: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    source_size: tuple[Size, Size] = (0, 0)
    plan: tuple[Annotated[str, Meta(max_length=4000)], Annotated[str, Meta(max_length=4000)]] = ("", "")


class Journal:
    """The records of one run, by the SHA-256 of the image file. A context manager.

    ``sha256 in journal`` and ``journal[sha256]`` take a few hundred bytes of memory per image; codes and features stay on the disk.
    """

    def __init__(self, folder: PathLike, identity: Mapping[str, object], check: Callable[[Record], str] = lambda record: ""):
        """Open or begin the journal in ``folder``.

        ``check``: gives what is wrong with a record of an earlier run, empty for nothing.

        Raises :class:`InputError` when the folder holds another run, something else, or cannot be written.
        """
        self.folder, self.identity, self._check = Path(folder), identity, check
        self._records: dict[str, bytes] = {}  # lines as stored: a tenth of the memory of parsed values
        known = self.folder / LINES
        if not known.is_file() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no evaluation; choose another folder with -o")
        make_folder(self.folder)
        with contextlib.ExitStack() as stack:  # closes the files again when this is no journal
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

    def __getitem__(self, sha256: str) -> Record:
        return self._parse(self._records[sha256])

    def append(self, sha256: str, values: Mapping[str, object], data: bytes) -> None:
        """Add the record of one image. Raises :class:`InputError` when it cannot be written."""
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
        at, size, _ = self[sha256].data
        self._data.seek(at)
        return self._data.read(size)

    def _lock(self) -> None:
        if not lock_descriptor(self._lines.fileno(), blocking=False):
            raise InputError(f"another evaluation is writing to {self.folder}; wait for it or choose another folder with -o")

    def _read(self) -> None:
        self._lines.seek(0)
        *lines, _ = self._lines.read().split(b"\n")  # the last is an incomplete line of a stopped run, or empty
        end = self._data.seek(0, os.SEEK_END)
        for number, line in enumerate(lines, 1):
            if number == 1:
                self._check_identity(line, begun=len(lines) > 1)
                continue
            record = self._parse(line, number)
            at, size, checksum = record.data
            if size <= max(end - at, 0) and self._is_whole(at, size, checksum):
                if problem := self._check(record):
                    self._source(number).fail(f"is damaged: {problem}")
                self._records[record.sha256] = line
        self._lines.truncate(sum(len(line) + 1 for line in lines) if len(lines) > 1 else 0)
        if len(lines) < 2:
            self._lines.write(_line({"format": FORMAT, **self.identity}))
            self._lines.flush()

    def _source(self, number: int | None = None) -> JsonSource:
        at = "" if number is None else f", line {number},"
        return JsonSource(f"{self.folder / LINES}{at}", "choose another folder with -o", max_bytes=_LONGEST_LINE)

    def _parse(self, line: bytes, number: int | None = None) -> Record:
        source = self._source(number)
        if len(line) > _LONGEST_LINE:
            source.fail(f"is longer than {_LONGEST_LINE:,} bytes")
        return convert_json(parse_json(line, source), Record, source)

    def _check_identity(self, line: bytes, begun: bool) -> None:
        source = self._source(1)
        found = parse_json(line[:_LONGEST_LINE], source)
        if not isinstance(found, dict):
            source.fail("is no JSON object")
        wanted = json.loads(json.dumps({"format": FORMAT, **self.identity}))
        other = [key for key in wanted if found.get(key) != wanted[key]]
        # An empty journal may be reused: no record depends on its identity.
        if other and (begun or "format" in other):
            differing = "; ".join(f"{key} {_short(found.get(key))} there, {_short(wanted[key])} now" for key in other)
            raise InputError(
                f"{self.folder} holds another run ({differing}); choose another folder with -o, or repeat its options"
            )

    def _is_whole(self, at: int, size: int, checksum: int) -> bool:
        self._data.seek(at)
        return zlib.crc32(self._data.read(size)) == checksum


def _line(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)[:100]
    return shown(text, 40, quoted=False) if len(text) <= 40 else f"{shown(text[:12], quoted=False)}..."
