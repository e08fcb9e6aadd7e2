"""A network of two stages, one of each kind, and photos of two sizes: calibrations that take seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from mgvq_export.core.spec import ModelSpec
from mgvq_export.export.bundles import export_bundle
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.tests.support.reference import synthetic_network, synthetic_state_dict

SMALL = ModelSpec(
    name="small",
    widths=(16, 32, 32),
    encoder_depths=(0, 1, 1),
    decoder_depths=(0, 1, 1),
    blocks=("res", "res", "evit"),
    groups=4,
    codebook_size=4 * 60,
    latent_channels=16,
)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Waves and noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack([np.sin(x / (5 + c + seed)) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
    return np.clip(127 + 90 * waves + 20 * rng.standard_normal(waves.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("photos")
    for seed, size in enumerate(((40, 56), (48, 33), (64, 64))):
        Image.fromarray(picture(seed, *size)).save(folder / f"{seed}.png")
    return tuple(sorted(folder.iterdir()))


@pytest.fixture(scope="session")
def held_out_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held-out") / "other.png"
    Image.fromarray(picture(9, 50, 70)).save(path)
    return path


@pytest.fixture
def small_network():
    return synthetic_network(SMALL)


@pytest.fixture(scope="session")
def small_spec() -> ModelSpec:
    return SMALL


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_file(synthetic_state_dict(SMALL), path, {"mgvq_spec": json.dumps(SMALL.to_dict())})
    return path


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    return export_bundle(load_checkpoint(small_checkpoint), tmp_path_factory.mktemp("bundles") / "small")
