"""Reading, writing and converting images, with real files of every kind that Pillow can make."""

import errno
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from mgvq_export.core.errors import InputError
from mgvq_export.runtime.image_files import WRITERS, read_image, write_image
from mgvq_export.tests.support.image_makers import icc_profile


@pytest.fixture
def photo(rng) -> np.ndarray:
    return rng.integers(0, 256, (11, 14, 3), dtype=np.uint8)


def refused(error: pytest.ExceptionInfo, *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def png(pixels: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    """A PNG of 8 or 16 bits per channel, written by hand: Pillow cannot write 16-bit colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- reading ---


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm", ".webp"])
def test_lossless_files_come_back_exactly(tmp_path, photo, suffix):
    Image.fromarray(photo).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    read = read_image(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, photo)


def test_the_content_decides_not_the_name(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), photo)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(tmp_path, progressive):
    smooth = np.indices((40, 60)).sum(0).astype(np.uint8)[..., None].repeat(3, -1)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95, progressive=progressive)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    wanted = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: np.rot90(photo, -1),
        7: photo[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(photo, 1),
    }[orientation]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), wanted)


def test_broken_exif_does_not_hide_the_pixels(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)


def test_gray_one_bit_and_palette(tmp_path, photo):
    gray = photo[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), gray[..., None].repeat(3, -1))
    bits = np.where(gray > 127, 255, 0).astype(np.uint8)
    Image.fromarray(bits).convert("1").save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png"), bits[..., None].repeat(3, -1))
    palette = Image.fromarray(photo).quantize(8)
    for name in ("palette.png", "palette.gif"):
        palette.save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.asarray(palette.convert("RGB")))


def test_opaque_alpha_is_lossless_and_transparency_is_white(tmp_path, photo, rng):
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)
    alpha[:5] = 0
    alpha[5] = rng.integers(1, 255, alpha.shape[1])
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert (read[:5] == 255).all()
    np.testing.assert_array_equal(read[6:], photo[6:])
    share = alpha[5, :, None] / 255
    assert np.abs(read[5] - (photo[5] * share + 255 * (1 - share))).max() <= 1


def test_gray_alpha_and_transparent_colours(tmp_path, photo):
    gray = np.array([[10, 20], [30, 40]], np.uint8)
    Image.merge("LA", (Image.fromarray(gray), Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)))).save(
        tmp_path / "la.png"
    )
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[..., 1], [[10, 255], [30, 40]])
    Image.fromarray(gray).save(tmp_path / "key.png", transparency=30)
    np.testing.assert_array_equal(read_image(tmp_path / "key.png")[..., 2], [[10, 20], [255, 40]])
    palette = Image.fromarray(gray).convert("P")
    palette.putpalette([value for index in range(256) for value in (index, 0, 0)])
    palette.save(tmp_path / "p.gif", transparency=40)
    np.testing.assert_array_equal(read_image(tmp_path / "p.gif")[1], [[30, 0, 0], [255, 255, 255]])


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_16_bit_gray_is_scaled(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 6 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 0, 1, 1, 128, 255])


def test_16_bit_gray_with_a_transparent_value(tmp_path):
    extra = b"tRNS" + struct.pack(">H", 512)
    chunk = struct.pack(">I", 2) + extra + struct.pack(">I", zlib.crc32(extra))
    (tmp_path / "a.png").write_bytes(png(np.array([[[512], [514], [65535]]], np.uint16), 0, chunk))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 0], [255, 2, 255])


def test_16_bit_colour_is_within_one_step(tmp_path, rng):
    values = rng.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png(values, 2))
    assert np.abs(read_image(tmp_path / "a.png") - values / 257).max() <= 1


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5, 3.0]], np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "a.tiff")
    refused(error, "float32", "8 or 16 bits")


def test_cmyk(tmp_path):
    colours = np.array([[[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 0]]], np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - colours).max() <= 4
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), colours)


def wide_profile() -> bytes:
    """sRGB's profile with the red and green primaries exchanged: converting has an effect nobody can overlook."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    at = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 136 + 12 * i for i in range(count)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    profile[red : red + 8], profile[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    start, length = struct.unpack(">II", profile[at[b"desc"] : at[b"desc"] + 8])
    profile[start : start + length] = bytes(profile[start : start + length]).replace(
        "sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be")
    )
    return bytes(profile)


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without colour management")
def test_colour_profiles(tmp_path):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    for name, profile, wanted in (
        ("other", wide_profile(), red[..., [1, 0, 2]]),
        ("srgb", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), red),
        ("broken", b"no profile", red),
    ):
        Image.fromarray(red).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert np.abs(read_image(tmp_path / f"{name}.png").astype(int) - wanted).max() <= (2 if name == "other" else 0), name
        alpha = np.full((4, 4, 1), 255, np.uint8)
        alpha[0] = 0
        Image.fromarray(np.concatenate([red, alpha], -1)).save(tmp_path / f"{name}.png", icc_profile=profile)
        read = read_image(tmp_path / f"{name}.png")
        assert (read[0] == 255).all()
        assert np.abs(read[1:].astype(int) - wanted[1:]).max() <= (2 if name == "other" else 0), name


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff"])
def test_several_frames_are_refused(tmp_path, photo, name):
    frames = [Image.fromarray(photo), Image.fromarray(255 - photo)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError) as error:
        read_image(tmp_path / name)
    refused(error, name, "2 frames", "save the one you want")


