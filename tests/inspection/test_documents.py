"""What ``inspect`` says of the JSON documents that the project writes, whole and damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mgvq_export
from mgvq_export.commands.inspect import inspect
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.inspection import documents
from mgvq_export.inspection.describe import describe
from mgvq_export.tests.support import fuzz

BENCH = Path(mgvq_export.__file__).parent / "bench" / "results" / "demo-cpu.json"

EFFECT = {"agreement": 0.99, "psnr": "inf", "drop": 0.1, "worst_drop": 0.2, "error": 0.0, "finite": True}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "precision plan": PrecisionPlan("p", "fp16", {"decoder.a": NodePlan("fp32", reason="large values")}).to_dict(),
    "bench results": json.loads(BENCH.read_text()),
    "evaluation results": {
        "model": "tiny", "precision": "fp32", "backend": "ort-cpu", "size": "64x64", "images": {"evaluated": 3, "bad": []},
        "figures": [{"name": "psnr", "value": 30.123456, "unit": "dB", "paper": None, "note": ""}], "by_groups": [], "codebook": [],
    },
    "verification report": {
        "report": {"model": "tiny", "backend": "ort-cpu", "passed": True, "checks": [
            {"name": "network/latent", "status": "passed", "value": 1e-6, "limit": 1e-5, "detail": "worst: a.png"},
            {"name": "backend", "status": "skipped", "value": None, "limit": None, "detail": "the backend is ort-cpu"},
        ]},
        "created": "2026-01-01", "reference": "fp32", "photos": [], "missing": {},
    },
    "calibration report": {
        "plan": "int8", "nodes": {"int8": 3}, "calibration_windows": EFFECT, "held_out": EFFECT, "searches": {}, "notes": ["a note"],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_every_document_is_described(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_text(json.dumps(DOCUMENTS[kind]))
    found = describe(str(path))
    assert found.values["kind"] == kind
    assert found.tables[0].rows
    json.dumps(found.values, allow_nan=False)


def test_the_help_names_every_document() -> None:
    text = " ".join((inspect.help or "").split())
    assert all(document.name in text for document in documents.DOCUMENTS)
    assert all(suffix in text for suffix in (".onnx", ".engine", ".plan", ".trt", ".safetensors", ".npz", ".json"))


def test_bare_codes_are_named_as_what_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.zeros((4, 2, 2), np.uint16))
    with pytest.raises(InputError, match="bare codes without their model"):
        describe(str(tmp_path / "codes.npy"))


def test_a_manifest_is_its_bundle(tiny_bundle) -> None:
    assert describe(str(tiny_bundle.path / "manifest.json")).values == describe(str(tiny_bundle.path)).values


def test_ranges_are_described(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from mgvq_export.calibration.ranges import Ranges
    from mgvq_export.calibration.statistics import TensorStatistics

    Ranges("key", 2, 5, {"encoder": {"a": TensorStatistics()}, "decoder": {}}).save(tmp_path / "ranges.json")
    found = describe(str(tmp_path / "ranges.json"))
    assert (found.values["kind"], found.values["windows"]) == ("calibration ranges", "2 of 5")


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_every_mutation_is_described_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "document.json"

    def use() -> None:
        found = describe(str(path))
        texts = [str(value) for _, value in found.summary()] + [
            cell for table in found.tables for row in table.rows for cell in row
        ]
        assert all(text.isprintable() for text in texts), texts

    whole = json.dumps(DOCUMENTS[kind]).encode()
    for what, data in (*fuzz.mutations(DOCUMENTS[kind], 100), *fuzz.damaged(whole, 30)):
        path.write_bytes(data)
        fuzz.assert_read_or_refused(use, what)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda values: values["figures"][0].update(value=[1]), r"figures\[0\]\.value: expected "),
        (lambda values: values.pop("model"), "it lacks the key model"),
        (
            lambda values: values.pop("by_groups"),
            "is no JSON document of this project; wanted one of: precision plan, bench results",
        ),
    ],
)
def test_the_key_is_named(change: Callable[[dict[str, Any]], object], match: str, tmp_path: Path) -> None:
    values = json.loads(json.dumps(DOCUMENTS["evaluation results"]))
    change(values)
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=match):
        describe(str(tmp_path / "r.json"))
