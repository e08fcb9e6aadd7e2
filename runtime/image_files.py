"""Image files: reading any common one as uint8 [H, W, 3], and writing."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike, atomic_path, unreadable
from mgvq_export.core.kinds import HEAD_BYTES, Kind, kind_of
from mgvq_export.runtime.colour import file_profile, to_srgb
from mgvq_export.runtime.images import check_image
from mgvq_export.runtime.tiff import open_tiff

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

# Pillow's modules for what is read. TIFF has readers of its own, HEIC a package.
_PLUGINS = {"JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "BMP": "Bmp", "PPM": "Ppm", "GIF": "Gif", "AVIF": "Avif"}
_WANTED = "wanted JPEG, PNG, WebP, AVIF, BMP, TIFF, PPM or GIF"

_limit_lock = threading.Lock()
_lifted: list[int | None] = []  # Pillow's own limit, then one entry per read under way


def read_image(path: PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image in a JPEG, PNG, WebP, AVIF, BMP, TIFF, PPM or (still) GIF file as uint8 [H, W, 3], sRGB; HEIC too with ``pillow-heif``.

    The content decides, not the name. The EXIF orientation is applied. Palette, gray and 1-bit images become RGB; alpha is laid
    over white (opaque pixels keep their values exactly). 16-bit gray is scaled, ``round(x / 257)``; of most 16-bit colour Pillow keeps
    the high byte, which is at most one step away from that. Colours are converted to sRGB as :mod:`mgvq_export.runtime.colour` says;
    CMYK without a profile is converted by Pillow's plain formula.

    Raises :class:`InputError` when the file cannot be read, is no such image, is damaged or cut short, is animated or
    has several pages, has more than ``max_pixels`` pixels (checked before any pixel is decoded), or has pixels that are not read
    rightly: floating point, signed, HDR, and rare layouts of TIFF.
    """
    try:
        # One read of the whole file: errors after it are about its content, not about the disk.
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
    with _reading(path), _pillow_limit_lifted():
        image = _decoded(data, max_pixels)
        if as_stored:
            pixels = np.asarray(image.convert("RGB"))
        else:
            profile = file_profile(image, data)
            pixels = np.asarray(_to_rgb(_upright(image), profile))
    return np.ascontiguousarray(pixels)


def write_image(path: PathLike, image: np.ndarray, *, quality: int | None = None) -> None:
    """Write ``image`` (uint8 [H, W, 3]) to ``path``, whole or not at all; the suffix chooses the format (:data:`WRITERS`).

    ``quality`` 1 to 100 is for JPEG (default 95, colour not sub-sampled) and WebP (lossless when left out).
    Raises :class:`InputError` on an unknown suffix, a wrong array, or a file that cannot be written.
    """
    from PIL import Image, PngImagePlugin

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
    if WRITERS[suffix] == "PNG":  # a later run replaces it without being told to
        written_by = PngImagePlugin.PngInfo()
        written_by.add_text("Software", "mgvq-export")
        options["pnginfo"] = written_by
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
def _reading(path: PathLike) -> Iterator[None]:
    """Errors get the file's name; those of damaged files become one line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except MemoryError as error:
        raise InputError(f"cannot read {path}: there is not enough memory for its pixels; make the image smaller") from error
    except Exception as error:
        # Readers answer damaged files with errors of many kinds (SyntaxError, struct.error, KeyError, zlib.error, ...).
        reason = " ".join(str(error)[:200].split()) or type(error).__name__
        raise InputError(f"cannot read {path}: the image is damaged or cut short ({reason})") from error


def _decoded(data: bytes, max_pixels: int) -> Image.Image:
    """The image with its pixels decoded, in a mode of 8 bits a channel; its size is checked first."""
    kind = kind_of(data[:HEAD_BYTES])
    if kind is None:
        raise InputError(f"it is no image of a known format; {_WANTED}")
    if kind.image is None:
        raise InputError(f"it is {kind.name}, no image that is read here; {_WANTED}")
    if kind.image == "TIFF":
        size, decode = open_tiff(data)
        _check_pixels(*size, max_pixels)
        return decode()
    image = _open(data, kind)
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"the image is {width}x{height} pixels; wanted at least 1x1")
    _check_pixels(height, width, max_pixels)
    if kind.image != "HEIF":  # of several, the file says which one is the picture
        _check_single(image)
    image.load()
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image)
    return _scaled_key(image, data) if kind.image == "PNG" else image


def _open(data: bytes, kind: Kind) -> Image.Image:
    """The image, its pixels not decoded yet."""
    if kind.image == "HEIF":
        try:
            from pillow_heif.as_plugin import HeifImageFile
        except ImportError:
            raise InputError(
                f"it is {kind.name}, and pillow-heif is not installed: pip install 'mgvq-export[images]', or convert it to JPEG or PNG"
            ) from None
        image: Image.Image = HeifImageFile(io.BytesIO(data))
        return image
    from PIL import Image

    assert kind.image is not None
    try:
        import_module(f"PIL.{_PLUGINS[kind.image]}ImagePlugin")  # registers the format
    except ImportError:
        raise InputError(f"it is {kind.name}, which this Pillow does not read; pip install --upgrade Pillow") from None
    # Not Image.open: that hides why a reader refused the file.
    return Image.OPEN[kind.image][0](io.BytesIO(data), "")


def _check_single(image: Image.Image) -> None:
    # MPO is what many phones write under the name .jpg: the photo first, then previews.
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return
    count = "2"
    with contextlib.suppress(EOFError):  # counting all takes minutes where there are many
        image.seek(2)
        count = "more than 2"
    raise InputError(f"it holds {count} frames or pages; save the one you want as a file of its own")


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{width}x{height} is {width * height / 1e6:.0f} megapixels, the limit is "
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


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    from PIL import Image

    alpha = None
    if "transparency" in image.info or image.mode in ("PA", "LA", "La", "RGBA", "RGBa"):
        gray = image.mode in ("L", "LA", "La", "1")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("R") if gray else image.convert("RGB")  # a gray image may have a profile for gray
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = to_srgb(image, profile)
    if alpha is not None and alpha.getextrema() != (255, 255):
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """8-bit gray, or LA where one gray value means transparent, of a 16-bit gray image."""
    from PIL import Image

    values = np.asarray(image)
    if values.dtype.kind == "f" or int(values.min()) < 0 or int(values.max()) > 65535:
        raise InputError(f"its pixels are {values.dtype} of no fixed range; save it with 8 or 16 bits per channel")
    gray = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray = Image.merge("LA", (gray, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
    gray.format = image.format
    gray.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return gray


def _scaled_key(image: Image.Image, data: bytes) -> Image.Image:
    """A PNG's transparent gray or colour is given in the file's bits; Pillow compares it with pixels of 8 bits."""
    key, bits = image.info.get("transparency"), data[24]
    if bits == 16 and isinstance(key, tuple):
        raise InputError(
            "it has 16 bits per channel and one transparent colour, which is not read; save it with an alpha channel"
        )
    if image.mode in ("1", "L") and isinstance(key, int) and bits < 8:
        image = image.convert("L")
        image.info["transparency"] = key * 255 // (2**bits - 1)
    return image
