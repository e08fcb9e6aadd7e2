"""LPIPS and rFID without their weights: the real packages around stand-in networks, and what is said when they cannot be had."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.core.errors import BackendError
from mgvq_export.evaluation import columns, perceptual
from mgvq_export.evaluation.datasets import Dataset
from mgvq_export.evaluation.evaluate import evaluate, load_meters
from mgvq_export.evaluation.protocol import Protocol
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.tests.support.checks import one_line


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and no network to fill it from. Gives the folder of the weights."""
    torch = pytest.importorskip("torch")
    from urllib.error import URLError

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "cache" / "hub" / "checkpoints"


@pytest.fixture
def inception(offline: Path):
    """A tiny TorchScript network where clean-fid's Inception would lie, with its interface."""
    pytest.importorskip("cleanfid", reason="needs clean-fid: pip install 'mgvq-export[eval]'")
    import torch

    class StandIn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(6), torch.nn.Flatten(), torch.nn.Linear(108, 2048))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    network = StandIn().eval()
    offline.mkdir(parents=True)
    torch.jit.script(network).save(str(offline / "inception-2015-12-05.pt"))
    return network


@pytest.fixture
def vgg(monkeypatch: pytest.MonkeyPatch):
    """``torchvision.models.vgg16`` with random weights: lpips brings its own linear layers and takes the rest from there."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("lpips") is None:
        pytest.skip("needs lpips: pip install 'mgvq-export[eval]'")
    import torch
    from torch import nn

    def vgg16(pretrained: bool) -> types.SimpleNamespace:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        channels = 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            channels = width or channels
        return types.SimpleNamespace(features=nn.Sequential(*layers))

    fakes = {"torchvision": types.ModuleType("torchvision"), "torchvision.models": types.ModuleType("torchvision.models")}
    for name, module in fakes.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    fakes["torchvision"].models = fakes["torchvision.models"]  # type: ignore[attr-defined]
    fakes["torchvision.models"].vgg16 = vgg16  # type: ignore[attr-defined]
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        del sys.modules[name]


def test_inception_features_are_clean_fids(inception, photo: np.ndarray) -> None:
    import torch
    from cleanfid.resize import build_resizer

    found = perceptual.InceptionFeatures()(photo)
    resized = torch.from_numpy(build_resizer("clean")(photo).transpose(2, 0, 1)[None].copy())
    with torch.inference_mode():
        wanted = inception.layers((resized - 128) / 128)[0].numpy()
    assert found.shape == (2048,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_lpips_is_the_packages(vgg, photo: np.ndarray) -> None:
    import torch

    meter = perceptual.Lpips()
    other = 255 - photo
    import lpips

    as_floats = [torch.from_numpy((image.transpose(2, 0, 1)[None] / 255).astype(np.float32)) for image in (other, photo)]
    with torch.inference_mode():
        wanted = float(lpips.LPIPS(net="vgg", verbose=False)(*as_floats, normalize=True))
    assert meter(other, photo) == pytest.approx(wanted, rel=1e-5)
    assert wanted > 1e-3
    assert meter(photo, photo) == 0


def test_unavailable_metrics_are_rows_with_the_reason(offline: Path, monkeypatch: pytest.MonkeyPatch, tiny_spec) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    meters, reasons = load_meters(Protocol.parse(tiny_spec))
    assert list(meters) == ["ssim"]
    assert set(reasons) == {"lpips", "rfid"}
    assert all(one_line(reason) for reason in reasons.values())
    assert not list(offline.glob("*"))


def test_missing_weights_name_the_file_and_its_place(offline: Path) -> None:
    pytest.importorskip("cleanfid", reason="needs clean-fid: pip install 'mgvq-export[eval]'")
    with pytest.raises(BackendError, match="inception-2015-12-05.pt.*no network here.*copy the file to") as error:
        perceptual.InceptionFeatures()
    assert str(offline) in str(error.value)
    assert one_line(str(error.value))


@pytest.mark.parametrize(("metric", "package"), [("lpips", "lpips"), ("rfid", "cleanfid"), ("ssim", "skimage")])
def test_a_metric_that_was_named_must_not_be_missing(
    metric: str, package: str, monkeypatch: pytest.MonkeyPatch, tiny_spec
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec("json"))
    with pytest.raises(BackendError, match=f"{metric} needs {package}: pip install 'mgvq-export\\[eval\\]'") as error:
        load_meters(Protocol.parse(tiny_spec, metrics=[metric]))
    assert one_line(str(error.value))


def test_figures_flow_into_the_results(tiny_bundle, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in meters with known answers: the mean of the distances; the distance of the features' distributions."""
    from PIL import Image

    size = 16
    matrix = np.random.default_rng(0).normal(size=(64 * 48 * 3, size)) / 1e4

    def features(image: np.ndarray) -> np.ndarray:
        return (image.reshape(-1) @ matrix).astype(np.float32)

    def distance(image: np.ndarray, reference: np.ndarray) -> float:
        return float(np.abs(image.astype(float) - reference).mean())

    monkeypatch.setattr(columns, "FEATURES", size)
    monkeypatch.setattr(columns, "_BLOCK", 2)
    monkeypatch.setattr("mgvq_export.evaluation.evaluate.missing_package", lambda metric: None)
    monkeypatch.setattr("mgvq_export.evaluation.evaluate.Lpips", lambda: distance)
    monkeypatch.setattr("mgvq_export.evaluation.evaluate.InceptionFeatures", lambda: features)
    (tmp_path / "photos").mkdir()
    images = [np.ascontiguousarray(np.roll(photo, 7 * shift, axis=1)[:48, :64]) for shift in range(5)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as tokenizer:
        protocol = Protocol((64, 48), (1, 4))
        found = evaluate(tokenizer, Dataset.find(tmp_path / "photos"), tmp_path / "out", protocol)
        again = evaluate(tokenizer, Dataset.find(tmp_path / "photos"), tmp_path / "out", protocol)
        decoded = [tokenizer.decode(tokenizer.encode(image)) for image in images]
    figures = {figure["name"]: figure for figure in found.facts["figures"]}
    assert found.to_dict() == again.to_dict()
    assert figures["lpips"]["value"] == pytest.approx(np.mean([distance(a, b) for a, b in zip(decoded, images, strict=True)]))
    # |C1^1/2 C2^1/2| in the nuclear norm is that of the centred rows' product: another way to the same number.
    rows = [np.stack([features(image) for image in group]).astype(float) for group in (images, decoded)]
    (a, b), means = [group - group.mean(0) for group in rows], [group.mean(0) for group in rows]
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    wanted = np.sum((means[0] - means[1]) ** 2) + (np.sum(a**2) + np.sum(b**2) - 2 * shared) / 4
    assert figures["rfid"]["value"] == pytest.approx(wanted, rel=1e-4)
    assert "of 5 images: biased" in figures["rfid"]["note"]
