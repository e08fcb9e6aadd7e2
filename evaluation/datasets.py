"""The images of an evaluation: a folder or a JSON list, sorted by name, or a sample of them.

A folder is searched with its subfolders, so a plain folder and ImageNet's class folders are read alike. A JSON list
holds paths, or objects with a path, at its top or in the lists of an object: UHDBench's ``{"source": ["LIU4k/1.png", ...]}``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.files import PathLike
from mgvq_export.core.json_files import JsonSource, read_json

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")
_LIST_BYTES, _LIST_VALUES = 512 << 20, 20_000_000  # enough for lists of a million images with their attributes
_LONGEST_PATH = 4096
PATH_KEYS = ("path", "image", "file", "file_name", "filename", "image_path", "img_path", "img")


@dataclass(frozen=True)
class Item:
    """One image: its name inside the dataset, and its file."""

    name: str
    path: Path


@dataclass(frozen=True)
class Dataset:
    """The images to evaluate.

    Attributes:
        path: the folder or JSON list.
        items: in the order of their names.
        found: how many images the folder or list has; more than ``items`` when a sample was taken.
        declared: the benchmark that the user declares it to be, such as ``imagenet-val``; None for any other.
    """

    path: Path
    items: tuple[Item, ...]
    found: int
    declared: str | None = None

    @classmethod
    def find(
        cls,
        path: PathLike,
        *,
        root: PathLike | None = None,
        limit: int | None = None,
        seed: int = 0,
        declared: str | None = None,
    ) -> Dataset:
        """The images of a folder or JSON list.

        Args:
            root: the folder that the paths of a JSON list are relative to; that of the list when None.
            limit: take a sample of this many. It depends on the names and ``seed`` alone, and the sample of a smaller
                limit is part of that of a larger one.

        Raises :class:`InputError` when there is no image, fewer than ``limit``, or the list cannot be read.
        """
        path = Path(path)
        if path.is_dir():
            if root is not None:
                raise InputError(f"{path} is a folder; --root is for the paths of a JSON list: leave it out")
            items = [Item(file.relative_to(path).as_posix(), file) for file in walk(path)]
            if not items:
                raise InputError(f"{path} holds no image; wanted files named {', '.join(SUFFIXES)}, in it or its subfolders")
        elif path.suffix.lower() == ".json":
            base = path.parent if root is None else Path(root)
            items = [Item(name, base / name) for name in _listed(path)]
        else:
            what = "is no folder and no .json list" if path.exists() else "does not exist"
            raise InputError(f"the dataset {path} {what}; give a folder of images or a JSON list of their paths")
        found = len(items)
        if limit is not None:
            if limit > found:
                raise InputError(f"{path} has {found} images; wanted {limit}: give a smaller --limit or more images")
            items = sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{item.name}".encode()).digest())[:limit]
        return cls(path, tuple(sorted(items, key=lambda item: item.name)), found, declared)


def walk(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    """Files of a folder and its subfolders whose names end with one of ``suffixes``, in no order; hidden ones are left out."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):  # class folders are often links
        if (real := os.path.realpath(place)) in seen:  # a link to a parent folder would recurse for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield Path(place) / name


def _listed(path: Path) -> list[str]:
    source = JsonSource(str(path), "give a list of paths", max_bytes=_LIST_BYTES, max_values=_LIST_VALUES)
    content: object = read_json(path, source)
    lists = list(content.items()) if isinstance(content, dict) else [("", content)]
    names = []
    for key, entries in lists:
        if not isinstance(entries, list):
            raise InputError(f"{path} is no list of images; wanted a list of paths, or an object whose values are such lists")
        names += [_path_of(entry, path, f"{shown(key, quoted=False)}[{index}]") for index, entry in enumerate(entries)]
    if not names:
        raise InputError(f"{path} lists no image; wanted a list of paths")
    return names


def _path_of(entry: object, path: Path, where: str) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in PATH_KEYS if key in entry), None)
    if not isinstance(entry, str) or not entry:
        raise InputError(
            f"{path} has an entry without a path, {where}: {shown(entry)}; wanted a path, or an object with one of {', '.join(PATH_KEYS)}"
        )
    if len(entry) > _LONGEST_PATH or not entry.isprintable():
        raise InputError(
            f"{path}: {where} is no path of an image: {shown(entry)}; wanted printable text of at most {_LONGEST_PATH}"
        )
    return entry