def test_multi_picture_jpeg_of_phones_is_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 8), "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (16, 16, 3)
    assert np.abs(read.astype(int) - [254, 0, 0]).max() <= 2


def test_no_image(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image\n")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name, part in (
        ("empty.png", "is empty"),
        ("text.jpg", "no image"),
        ("a.eps", "no image"),
        ("none.png", "no such file"),
        (".", "folder"),
    ):
        with pytest.raises(InputError) as error:
            read_image(tmp_path / name)
        refused(error, str(tmp_path / name), part)


def test_zero_size(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.zeros((0, 5, 3), np.uint8), 2))
    (tmp_path / "a.ppm").write_bytes(b"P6 0 4 255\n")
    for name in ("a.png", "a.ppm"):
        with pytest.raises(InputError) as error:
            read_image(tmp_path / name)
        refused(error, name)


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_every_cut_is_refused(tmp_path, photo, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, photo)
    whole, good = read_image(path), path.read_bytes()
    damaged = 0
    for length in range(len(good)):
        path.write_bytes(good[:length])
        try:
            # What a cut may take away without loss: a closing mark, or tags that say nothing about the pixels.
            np.testing.assert_array_equal(read_image(path), whole)
        except InputError as error:
            refused_line = str(error)
            assert "\n" not in refused_line
            damaged += 1
    assert damaged > 0.9 * len(good) - 20


def test_random_damage_is_an_image_or_one_line(tmp_path, photo, rng):
    for suffix in WRITERS:
        path = tmp_path / f"a{suffix}"
        write_image(path, photo)
        good = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            bad = good.copy()
            bad[rng.integers(0, min(len(bad), 200), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(bad.tobytes())
            try:
                assert read_image(path, max_pixels=10**6).ndim == 3
            except InputError as error:
                assert "\n" not in str(error)


def test_tiff_tile_larger_than_its_image(tmp_path):
    tags = [(256, 4), (257, 4), (258, 8), (259, 8), (262, 1), (277, 1), (322, 60000), (323, 60000), (324, 8), (325, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "a.tiff").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "a.tiff")
    refused(error, "a.tiff", "60000x60000", "3600 megapixels")


def test_decompression_bomb(tmp_path, photo):
    # 60000 x 60000 pixels in a header, and almost no data: refused by the header alone.
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b""))
    chunks = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "bomb.png")
    refused(error, "bomb.png", "3600 megapixels", "the limit is 512", "--max-pixels 3600000000")
    write_image(tmp_path / "a.png", photo)
    with pytest.raises(InputError, match="limit"):
        read_image(tmp_path / "a.png", max_pixels=photo.shape[0] * photo.shape[1] - 1)
    read_image(tmp_path / "a.png", max_pixels=photo.shape[0] * photo.shape[1])


