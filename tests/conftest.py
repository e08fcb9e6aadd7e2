"""Shared fixtures: a tiny network with every kind of block, so that tests take milliseconds, and bundles made once."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.core.spec import ModelSpec

pytest_plugins = ["mgvq_export.tests.support.engine_fixtures"]

TINY = ModelSpec(
    name="tiny",
    widths=(16, 32, 64, 64, 64),
    encoder_depths=(0, 1, 1, 1, 1),
    decoder_depths=(0, 1, 1, 1, 1),
    blocks=("res", "res", "res", "evit", "evit"),
    groups=4,
    codebook_size=4 * 60,
    latent_channels=16,
)


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> Iterator[None]:
    """Ctrl-C works in the tests and in the processes they start, also where a script started them in the background, SIGINT ignored."""
    inherited = signal.getsignal(signal.SIGINT)
    if inherited is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    return TINY


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network's synthetic weights as a safetensors checkpoint with its spec in the metadata."""
    import json

    from safetensors.torch import save_file

    from mgvq_export.tests.support.reference import synthetic_state_dict

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_file(synthetic_state_dict(TINY), path, {"mgvq_spec": json.dumps(TINY.to_dict())})
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """A bundle of the tiny network, fp32 and fp16. Tests that change files copy it."""
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.model.checkpoint import load_checkpoint

    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_bundle(load_checkpoint(tiny_checkpoint_file), path, precisions=("fp32", "fp16"))


@pytest.fixture(scope="session")
def tiny_network():
    from mgvq_export.tests.support.reference import synthetic_network

    return synthetic_network(TINY)


@pytest.fixture
def photo(rng: np.random.Generator) -> np.ndarray:
    """A uint8 image [75, 101, 3] with structure, of a size that no stride divides."""
    y, x = np.mgrid[0:75, 0:101].astype(np.float32)
    waves = np.stack([np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
    return np.clip(127 + 90 * waves + 20 * rng.standard_normal(waves.shape), 0, 255).astype(np.uint8)
