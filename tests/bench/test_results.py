"""Results as documents, as tables, and against one another: all on made-up samples."""

import json
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.bench.compare import compare, compare_files
from mgvq_export.bench.record import CEILING, Entry, Results
from mgvq_export.bench.summary import heading, overview, share_of_ceiling, stages, tables
from mgvq_export.core.errors import CheckFailed, InputError
from mgvq_export.tests.support.checks import one_line

BUNDLE = {"model": "tiny", "checkpoint_sha256": "a" * 64, "codebook_sha256": "b" * 64, "graphs": {}}


def noisy(seconds: float, seed: int, rounds: int = 20) -> list[float]:
    return list(seconds * np.random.default_rng(seed).normal(1, 0.02, rounds))


def make(encode=0.2, decode=0.3, quantizer=0.05, peak=500 * 2**20, *, rounds=20, **fields) -> Results:
    """A tokenizer, a peer three times as slow, one that could not run, and the matrix product, at 100x50 pixels."""
    samples = {
        "read": noisy(0.01, 1, rounds),
        "encode": noisy(encode, 2, rounds),
        "save": noisy(0.02, 3, rounds),
        "load": noisy(0.001, 4, rounds),
        "decode": noisy(decode, 5, rounds),
        "write": noisy(0.05, 6, rounds),
        "encode/convert": noisy(0.01, 7, rounds),
        "encode/quantizer": noisy(quantizer, 8, rounds),
    }
    memory = {"base_bytes": 400 * 2**20, "peak_bytes": peak}
    flop = {"encode": 2 * 10**9, "decode": 3 * 10**9, "encode/quantizer": 10**8}
    facts = {"flop": flop, "encode_plan": "one window of 104x56", "codes": 1000, "differ": 0}
    peer = {"encode": [3 * value for value in samples["encode"]], "decode": [3 * value for value in samples["decode"]]}
    entries = [
        Entry("ort-cpu fp32 auto", "100x50", samples, memory, facts),
        Entry("torch", "100x50", peer, memory, {"codes": 1000, "differ": 4}),
        Entry("torch-compile", "100x50", skipped="no compiler"),
        Entry(CEILING, "100x50", {"matmul": [0.1] * rounds}, memory, {"what": "numpy", "flop": {"matmul": 2 * 10**9}}),
    ]
    fields.setdefault("machine", {"processor": "a chip", "cores": 2, "memory_gib": 8, "system": "Linux x86_64"})
    return Results("tokenizer", entries, {"threads": None, "overhead_seconds": 2e-6}, BUNDLE, **fields)


def test_documents_round_trip(tmp_path: Path) -> None:
    results = make()
    results.save(tmp_path / "r.json")
    again = Results.load(tmp_path / "r.json")
    assert again.entries[0].samples["encode"] == pytest.approx(results.entries[0].samples["encode"], abs=1e-7)
    assert again.to_dict().keys() == results.to_dict().keys()
    for name in ("kind", "settings", "bundle", "machine", "versions", "date"):
        assert getattr(again, name) == getattr(results, name)
    again.save(tmp_path / "s.json")
    assert (tmp_path / "s.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    assert '"encode": [0.' in (tmp_path / "r.json").read_text()  # a list of samples is one line


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda values: values.update(format="other"), "holds no bench results"),
        (lambda values: values.update(version=2), "of version 2; this release reads version 1"),
        (lambda values: values.pop("entries"), "is damaged"),
        (lambda values: values["entries"][0].update(colour="red"), "is damaged"),
    ],
)
def test_other_documents_are_refused(tmp_path: Path, change, match: str) -> None:
    values = make().to_dict()
    change(values)
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=match) as refused:
        Results.load(tmp_path / "r.json")
    assert one_line(str(refused.value))


def test_what_is_no_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name, match in (
        ("text.json", "is no valid JSON"),
        ("list.json", "holds no bench results"),
        ("none.json", "no such file"),
    ):
        with pytest.raises(InputError, match=match):
            compare_files(tmp_path / name, tmp_path / name)


def test_tables_say_what_the_samples_say() -> None:
    results = make()
    ours = results.entries[0]
    table = overview(results, "100x50")
    columns, (first, torch, skipped) = table.columns, table.rows
    cells = dict(zip(columns[1:], first[1:], strict=True))
    assert cells["encode ms"] == f"{1000 * np.median(ours.samples['encode']):.1f}"
    compute = np.add(ours.samples["encode"], ours.samples["decode"])
    whole = sum(np.array(ours.samples[name]) for name in ("read", "encode", "save", "load", "decode", "write"))
    assert cells["file to file ms"] == f"{1000 * np.median(whole):.0f}"
    assert cells["MP/s"] == f"{0.005 / np.median(compute):.2f}"
    assert cells["peak MiB"] == "500"
    # 5 GFLOP in half a second against 2 in a tenth: half the ceiling
    assert share_of_ceiling(ours, ("encode", "decode"), (results.entries[3], 2 * 10**9)) == pytest.approx(0.5, rel=0.02)
    assert torch[columns.index("time / first")] == "3.00 (3.00 to 3.00)"
    assert torch[-1] == "4 of 1,000 codes differ"
    assert skipped[-1] == "not measured: no compiler"
    titles, rows = stages(results, "100x50", ours).columns, stages(results, "100x50", ours).rows
    p90 = 1000 * np.percentile(ours.samples["read"], 90)
    assert rows[0][titles.index("p90 ms")] == (f"{p90:.2f}" if ours.rounds >= 10 else "")
    assert rows[0][titles.index("p99 ms")] == ""  # there are not a hundred passes
    assert [row[0].strip() for row in rows] == ["read", "encode", "convert", "quantizer", "save", "load", "decode", "write"]
    assert rows[3][titles.index("GFLOP")] == "0.10"
    assert rows[3][titles.index("GFLOP/s")] == f"{0.1 / np.median(ours.samples['encode/quantizer']):.1f}"
    assert [table.title for table in tables(results)] == ["Images of 100x50, medians", "Stages of ort-cpu fp32 auto, 100x50"]
    assert "ceiling 20 GFLOP/s" in heading(results)
    assert "timing one graph costs 2.0 us" in heading(results)


