"""Pixel arrays: checks, padding, and the network's float range."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from mgvq_export.core.errors import InputError
from mgvq_export.runtime.images import check_image, crop, pad_to_multiple, to_float, to_uint8


def refused(error: pytest.ExceptionInfo, *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("array", "part"),
    [
        ([[1]], "numpy.asarray"),
        (np.zeros((4, 4), np.uint8), "numpy.stack"),
        (np.zeros((3, 4, 5), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((5, 4, 4), np.uint8), "[..., :3]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "one image at a time"),
        (np.zeros((5, 4, 2), np.uint8), "[5, 4, 2]"),
        (np.zeros((5, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), "[0, 4, 3]"),
    ],
)
def test_wrong_arrays(array, part):
    with pytest.raises(InputError) as error:
        check_image(array)
    refused(error, part)
    with pytest.raises(InputError):
        to_float(array)


def test_pillow_images():
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(check_image(image), pixels)
    with pytest.raises(InputError) as error:
        check_image(image.convert("RGBA"))
    refused(error, "mode RGBA", "read_image", "convert('RGB')")


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.sampled_from([1, 2, 8, 16, 32]))
def test_padding(height, width, multiple):
    image = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    padded, size = pad_to_multiple(image, multiple)
    assert size == (height, width)
    assert padded.shape[0] % multiple == padded.shape[1] % multiple == 0
    assert padded.shape[0] - height < multiple
    assert padded.shape[1] - width < multiple
    np.testing.assert_array_equal(crop(padded, size), image)
    assert (padded[height:] == padded[height - 1]).all()
    assert (padded[:, width:] == padded[:, width - 1 : width]).all()
    assert np.shares_memory(crop(padded, size), padded)
    if padded.shape == image.shape:
        assert padded is image


def test_to_float_is_the_stated_arithmetic_and_is_undone_exactly(rng):
    image = np.arange(256, dtype=np.uint8).reshape(64, 4, 1).repeat(3, -1)
    floats = to_float(image)
    assert floats.dtype == np.float32
    assert floats.shape == (1, 3, 64, 4)
    x = image.transpose(2, 0, 1)[None].astype(np.float32)
    np.testing.assert_array_equal(floats, (x / np.float32(255) - np.float32(0.5)) * np.float32(2))
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(floats), image)
    np.testing.assert_array_equal(to_uint8(floats[0].astype(np.float16)), image)


def test_to_float_equals_pytorch():
    torch = pytest.importorskip("torch")
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    wanted = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - 0.5) * 2
    np.testing.assert_array_equal(to_float(image), wanted.numpy())


def test_windows_and_out(rng):
    image = rng.integers(0, 256, (100, 90, 3), dtype=np.uint8)
    window = image[10:77, 5:60]
    whole = to_float(image)
    np.testing.assert_array_equal(to_float(window), whole[:, :, 10:77, 5:60])
    batch = np.zeros((2, 3, 67, 55), np.float16)
    assert to_float(window, out=batch[1:]).base is not None
    np.testing.assert_array_equal(batch[1], whole[0, :, 10:77, 5:60].astype(np.float16))
    assert (batch[0] == 0).all()
    canvas = np.zeros_like(image)
    to_uint8(whole[:, :, 10:77, 5:60], out=canvas[10:77, 5:60])
    np.testing.assert_array_equal(canvas[10:77, 5:60], window)
    assert canvas.sum() == window.sum(dtype=np.int64)
    with pytest.raises(InputError, match="out has shape"):
        to_float(window, out=np.zeros((1, 3, 55, 67), np.float32))
    with pytest.raises(InputError, match="out is"):
        to_uint8(whole, out=np.zeros((90, 100, 3), np.uint8))


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (3, 5, 7), elements=st.floats(-4, 4, width=32)))
def test_to_uint8_clips_and_rounds(values):
    pixels = to_uint8(values)
    wanted = (np.clip(values.astype(np.float64), -1, 1) + 1) * 127.5
    assert np.abs(pixels.transpose(2, 0, 1) - wanted).max() <= 0.5 + 1e-4


def test_to_uint8_refuses():
    assert to_uint8(np.full((3, 2, 2), np.inf, np.float32)).min() == 255
    for bad, part in (
        (np.full((3, 2, 2), np.nan, np.float32), "NaN"),
        (np.zeros((2, 3, 4, 4), np.float32), "[2, 3, 4, 4]"),
        (np.zeros((3, 4, 4), np.uint8), "uint8"),
    ):
        with pytest.raises(InputError) as error:
            to_uint8(bad)
        refused(error, part)
