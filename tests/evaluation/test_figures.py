"""Each figure against numpy, scikit-image, Pillow or scipy called directly."""

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from mgvq_export.core.errors import InputError
from mgvq_export.evaluation.figures import entropy_bits, frechet_distance, mean_squared_error, moments, psnr_of, ssim
from mgvq_export.evaluation.protocol import Protocol, parse_size, resize_and_crop
from mgvq_export.tests.support.checks import one_line


def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("height", [8, 70, 71, 75, 200])
def test_error_and_similarity_of_images(height: int, photo: np.ndarray, rng: np.random.Generator) -> None:
    image = np.ascontiguousarray(np.tile(photo, (3, 1, 1))[:height])
    other = noisy(image, rng)
    assert mean_squared_error(other, image) == np.mean((other.astype(np.float64) - image) ** 2)
    assert ssim(other, image) == pytest.approx(structural_similarity(other, image, channel_axis=-1), abs=1e-12)
    assert ssim(image, image) == pytest.approx(1)
    assert mean_squared_error(image, image) == 0


def test_psnr() -> None:
    assert psnr_of(255.0**2) == 0
    assert psnr_of(6.5025) == pytest.approx(40)
    assert psnr_of(0) == np.inf


def test_entropy(rng: np.random.Generator) -> None:
    assert entropy_bits(np.full(64, 5)) == 6
    assert entropy_bits(np.array([0, 9, 0])) == 0
    assert entropy_bits(np.zeros(4, int)) == 0
    codes = rng.integers(0, 9, 1000)
    shares = [np.mean(codes == code) for code in range(9)]
    assert entropy_bits(np.bincount(codes, minlength=20)) == pytest.approx(-sum(p * np.log2(p) for p in shares))


def test_moments_in_blocks(rng: np.random.Generator) -> None:
    rows = rng.normal(3, 2, (50, 7)).astype(np.float32)
    mean, covariance = moments(lambda: iter(np.array_split(rows, 4)))
    np.testing.assert_allclose(mean, rows.mean(0, dtype=np.float64))
    np.testing.assert_allclose(covariance, np.cov(rows.astype(np.float64), rowvar=False))


def test_frechet_distance(rng: np.random.Generator) -> None:
    from scipy.linalg import sqrtm

    samples = [rng.normal(0, 1, (200, 6)) @ rng.normal(0, 1, (6, 6)) + rng.normal(0, 1, 6) for _ in range(2)]
    (m1, c1), (m2, c2) = both = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in samples]
    wanted = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(*both) == pytest.approx(wanted)
    assert frechet_distance(both[0], both[0]) == pytest.approx(0, abs=1e-9)
    # One dimension has a closed form: (m1 - m2)^2 + (s1 - s2)^2.
    assert frechet_distance((np.array([1.0]), np.array([[4.0]])), (np.array([3.0]), np.array([[9.0]]))) == pytest.approx(5)


@pytest.mark.parametrize("size", [(64, 64), (90, 40), (40, 90), (101, 75), (256, 128)])
@pytest.mark.parametrize("transposed", [False, True])
def test_resize_and_crop_is_the_released_evaluation(size: tuple[int, int], transposed: bool, photo: np.ndarray) -> None:
    """Against the published procedure step by step: cover the crop, bicubic, centre."""
    image = photo.transpose(1, 0, 2) if transposed else photo
    width, height = size
    source = Image.fromarray(np.ascontiguousarray(image))
    w, h = source.size
    if w / h < width / height:
        scaled = source.resize((width, round(h / w * width)), resample=Image.Resampling.BICUBIC)
        top = int(scaled.size[1] / 2 - height / 2)
        wanted = np.asarray(scaled)[top : top + height]
    else:
        scaled = source.resize((round(w / h * height), height), resample=Image.Resampling.BICUBIC)
        left = int(scaled.size[0] / 2 - width / 2)
        wanted = np.asarray(scaled)[:, left : left + width]
    np.testing.assert_array_equal(resize_and_crop(image, size), wanted)


def test_an_image_of_the_size_is_left_alone(photo: np.ndarray) -> None:
    np.testing.assert_array_equal(resize_and_crop(photo, (101, 75)), photo)


def test_resizing_is_antialiased() -> None:
    """A fine checkerboard becomes gray, not a coarse checkerboard."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    small = resize_and_crop(image, (64, 64))
    assert np.abs(small[4:-4, 4:-4].astype(int) - 127).max() <= 2


def test_protocols_are_parsed(tiny_spec) -> None:
    protocol = Protocol.parse(tiny_spec, "2560x1440", "4,1", ["ssim"])
    assert (protocol.size, protocol.groups, protocol.metrics, protocol.asked) == (
        (2560, 1440),
        (1, 4),
        ("psnr", "ssim"),
        ("ssim",),
    )
    assert Protocol.parse(tiny_spec).groups == (1, 2, 4)
    assert Protocol.parse(tiny_spec).metrics == ("psnr", "ssim", "lpips", "rfid")


@pytest.mark.parametrize("text", ["256", "256x", "0x256", "7x256", "axb", "256x256x3", "-1x5"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(InputError, match="wanted WIDTHxHEIGHT") as error:
        parse_size(text)
    assert one_line(str(error.value))


@pytest.mark.parametrize("text", ["0", "5", "1,,2", "x", ""])
def test_bad_groups(text: str, tiny_spec) -> None:
    with pytest.raises(InputError, match="tiny has 4"):
        Protocol.parse(tiny_spec, groups=text)
