"""The quantizer bench, and the memory figures it finds for the operator's CPU lowerings."""

import sys

import pytest

from mgvq_export.bench.record import Results
from mgvq_export.benchmarks import quantizer


def test_every_measured_way_reports_time_memory_and_agreement(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quantizer, "SIZES", {"tiny": (2, 61, 4, 3, 5)})
    baselines = [baseline for baseline in quantizer.BASELINES if not baseline.startswith(("torch", "faiss"))]
    target = tmp_path / "figures.json"
    quantizer.main([*(word for baseline in baselines for word in ("--baseline", baseline)), "--repeat", "2", "-o", str(target)])
    results = Results.load(target)
    assert results.kind == "quantizer"
    assert [entry.name for entry in results.entries] == baselines
    printed = capsys.readouterr().out
    for entry in results.entries:
        assert entry.skipped is None
        assert entry.name in printed
        assert len(entry.samples["search"]) == 2
        assert entry.facts["codes"] == 30
        assert entry.facts["margin"] < 1e-6


@pytest.mark.parametrize("baseline", [baseline for baseline in quantizer.BASELINES if baseline.startswith(("torch", "faiss"))])
def test_ways_of_other_packages_find_the_same_codes(baseline):
    import numpy as np

    from mgvq_export.ops.contract import near_tie_margins
    from mgvq_export.ops.cpu_kernel import grouped_argmin

    pytest.importorskip(baseline.split()[0].split(".")[0], reason=f"{baseline} is measured where its package is installed")
    latent, codebook = quantizer.make_inputs((2, 61, 4, 5, 7))
    codes = quantizer.BASELINES[baseline](latent, codebook)()
    assert codes.dtype == np.int32
    assert near_tie_margins(latent, codebook, grouped_argmin(latent, codebook), codes).max(initial=0) < 1e-6


def test_a_missing_package_is_a_line(monkeypatch, capsys):
    from mgvq_export.bench.record import Entry

    monkeypatch.setattr(quantizer, "SIZES", {"tiny": (2, 61, 4, 3, 5)})
    entry = Entry("faiss IndexFlatIP", "tiny", skipped="faiss is not installed: pip install faiss")
    quantizer.print_entries("tiny", [entry])
    assert "not measured: faiss is not installed" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_lowerings_hold_no_score_matrix():
    # 14,400 positions x 8 groups x 2048 codes: 944 MB of scores, of which the body may hold one chunk and the kernel nothing.
    baselines = ["function body in ONNX Runtime", "fused kernel in ONNX Runtime"]
    body, kernel = quantizer.measure_baselines("f16 G8", baselines, repeat=1)
    for entry, most in ((body, 100), (kernel, 50)):
        assert entry.memory["peak_bytes"] - entry.memory["base_bytes"] < most * 2**20
        assert entry.facts["margin"] < 1e-6
