"""Image files and pixel arrays: reading, writing, padding, and the float range that the network works in.

An image is uint8 [H, W, 3], RGB, everywhere in this package; the network sees float [1, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike, atomic_path, unreadable

if TYPE_CHECKING:
    from PIL import Image

#: Larger images are refused unless the caller raises the limit: 512 megapixels hold 16384 x 16384 (268) and 8K video (33).
MAX_PIXELS = 512_000_000

#: What :func:`write_image` writes, by suffix.
WRITERS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
}

# Formats that start other programs (EPS) stay out.
_READERS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")

# x -> (x / 255 - 0.5) * 2 in float32, step by step: the arithmetic the network was trained with, to the last bit.
_FLOAT_OF_BYTE = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) * np.float32(2)

_ROWS_AT_ONCE = 32  # rows converted at once: intermediate values stay in the processor's cache

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags

_limit_lock = threading.Lock()
_lifted: list[int | None] = []  # Pillow's own limit, then one entry per read under way


def read_image(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image in a JPEG, PNG, WebP, BMP, TIFF, PPM or (still) GIF file as uint8 [H, W, 3].

    The EXIF orientation is applied. Palette, gray and 1-bit images become RGB; alpha is laid over white (opaque pixels keep
    their values exactly). 16-bit gray is scaled, ``round(x / 257)``; of 16-bit colour Pillow keeps the high byte, which is at
    most one step away from that. An embedded colour profile other than sRGB is converted to sRGB (a broken one is
    ignored); CMYK without a profile is converted by Pillow's plain formula.

    Raises :class:`InputError` when the file cannot be read, is no such image, is damaged or cut short, is animated or
    has several pages, or has more than ``max_pixels`` pixels (checked before any pixel is decoded).
    """
    try:
        # One read of the whole file: Pillow's own errors are then about its content, not about the disk.
        data = Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return decode_image(data, path, max_pixels=max_pixels)


def decode_image(data: bytes, path: PathLike, *, max_pixels: int = MAX_PIXELS, as_stored: bool = False) -> np.ndarray:
    """The image in the bytes of a file, as :func:`read_image` gives it; ``path`` is what errors call it.

    ``as_stored``: as ``PIL.Image.convert("RGB")`` gives it, which published evaluations read with: EXIF orientation,
    colour profile and alpha are left aside. Raises as :func:`read_image`.
    """
    if not data:
        raise InputError(f"cannot read {path}: the file is empty")
    with _pillow_errors(path), _pillow_limit_lifted():
        image = _open(data)
        width, height = image.size
        if width < 1 or height < 1:
            raise InputError(f"cannot read {path}: the image is {height}x{width} pixels; wanted at least 1x1")
        _check_pixels(path, height, width, max_pixels)
        tags = getattr(image, "tag_v2", {})  # a TIFF tile may be larger than its image
        _check_pixels(path, tags.get(_TILE_LENGTH, 1), tags.get(_TILE_WIDTH, 1), max_pixels)
        # MPO is what many phones write under the name .jpg: the photo first, then previews.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise InputError(f"cannot read {path}: it holds {frames} frames or pages; save the one you want as a file of its own")
        image.load()
        if as_stored:
            image = _eight_bits(image, path) if image.mode.startswith(("I", "F")) else image
            pixels = np.asarray(image.convert("RGB"))
        else:
            pixels = np.asarray(_to_rgb(_upright(image), path))
    return np.ascontiguousarray(pixels)


