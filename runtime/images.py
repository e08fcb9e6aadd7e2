"""Pixel arrays: checks, padding, and the float range that the network works in.

An image is uint8 [H, W, 3], RGB, everywhere in this package; the network sees float [1, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import numpy as np

from mgvq_export.core.errors import InputError

# x -> (x / 255 - 0.5) * 2 in float32, step by step: the arithmetic the network was trained with, to the last bit.
_FLOAT_OF_BYTE = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) * np.float32(2)

_ROWS_AT_ONCE = 32  # rows converted at once: intermediate values stay in the processor's cache


def check_image(image: np.ndarray, what: str = "image") -> np.ndarray:
    """``image`` itself, when it is uint8 [H, W, 3] with at least one pixel; else :class:`InputError` with the remedy.

    A Pillow image in mode RGB is taken as the array of its pixels: its EXIF orientation and its profile are not applied.
    """
    if type(image).__module__.startswith("PIL."):
        mode = getattr(image, "mode", "?")
        if mode != "RGB":
            raise InputError(
                f"{what} is a Pillow image in mode {mode}; wanted RGB: read the file with mgvq_export.read_image, or image.convert('RGB')"
            )
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise InputError(f"{what} is a {type(image).__name__}; wanted a numpy array uint8 [H, W, 3]: use numpy.asarray(image)")
    shape = list(image.shape)
    if image.ndim != 3 or image.shape[2] != 3:
        remedy = "give RGB"
        if image.ndim == 2:
            remedy = "numpy.stack([image] * 3, axis=-1) makes gray RGB"
        elif image.ndim == 4:
            remedy = "give one image at a time"
        elif image.ndim == 3 and image.shape[0] == 3:
            remedy = "image.transpose(1, 2, 0) puts the channels last"
        elif image.ndim == 3 and image.shape[2] == 4:
            remedy = "image[..., :3] drops alpha"
        raise InputError(f"{what} has shape {shape}; wanted [H, W, 3]: {remedy}")
    if image.dtype != np.uint8:
        raise InputError(f"{what} is {image.dtype}; wanted uint8 from 0 to 255: scale and round it first")
    if image.size == 0:
        raise InputError(f"{what} has shape {shape} and no pixels; wanted at least 1x1")
    return image


def pad_to_multiple(image: np.ndarray, multiple: int) -> tuple[np.ndarray, tuple[int, int]]:
    """``image`` with its last row and column repeated until both sides divide by ``multiple``, and its own (H, W).

    The same array when nothing is missing. :func:`crop` undoes it.
    """
    height, width = image.shape[:2]
    below, right = -height % multiple, -width % multiple
    if below or right:
        image = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
    return image, (height, width)


def crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The top left (H, W) pixels of ``image`` [H', W', 3], as a view."""
    return image[: size[0], : size[1]]


def to_float(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [1, 3, H, W], ``(x / 255 - 0.5) * 2`` in float32 steps.

    ``image`` may be a window of a larger one: no copy of it is made. ``out``, an array of that shape, float32 or float16
    (also a slice of a batch), is filled and returned when given.
    """
    check_image(image)
    height, width = image.shape[:2]
    if out is None:
        out = np.empty((1, 3, height, width), np.float32)
    elif out.shape != (1, 3, height, width):
        raise InputError(f"out has shape {list(out.shape)}; wanted [1, 3, {height}, {width}]")
    table = _FLOAT_OF_BYTE.astype(out.dtype, copy=False)
    for top in range(0, height, _ROWS_AT_ONCE):
        rows = image[top : top + _ROWS_AT_ONCE]
        for channel in range(3):
            out[0, channel, top : top + _ROWS_AT_ONCE] = table[rows[..., channel]]
    return out


def to_uint8(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """float [1, 3, H, W] or [3, H, W] -> uint8 [H, W, 3]: clipped to [-1, 1], scaled to 0..255, rounded (half to even).

    Undoes :func:`to_float` exactly. ``image`` may be float32 or float16 and a window of a larger array. ``out``, uint8 [H, W, 3]
    (also a window of a larger image), is filled and returned when given. Raises :class:`InputError` when a value is NaN.
    """
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype.kind != "f":
        raise InputError(f"image is {image.dtype} {list(image.shape)}; wanted float [1, 3, H, W] or [3, H, W]")
    height, width = image.shape[1:]
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    elif out.shape != (height, width, 3) or out.dtype != np.uint8:
        raise InputError(f"out is {out.dtype} {list(out.shape)}; wanted uint8 [{height}, {width}, 3]")
    for top in range(0, height, _ROWS_AT_ONCE):
        rows = image[:, top : top + _ROWS_AT_ONCE].astype(np.float32)
        if np.isnan(rows.min()):
            raise InputError(
                "the reconstruction holds NaN; the tokens do not fit the model, or its precision overflows: try fp32"
            )
        np.clip(rows, -1, 1, out=rows)
        rows *= 127.5
        rows += 127.5
        np.rint(rows, out=rows)
        out[top : top + _ROWS_AT_ONCE] = rows.astype(np.uint8).transpose(1, 2, 0)
    return out