@pytest.mark.parametrize("suffix", list(WRITERS))
@pytest.mark.filterwarnings("error")
def test_pillows_own_limit_neither_counts_nor_changes(tmp_path, photo, suffix, monkeypatch):
    write_image(tmp_path / f"a{suffix}", photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(tmp_path / f"a{suffix}").shape == photo.shape
    assert Image.MAX_IMAGE_PIXELS == 10


def test_reading_from_many_threads(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    write_image(tmp_path / "a.png", photo)
    results: list[bool] = []

    def read() -> None:
        results.extend(np.array_equal(read_image(tmp_path / "a.png"), photo) for _ in range(20))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80
    assert Image.MAX_IMAGE_PIXELS == 10


# --- colours ---


def as_png(tmp_path, pixels: np.ndarray, *chunks: tuple[bytes, bytes], colour_type: int = 2) -> np.ndarray:
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    (tmp_path / "a.png").write_bytes(png(pixels, colour_type, b"".join(parts)))
    return read_image(tmp_path / "a.png")


def test_a_profile_is_judged_by_what_it_does(tmp_path):
    pixels = np.full((4, 4, 3), 55, np.uint8)
    for name, gamma, wanted in (
        ("GIMP built-in Linear sRGB", 1.0, 128),
        ("sRGB IEC61966-2.1", 1.8, 71),
        ("a name of its own", 2.2, 52),
    ):
        for mode in ("RGB", "RGBA", "L", "P"):
            image = Image.fromarray(pixels)
            image = image.quantize(2) if mode == "P" else image.convert(mode)
            image.save(tmp_path / "a.png", icc_profile=icc_profile(gamma, name=name))
            assert abs(int(read_image(tmp_path / "a.png")[0, 0, 0]) - wanted) <= 1, (name, mode)


def test_a_gray_profile_counts_with_and_without_alpha(tmp_path):
    gray = Image.new("L", (4, 4), 55)
    profile = icc_profile(1.0, space=b"GRAY")
    for image in (gray, Image.merge("LA", (gray, Image.new("L", (4, 4), 255)))):
        for suffix in (".png", ".tif"):
            image.save(tmp_path / f"a{suffix}", icc_profile=profile)
            assert (np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - 128) <= 1).all(), (image.mode, suffix)


def test_a_profile_for_other_pixels_is_ignored(tmp_path):
    pixels = np.full((4, 4, 3), 55, np.uint8)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (icc_profile(1.0, space=b"GRAY"), lab, icc_profile(1.0)[:200]):
        Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        ([(b"gAMA", struct.pack(">I", 45455))], 55),  # what is written for sRGB
        ([(b"gAMA", struct.pack(">I", 100000))], 128),
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], 55),
        ([(b"cICP", bytes([1, 8, 0, 1])), (b"sRGB", b"\0")], 128),
        ([(b"cICP", bytes([1, 13, 0, 1]))], 55),
        ([(b"gAMA", struct.pack(">I", 0))], 55),  # no sense in it
    ],
)
def test_png_says_how_its_colours_are_coded(tmp_path, chunks, wanted):
    for pixels, colour_type in ((np.full((4, 4, 3), 55, np.uint8), 2), (np.full((4, 4, 1), 55, np.uint8), 0)):
        assert np.abs(as_png(tmp_path, pixels, *chunks, colour_type=colour_type).astype(int) - wanted).max() <= 1


def test_png_primaries(tmp_path):
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[..., 0] = 200
    wide = np.array([0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06])
    by_name = as_png(tmp_path, pixels, (b"cICP", bytes([12, 13, 0, 1])))
    by_numbers = as_png(tmp_path, pixels, (b"cHRM", struct.pack(">8I", *np.rint(wide * 100000).astype(int))))
    assert by_name[0, 0, 0] > 210
    np.testing.assert_array_equal(by_name, by_numbers)


