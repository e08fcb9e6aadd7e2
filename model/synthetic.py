"""Synthetic weights and images: they depend only on names, shapes and seeds, so outputs can be compared across implementations.

Every tensor is drawn from NumPy's frozen ``RandomState``, seeded by a hash of its name. The stored outputs of the tests are
what the original network computed on these weights. They stand in for trained weights wherever only sizes and speed
matter, and where a checkpoint cannot be had.
"""

import hashlib
import math

import numpy as np
import torch

from mgvq_export.core.spec import ModelSpec
from mgvq_export.model.network import MGVQ


def synthetic_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of ``shape`` that stands for the parameter or buffer ``name``: float32, counters int64."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    rng = np.random.RandomState(seed)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.asarray(1000, dtype=np.int64)
    if leaf in ("codebook_used", "embed_prob"):
        return np.zeros(shape, np.float32)
    noise = rng.standard_normal(shape).astype(np.float32)
    if leaf == "running_var":
        return np.exp(0.2 * noise)
    if leaf == "running_mean":
        return 0.1 * noise
    if name == "quantize.embedding.weight":
        return noise
    if leaf == "bias":
        return 0.05 * noise
    if len(shape) == 1:  # norm scales
        return 0.5 + 0.1 * noise
    return noise * np.float32(math.sqrt(1.5 / int(np.prod(shape[1:]))))


def synthetic_state_dict(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """All tensors of a network."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in MGVQ(spec).state_dict().items()}
    return {name: torch.from_numpy(np.array(synthetic_tensor(name, shape))) for name, shape in shapes.items()}


def synthetic_network(spec: ModelSpec) -> MGVQ:
    """A network with synthetic weights."""
    with torch.device("meta"):
        network = MGVQ(spec)
    network.load_state_dict(synthetic_state_dict(spec), assign=True, strict=True)
    return network.requires_grad_(False)


def synthetic_image(height: int, width: int, seed: int = 1) -> np.ndarray:
    """A smooth-plus-texture float32 image [1, 3, height, width] in [-1, 1]. The golden outputs are those of seed 1."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(x / (11 + 3 * c) + rng.uniform(0, 6)) * np.cos(y / (7 + 2 * c) + rng.uniform(0, 6)) for c in range(3)]
    image = 0.7 * np.stack(waves) + 0.3 * rng.uniform(-1, 1, (3, height, width))
    return np.clip(image, -1, 1)[None].astype(np.float32)
