"""Bundles on disk: whole or not there, trusted by hash."""

import json
import shutil
from pathlib import Path

import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BundleError, InputError
from mgvq_export.core.manifest import TensorEntry
from mgvq_export.core.spec import Part
from mgvq_export.export import bundles
from mgvq_export.export.bundles import export_bundle
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.tests.support.checks import one_line


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def refused(path: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        Bundle.open(path).check_all()
    assert one_line(str(caught.value))


def test_manifest(tiny_bundle: Bundle, tiny_checkpoint_file: Path) -> None:
    bundle = Bundle.open(tiny_bundle.path)
    assert bundle.precisions == ("fp32", "fp16")
    assert bundle.spec.name == "tiny"
    assert bundle.manifest.source.name == str(tiny_checkpoint_file)
    assert bundle.reach(Part.ENCODER_TRUNK).stride_in == bundle.spec.trunk_stride
    entry = bundle.graph("fp16", Part.QUANTIZER)
    assert entry.inputs == (TensorEntry("latent", "float16", ("batch", 16, "latent_height", "latent_width")),)
    bundle.check_all()


@pytest.mark.parametrize("name", ["fp32/weights.bin", "fp16/encoder_head.onnx"])
@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_a_changed_file_is_found(copy: Path, name: str, change: str) -> None:
    data = bytearray((copy / name).read_bytes())
    if change == "remove":
        (copy / name).unlink()
    elif change == "cut":
        (copy / name).write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
    refused(copy, f"{name.split('/')[1]} (has|cannot).*export")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "no valid JSON"),
        ("[]", "no manifest"),
        ('{"format": "mgvq-bundle", "version": 99}', "version 99"),
        ('{"format": "mgvq-bundle", "version": 1}', "damaged"),
    ],
)
def test_damaged_manifests(copy: Path, text: str, match: str) -> None:
    (copy / "manifest.json").write_text(text)
    refused(copy, match)


def test_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path, "is not a bundle")
    refused(tmp_path / "absent", "does not exist")


def test_files_outside_the_bundle_are_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["precisions"]["fp32"]["weights"]["file"] = "../../etc/passwd"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(copy, "precisions.fp32.weights.file: expected fp32/weights.bin, got .*etc/passwd")


def test_missing_precision_and_part(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no int8 graphs; it has fp32, fp16"):
        tiny_bundle.graph("int8", Part.ENCODER)
    with pytest.raises(BundleError, match="no finite receptive field"):
        tiny_bundle.reach(Part.ENCODER_HEAD)


def test_a_failed_export_leaves_nothing(tiny_checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "weights.bin"))

    monkeypatch.setattr(bundles.WeightStore, "write", fail)
    with pytest.raises(InputError, match="cannot write .*out: the disk is full"):
        export_bundle(load_checkpoint(tiny_checkpoint_file), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_replacing(tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint_file)
    export_bundle(checkpoint, tmp_path / "b")
    with pytest.raises(InputError, match="--force"):
        export_bundle(checkpoint, tmp_path / "b")
    assert export_bundle(checkpoint, tmp_path / "b", precisions=("fp16",), replace=True).precisions == ("fp16",)
    other = tmp_path / "other"
    other.mkdir()
    (other / "keep.txt").write_text("mine")
    with pytest.raises(InputError, match="no bundle"):
        export_bundle(checkpoint, other, replace=True)
    assert (other / "keep.txt").read_text() == "mine"
