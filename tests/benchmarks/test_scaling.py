"""Scaling curves: fitted on made-up points with known exponents, drawn, and written into a page in place."""

from pathlib import Path

import numpy as np
import pytest

from mgvq_export.bench.record import Entry, Results
from mgvq_export.benchmarks import scaling
from mgvq_export.core.errors import InputError

PAGE = f"# Page\n\nbefore\n\n{scaling.BEGIN}\nold\n{scaling.END}\n\nafter\n"


@pytest.fixture
def results() -> Results:
    """Images: time grows with the pixels, memory with their square root. Groups: time with their square, memory not at all."""
    entries = []
    for side in (256, 512, 1024, 2048):
        for name in (scaling.WHOLE, scaling.TILED):
            samples = {"encode": [side**2 * 1e-6] * 3, "decode": [side**2 * 2e-6] * 3}
            memory = {"base_bytes": 10**8, "peak_bytes": 10**8 + side * 2**20}
            entries.append(Entry(name, f"{side}x{side}", samples, memory, {"pixels": side**2}))
    for groups in (1, 2, 4, 8):
        for name in scaling.QUANTIZERS:
            memory = {"base_bytes": 10**8, "peak_bytes": 10**8 + (2**21 if name != scaling.QUANTIZERS[1] else 0)}
            entries.append(Entry(name, f"G = {groups}", {"search": [groups**2 * 1e-3] * 3}, memory, {"groups": groups}))
    return Results(
        "scaling", entries, bundle={"model": "demo", "checkpoint_sha256": None, "codebook_sha256": "0" * 64, "graphs": {}}
    )


def test_exponents_are_those_of_the_points(results: Results) -> None:
    wanted = [*[1.0] * 4, *[0.5] * 2, *[2.0] * 3, 0.0, None, 0.0]
    curves = (*scaling.TIME_OF_IMAGES, *scaling.MEMORY_OF_IMAGES, *scaling.TIME_OF_GROUPS, *scaling.MEMORY_OF_GROUPS)
    for series, exponent in zip(curves, wanted, strict=True):
        law = series.law(results)
        if exponent is None:  # nothing measurable: no power of it
            assert law is None
        else:
            assert law is not None
            assert law.exponent == pytest.approx(exponent, abs=1e-9)


def test_tables_hold_the_points(results: Results) -> None:
    rows = scaling.image_table(results).splitlines()
    assert len(rows) == 2 + 4 + 1
    assert rows[4].startswith("| 1024x1024 | 1.05 | 2.1 | 1.05 | 2.1 | 1024 | 1024 |")
    assert rows[-1] == "| **exponent** | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 0.50 ± 0.00 | 0.50 ± 0.00 |"
    rows = scaling.group_table(results).splitlines()
    assert rows[4] == "| 4 | 16.0 | 16.0 | 16.0 | 2.0 | under 0.1 | 2.0 |"


def test_page_is_rewritten_in_place(results: Results, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE)
    samples = tmp_path / "scaling.json"
    results.save(samples)
    for _ in range(2):  # again gives the same
        scaling.main(["--redraw", "--docs", str(tmp_path), "-o", str(samples)])
        text = page.read_text()
        assert text.startswith("# Page\n\nbefore\n")
        assert text.endswith(f"{scaling.END}\n\nafter\n")
        assert "old" not in text
        assert text.count("| **exponent** |") == 2
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("text", ["no markers", scaling.END + scaling.BEGIN, PAGE + PAGE, scaling.BEGIN])
def test_pages_without_one_place_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="has not one"):
        scaling.replace_between(text, "new")


def test_quantizers_are_measured_by_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CELLS", 4), ("ROWS_IN_ALL", 64), ("ROWS_PER_GROUP", 16)):
        monkeypatch.setattr(scaling, name, value)
    monkeypatch.setattr(scaling, "BASELINES", {scaling.QUANTIZERS[0]: scaling.BASELINES[scaling.QUANTIZERS[0]]})
    (entry,) = scaling.measure_groups((8,), 2, lambda what: None)
    assert entry.facts == {"groups": 8, "codes_per_group": 8, "group_dim": 4}
    assert len(entry.samples["search"]) == 2


def test_images_are_measured_by_size(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_PIXELS_OF_A_SERIES", 0)  # no more than two passes
    monkeypatch.setattr("mgvq_export.bench.latency.CEILING_SIDE", 256)
    entries = scaling.measure_images(tiny_bundle, (32,), lambda what: None)
    assert {entry.name for entry in entries} == {scaling.WHOLE, scaling.TILED, "ceiling"}
    whole = next(entry for entry in entries if entry.name == scaling.WHOLE)
    assert whole.facts["pixels"] == 1024
    assert np.median(whole.samples["encode"]) > 0
