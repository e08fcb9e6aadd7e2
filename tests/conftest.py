"""Shared fixtures: a tiny network with every kind of block, so that tests take milliseconds."""

import numpy as np
import pytest

from mgvq_export.spec import ModelSpec

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


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    return TINY


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
