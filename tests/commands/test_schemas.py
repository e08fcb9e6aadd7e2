"""What ``--json`` prints is what docs/schemas says, for every verb."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from mgvq_export.cli import VERBS, main
from mgvq_export.core.bundle import Bundle
from mgvq_export.runtime.image_files import write_image

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
CPU = ("--backend", "ort-cpu")


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def printed(name: str, *words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert result.exit_code == code, result.output
    facts = json.loads(result.stdout, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    jsonschema.validate(facts, schema(name))
    return facts


@pytest.fixture
def photos(photo: np.ndarray, tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in "ab":
        write_image(tmp_path / "photos" / f"{name}.png", photo)
    return tmp_path / "photos"


def test_every_verb_has_a_schema() -> None:
    there = {path.name.removesuffix(".schema.json") for path in SCHEMAS.iterdir()}
    assert there == {*VERBS, "bench-compare"}
    for name in there:
        schema(name)


def test_models_doctor_export_inspect(tiny_checkpoint_file: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    printed("models", "models")
    printed("doctor", "doctor")
    printed("export", "export", tiny_checkpoint_file, "-o", tmp_path / "bundle")
    printed("publish", "publish", tiny_bundle.path, "-o", tmp_path / "models")
    for target in (
        tiny_bundle.path,
        tiny_bundle.path / "manifest.json",
        tiny_bundle.path / "fp32" / "quantizer.onnx",
        tiny_checkpoint_file,
    ):
        printed("inspect", "inspect", target)


def test_files(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_text("no image")
    out = tmp_path / "out"
    printed("encode", "encode", tiny_bundle.path, photos, "-o", out, *CPU, code=2)
    assert any(
        "skipped" in fact
        for fact in printed("encode", "encode", tiny_bundle.path, photos, "-o", out, "--skip-existing", *CPU, code=2)
    )
    printed("encode", "encode", tiny_bundle.path, photos / "a.png", "-o", out, "--dry-run", "--tile", "64", *CPU)
    printed("decode", "decode", tiny_bundle.path, out, "-o", tmp_path / "images", *CPU)
    printed("reconstruct", "reconstruct", tiny_bundle.path, photos / "a.png", "-o", tmp_path / "again", *CPU)
    printed("inspect", "inspect", out / "a.safetensors")


def test_measurements(tiny_bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed("verify", "verify", tiny_bundle.path, photos, "--only", "quantizer", "--only", "graphs")
    words = ("--size", "48x40", "--metric", "psnr", "--metric", "ssim")
    printed("eval", "eval", tiny_bundle.path, photos, "-o", tmp_path / "scores", *words, *CPU)
    monkeypatch.setattr("mgvq_export.bench.latency.CEILING_SIDE", 128)  # seconds saved
    results = tmp_path / "bench.json"
    printed("bench", "bench", tiny_bundle.path, "--size", "64x64", "--repeat", 5, "-o", results, *CPU)
    printed("bench-compare", "bench", "compare", results, results)


def test_tokenize(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="tokenizing data sets needs the extra dataset")
    (photos / "bad.png").write_text("no image")
    facts = printed("tokenize", "tokenize", tiny_bundle.path, photos, "-o", tmp_path / "out", "--size", "32x32", *CPU, code=1)
    assert (facts["images"], facts["tokenized"], facts["failed"]) == (3, 2, 1)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def test_keys_have_neither_spaces_nor_slashes(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    for words in (["models"], ["doctor"], ["encode", tiny_bundle.path, photos, "-o", tmp_path / "out", *CPU]):
        assert not [key for key in _keys(printed(str(words[0]), *words)) if " " in key or "/" in key]
