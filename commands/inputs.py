"""Which files a run takes and where each result goes: files, folders, standard input."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from mgvq_export.core.errors import InputError

#: Names of image files that are taken from a folder.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")
TOKEN_SUFFIXES = (".safetensors", ".npz", ".npy")

STANDARD = Path("-")  # standard input, or output


@dataclass(frozen=True)
class Job:
    """One file to read and the file to write for it; :data:`STANDARD` for the standard streams."""

    source: Path
    target: Path


def find_jobs(
    inputs: Sequence[Path], output: Path, suffixes: Sequence[str], target_suffix: str, *, recursive: bool = False
) -> list[Job]:
    """A :class:`Job` for each file of ``inputs``: itself, or the files of a folder whose names end with one of ``suffixes``.

    Results go into the folder ``output`` under the stem of the file's name with ``target_suffix``; those of a folder's sub-folders
    (``recursive``) into the same sub-folders there. Raises :class:`InputError` when a file is missing, a folder holds no such file, or
    two results would have the same name.
    """
    if output == STANDARD and (len(inputs) != 1 or inputs[0].is_dir()):
        raise InputError("standard output takes one result; give one file, or a folder with -o")
    jobs: list[Job] = []
    for path in inputs:
        if path == STANDARD:
            jobs.append(Job(path, output if output == STANDARD else output / f"stdin{target_suffix}"))
        elif path.is_dir():
            jobs += [
                Job(path / name, output / name.with_suffix(target_suffix)) for name in _names(path, suffixes, recursive=recursive)
            ]
        else:
            jobs.append(Job(path, output if output == STANDARD else output / f"{path.stem}{target_suffix}"))
    by_target: dict[Path, Path] = {}
    for job in jobs:
        other = by_target.setdefault(job.target, job.source)
        if other != job.source:
            raise InputError(f"{other} and {job.source} would both be written to {job.target}; rename one or run them apart")
    return [Job(source, target) for target, source in by_target.items()]


def find_files(inputs: Sequence[Path], suffixes: Sequence[str], *, recursive: bool = False) -> list[Path]:
    """The files among ``inputs``, folders replaced by the files in them, as :func:`find_jobs` takes them."""
    return [
        file
        for path in inputs
        for file in ([path / name for name in _names(path, suffixes, recursive=recursive)] if path.is_dir() else [path])
    ]


def _names(folder: Path, suffixes: Sequence[str], *, recursive: bool) -> list[PurePath]:
    """The names of :func:`_files`, sorted. Raises :class:`InputError` when there are none."""
    found = sorted(_files(folder, suffixes, recursive), key=lambda name: name.parts)
    if not found:
        deeper = "" if recursive else ", or --recursive for its sub-folders"
        raise InputError(f"the folder {folder} holds no file named {', '.join(suffixes)}; give another{deeper}")
    return found


def _files(folder: Path, suffixes: Sequence[str], recursive: bool) -> Iterator[PurePath]:
    """Names, inside ``folder``, of its files with one of ``suffixes``; hidden ones are left out."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(tuple(suffixes)):
                yield PurePath(os.path.relpath(os.path.join(place, name), folder))  # noqa: PTH118