def write_image(path: PathLike, image: np.ndarray, *, quality: int | None = None) -> None:
    """Write ``image`` (uint8 [H, W, 3]) to ``path``, whole or not at all; the suffix chooses the format (:data:`WRITERS`).

    ``quality`` 1 to 100 is for JPEG (default 95, colour not sub-sampled) and WebP (lossless when left out).
    Raises :class:`InputError` on an unknown suffix, a wrong array, or a file that cannot be written.
    """
    from PIL import Image

    check_image(image)
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise InputError(f"cannot write {path}: no image format has the suffix {suffix!r}; choose {', '.join(WRITERS)}")
    options: dict[str, Any] = {
        "PNG": {"compress_level": 3},  # a third of the default's time for a few per cent more bytes
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "quality": 50},  # quality is the effort here; the pixels stay exact
    }.get(WRITERS[suffix], {})
    if quality is not None:
        if WRITERS[suffix] not in ("JPEG", "WEBP"):
            raise InputError(f"cannot write {path}: {WRITERS[suffix]} is lossless and takes no quality; leave it out")
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise InputError(f"quality is {quality!r}; wanted a whole number from 1 to 100")
        options = {"quality": quality} | ({"subsampling": 0} if WRITERS[suffix] == "JPEG" else {})
    encoded = io.BytesIO()
    try:
        Image.fromarray(np.ascontiguousarray(image)).save(encoded, WRITERS[suffix], **options)
    except (OSError, ValueError, OverflowError) as error:  # mostly a side too long for the format
        raise InputError(
            f"cannot write {path}: {WRITERS[suffix]} does not take an image of {image.shape[0]}x{image.shape[1]} "
            f"({' '.join(str(error).split())}); choose .png"
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def check_image(image: np.ndarray, what: str = "image") -> np.ndarray:
    """``image`` itself, when it is uint8 [H, W, 3] with at least one pixel; else :class:`InputError` with the remedy."""
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


@contextlib.contextmanager
def _pillow_errors(path: PathLike) -> Iterator[None]:
    from PIL import UnidentifiedImageError

    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"cannot read {path}: it is no image of a known format; wanted JPEG, PNG, WebP, BMP, TIFF or PPM"
        ) from error
    except MemoryError as error:
        raise InputError(f"cannot read {path}: there is not enough memory for its pixels; make the image smaller") from error
    except Exception as error:
        # Pillow's readers answer damaged files with errors of many kinds (SyntaxError, struct.error, KeyError, zlib.error, ...).
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {path}: the image is damaged or cut short ({reason})") from error


def _open(data: bytes) -> Image.Image:
    """The image, its pixels not decoded yet."""
    from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401  (importing them registers the formats)

    Image.preinit()  # registers the others
    return Image.open(io.BytesIO(data), formats=[name for name in _READERS if name in Image.OPEN])


def _check_pixels(path: PathLike, height: int, width: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"cannot read {path}: {height}x{width} is {width * height / 1e6:.0f} megapixels, the limit is "
            f"{max_pixels / 1e6:.0f}; raise it with --max-pixels {width * height} if you trust the file"
        )


@contextlib.contextmanager
def _pillow_limit_lifted() -> Iterator[None]:
    """Pillow refuses images above a limit that only a global variable raises; :func:`_check_pixels` stands in for it here.

    The first of several threads that read at once lifts it, the last one restores it.
    """
    from PIL import Image

    with _limit_lock:
        if not _lifted:
            _lifted.append(Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        _lifted.append(None)
    try:
        yield
    finally:
        with _limit_lock:
            _lifted.pop()
            if len(_lifted) == 1:
                Image.MAX_IMAGE_PIXELS = _lifted.pop()


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data says nothing about the pixels: show them as they are
        return image


def _to_rgb(image: Image.Image, path: PathLike) -> Image.Image:
    from PIL import Image

    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, path)
    if "transparency" in image.info or image.mode in ("PA", "LA", "La", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = _to_srgb(image.convert("RGB"), profile)
        if alpha.getextrema() != (255, 255):
            image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
        return image
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    return _to_srgb(image, profile).convert("RGB")


def _eight_bits(image: Image.Image, path: PathLike) -> Image.Image:
    """8-bit gray, or LA where one gray value means transparent, of a 16-bit gray image."""
    from PIL import Image

    values = np.asarray(image)
    if values.dtype.kind == "f" or int(values.min()) < 0 or int(values.max()) > 65535:
        raise InputError(
            f"cannot read {path}: its pixels are {values.dtype} of no fixed range; save it with 8 or 16 bits per channel"
        )
    gray = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray = Image.merge("LA", (gray, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
    return gray


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if not profile:
        return image
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):  # broken, or made for another kind of pixels: viewers ignore it as well
        return image
