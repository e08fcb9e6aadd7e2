"""TIFF files: which of their many layouts are read, and by what.

Pillow reads some layouts as other pixels than they hold, without an error. So the layout is looked at first, and each is read by what
is known to read it rightly (:func:`_reader`), or refused with its name. Compressed pixels are libtiff's, through Pillow; uncompressed ones,
and with the package ``imagecodecs`` the rest, are tifffile's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, cast

import numpy as np

from mgvq_export.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image
    from tifffile import TiffFile, TiffPage

# PhotometricInterpretation
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}  # samples, alpha aside
_SENSOR = (32803, 34892)
_KINDS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab"}
_KINDS |= {32803: "sensor", 34892: "sensor", 32844: "LogL", 32845: "LogLuv"}

_UNCOMPRESSED, _OLD_JPEG, _JPEG = 1, 6, 7
_JPEGS = (_OLD_JPEG, _JPEG)
_ORIENTATION, _COLOR_MAP, _SUB_IFDS, _INK_SET, _PROFILE, _DNG_VERSION = 274, 320, 330, 332, 34675, 50706
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_PREMULTIPLIED, _ALPHA, _COREL_ALPHA = 1, 2, 999  # values of ExtraSamples
_NUMBERS = (1, 4)  # values of SampleFormat that are read: unsigned, and "not known"


@dataclass(frozen=True)
class _Layout:
    """What decides how a page is read; ``alpha``: the place of the alpha channel among the samples, if any."""

    height: int
    width: int
    colour: int
    samples: int
    bits: int
    number: int  # SampleFormat: 1 unsigned, 2 signed, 3 float
    planar: bool
    compression: int
    alpha: int | None
    premultiplied: bool

    def __str__(self) -> str:
        number = {2: "signed ", 3: "float "}.get(self.number, "")
        planes = "in planes, " if self.planar else ""
        packed = "uncompressed" if self.compression == _UNCOMPRESSED else f"compression {self.compression}"
        kind = _KINDS.get(self.colour, f"photometric {self.colour}")
        return f"{number}{self.bits}-bit {kind} of {self.samples} samples, {planes}{packed}"


def open_tiff(data: bytes) -> tuple[tuple[int, int], Callable[[], Image.Image]]:
    """The largest of the first page's and its tiles' (height, width), and a function that decodes that page.

    It gives an upright image in mode L, LA, RGB, RGBA or CMYK, with the profile in ``info``. Raises :class:`InputError`, without the
    file's name, when the layout is not read, when there is a second page, or when this is a camera's raw file.
    """
    with _tifffile(data) as file:
        page = file.pages.first
        _check_single(file, page)
        layout = _layout(page)
        reader = _reader(layout)
        tile = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else (1, 1)
    return max((layout.height, layout.width), tile, key=lambda size: size[0] * size[1]), lambda: reader(data, layout)


@contextlib.contextmanager
def _tifffile(data: bytes) -> Iterator[TiffFile]:
    import tifffile

    # What tifffile finds odd is no message to the user; what cannot be read is an error here.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    # Pages are taken as they are written: no vendor's ways of hiding more of them are looked for.
    with tifffile.TiffFile(io.BytesIO(data), is_lsm=False, is_scanimage=False, is_ndpi=False, is_stk=False, is_nih=False) as file:
        yield file


def _check_single(file: TiffFile, page: TiffPage) -> None:
    if page.subfiletype & _REDUCED or _DNG_VERSION in page.tags or _holds_sensor_data(page):
        raise InputError("it is a camera's raw file or a preview of one; develop it to JPEG, PNG or TIFF first")
    count = 1
    for index in (1, 2, 3):  # counting all takes minutes where there are many
        try:
            other = cast("TiffPage", file.pages[index])
        except IndexError:
            break
        count += not other.subfiletype & (_REDUCED | _MASK)  # a preview of the first page, or which of its pixels are to be seen
    if count > 1:
        raise InputError(
            f"it holds {2 if count == 2 else 'more than 2'} frames or pages; save the one you want as a file of its own"
        )


def _holds_sensor_data(page: TiffPage) -> bool:
    if page.photometric in _SENSOR:
        return True
    if _SUB_IFDS not in page.tags or page.pages is None:
        return False
    inner = [cast("TiffPage", page.pages[index]) for index in range(min(len(page.pages), 8))]
    return any(other.photometric in _SENSOR for other in inner)


def _layout(page: TiffPage) -> _Layout:
    if isinstance(page.bitspersample, tuple) or isinstance(page.sampleformat, tuple):
        raise InputError("its channels have different sample types; save it with 8 or 16 bits per channel")
    colour, samples = int(page.photometric), int(page.samplesperpixel)
    colours = _COLOURS.get(colour, samples)
    extra = [int(value) for value in page.extrasamples]
    if not extra and colour == _RGB and samples == 4:
        extra = [_ALPHA]  # such files leave the tag out
    kinds = extra[: samples - colours]
    alpha = next((index for index, kind in enumerate(kinds) if kind in (_PREMULTIPLIED, _ALPHA, _COREL_ALPHA)), None)
    layout = _Layout(
        height=int(page.imagelength),
        width=int(page.imagewidth),
        colour=colour,
        samples=samples,
        bits=int(page.bitspersample),
        number=int(page.sampleformat),
        planar=int(page.planarconfig) == 2 and samples > 1,
        compression=int(page.compression),
        alpha=None if alpha is None else colours + alpha,
        premultiplied=alpha is not None and kinds[alpha] == _PREMULTIPLIED,
    )
    if layout.number not in _NUMBERS or layout.bits > 16:
        number = {2: "int", 3: "float"}.get(layout.number, "complex" if layout.number in (5, 6) else "uint")
        raise InputError(f"its pixels are {number}{layout.bits} of no fixed range; save it with 8 or 16 bits per channel")
    if int(page.imagedepth) != 1:
        raise InputError(f"it is a volume of {int(page.imagedepth)} layers; save the one you want as a file of its own")
    if colour == _CMYK and int(page.tags.valueof(_INK_SET, 1)) != 1:
        raise InputError("its inks are others than CMYK; save it as RGB")
    if colour not in _COLOURS or samples < colours or (colours == 1 and samples > 2):
        raise InputError(f"it is {layout}, which is not read; save it as 8-bit or 16-bit RGB or gray")
    if colour == _CMYK and layout.alpha is not None:
        raise InputError("it is CMYK with transparency, which is not read; save it as RGB")
    return layout


def _reader(layout: _Layout) -> Callable[[bytes, _Layout], Image.Image]:
    """What reads this layout rightly.

    (1) 8 bits: Pillow, in planes only where compressed. (2) One sample of 1, 2 or 4 bits, or 12 bits uncompressed: Pillow. (3) Interleaved, 16 bits, compressed, one sample or three,
    or four with alpha or as CMYK: Pillow. (4) 8 or 16 bits, uncompressed: tifffile. (5) Any unsigned samples, with imagecodecs: tifffile.
    """
    uncompressed, jpeg = layout.compression == _UNCOMPRESSED, layout.compression == _JPEG
    if layout.bits == 8 and _pillow_reads_bytes(layout):  # case 1
        return _by_pillow
    if layout.samples == 1 and layout.colour in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE):  # case 2
        if layout.bits in (1, 2, 4) and not jpeg:
            return _by_pillow
        if layout.bits == 12 and uncompressed and layout.colour == _BLACK_IS_ZERO:
            return _by_pillow
    if layout.bits == 16 and not layout.planar and not uncompressed and layout.compression not in _JPEGS:  # case 3
        known = {_BLACK_IS_ZERO: (1,), _RGB: (3, 4), _CMYK: (4,)}
        if layout.samples in known.get(layout.colour, ()):
            return _by_pillow
    if (
        layout.colour != _YCBCR
        and layout.compression not in _JPEGS
        and ((layout.bits in (8, 16) and uncompressed) or _has_codecs())
    ):
        return _by_tifffile  # cases 4 and 5
    return _refuse(layout)


def _pillow_reads_bytes(layout: _Layout) -> bool:
    jpeg = layout.compression == _JPEG
    if layout.compression == _OLD_JPEG:
        return False
    if layout.planar:
        plain = layout.samples == _COLOURS[layout.colour] or (
            layout.colour == _RGB and layout.samples == 4 and not layout.premultiplied
        )
        return plain and layout.colour in (_RGB, _CMYK) and layout.compression not in (_UNCOMPRESSED, _JPEG)
    if layout.colour in (_WHITE_IS_ZERO, _PALETTE):
        return layout.samples == 1 and not (jpeg and layout.colour == _PALETTE)
    if layout.colour == _BLACK_IS_ZERO:
        return layout.samples == 1 or not jpeg
    if layout.colour == _RGB:  # one alpha channel at most, and that directly after the colours
        return layout.samples == 3 or (layout.samples <= 6 and layout.alpha in (None, 3) and not jpeg)
    if layout.colour == _CMYK:
        return layout.samples <= 6 and not jpeg
    return layout.samples == 3 and jpeg  # YCbCr: of the others Pillow takes sub-sampled planes for pixels


def _refuse(layout: _Layout) -> NoReturn:
    more = "" if _has_codecs() else ", or install imagecodecs, with which more are read"
    raise InputError(f"it is {layout}, which is not read; save it as 8-bit or 16-bit RGB or gray{more}")


def _has_codecs() -> bool:
    return importlib.util.find_spec("imagecodecs") is not None


def _by_pillow(data: bytes, layout: _Layout) -> Image.Image:
    from PIL import Image, TiffImagePlugin

    try:
        image: Image.Image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except SyntaxError:  # one of few odd bit orders or channel kinds
        if layout.compression == _UNCOMPRESSED and layout.bits in (8, 16) and layout.colour != _YCBCR:
            return _by_tifffile(data, layout)
        _refuse(layout)
    colour_map = image.tag_v2.get(_COLOR_MAP)  # type: ignore[attr-defined]
    image.load()  # turns it upright, too
    profile = image.info.get("icc_profile")
    if image.mode == "P":
        image = Image.fromarray(_painted(np.asarray(image), colour_map, layout.bits))
    elif image.mode.startswith("I"):
        image = Image.fromarray(_bytes_of(np.asarray(image), layout.bits))
    elif image.mode in ("1", "La"):
        image = image.convert({"1": "L", "La": "LA"}[image.mode])
    return _with_profile(image, profile)


def _by_tifffile(data: bytes, layout: _Layout) -> Image.Image:
    from PIL import Image, ImageOps

    with _tifffile(data) as file:
        page = file.pages.first
        _check_whole(page, layout, len(data))
        planes, _, height, width, samples = page.shaped
        stored = page.asarray(maxworkers=1).reshape(planes, height, width, samples)
        values = stored.transpose(1, 2, 0, 3).reshape(height, width, planes * samples)
        profile, colour_map = page.tags.valueof(_PROFILE), page.tags.valueof(_COLOR_MAP)
        orientation = page.tags.valueof(_ORIENTATION, 1)
    colours = _COLOURS[layout.colour]
    if layout.colour == _PALETTE:
        pixels = _painted(values[..., 0], colour_map, layout.bits)
    else:
        pixels = _bytes_of(values[..., :colours], layout.bits)
    if layout.colour == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    if layout.alpha is not None:
        alpha = _bytes_of(values[..., layout.alpha, None], layout.bits)
        if layout.premultiplied:
            scaled = np.rint(pixels * (255 / np.maximum(alpha, 1)))
            pixels = np.minimum(scaled, 255).astype(np.uint8)
        pixels = np.concatenate([pixels, alpha], axis=-1)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "CMYK" if layout.colour == _CMYK else "RGBA"}[pixels.shape[-1]]
    image = Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes())
    image.getexif()[_ORIENTATION] = orientation
    return _with_profile(ImageOps.exif_transpose(image), profile)


def _check_whole(page: TiffPage, layout: _Layout, size: int) -> None:
    """tifffile leaves pixels 0 that the file does not hold."""
    offsets, counts = page.dataoffsets, page.databytecounts
    missing = (
        len(offsets) != len(counts) or not counts or min(counts) < 1 or max(map(sum, zip(offsets, counts, strict=False))) > size
    )
    wanted = layout.height * (-(-layout.width * layout.samples * layout.bits // 8))
    if missing or (layout.compression == _UNCOMPRESSED and sum(counts) < wanted):
        raise InputError("the image is damaged or cut short (pixels are missing)")


def _bytes_of(values: np.ndarray, bits: int) -> np.ndarray:
    """Samples of so many bits -> uint8, rounded to the nearest."""
    if bits == 8:
        return values.astype(np.uint8)
    top = 2**bits - 1
    scaled: np.ndarray = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    return scaled


def _painted(indices: np.ndarray, colour_map: Sequence[int] | None, bits: int) -> np.ndarray:
    """[H, W] -> uint8 [H, W, 3]. A map without a value above 255 is one of 8 bits, as some scanners write it and all readers take it."""
    colours = np.asarray(colour_map if colour_map is not None else (), np.int64).reshape(-1)
    if colours.size != 3 * 2**bits or colours.min() < 0 or colours.max() > 65535:
        raise InputError(f"its colour map has {colours.size} values; wanted {3 * 2**bits} of 0 to 65535")
    table = colours if colours.max() <= 255 else (colours * 255 + 32767) // 65535
    painted: np.ndarray = table.reshape(3, -1).T.astype(np.uint8)[indices]
    return painted


def _with_profile(image: Image.Image, profile: object) -> Image.Image:
    image.info.pop("icc_profile", None)
    if isinstance(profile, bytes):
        image.info["icc_profile"] = profile
    return image
