"""Damaged bench results: read and compared, or refused in one line with the path of the key."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgvq_export.bench.compare import compare_files
from mgvq_export.bench.record import Entry, Results
from mgvq_export.bench.summary import heading
from mgvq_export.core.errors import InputError
from mgvq_export.tests.support import fuzz

MACHINE: Any = {"processor": "a chip", "cores": 2, "memory_gib": 8, "system": "Linux x86_64"}


def document() -> dict[str, Any]:
    """Results of a tokenizer, a peer that could not run, and the matrix product; JSON-ready."""
    samples = {"encode": [0.2, 0.21, 0.22, 0.2, 0.2], "decode": [0.3] * 5, "encode/convert": [0.0, -1e-7, 0.0, 0.0, 0.0]}
    memory: Any = {"base_bytes": 400, "peak_bytes": 500}
    entries = [
        Entry("ort-cpu fp32 auto", "100x50", samples, memory, {"flop": {"encode": 10}, "codes": 1000, "differ": 0}),
        Entry("torch", "100x50", skipped="no compiler"),
        Entry("ceiling", "100x50", {"matmul": [0.1] * 5}, memory, {"what": "numpy", "flop": {"matmul": 20}}),
    ]
    bundle: Any = {
        "model": "tiny",
        "checkpoint_sha256": "a" * 64,
        "codebook_sha256": "b" * 64,
        "graphs": {"fp32": {"encoder": "c"}},
    }
    settings: Any = {"tile": [64, 64], "memory_limit": None, "threads": None, "repeat": 5, "against": ["torch"], "image": "x.png"}
    versions = {"python": "3.11.0", "numpy": "2.0"}
    return Results("tokenizer", entries, settings, bundle, MACHINE, versions, "2026-01-01").to_dict()


def use(good: Path, path: Path) -> Callable[[], object]:
    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a division by zero
            heading(Results.load(path))
            for pair in ((good, path), (path, good)):
                found = compare_files(*pair, force=True)
                shown = [*found.remarks(), *(cell for row in found.table().rows for cell in row)]
                assert all(text.isprintable() for text in shown), shown
                json.dumps(found.to_dict(), allow_nan=False)

    return run


@pytest.mark.parametrize("seed", range(3))
def test_every_mutation_is_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    good, path = tmp_path / "good.json", tmp_path / "r.json"
    good.write_text(json.dumps(document()))
    read = 0
    for what, content in fuzz.mutations(document(), 200, seed):
        path.write_bytes(content)
        read += fuzz.assert_read_or_refused(use(good, path), what)
    for what, content in fuzz.damaged(json.dumps(document()).encode(), 50, seed):
        path.write_bytes(content)
        fuzz.assert_read_or_refused(use(good, path), what)
    assert 0 < read < 100  # some changes are no damage; most are


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda values: values["entries"][0]["samples"]["encode"].append("x"),
            r"entries\[0\]\.samples\.encode\[5\]: expected .*float",
        ),
        (
            lambda values: values["entries"][0]["samples"]["encode"].append(0.1),
            r"entries\[0\]: all stages must have the same number",
        ),
        (lambda values: values["entries"][0]["memory"].update(peak_bytes=-1), r"entries\[0\]\.memory\.peak_bytes: "),
        (lambda values: values["entries"][1].update(name="ort-cpu fp32 auto"), "stands twice in '100x50'"),
        (lambda values: values["entries"][2].update(name="a\nb"), "control characters"),
        (lambda values: values["machine"].pop("cores"), "machine: it lacks the key cores"),
        (lambda values: values.pop("date"), "it lacks the key date"),
    ],
)
def test_the_key_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str) -> None:
    values = document()
    change(values)
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=match):
        Results.load(tmp_path / "r.json")
