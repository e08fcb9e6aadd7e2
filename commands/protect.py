"""What a command must not write over: its own inputs, and files that this program did not write."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mgvq_export.core.errors import InputError

_HEAD_BYTES = 1 << 16  # a marker is looked for in the first of them

# What the program writes into its files says so: token files, plans and results in their format, pictures and pages by name.
_MARKERS = {
    ".json": re.compile(rb'"format":\s*"mgvq-|"report":\s*\{.*"bundle":|"created":.*"report":', re.DOTALL),
    ".png": re.compile(rb"tEXtSoftware\0mgvq-export"),
    ".svg": re.compile(rb"mgvq-export"),
    ".pdf": re.compile(rb"mgvq-export"),
    ".html": re.compile(rb'<meta name="generator" content="mgvq-export'),
    ".md": re.compile(rb"\A# Verification of "),
}


def check_targets(targets: Iterable[Path], *, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Raise :class:`InputError` when a target is one of ``inputs``, or exists, is not this program's, and ``force`` is not given.

    Also when the folder of a target cannot be written to: before the work, not after it.
    """
    targets = list(targets)
    taken = {identity: path for path in inputs if (identity := _identity(path))}
    for target in targets:
        if (identity := _identity(target)) and (source := taken.get(identity)) is not None:
            raise InputError(f"{target} would be written over the input {source}; choose another folder or name with -o")
    if not force:
        foreign = [target for target in targets if os.path.lexists(target) and not target.is_dir() and not written_here(target)]
        if foreign:
            more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
            raise InputError(
                f"{foreign[0]}{more} exists and was not written by mgvq-export; give --force to replace it, or another -o"
            )
    for folder in {target.absolute().parent for target in targets}:
        check_folder(folder)


def check_folder(folder: Path) -> None:
    """Raise :class:`InputError` unless ``folder`` may be written to, or made where it is not there yet."""
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"cannot make the folder {folder}: {place} is a file; choose another with -o")
    if not os.access(place, os.W_OK | os.X_OK):
        reason = "the disk is read-only" if os.statvfs(place).f_flag & os.ST_RDONLY else "permission denied"
        raise InputError(f"cannot write to the folder {place}: {reason}; change its permissions or choose another")


def written_here(path: Path) -> bool:
    """Whether the file at ``path`` says that this program wrote it."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    if path.suffix.lower() == ".safetensors":
        return _is_token_file(head)
    marker = _MARKERS.get(path.suffix.lower())
    return marker is not None and marker.search(head) is not None


def _is_token_file(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= len(head) - 8:
        return False
    try:
        header = json.loads(head[8 : 8 + length])
        return str(header["__metadata__"]["format"]).startswith("mgvq-tokens")
    except (ValueError, KeyError, TypeError):
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what ``path`` leads to, which two names of one file share; None where there is nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
