"""Writing files and folders whole or not at all, and hashing them.

Everything is written under a temporary name beside its target, or inside it when it is an existing folder, flushed to the disk, and
renamed at the end: a reader sees the old content or the new, never a part. An error of the operating system becomes an
:class:`InputError` of one line. A process that is killed leaves its ``.mgvq-*`` behind; the next one that writes there removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mgvq_export.core.errors import InputError

PathLike = str | os.PathLike[str]

_TEMPORARY = re.compile(r"\.mgvq-[0-9a-f]{12}(\..*)?", re.DOTALL)
_SETTLED_SECONDS = 0.5

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file would exceed the largest allowed size; raise the limit or choose another disk",
    errno.EACCES: "permission denied; change the permissions or choose another folder",
    errno.EPERM: "permission denied; change the permissions or choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """A temporary file beside ``path`` for the body to write; it takes the name ``path`` when the body ends without error.

    The temporary name has the suffix of ``path``. After any error the temporary file is gone and an old ``path`` is untouched.
    A link is followed, and an old file's permissions are kept. Raises :class:`InputError` when ``path`` cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".mgvq-{secrets.token_hex(6)}{target.suffix}")
    with _one_line(path, target, temporary), _removed_on_error(temporary):
        if target.is_dir():
            raise InputError(f"cannot write {path}: {_REASONS[errno.EISDIR]}")
        if target.exists() and not target.is_file():
            raise InputError(f"cannot write {path}: it is a device or pipe; give the name of a file")
        # os.open, not tempfile: the file gets the permissions that the user's umask gives to any new file.
        with _held(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)):
            _remove_leftovers(target.parent)
            if target.exists():
                shutil.copymode(target, temporary)
            yield temporary
            _flush(temporary)
            temporary.replace(target)
    _flush_folder(target.parent)


def atomic_write_bytes(path: PathLike, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all. Raises :class:`InputError` when that cannot be done."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_folder(path: PathLike, *, replace: bool = False, last: str = "manifest.json") -> Iterator[Path]:
    """A temporary folder for the body to fill; its content becomes that of ``path`` when the body ends without error.

    (1) No such folder: the temporary one is made beside ``path`` and takes its name. (2) An existing folder, which may be a mounted
    volume or the working folder: the temporary one is made inside it, and its content is moved up, the file ``last`` at the end;
    before that, old content, if ``replace``, moves into ``.mgvq-old-*`` there, the file ``last`` first, and is deleted when all is done.

    After any error the temporary folder is gone and old content is as it was; only a crash between two renames can leave it in
    ``.mgvq-old-*``, whole. A folder that is not empty is refused before the body runs, unless ``replace``.

    Raises :class:`InputError` when ``path`` is a file, a folder not to be replaced, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    inside = target.is_dir()
    temporary = (target / "x" if inside else target).with_name(f".mgvq-{secrets.token_hex(6)}")
    with _one_line(path, target, temporary), _removed_on_error(temporary):
        if target.exists() and not inside:
            raise InputError(f"cannot write folder {path}: a file has that name; choose another")
        _remove_leftovers(temporary.parent)
        if not replace:
            _refuse_full(path, target)
        temporary.mkdir()
        with _held(os.open(temporary, os.O_RDONLY)):
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                if entry.is_file():
                    _flush(entry)
            if not replace:
                _refuse_full(path, target, temporary)  # another process may have filled it meanwhile
            if target.is_dir():
                _fill(target, temporary, last)  # case 2
            else:
                temporary.replace(target)  # case 1
    _flush_folder(target.parent)


def make_folder(path: PathLike) -> None:
    """Make the folder ``path`` and those above it, if they are not there. Raises :class:`InputError` when that cannot be done."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}; choose another with -o") from error


def sha256_file(path: PathLike) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits. Raises :class:`InputError` when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def unreadable(path: PathLike, error: OSError) -> InputError:
    """The error to raise when the operating system refuses to read ``path``."""
    reasons = {
        errno.ENOENT: "no such file",
        errno.ENOTDIR: "no such file",
        errno.EISDIR: "it is a folder; give the name of a file",
        errno.EACCES: "permission denied; change its permissions",
    }
    return InputError(f"cannot read {path}: {reasons.get(error.errno or 0) or error.strerror or error}")


def _refuse_full(path: PathLike, target: Path, ours: Path | None = None) -> None:
    if target.is_dir() and any(entry != ours for entry in target.iterdir()):
        raise InputError(f"cannot write folder {path}: it exists and is not empty; choose another name or remove it first")


def _fill(target: Path, new: Path, last: str) -> None:
    """Move what is in ``new`` into ``target`` in place of what is there; put everything back when that fails."""
    aside = target / f".mgvq-old-{secrets.token_hex(6)}"
    old = sorted((entry for entry in target.iterdir() if entry != new), key=lambda entry: (entry.name != last, entry.name))
    fresh = sorted(new.iterdir(), key=lambda entry: (entry.name == last, entry.name))
    moved: list[tuple[Path, Path]] = []
    try:
        if old:
            aside.mkdir()
        for source, folder in ((entry, folder) for entries, folder in ((old, aside), (fresh, target)) for entry in entries):
            source.replace(folder / source.name)
            moved.append((source, folder / source.name))
    except BaseException:
        with contextlib.suppress(OSError):
            for source, place in reversed(moved):
                place.replace(source)
            if old:
                aside.rmdir()
        raise
    _flush_folder(target)
    # The new content is in place: leftovers of the old that cannot be deleted are no reason to report failure.
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def _held(handle: int) -> Iterator[None]:
    """Hold a lock on an open temporary file or folder while it is in use, and close it: without a lock it is a leftover."""
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the lock could be had; always, on systems and disks without locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


_swept: set[Path] = set()  # folders are looked through once a process: there may be very many files in one


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of processes that were killed. What cannot be removed stays."""
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError):
        now = time.time()
        for entry in list(folder.iterdir()):
            # Younger ones may be between being made and being locked.
            if _TEMPORARY.fullmatch(entry.name) and not entry.is_symlink() and now - entry.stat().st_ctime > _SETTLED_SECONDS:
                handle = os.open(entry, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
                try:
                    if _lock(handle):
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                finally:
                    os.close(handle)


@contextlib.contextmanager
def _one_line(path: PathLike, *ours: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is not None and not any(_is_within(named, place) for place in ours):
            raise  # the body failed on some other file: not ours to explain
        parent = Path(path).absolute().parent
        if error.errno == errno.ENOENT and not parent.exists():
            reason = f"there is no folder {parent}; create it first"
        elif error.errno == errno.ENOTDIR:
            reason = f"{parent} is no folder; choose another"
        else:
            reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise InputError(f"cannot write {path}: {reason}") from error


def _is_within(named: object, place: Path) -> bool:
    return isinstance(named, (str, os.PathLike)) and (Path(named) == place or place in Path(named).parents)


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # an interrupt from the keyboard leaves nothing behind either
        with contextlib.suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
        raise


def _flush(file: Path) -> None:
    # Without this a crash after the rename can leave an empty file under the final name.
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    # Makes the rename itself durable. Some systems cannot open a folder; the content is safe there all the same.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
