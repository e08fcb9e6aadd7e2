"""The packaged demo model, on photos it was not trained on."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mgvq_export.parity
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.model.demo import DEMO_SPEC, DEMO_WEIGHTS, HELD_OUT_PHOTOS, TRAINING_PHOTOS, photo_path
from mgvq_export.model.network import MGVQ

SAMPLES = Path(mgvq_export.parity.__file__).parent / "samples"
SMALLEST_PSNR = 26.0  # dB, with all groups


@pytest.fixture(scope="module")
def network() -> MGVQ:
    return load_checkpoint("demo").network()


def middle(path: Path, side: int = 288) -> torch.Tensor:
    """The photo's middle as float [1, 3, side, side] in [-1, 1]."""
    photo = Image.open(path).convert("RGB")
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    pixels = np.array(photo.crop((left, top, left + side, top + side)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def psnr(image: torch.Tensor, other: torch.Tensor) -> float:
    """PSNR in dB of 8-bit pixels."""
    pixels, others = (((x.float().clamp(-1, 1) + 1) * 127.5).round() for x in (image, other))
    return 10 * math.log10(255**2 / float((pixels - others).square().mean()))


def held_out(photo: str) -> Path:
    pytest.importorskip("skimage", reason="scikit-image ships the photo: pip install 'mgvq-export[test]'")
    return photo_path(photo)


def test_file_is_small_and_carries_its_spec():
    assert DEMO_WEIGHTS.stat().st_size <= 8_000_000
    assert load_checkpoint(DEMO_WEIGHTS).spec == DEMO_SPEC


def test_every_tensor_loads_strictly_by_name():
    tensors = load_checkpoint("demo").tensors
    MGVQ(DEMO_SPEC).load_state_dict(dict(tensors), strict=True)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_codebook_rows_are_unit_vectors(network):
    torch.testing.assert_close(network.quantize.embedding.weight.norm(dim=1), torch.ones(DEMO_SPEC.codebook_size))


@pytest.mark.parametrize("photo", HELD_OUT_PHOTOS)
def test_every_group_improves_a_held_out_photo(network, photo):
    image = middle(held_out(photo))
    with torch.no_grad():
        codes = network.encode(image)
        figures = [psnr(network.decode(codes, groups), image) for groups in range(1, DEMO_SPEC.groups + 1)]
    assert all(fewer < more for fewer, more in itertools.pairwise(figures)), figures
    assert figures[-1] >= SMALLEST_PSNR, figures


@pytest.mark.parametrize("photo", HELD_OUT_PHOTOS)
def test_half_precision_agrees_on_codes_and_on_pixels_of_the_same_codes(network, photo):
    image = middle(held_out(photo))
    half = load_checkpoint("demo").network(torch.float16)
    with torch.no_grad():
        codes, half_codes = network.encode(image), half.encode(image.half())
        output, half_output = network.decode(codes), half.decode(codes)
    assert (codes == half_codes).float().mean() >= 0.985
    assert psnr(output, half_output) >= 50


def test_attention_copes_with_an_image_far_larger_than_the_training_crops(network):
    """Training crops are at most 192 pixels wide; a photo of four times that side must not come out worse than its middle."""
    photo = Image.open(held_out(HELD_OUT_PHOTOS[0])).convert("RGB").resize((768, 768), Image.Resampling.LANCZOS)
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        assert psnr(network(image), image) >= SMALLEST_PSNR


def test_sample_photos_are_the_held_out_ones():
    names = {path.stem for path in SAMPLES.glob("*.jpg")}
    assert names == {Path(photo).stem for photo in HELD_OUT_PHOTOS}
    assert not names & {Path(photo).stem for photo in TRAINING_PHOTOS}
    assert all(path.stat().st_size < 150_000 for path in SAMPLES.glob("*.jpg"))


@pytest.mark.parametrize("photo", HELD_OUT_PHOTOS)
def test_sample_photo_shows_the_held_out_photo(photo):
    sample = middle(SAMPLES / f"{Path(photo).stem}.jpg")
    assert psnr(sample, middle(held_out(photo))) >= 30


def test_photo_path_names_what_is_missing():
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed"):
        photo_path("no_such_package: photo.png")
    with pytest.raises(FileNotFoundError, match=r"has no file photo\.png"):
        photo_path("PIL: photo.png")


def test_the_spec_is_read_without_torch():
    code = "import sys, mgvq_export.model.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
