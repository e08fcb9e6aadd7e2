"""The tokenizer end to end on the tiny network: any image size, against PyTorch, and what it refuses."""

import numpy as np
import pytest
import torch

from mgvq_export import Tokenizer, Tokens
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError, TokensError
from mgvq_export.core.spec import ModelSpec, Part
from mgvq_export.model.network import MGVQ
from mgvq_export.ops.contract import near_tie_margins
from mgvq_export.runtime.images import pad_to_multiple, to_float, to_uint8
from mgvq_export.runtime.ort.sessions import OrtSession


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Bundle):
    with Tokenizer.open(tiny_bundle) as opened:
        yield opened


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (75, 101), (64, 1)])
def test_any_size_equals_the_network(size: tuple[int, int], tokenizer: Tokenizer, tiny_network: MGVQ, rng) -> None:
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    tokens = tokenizer.encode(image)
    again = tokenizer.decode(tokens)
    assert again.shape == image.shape
    assert tokens.image_size == size
    padded, _ = pad_to_multiple(image, tiny_network.spec.downsample)
    with torch.inference_mode():
        latent = tiny_network.latent(torch.from_numpy(to_float(padded)))
        codes = tiny_network.quantize.encode(latent).numpy()
        found = tokens.codes[None].astype(np.int32)
        margins = near_tie_margins(latent.numpy(), tiny_network.quantize.codebook().numpy(), found, codes)
        assert (margins < 1e-4).all()
        expected = to_uint8(tiny_network.decode(torch.from_numpy(found)).numpy())[: size[0], : size[1]]
    assert np.abs(again.astype(int) - expected).max() <= 1


def test_groups(tokenizer: Tokenizer, photo: np.ndarray, tiny_network: MGVQ) -> None:
    tokens = tokenizer.encode(photo)
    with torch.inference_mode():
        expected = tiny_network.decode(torch.from_numpy(tokens.codes[None].astype(np.int32)), groups=1).numpy()
    image = tokenizer.decode(tokens, groups=1)
    assert np.abs(image.astype(int) - to_uint8(expected)[:75, :101]).max() <= 1
    assert (image != tokenizer.decode(tokens)).any()
    for groups in (0, 5, -1, 1.5, True):
        with pytest.raises(InputError, match="tiny has 4: choose 1 to 4"):
            tokenizer.decode(tokens, groups=groups)


def test_fp16_agrees_with_fp32(tiny_bundle: Bundle, tokenizer: Tokenizer, photo: np.ndarray) -> None:
    with Tokenizer.open(tiny_bundle, precision="fp16") as half:
        assert half.precision == "fp16"
        agreement = (half.encode(photo).codes == tokenizer.encode(photo).codes).mean()
    assert agreement >= 0.985


def test_decoding_needs_the_same_codebook(tokenizer: Tokenizer, tiny_spec: ModelSpec) -> None:
    codes = np.zeros((tiny_spec.groups, 2, 2), np.uint16)
    with pytest.raises(TokensError, match="codebook"):
        tokenizer.decode(Tokens.from_spec(tiny_spec, codes, (32, 32), "0" * 64))


def test_refusals(tiny_bundle: Bundle, tokenizer: Tokenizer) -> None:
    with pytest.raises(BackendError, match="no backend 'gpu'; choose auto, ort-cpu"):
        Tokenizer.open(tiny_bundle, backend="gpu")
    with pytest.raises(BundleError, match="no int8 graphs"):
        Tokenizer.open(tiny_bundle, precision="int8")
    with pytest.raises(InputError, match="wanted uint8"):
        tokenizer.encode(np.zeros((8, 8, 3), np.float32))


def test_a_provider_that_does_not_load_is_an_error(tiny_bundle: Bundle) -> None:
    import onnxruntime as ort

    if ort.get_device() == "GPU" and "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.importorskip("mgvq_export.inspection.doctor")
        from mgvq_export.inspection.doctor import examine

        if next(b for b in examine()["backends"] if b["name"] == "ort-cuda")["ready"]:
            pytest.skip("CUDA works on this machine")
    with pytest.raises(BackendError, match=r"ort-cuda.*(did not load|needs)"):
        OrtSession(tiny_bundle.graph_path("fp32", Part.QUANTIZER), "ort-cuda")
