"""Image files: reading any common one as uint8 [H, W, 3], and writing."""

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
from mgvq_export.runtime.images import check_image

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
