"""What a source is: a folder of images, a list of them, webdataset tars, or Parquet files with a column of images."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mgvq_export.core.errors import InputError, shown
from mgvq_export.dataset import storage
from mgvq_export.evaluation.datasets import SUFFIXES as IMAGE_SUFFIXES

Kind = Literal["folder", "list", "webdataset", "parquet"]

_LISTS = (".json", ".jsonl", ".ndjson", ".txt", ".lst")
_HOLDS: dict[Kind, tuple[str, ...]] = {"folder": IMAGE_SUFFIXES, "webdataset": (".tar",), "parquet": (".parquet",)}
_WANTED = "wanted a folder of images, a .txt, .json or .jsonl list of them, .tar files (webdataset) or .parquet files"


@dataclass(frozen=True)
class Fields:
    """Which columns of a Parquet file, keys of a list's objects, or members of a tar hold what; None to look under the usual names.

    Attributes:
        image: the image: bytes, or the ``datasets`` library's struct of bytes and path; in a list its path.
        key: the image's unique name.
        label: its class, text or a whole number.
        keep: further columns that are carried into the result.
    """

    image: str | None = None
    key: str | None = None
    label: str | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A source of images.

    Attributes:
        place: the path, address or pattern given.
        kind: what it is.
        files: (address or path, bytes) of the image, list, tar or Parquet files, sorted by name.
        root: the folder that names are relative to.
    """

    place: str
    kind: Kind
    files: tuple[tuple[str, int], ...]
    root: str

    @property
    def fingerprint(self) -> str:
        """Hash of the files' names and sizes; for a list, of its content. A source that has changed has another."""
        if self.kind == "list":
            return hashlib.sha256(storage.read_bytes(self.files[0][0])).hexdigest()
        names = ((place.removeprefix(self.root), size) for place, size in self.files)
        return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()


def find_source(place: str, root: str | None = None) -> Source:
    """What ``place`` is: a path of this machine, an address such as ``s3://bucket/folder``, or a pattern of either.

    ``root``: the folder that the paths in a list are relative to; that of the list when None. Raises :class:`InputError` when there is
    nothing there, or files of several kinds.
    """
    given, place = place, storage.absolute(place)  # workers, and later runs, may have another working folder
    root = None if root is None else storage.absolute(root)
    if not storage.is_remote(place) and not storage.is_pattern(place):
        check_text(given, "the source")
    if storage.is_pattern(place):
        names = storage.expand(place)
        if not names:
            raise InputError(f"no file fits {shown(place, 200)}; {_WANTED}")
        return _of_files(place, names, root)
    if not storage.is_folder(place):
        return _of_files(place, [place], root)
    if root is not None:
        raise InputError(f"{place} is a folder; --root is for the paths of a list: leave it out")
    found = storage.list_files(place, [suffix for suffixes in _HOLDS.values() for suffix in suffixes])
    kinds = {kind for kind, suffixes in _HOLDS.items() if any(name.lower().endswith(suffixes) for name, _ in found)}
    if len(kinds) > 1:
        patterns = " or ".join(f"{place}/*{_HOLDS[kind][0]}" for kind in sorted(kinds))
        raise InputError(f"{place} holds files of several kinds ({', '.join(sorted(kinds))}); give a pattern, {patterns}")
    if not kinds:
        raise InputError(f"no images in {shown(place, 200, quoted=False)}, in it or its sub-folders; {_WANTED}")
    for name, _ in found:
        check_text(name, "the file name")
    return Source(place, kinds.pop(), tuple((storage.join(place, name), size) for name, size in found), place)


def _of_files(place: str, names: Sequence[str], root: str | None) -> Source:
    suffixes = {posixpath.splitext(name.partition("?")[0])[1].lower() for name in names}
    kinds = {kind for suffix in suffixes for kind in _kinds(suffix)}
    if len(suffixes) > 1 and len(kinds) != 1:
        raise InputError(f"{shown(place, 200)} names files of several kinds ({', '.join(sorted(suffixes))}); give one kind")
    if len(kinds) != 1:
        raise InputError(f"{shown(place, 200)} has the suffix {shown(suffixes.pop())}; {_WANTED}")
    kind = kinds.pop()
    if kind == "list" and len(names) > 1:
        raise InputError(f"{shown(place, 200)} names {len(names)} lists; give one")
    if root is not None and kind != "list":
        raise InputError("--root is for the paths of a list; leave it out")
    sizes = [_size(name) for name in names]
    return Source(place, kind, tuple(zip(names, sizes, strict=True)), root or storage.parent(names[0]))


def _kinds(suffix: str) -> Iterable[Kind]:
    if suffix in _LISTS:
        return ("list",)
    return [kind for kind, suffixes in _HOLDS.items() if suffix in suffixes]


def _size(place: str) -> int:
    with storage.open_file(place) as file:
        return int(file.size())


def check_text(text: str, what: str) -> str:
    """``text`` itself. Raises :class:`InputError` when it is no valid Unicode, as the names of files may be, or holds a NUL."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{what} {shown(text, 200)} is no valid Unicode; rename it") from None
    if not text or "\0" in text:
        raise InputError(f"{what} is {shown(text, 200)}; wanted text that is not empty")
    return text
