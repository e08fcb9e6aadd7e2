"""Checkpoints: every form that loads, and every kind of damage that must not."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch

from mgvq_export.core.errors import CheckpointError, SpecError
from mgvq_export.core.spec import VARIANTS, ModelSpec
from mgvq_export.model import checkpoint as module
from mgvq_export.model.checkpoint import infer_spec, load_checkpoint
from mgvq_export.model.network import MGVQ
from mgvq_export.tests.support.checks import one_line
from mgvq_export.tests.support.reference import synthetic_state_dict


@pytest.fixture(scope="module")
def weights(tiny_spec: ModelSpec) -> dict[str, torch.Tensor]:
    return synthetic_state_dict(tiny_spec)


def refused(path: Path | str, match: str, **options: object) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(path, **options)
    assert one_line(str(caught.value))


@pytest.mark.parametrize("form", ["model", "state_dict", "bare", "namespace", "parallel", "half"])
def test_forms_of_pt_files(form: str, weights: dict, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    content = {
        "model": {"model": weights, "epoch": 3},
        "state_dict": {"state_dict": weights},
        "bare": weights,
        "namespace": {"model": weights, "args": argparse.Namespace(lr=1e-4, name="run"), "optimizer": {"state": {0: weights}}},
        "parallel": {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
        "half": {"model": {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}},
    }[form]
    path = tmp_path / "tiny.pt"
    torch.save(content, path)
    loaded = load_checkpoint(path)
    assert {**loaded.spec.to_dict(), "widths": None} == {**tiny_spec.to_dict(), "widths": None}
    network = loaded.network()
    expected = weights["quantize.embedding.weight"]
    torch.testing.assert_close(network.quantize.embedding.weight, expected, atol=2e-3, rtol=1e-3)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_safetensors_metadata_names_the_spec(tiny_checkpoint_file: Path, tiny_spec: ModelSpec) -> None:
    assert load_checkpoint(tiny_checkpoint_file).spec == tiny_spec


def test_demo_loads() -> None:
    assert load_checkpoint("demo").spec.name == "demo"


def test_training_statistics_may_be_missing(weights: dict, tmp_path: Path) -> None:
    kept = {n: t for n, t in weights.items() if n not in ("quantize.codebook_used", "quantize.embed_prob")}
    torch.save({"model": kept}, tmp_path / "tiny.pt")
    load_checkpoint(tmp_path / "tiny.pt").network()


class _Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.write_text, (self.target, "owned"))


def test_a_malicious_pickle_does_not_run(weights: dict, tmp_path: Path) -> None:
    target = tmp_path / "owned.txt"
    torch.save({"model": weights, "args": _Payload(target)}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", "refused")
    assert not target.exists()
    # The payload is real: plain unpickling would have run it.
    pickle.loads(pickle.dumps(_Payload(target)))
    assert target.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files(keep: float, suffix: str, weights: dict, tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    path = tmp_path / f"tiny{suffix}"
    if suffix == ".pt":
        torch.save({"model": weights}, path)
    else:
        path.write_bytes(tiny_checkpoint_file.read_bytes())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    refused(path, "readable")


def test_missing_extra_and_misshaped_tensors_are_named(weights: dict, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    wrong = dict(weights)
    del wrong["quant_conv.bias"]
    wrong["stray.weight"] = torch.zeros(3)
    wrong["post_quant_conv.bias"] = torch.zeros(5)
    torch.save({"model": wrong}, tmp_path / "wrong.pt")
    for match in (r"1 missing \(quant_conv.bias", r"1 unexpected \(stray.weight", r"post_quant_conv.bias \[5\] for \[16\]"):
        refused(tmp_path / "wrong.pt", match, model=tiny_spec)


def test_wrong_variant(tiny_checkpoint_file: Path) -> None:
    refused(tiny_checkpoint_file, "does not fit mgvq-f8c32-g4", model="mgvq-f8c32-g4")


def test_nan_weights_are_named(weights: dict, tmp_path: Path) -> None:
    torch.save({**weights, "quant_conv.bias": weights["quant_conv.bias"] * float("nan")}, tmp_path / "nan.pt")
    refused(tmp_path / "nan.pt", "quant_conv.bias holds NaN")


def test_unknown_names(tmp_path: Path) -> None:
    refused("mgvq-f16", "no checkpoint 'mgvq-f16'.*mgvq-f16c32-g8")
    refused("hf://only-owner", "hf://owner/repo/file@revision")
    refused(tmp_path, "is a folder")
    with pytest.raises(SpecError, match="no model 'nope'"):
        load_checkpoint("demo", "nope")


def test_no_weights_inside(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    refused(tmp_path / "none.pt", "holds no weights")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "no MGVQ tokenizer")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_recognised_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        tensors = MGVQ(VARIANTS[name]).state_dict()
    assert infer_spec(tensors, Path(f"{name.replace('-', '_')}.pt")) == VARIANTS[name]


def test_download_by_name(tiny_checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub client is replaced: what is asked of it, and what becomes of its answer."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "snapshots" / commit / "tiny.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(tiny_checkpoint_file.read_bytes())
    asked = []

    def download(repository: str, filename: str, revision: str | None = None) -> str:
        asked.append((repository, filename, revision))
        return str(cached)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_checkpoint("hf://someone/models/sub/tiny.safetensors@v2").revision == commit
    with pytest.raises(CheckpointError, match="does not fit mgvq-f16c32-g8"):
        load_checkpoint("mgvq-f16c32-g8")
    assert asked == [("someone/models", "sub/tiny.safetensors", "v2"), (module.HUB_REPOSITORY, "mgvq_f16c32_g8.pt", None)]


def test_download_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("cannot reach\nthe hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    refused("mgvq-f16c32-g8", "cannot download mgvq_f16c32_g8.pt from mkjia/MGVQ: cannot reach the hub; .* by hand")
