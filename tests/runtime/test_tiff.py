"""TIFF: each layout gives its pixels, or one line that names it; none gives others in silence."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgvq_export.core.errors import InputError
from mgvq_export.runtime.image_files import read_image
from mgvq_export.tests.support.image_makers import LONG, SHORT, pack_bits, write_tiff

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
Y, X = np.mgrid[0:9, 0:15]
GRAY = (X * 17)[..., None].astype(np.uint8)
COLOURS = np.stack([X * 17, Y * 30, (X + Y) * 10], -1).astype(np.uint8)
ALPHA = (Y * 31)[..., None].astype(np.uint8)


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    return values.astype(np.uint16) * 257 if bits == 16 else values


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(
    ("colour", "alpha"),
    # What colours multiplied by alpha would mean for inverted values is written nowhere.
    [(colour, alpha) for colour in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) for alpha in (None, 0, 1, 2) if colour or alpha != 1],
)
def test_uncompressed(tmp_path: Path, order: str, bits: int, planar: bool, alpha: int | None, colour: int) -> None:
    shown = COLOURS if colour == RGB else GRAY
    share = ALPHA / 255
    stored = np.rint(shown * share).astype(np.uint8) if alpha == 1 else shown  # 1: colours are multiplied by alpha
    if colour == WHITE_IS_ZERO:
        stored = 255 - stored
    values = stored if alpha is None else np.concatenate([stored, ALPHA], -1)
    planes = list(np.split(values, values.shape[-1], -1)) if planar else [values]
    extra = {} if alpha is None else {338: (SHORT, [alpha])}
    path = tmp_path / "a.tif"
    write_tiff(path, [scaled(plane, bits) for plane in planes], colour=colour, bits=bits, order=order, extra=extra)
    wanted = shown * share + 255 * (1 - share) if alpha in (1, 2) else shown
    assert np.abs(read_image(path) - wanted).max() <= (2 if alpha == 1 else 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize(("bits", "colour"), [(8, BLACK_IS_ZERO), (8, RGB), (16, BLACK_IS_ZERO), (16, RGB)])
def test_compressed_with_and_without_predictor(tmp_path: Path, order: str, predictor: bool, bits: int, colour: int) -> None:
    shown = COLOURS if colour == RGB else GRAY
    options = {"order": order, "deflate": True, "predictor": predictor}
    write_tiff(tmp_path / "a.tif", [scaled(shown, bits)], colour=colour, bits=bits, **options)
    assert np.abs(read_image(tmp_path / "a.tif") - shown.astype(int)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
@pytest.mark.parametrize("colour", [WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE])
def test_other_depths(tmp_path: Path, bits: int, colour: int) -> None:
    values = (X * 3 + Y) % 2**bits
    extra = {}
    wanted = values * 255 / (2**bits - 1)
    if colour == PALETTE:
        table = [[index * 65535 // (2**bits - 1) for index in range(2**bits)], [0] * 2**bits, [65535] * 2**bits]
        extra[320] = (SHORT, [value for column in table for value in column])
    elif colour == WHITE_IS_ZERO:
        wanted = 255 - wanted
    path = tmp_path / "a.tif"
    write_tiff(path, [values[..., None]], colour=colour, bits=bits, packed=[pack_bits(values, bits)], extra=extra)
    if bits == 12 and colour != BLACK_IS_ZERO:
        if importlib.util.find_spec("imagecodecs") is None:
            assert "12-bit" in refusal(path)
        return
    read = read_image(path)
    assert np.abs(read[..., 0] - wanted).max() <= 1
    if colour == PALETTE:
        assert (read[..., 1] == 0).all()
        assert (read[..., 2] == 255).all()


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("top", [255, 65535])
def test_colour_maps_of_8_and_16_bits(tmp_path: Path, top: int, deflate: bool) -> None:
    ramp = [value * top // 255 for value in range(256)]
    extra = {320: (SHORT, [*ramp, *ramp[::-1], *ramp])}
    write_tiff(tmp_path / "a.tif", [GRAY], colour=PALETTE, bits=8, deflate=deflate, extra=extra)
    wanted = np.concatenate([GRAY, 255 - GRAY, GRAY], -1)
    assert np.abs(read_image(tmp_path / "a.tif") - wanted.astype(int)).max() <= 1


def test_cmyk_and_16_bit_cmyk(tmp_path: Path) -> None:
    inks = np.concatenate([COLOURS, ALPHA // 2], -1)
    wanted = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")).astype(int)
    for bits, deflate in ((8, False), (8, True), (16, False), (16, True)):
        write_tiff(tmp_path / "a.tif", [scaled(inks, bits)], colour=CMYK, bits=bits, deflate=deflate)
        assert np.abs(read_image(tmp_path / "a.tif") - wanted).max() <= 2, (bits, deflate)


@pytest.mark.parametrize(
    ("bits", "number", "part"),
    [
        (8, 2, "int8"),
        (16, 2, "int16"),
        (32, 1, "uint32"),
        (32, 2, "int32"),
        (16, 3, "float16"),
        (32, 3, "float32"),
        (64, 3, "float64"),
    ],
)
@pytest.mark.parametrize("colour", [BLACK_IS_ZERO, RGB])
def test_samples_of_no_fixed_range(tmp_path: Path, bits: int, number: int, part: str, colour: int) -> None:
    samples = 3 if colour == RGB else 1
    values = np.zeros((4, 4, samples), f"{ {1: 'u', 2: 'i', 3: 'f'}[number] }{bits // 8}".replace(" ", ""))
    write_tiff(tmp_path / "a.tif", [values], colour=colour, bits=bits, extra={339: (SHORT, [number] * samples)})
    assert part in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("colour", [4, YCBCR, 8, 9, 10, 32803, 32844, 32845, 34892, 12345])
def test_other_kinds_of_colour_are_named(tmp_path: Path, colour: int) -> None:
    samples = 1 if colour in (4, 32803) else 3
    write_tiff(tmp_path / "a.tif", [COLOURS[..., :samples]], colour=colour, bits=8)
    assert any(word in refusal(tmp_path / "a.tif") for word in ("mask", "YCbCr", "Lab", "raw", "LogL", "photometric 12345"))


def test_a_preview_of_a_raw_file_is_no_picture(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.nef", [COLOURS], colour=RGB, bits=8, extra={254: (LONG, [1])})
    assert "camera's raw file" in refusal(tmp_path / "a.nef")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_orientation(tmp_path: Path, orientation: int, bits: int) -> None:
    extra = {274: (SHORT, [orientation])}
    write_tiff(tmp_path / "a.tif", [scaled(COLOURS, bits)], colour=RGB, bits=bits, extra=extra)
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's numbers -> Pillow's
    image = Image.fromarray(COLOURS)
    wanted = image.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else image
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(wanted))


@pytest.mark.parametrize("bits", [8, 16])
def test_every_cut_is_refused(tmp_path: Path, bits: int) -> None:
    write_tiff(tmp_path / "a.tif", np.split(scaled(COLOURS, bits), 3, -1), colour=RGB, bits=bits)
    good = (tmp_path / "a.tif").read_bytes()
    for length in range(0, len(good), 7):
        (tmp_path / "a.tif").write_bytes(good[:length])
        refusal(tmp_path / "a.tif")


def test_a_preview_behind_the_picture_is_left_aside(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(GRAY[..., 0])])
    assert "2 frames" in refusal(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = (
        data.rindex(struct.pack("<HHI", 256, 3, 1))
        if struct.pack("<HHI", 256, 3, 1) in data
        else data.rindex(struct.pack("<HHI", 256, 4, 1))
    )
    # The second page's width becomes the mark of a preview: there is no room for another tag.
    data[at : at + 12] = struct.pack("<HHII", 254, 4, 1, 1)
    (tmp_path / "a.tif").write_bytes(bytes(data))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), COLOURS)


@pytest.mark.timeout(60)  # counting them all takes minutes
def test_many_pages_are_refused_at_once(tmp_path: Path) -> None:
    tags = [(256, 4, 1), (257, 4, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 1), (279, 4, 1)]
    page = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    size, count = 2 + len(page) + 4, 200_000
    pages = b"".join(
        struct.pack("<H", len(tags)) + page + struct.pack("<I", 8 + (index + 1) * size if index + 1 < count else 0)
        for index in range(count)
    )
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + pages)
    assert "more than 2 frames" in refusal(tmp_path / "a.tif")
