"""The quantizer bench, and the memory figures it finds for the operator's CPU lowerings."""

import json
import sys

import pytest

from mgvq_export.bench import quantizer


def test_every_measured_way_reports_time_memory_and_agreement(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quantizer, "SIZES", {"tiny": (2, 61, 4, 3, 5)})
    ways = ["fused kernel called directly", "function body in ONNX Runtime"]
    target = tmp_path / "figures.json"
    quantizer.main([*(word for way in ways for word in ("--way", way)), "--repeat", "2", "--json", str(target)])
    rows = json.loads(target.read_text())["tiny"]
    assert [row["way"] for row in rows] == ways
    printed = capsys.readouterr().out
    for row in rows:
        assert row["way"] in printed
        assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"]
        assert row["margin"] < 1e-6


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_lowerings_hold_no_score_matrix():
    # 14,400 positions x 8 groups x 2048 codes: 944 MB of scores, of which the body may hold one chunk and the kernel nothing.
    body, kernel = quantizer.measure("f16 G8", ["function body in ONNX Runtime", "fused kernel in ONNX Runtime"], repeat=1)
    assert body["added_mib"] < 100
    assert kernel["added_mib"] < 50
    assert body["margin"] < 1e-6
    assert kernel["margin"] < 1e-6