@pytest.mark.parametrize(
    ("coding", "part"), [((9, 16), "HDR (PQ)"), ((9, 18), "HDR (HLG)"), ((22, 13), "primaries 22"), ((1, 9), "transfer 9")]
)
def test_colours_that_cannot_be_converted_are_refused(tmp_path, coding, part):
    with pytest.raises(InputError) as error:
        as_png(tmp_path, np.full((4, 4, 3), 55, np.uint8), (b"cICP", bytes([*coding, 0, 1])))
    refused(error, "a.png", part)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparent_gray_of_few_bits(tmp_path, bits):
    top = 2**bits - 1
    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    row = bytes([0, (0 << (8 - bits)) | (top << (8 - 2 * bits))])  # black, white
    chunks = ((b"IHDR", header), (b"tRNS", struct.pack(">H", 0)), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert (read_image(tmp_path / "a.png") == 255).all()  # the black is see-through, over white


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif(tmp_path):
    smooth = np.indices((40, 60)).sum(0).astype(np.uint8)[..., None].repeat(3, -1)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", "AVIF", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() <= 4
    coded = (tmp_path / "a.jpg").read_bytes()
    at = coded.index(b"colrnclx") + 8
    (tmp_path / "a.jpg").write_bytes(coded[: at + 2] + struct.pack(">H", 16) + coded[at + 4 :])
    with pytest.raises(InputError, match="HDR"):
        read_image(tmp_path / "a.jpg")


def test_16_bit_colour_with_a_transparent_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="16 bits per channel and one transparent colour"):
        as_png(tmp_path, np.zeros((2, 2, 3), np.uint16), (b"tRNS", struct.pack(">3H", 1, 1, 1)))


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(200), "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "SVG"),
        (b"%PDF-1.7", "PDF"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"v/1\x01" + bytes(20), "OpenEXR"),
        (b"#?RADIANCE\n", "Radiance"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (b"<!DOCTYPE html><html>", "HTML"),
    ],
)
def test_other_files_are_named(tmp_path, head, part):
    (tmp_path / "a.jpg").write_bytes(head)
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "a.jpg")
    refused(error, "a.jpg", part)


def test_a_damaged_chunk_is_the_reason(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[20] ^= 1  # in the header, whose checksum no longer fits
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "a.png")
    refused(error, "a.png", "damaged", "IHDR")


# --- writing ---


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_written_files_read_back(tmp_path, photo, suffix):
    path = tmp_path / f"a{suffix.upper()}"
    write_image(path, photo[::-1])  # a view with negative strides
    with Image.open(path) as image:
        assert image.format == WRITERS[suffix]
    read = read_image(path)
    if WRITERS[suffix] == "JPEG":
        assert np.abs(read.astype(int) - photo[::-1]).mean() < 4
    else:
        np.testing.assert_array_equal(read, photo[::-1])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_quality(tmp_path, photo):
    for suffix in (".jpg", ".webp"):
        write_image(tmp_path / f"low{suffix}", photo, quality=5)
        write_image(tmp_path / f"high{suffix}", photo, quality=100)
        assert (tmp_path / f"low{suffix}").stat().st_size < (tmp_path / f"high{suffix}").stat().st_size


@pytest.mark.parametrize(
    ("name", "quality", "part"),
    [
        ("a.xyz", None, ".png, .jpg"),
        ("a", None, "suffix ''"),
        ("a.png", 90, "no quality"),
        ("a.jpg", 0, "1 to 100"),
        ("a.jpg", "9", "'9'"),
    ],
)
def test_refused_writing(tmp_path, photo, name, quality, part):
    with pytest.raises(InputError) as error:
        write_image(tmp_path / name, photo, quality=quality)
    refused(error, part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_side_too_long_for_the_format(tmp_path, suffix):
    with pytest.raises(InputError) as error:
        write_image(tmp_path / f"a{suffix}", np.zeros((70000, 1, 3), np.uint8))
    refused(error, "70000x1", "choose .png")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_old_image(tmp_path, photo, monkeypatch):
    write_image(tmp_path / "a.png", photo)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mgvq_export.core.files.os.fsync", full)
    with pytest.raises(InputError) as error:
        write_image(tmp_path / "a.png", 255 - photo)
    refused(error, "a.png", "disk is full")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)
    assert len(list(tmp_path.iterdir())) == 1
