"""Batches of whole images through engines built for them, and latents alone, which Triton's encoder gives."""

from __future__ import annotations

import numpy as np

from mgvq_export import Tokenizer
from mgvq_export.export.engines.options import BuildOptions

SIZE = (64, 96)
TWO = BuildOptions(precision="fp32", shapes=(SIZE,), batch=2)


def test_batches_and_latents_equal_single_calls(engine_bundle, tiny_bundle, fake):
    gpu = fake().gpu
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(3)]  # the last one runs alone
    with Tokenizer.open(engine_bundle(TWO), backend="tensorrt", precision="fp32") as tokenizer:
        tokens = tokenizer.encode_batch(images)
        assert tokens == [tokenizer.encode(image) for image in images]
        decoded = tokenizer.decode_batch(tokens, groups=2)
        assert all(np.array_equal(image, tokenizer.decode(one, groups=2)) for image, one in zip(decoded, tokens, strict=True))
        latents = tokenizer.implementation.latent_batch(images)
    assert gpu.leaks() == {}
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as tokenizer:
        wanted = tokenizer.implementation.latent_batch(images)
        plan = tokenizer.encode_plan(*SIZE)
        for latent, image, found in zip(wanted, images, latents, strict=True):
            alone = tokenizer.implementation.latent(image, plan)[0]
            np.testing.assert_allclose(latent, alone, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
