"""Files on this machine, and on any file system that pyarrow or fsspec knows by an address such as ``s3://bucket/folder``."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.json_files import read_bounded
from mgvq_export.core.types import Untyped
from mgvq_export.evaluation.datasets import walk

MAX_FILE_BYTES = 2 << 30  # of one encoded image

_PATTERN = "*?["


def is_remote(place: str) -> bool:
    """Whether ``place`` is an address, not a path of this machine."""
    return "://" in place


@lru_cache(maxsize=64)
def _file_system(root: str) -> Untyped:
    """The file system of ``scheme://authority?query``: pyarrow's own, or fsspec's."""
    import pyarrow.fs as fs

    try:
        return fs.FileSystem.from_uri(root)[0]
    except (ValueError, NotImplementedError, OSError) as native:
        try:
            import fsspec

            return fs.PyFileSystem(fs.FSSpecHandler(fsspec.core.url_to_fs(root)[0]))
        except (ValueError, ImportError, OSError) as error:
            raise InputError(f"cannot open {shown(root)}: {_reason(error)}; {_reason(native)}") from error


def locate(place: str) -> tuple[Untyped, str]:
    """The pyarrow file system of an address, and the path there. Raises :class:`InputError` for an unknown kind of address.

    Options of the file system follow a question mark, as pyarrow has them: ``s3://bucket/folder?endpoint_override=host:9000&scheme=http``.
    """
    address, _, query = place.partition("?")
    scheme, _, path = address.partition("://")
    bucket = path.partition("/")[0]
    return _file_system(
        f"{scheme}://{bucket}{'?' + query if query else ''}"
    ), path if scheme != "file" else f"/{path.lstrip('/')}"


def absolute(place: str) -> str:
    """A path from the root on; an address stays itself."""
    return place if is_remote(place) else str(Path(place).absolute())


def join(place: str, name: str) -> str:
    """The address or path of ``name``, relative to the folder ``place``; an address or absolute path stays itself."""
    if is_remote(name) or name.startswith("/"):
        return name
    if not is_remote(place):
        return str(Path(place) / name)
    address, mark, query = place.partition("?")
    return f"{address.rstrip('/')}/{name}{mark}{query}"


def parent(place: str) -> str:
    """The folder that a file lies in."""
    if not is_remote(place):
        return str(Path(place).parent)
    address, mark, query = place.partition("?")
    return f"{posixpath.dirname(address)}{mark}{query}"


def read_bytes(place: str, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file. Raises :class:`InputError` when it cannot be read, is no regular file or is too large."""
    if not is_remote(place):
        return read_bounded(place, max_bytes)
    with open_file(place) as file:
        if file.size() > max_bytes:
            raise InputError(f"cannot read {shown(place, 400, quoted=False)}: it is larger than {max_bytes:,} bytes")
        return bytes(file.read())


def open_file(place: str) -> Untyped:
    """A pyarrow file to read from at any place. Raises :class:`InputError`."""
    import pyarrow.fs as fs

    system, path = locate(place) if is_remote(place) else (fs.LocalFileSystem(), str(Path(place).absolute()))
    try:
        if system.get_file_info(path).type != fs.FileType.File:  # opening a pipe would wait for ever
            raise InputError(f"cannot read {shown(place, 400, quoted=False)}: no such file")
        return system.open_input_file(path)
    except OSError as error:
        raise InputError(f"cannot read {shown(place, 400, quoted=False)}: {_reason(error)}") from error


def is_folder(place: str) -> bool:
    """Whether ``place`` is a folder. Raises :class:`InputError` when it does not exist or cannot be asked for."""
    if not is_remote(place):
        if not Path(place).exists():
            raise InputError(f"the source {place} does not exist; give a folder, a list, tar or Parquet files")
        return Path(place).is_dir()
    import pyarrow.fs as fs

    system, path = locate(place)
    try:
        kind = system.get_file_info(path.rstrip("/")).type
    except OSError as error:
        raise InputError(f"cannot read {shown(place, 400, quoted=False)}: {_reason(error)}") from error
    if kind == fs.FileType.NotFound:
        raise InputError(f"the source {shown(place, 400, quoted=False)} does not exist")
    return kind == fs.FileType.Directory


def list_files(place: str, suffixes: Sequence[str]) -> list[tuple[str, int]]:
    """(name inside ``place``, bytes) of the files in a folder and its sub-folders whose names end so; sorted, hidden ones left out."""
    if not is_remote(place):
        root = Path(place)
        return sorted(
            (path.relative_to(root).as_posix(), path.stat().st_size) for path in walk(root, tuple(suffixes)) if path.is_file()
        )
    import pyarrow.fs as fs

    system, path = locate(place)
    base = path.rstrip("/")
    try:
        found = system.get_file_info(fs.FileSelector(base, recursive=True))
    except OSError as error:
        raise InputError(f"cannot read {shown(place, 400, quoted=False)}: {_reason(error)}") from error
    start = len(base.lstrip("/"))  # fsspec's paths may begin with a slash where ours do not
    names = [(info.path.lstrip("/")[start:].lstrip("/"), info.size) for info in found if info.type == fs.FileType.File]
    wanted = tuple(suffixes)
    return sorted((name, size) for name, size in names if name.lower().endswith(wanted) and "/." not in f"/{name}")


def expand(pattern: str) -> list[str]:
    """The files that a pattern names: ``{000..099}`` as webdataset has it, ``*`` and ``?`` in the last part of the path."""
    if "{" in pattern:
        from braceexpand import braceexpand

        try:
            return [file for one in braceexpand(pattern) for file in expand(one)]
        except ValueError as error:  # unbalanced braces
            raise InputError(f"cannot read the pattern {shown(pattern)}: {_reason(error)}") from error
    address, mark, query = pattern.partition("?") if is_remote(pattern) else (pattern, "", "")
    last = posixpath.basename(address)
    if not any(sign in last for sign in _PATTERN):
        return [pattern]
    folder = f"{posixpath.dirname(address) or '.'}{mark}{query}"
    suffix = posixpath.splitext(last)[1].lower()
    if not is_folder(folder):
        raise InputError(f"{shown(folder)} is no folder")
    names = [name for name, _ in list_files(folder, (suffix if not any(s in suffix for s in _PATTERN) else "",))]
    return [join(folder, name) for name in names if fnmatch.fnmatchcase(name, last) and "/" not in name]


def is_pattern(place: str) -> bool:
    """Whether ``place`` names files by a pattern."""
    address = place.partition("?")[0] if is_remote(place) else place
    return any(sign in address for sign in "{*[") or (not is_remote(place) and "?" in place)


def _reason(error: BaseException) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__, 300, quoted=False)
