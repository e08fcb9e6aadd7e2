"""A backend that runs whole images only is verified too; here another bundle, run by ONNX Runtime, stands in for its engines."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.parity.context import VerificationContext
from mgvq_export.parity.results import FAILED, PASSED, SKIPPED
from mgvq_export.parity.verify import verify
from mgvq_export.parity.whole_images import check_whole_images
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.tests.support.faults import scale_weight

pytest.importorskip("onnxruntime")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Bundle]:
    """Precision -> the bundle that stands in for its engines; no entry: no engines."""
    found: dict[str, Bundle] = {}

    def open_whole(self: VerificationContext, precision: str) -> Tokenizer:
        if precision not in found:
            raise BackendError(f"no engines of {precision}: mgvq-export build")
        return Tokenizer.open(found[precision], backend="ort-cpu", precision=precision)

    monkeypatch.setattr(VerificationContext, "whole_tokenizer", open_whole)
    return found


def test_engines_are_held_against_the_reference(tiny_bundle: Bundle, copy: Path, engines: dict[str, Bundle]) -> None:
    scale_weight(copy, "fp16", "encoder_trunk", "encoder.stages.1.op_list.0.main.conv1.conv.weight", 1.5)
    scale_weight(copy, "fp16", "decoder_trunk", "decoder.stages.1.op_list.1.main.conv1.conv.weight", 1.5)
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    context = VerificationContext(tiny_bundle, {"noise": image}, "ort-cpu", whole="tensorrt")
    rows = ("backend/fp32/codes", "backend/fp32/image", "backend/fp16/codes", "backend/fp16/image")
    for fp16, wanted in ((tiny_bundle, PASSED), (Bundle.open(copy), FAILED), (None, SKIPPED)):
        engines.clear()
        context._codes.pop(("noise", "fp16", "tensorrt"), None)
        engines["fp32"] = tiny_bundle
        if fp16 is not None:
            engines["fp16"] = fp16
        checks = {check.name: check for check in check_whole_images(context)}
        assert tuple(checks) == rows
        assert [checks[name].status for name in rows] == [PASSED, PASSED, wanted, wanted]
    assert checks["backend/fp16/codes"].detail == "no engines of fp16: mgvq-export build"
    context.close()


def test_graphs_are_looked_at_on_the_cpu(
    tiny_bundle: Bundle, pictures: list[Path], engines: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Engines:
        backend = "tensorrt"
        implementation = SimpleNamespace(graphs=None)

        def __enter__(self) -> "Engines":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("mgvq_export.parity.verify.Tokenizer", SimpleNamespace(open=lambda *_, **__: Engines()))
    monkeypatch.setattr("mgvq_export.parity.report.gather._ROUNDS", 1)
    monkeypatch.setattr("mgvq_export.parity.report.gather.measure_peaks", lambda *_, **__: [])
    engines["fp16"] = tiny_bundle
    report = verify(tiny_bundle, pictures[1:], backend="auto", only=["backend", "graphs"], reports=[tmp_path / "report.md"])
    assert report.passed and report.facts["backend"] == "tensorrt"
    statuses = [check.status for check in report.checks if check.name.startswith("backend/")]
    assert statuses == [SKIPPED, SKIPPED, PASSED, PASSED]
    text = (tmp_path / "report.md").read_text()
    assert "fp16: tensorrt against fp32 on the CPU" in text and "| fp16, tensorrt | decode |" in text
    assert "fp32, tensorrt: no engines of fp32" in text and "| fp32 | decode |" in text
