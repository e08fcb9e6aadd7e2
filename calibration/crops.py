"""Calibration images: the same windows of the same photos every time, one photo in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike, sha256_file
from mgvq_export.runtime.image_files import read_image

#: Suffixes of the files of a folder that are taken as images.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")

# Steps of the two-dimensional low-discrepancy sequence made of the plastic number: any first n points cover the square evenly.
_STEP_Y, _STEP_X = 0.7548776662466927, 0.5698402909980532


def list_images(paths: Sequence[PathLike]) -> list[Path]:
    """The images among ``paths``, folders replaced by the images in them in the order of their names.

    Raises :class:`InputError` when there is none, or a path does not exist.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"cannot read {path}: no such file or folder; give images or folders with images")
    if not found:
        given = f"{', '.join(map(str, paths))} hold none" if paths else "none given"
        raise InputError(f"no images to calibrate on: {given}; give photos like those the model will see")
    return found


def large_enough(images: Sequence[Path], side: int) -> list[Path]:
    """The ``images`` that hold a window of ``side`` pixels squared, by the headers of their files.

    One that cannot be read stays in, and so does the only one: reading it says why it will not do. Raises :class:`InputError` when none of
    several is large enough.
    """
    from PIL import Image

    found = []
    for path in images:
        try:
            with Image.open(path) as image:
                small = min(image.size) < side
        except Exception:  # Pillow's readers answer damaged files with errors of many kinds
            small = False
        if not small:
            found.append(path)
    if not found and len(images) > 1:
        raise InputError(
            f"all {len(images)} images are smaller than a window of {side}x{side}; give larger ones, or a smaller --window-size"
        )
    return found or list(images)


@dataclass(frozen=True)
class Crops:
    """``count`` square windows drawn from images, the same ones on every machine.

    Every image gives equally many (the first ones one more where that does not divide); with more images than windows, images
    evenly spaced in the list give one each. Places follow a low-discrepancy sequence that starts at a point taken from the
    file's hash, so they depend on the pixels and not on names. Crops of one image may overlap.

    Attributes:
        images: image files.
        count: windows in all, at least 1.
        size: side of a window in pixels.
    """

    images: tuple[Path, ...]
    count: int
    size: int

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("no images to calibrate on: none given; give photos like those the model will see")
        for name in ("count", "size"):
            if getattr(self, name) < 1:
                raise InputError(f"window {name} is {getattr(self, name)}; wanted at least 1")

    @cached_property
    def per_image(self) -> list[tuple[Path, int]]:
        """Images with how many windows each gives; those that give none are left out."""
        images, count = self.images, self.count
        if count < len(images):
            return [(images[index * len(images) // count], 1) for index in range(count)]
        each, more = divmod(count, len(images))
        return [(path, each + (index < more)) for index, path in enumerate(images)]

    @cached_property
    def hashes(self) -> list[str]:
        """SHA-256 of the files of :attr:`per_image`."""
        return [sha256_file(path) for path, _ in self.per_image]

    @property
    def sha256(self) -> str:
        """Hash of everything that decides the pixels: file contents in order, count and size."""
        return hashlib.sha256("\n".join([*self.hashes, str(self.count), str(self.size)]).encode()).hexdigest()

    def read(self, first: int = 0) -> Iterator[np.ndarray]:
        """The windows from number ``first`` on, uint8 [size, size, 3]; images that are not needed are not opened.

        Raises :class:`InputError` when an image cannot be read or is smaller than a window.
        """
        number = 0
        for (path, count), digest in zip(self.per_image, self.hashes, strict=True):
            skipped = min(max(first - number, 0), count)
            number += count
            if skipped == count:
                continue
            image = read_image(path)
            height, width = image.shape[:2]
            if min(height, width) < self.size:
                raise InputError(
                    f"{path} is {height}x{width}, smaller than a window of {self.size}x{self.size}; "
                    "leave it out, or give a smaller --window-size"
                )
            for top, left in places(digest, count, height - self.size + 1, width - self.size + 1)[skipped:]:
                yield image[top : top + self.size, left : left + self.size]

    def sample(self, count: int, multiple: int) -> list[np.ndarray]:
        """``count`` of the windows, or all of fewer, evenly spaced, uint8 [size, size, 3].

        All windows are read on the way: images that cannot be used are found before the long run.

        Raises :class:`InputError` as :meth:`read`, and when the size is no multiple of ``multiple``, or all windows are of one flat colour.
        """
        if self.size % multiple:
            will_do = max(multiple, self.size // multiple * multiple)
            raise InputError(f"window size is {self.size}; the model needs a multiple of {multiple}: {will_do} will do")
        count = min(count, self.count)
        wanted = {index * self.count // count for index in range(count)}
        taken, flat = [], True
        for number, window in enumerate(self.read()):
            flat = flat and window.min() == window.max()
            if number in wanted:
                taken.append(window.copy())
        if flat:
            raise InputError(
                "every window is of one flat colour (black images?): ranges taken from them say nothing; give photos like those the model will see"
            )
        return taken

    def batches(self, batch: int, first: int = 0) -> Iterator[np.ndarray]:
        """:meth:`read` in batches, uint8 [batch, size, size, 3]; the last may be smaller."""
        held: list[np.ndarray] = []
        for window in self.read(first):
            held.append(window)
            if len(held) == batch:
                yield np.stack(held)
                held = []
        if held:
            yield np.stack(held)


def places(digest: str, count: int, rows: int, columns: int) -> list[tuple[int, int]]:
    """``count`` (top, left) in ``rows`` x ``columns``, spread evenly, from a point that ``digest`` (hexadecimal) decides."""
    y, x = int(digest[:13], 16) / 16**13, int(digest[13:26], 16) / 16**13
    return [(int((y + k * _STEP_Y) % 1 * rows), int((x + k * _STEP_X) % 1 * columns)) for k in range(count)]
