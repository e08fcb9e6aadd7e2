"""The network against the original's outputs on synthetic weights."""

import numpy as np
import pytest
import torch

from mgvq_export.core.spec import VARIANTS, ModelSpec, Part
from mgvq_export.model.network import MGVQ
from mgvq_export.ops.contract import near_tie_margins
from mgvq_export.parity.metrics import max_abs, relative_l2
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.tests.support.reference import GOLDEN, synthetic_image, synthetic_network, synthetic_state_dict

FAST = "mgvq-f16c32-g8"
STORED = sorted(path.stem for path in GOLDEN.glob("*.npz"))


@pytest.mark.parametrize("name", [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in STORED])
def test_golden_outputs(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    network = synthetic_network(VARIANTS[name])
    with torch.inference_mode():
        latent = network.latent(torch.from_numpy(synthetic_image(64, 96)))
        codes = network.quantize.encode(latent).numpy()
        stored = torch.from_numpy(golden["codes"])
        quantized = network.quantize.decode(stored)
        image = network.reconstruct(quantized).clamp(-1, 1).numpy()
        half = network.decode(stored, network.spec.groups // 2).clamp(-1, 1).numpy()
    assert tolerance("latent", "fp32").holds(relative_l2(latent.numpy(), golden["latent"]))
    margins = near_tie_margins(golden["latent"], network.quantize.codebook().numpy(), codes, golden["codes"])
    assert all(tolerance("codes", "fp32").holds(margin) for margin in margins)
    np.testing.assert_allclose(quantized.numpy(), golden["quantized"], atol=1e-6)
    assert tolerance("pixels", "fp32").holds(max_abs(image, golden["reconstruction"].clip(-1, 1)))
    assert tolerance("pixels", "fp32").holds(max_abs(half, golden["reconstruction_half_groups"].clip(-1, 1)))


def test_trunk_then_head_is_the_whole(tiny_network: MGVQ) -> None:
    image = torch.from_numpy(synthetic_image(96, 64))
    with torch.inference_mode():
        whole = tiny_network.latent(image)
        fine = tiny_network.part(Part.ENCODER_TRUNK_FINE)(image)
        features = tiny_network.part(Part.ENCODER_TRUNK_COARSE)(fine)
        assert torch.equal(features, tiny_network.part(Part.ENCODER_TRUNK)(image))
        assert torch.equal(tiny_network.part(Part.ENCODER_HEAD)(features), whole)
        codes = tiny_network.quantize.encode(whole)
        quantized = tiny_network.quantize.decode(codes)
        features = tiny_network.part(Part.DECODER_HEAD)(quantized)
        inner = tiny_network.part(Part.DECODER_TRUNK_COARSE)(features)
        assert torch.equal(tiny_network.part(Part.DECODER_TRUNK_FINE)(inner), tiny_network.decode(codes))


def test_half_precision_keeps_its_float32_islands(tiny_network: MGVQ, tiny_spec: ModelSpec) -> None:
    half = MGVQ(tiny_spec)
    half.load_state_dict(synthetic_state_dict(tiny_spec))
    half.half()
    image = torch.from_numpy(synthetic_image(64, 96))
    with torch.inference_mode():
        latent = half.latent(image.half())
        assert latent.dtype == torch.float16
        assert relative_l2(latent.float().numpy(), tiny_network.latent(image).numpy()) < 3e-3


def test_attention_sums_beyond_float16(tiny_spec: ModelSpec) -> None:
    # The sum over pixels of these keys is far above 65504, and its products would be infinite in float16.
    half = MGVQ(tiny_spec)
    half.load_state_dict(synthetic_state_dict(tiny_spec))
    attention = half.encoder.stages[3].op_list[0].context_module.main
    attention.qkv.conv.weight.data.mul_(40)
    features = torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(0)) * 4
    half.half()
    with torch.inference_mode():
        assert torch.isfinite(attention(features.half())).all()


def test_unused_groups_are_zero(tiny_network: MGVQ, tiny_spec: ModelSpec) -> None:
    codes = torch.randint(0, tiny_spec.codes_per_group, (2, tiny_spec.groups, 3, 5), generator=torch.Generator().manual_seed(0))
    quantized = tiny_network.quantize.decode(codes, groups=2)
    used = 2 * tiny_spec.group_dim
    assert (quantized[:, used:] == 0).all()
    assert torch.equal(quantized[:, :used], tiny_network.quantize.decode(codes)[:, :used])


@pytest.mark.parametrize("name", VARIANTS)
def test_all_variants_have_the_released_tensors(name: str) -> None:
    with torch.device("meta"):
        state = MGVQ(VARIANTS[name]).state_dict()
    spec = VARIANTS[name]
    # Counts and shapes of the released checkpoints.
    assert len(state) == {8: 249, 16: 297, 32: 345}[spec.downsample]
    assert state["quantize.embedding.weight"].shape == (spec.codebook_size, spec.group_dim)
    assert state["encoder.stages.3.op_list.0.context_module.main.qkv.conv.weight"].shape == (1536, 512, 1, 1)
    assert state["decoder.project_out.op_list.2.conv.conv.weight"].shape == (12, 256, 3, 3)