def verdicts(before: Results, after: Results, **options) -> dict[str, str]:
    return {change.stage: change.verdict for change in compare(before, after, **options).changes if "ort" in change.name}


def test_a_slower_stage_is_a_regression() -> None:
    found = compare(make(), make(encode=0.3))
    assert verdicts(make(), make(encode=0.3))["encode"] == "SLOWER"
    with pytest.raises(
        CheckFailed, match="ort-cpu fp32 auto, 100x50: encode x 1.50; ort-cpu fp32 auto, 100x50: file to file"
    ) as failed:
        found.raise_if_regressed()
    assert failed.value.exit_code == 1
    assert one_line(str(failed.value))
    assert verdicts(make(encode=0.3), make())["encode"] == "faster"
    assert verdicts(make(), make(encode=0.3), threshold=0.6)["encode"] == "same"


def test_noise_is_no_regression() -> None:
    before, after = make(), make()
    for entry in after.entries:  # other samples of the same times
        entry.samples = {stage: list(np.roll(values, 3)) for stage, values in entry.samples.items()}
    assert set(verdicts(before, after, threshold=0).values()) == {"same"}
    wide = make()
    wide.entries[0].samples["encode"] = [0.1, 0.5] * 10  # its median is half as large again, its spread larger still
    assert verdicts(before, wide)["encode"] == "same"
    compare(before, wide).raise_if_regressed()


def test_memory_counts_and_parts_and_the_machine_do_not() -> None:
    assert verdicts(make(), make(peak=600 * 2**20))["peak memory"] == "LARGER"
    assert verdicts(make(), make(peak=400 * 2**20))["peak memory"] == "smaller"
    assert verdicts(make(), make(peak=540 * 2**20))["peak memory"] == "same"
    after = make(quantizer=0.1)
    after.entries[3].samples["matmul"] = [0.2] * 20
    found = compare(make(), after)
    slower = {(change.name, change.stage) for change in found.changes if change.verdict == "SLOWER"}
    assert slower == {("ort-cpu fp32 auto", "encode/quantizer"), (CEILING, "matmul")}
    found.raise_if_regressed()
    assert [row[-1] for row in found.table().rows if row[1] == "matmul"] == ["(slower)"]
    assert found.remarks()[-1].startswith("0 worse, 0 better")


def test_what_differs_must_be_forced() -> None:
    machine = {"processor": "another chip", "cores": 2, "memory_gib": 8, "system": "Linux x86_64"}
    other = make(machine=machine)
    with pytest.raises(InputError, match="machines differ in processor .a chip and another chip.; add --force"):
        compare(make(), other)
    assert "machines differ" in compare(make(), other, force=True).remarks()[0]
    other = make()
    other.bundle = {**BUNDLE, "codebook_sha256": "c" * 64}
    with pytest.raises(InputError, match="bundles differ in codebook_sha256"):
        compare(make(), other)
    other.bundle = {**BUNDLE, "graphs": {"fp32": {"encoder": "d" * 64}}}  # a new export of the same network
    compare(make(), other)
    other.settings["threads"] = 1
    with pytest.raises(InputError, match="settings differ in threads .None and 1."):
        compare(make(), other)


def test_too_little_to_compare() -> None:
    with pytest.raises(InputError, match="4 rounds cannot tell a change from noise; wanted at least 5"):
        compare(make(rounds=4), make())
    few, slow = make(), make(encode=0.4)  # one entry with few rounds among others is shown and not judged
    few.entries[0].samples = {stage: values[:4] for stage, values in few.entries[0].samples.items()}
    found = compare(few, slow)
    assert {change.verdict for change in found.changes if change.name.startswith("ort") and change.stage == "encode"} == {
        "SLOWER"
    }
    assert not any(change.regressed for change in found.changes if change.name.startswith("ort"))
    other = make()
    for entry in other.entries:
        entry.group = "200x100"
    with pytest.raises(InputError, match="no entry in common"):
        compare(make(), other)
    other.entries[:1] = make().entries[:1]
    assert "only one of the two has: torch, 100x50" in compare(make(), other).remarks()[0]
    with pytest.raises(InputError, match="threshold is -1"):
        compare(make(), make(), threshold=-1)
