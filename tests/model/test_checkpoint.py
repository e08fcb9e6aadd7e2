"""Checkpoints: every form that loads, and every kind of damage that must not."""

import argparse
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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


PREFIXES = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.", "_orig_mod.module.model.", "tokenizer.vq.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_of_wrappers(prefix: str, suffix: str, weights: dict, tmp_path: Path) -> None:
    named = {prefix + name.replace("encoder.stages", "encoder._orig_mod.stages"): tensor for name, tensor in weights.items()}
    path = tmp_path / f"tiny{suffix}"
    save_file(named, path) if suffix == ".safetensors" else torch.save({"state_dict": named}, path)
    assert load_checkpoint(path).tensors.keys() == weights.keys()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "blob", "weights.pt", "a.safetensors"])
@pytest.mark.parametrize("safe", [True, False])
def test_the_content_decides_not_the_suffix(name: str, safe: bool, weights: dict, tmp_path: Path) -> None:
    save_file(weights, tmp_path / name) if safe else torch.save(weights, tmp_path / name)
    assert load_checkpoint(tmp_path / name).tensors.keys() == weights.keys()


def test_one_of_several_sets_of_weights(weights: dict, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    means = {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save(
        {"model": weights, "model_ema": {"module": means}, "optimizer": {"state": {0: weights}, "a": weights}, "epoch": 1}, path
    )
    loaded = load_checkpoint(path)
    assert (loaded.taken, loaded.others) == ("model", ("model_ema",))
    torch.testing.assert_close(loaded.tensors["quant_conv.bias"], weights["quant_conv.bias"])
    chosen = load_checkpoint(path, weights="model_ema")
    assert (chosen.taken, chosen.weights) == ("model_ema", "model_ema")
    torch.testing.assert_close(chosen.tensors["quant_conv.bias"], means["quant_conv.bias"])
    with pytest.raises(CheckpointError, match="no weights 'nope'; it has 'model', 'model_ema'"):
        load_checkpoint(path, weights="nope")


@pytest.mark.parametrize("key", ["ema", "model_ema", "params", "state_dict", "model", "generator", "something"])
def test_containers(key: str, weights: dict, tmp_path: Path) -> None:
    torch.save({key: weights, "step": 3}, tmp_path / "tiny.pt")
    assert (load_checkpoint(tmp_path / "tiny.pt").taken, load_checkpoint(tmp_path / "tiny.pt").others) == (key, ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_small_types(dtype: torch.dtype, weights: dict, tmp_path: Path) -> None:
    small = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(small, tmp_path / "tiny.safetensors")
    network = load_checkpoint(tmp_path / "tiny.safetensors").network()
    torch.testing.assert_close(network.quant_conv.bias, small["quant_conv.bias"].float())


def test_shards(weights: dict, tmp_path: Path) -> None:
    names = sorted(weights)
    parts = {"a-1-of-2.safetensors": names[::2], "a-2-of-2.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
    path = tmp_path / "a.safetensors.index.json"
    path.write_text(json.dumps(index))
    first = load_checkpoint(path)
    assert first.tensors.keys() == weights.keys()
    save_file(
        {name: weights[name] + 1 if weights[name].is_floating_point() else weights[name] for name in names[::2]},
        tmp_path / "a-1-of-2.safetensors",
    )
    assert load_checkpoint(path).sha256 != first.sha256
    if "quantize.embedding.weight" not in names[::2]:
        refused(tmp_path / "a-1-of-2.safetensors", "one shard of several")
    path.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    refused(path, "outside its folder")
    path.write_text(json.dumps({"weight_map": dict.fromkeys(names, "gone.safetensors")}))
    refused(path, "not beside it")
    path.write_text("{}")
    refused(path, "no index of shards")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body>", "HTML page"),
        (b"\xff\xd8\xff\xe0 a photo", "JPEG image"),
        (b"\x08\x0a\x12\x07pytorch", "ONNX graph"),
        (b"\x1f\x8b\x08", "gzip archive"),
        (bytes(257) + b"ustar\0", "tar archive"),
        (b"\x93NUMPY\1\0", "NumPy array"),
        (b"PK\5\6" + bytes(18), "zip archive"),
        (b"some text", "readable checkpoint"),
        (bytes(64), "readable checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_files_are_named(content: bytes, part: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=part) as caught:
        load_checkpoint(tmp_path / f"a{suffix}")
    assert "weights_only" not in str(caught.value)


def test_shapes_do_not_claim_more_than_the_file_holds(weights: dict, tmp_path: Path) -> None:
    torch.save({**weights, "quant_conv.bias": torch.zeros(1).expand(10**10)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "quant_conv.bias' claims 40,000,000,000 bytes")
    torch.save(weights, tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "b.pt") as old, zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    refused(tmp_path / "c.pt", "compressed")


@pytest.mark.parametrize("depth", [10**3, 10**9])
def test_a_spec_of_very_many_blocks_is_not_built(depth: int, weights: dict, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    spec = {**tiny_spec.to_dict(), "encoder_depths": [0, depth, 1, 1, 1]}
    save_file(weights, tmp_path / "a.safetensors", {"mgvq_spec": json.dumps(spec)})
    with pytest.raises((CheckpointError, SpecError)) as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert one_line(str(caught.value))


def test_metadata_that_is_no_spec(weights: dict, tmp_path: Path) -> None:
    for text in ("[" * 10**5, "{", '{"name": NaN}'):
        save_file(weights, tmp_path / "a.safetensors", {"mgvq_spec": text})
        refused(tmp_path / "a.safetensors", "mgvq_spec")


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
