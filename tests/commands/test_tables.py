"""Tables at 60, 80 and 120 columns: identifiers stay whole, no line is wider than the screen, no cell is lost."""

import re
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.commands.output import echo_table
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.spec import VARIANTS, Part
from mgvq_export.core.tables import Table
from mgvq_export.runtime.image_files import write_image
from mgvq_export.tests.support.terminal import Seen, in_terminal

WIDTHS = (60, 80, 120)


def words(seen: Seen) -> set[str]:
    """First words of the rows."""
    return {line.split()[0] for line in seen.lines if line.split()}


def check(seen: Seen, columns: int, identifiers: list[str], code: int = 0) -> None:
    assert seen.code == code, seen.text
    assert "…" not in seen.text, seen.text
    missing = set(identifiers) - words(seen)
    assert not missing, (missing, seen.text)
    assert max(map(len, seen.lines)) <= columns


@pytest.mark.parametrize("columns", WIDTHS)
def test_models_doctor_and_inspect(columns: int, tiny_bundle: Bundle) -> None:
    check(in_terminal(["models"], columns=columns), columns, [*VARIANTS, "demo"])
    check(
        in_terminal(["doctor"], columns=columns), columns, ["onnxruntime-extensions", "nvidia-cuda-nvrtc", "ort-cpu", "ort-cuda"]
    )
    files = [f"{precision}/{part}.onnx" for precision in tiny_bundle.precisions for part in Part]
    check(in_terminal(["inspect", tiny_bundle.path], columns=columns), columns, files)


@pytest.mark.parametrize("columns", WIDTHS)
def test_verify(columns: int, tiny_bundle: Bundle, photo: np.ndarray, tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", photo)
    seen = in_terminal(
        ["verify", tiny_bundle.path, tmp_path / "photo.png", "--only", "graphs", "--only", "quantizer"], columns=columns
    )
    graphs = [word for word in words(seen) if word.startswith("graphs/")]
    assert len(graphs) >= 2 and all(re.fullmatch(r"graphs/[a-z0-9]+/[a-z_]+", word) for word in graphs), seen.text
    check(seen, columns, graphs)


@pytest.mark.parametrize("columns", WIDTHS)
def test_eval_and_dry_run(columns: int, tiny_bundle: Bundle, photo: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "photo.png", photo)
    fast = ("--backend", "ort-cpu", "--size", "48x40", "--metric", "psnr", "--metric", "ssim")
    seen = in_terminal(["eval", tiny_bundle.path, "photos", "-o", "scores", *fast], columns=columns, folder=tmp_path)
    check(seen, columns, ["psnr", "ssim", "1", "4"])
    seen = in_terminal(["encode", tiny_bundle.path, "photos", "-o", "out", "--dry-run"], columns=columns, folder=tmp_path)
    check(seen, columns, ["photos/photo.png"])


@pytest.mark.parametrize("columns", WIDTHS)
def test_bench_and_calibrate(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tables as they are printed; a whole run for each width would take minutes."""
    from mgvq_export.bench.summary import tables
    from mgvq_export.tests.bench.test_results import make

    shown = [
        *tables(make()),
        Table(
            ("measured on", "codes equal", "PSNR to fp32", "PSNR lost", "at worst"), [["calibration windows", *["99.123 %"] * 4]]
        ),
    ]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    for table in shown:
        echo_table(table)
        text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        for row in table.rows:
            assert " ".join(row[: table.identifiers]).strip() in text, text
        assert "…" not in text
        assert max(len(line.rstrip()) for line in text.splitlines()) <= columns, text
