"""What a person sees in a terminal: whole lines above the bar, tables that fit, and an end when asked for one."""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.runtime.image_files import write_image
from mgvq_export.tests.support.terminal import in_terminal

WIDTHS = (60, 80, 120)


@pytest.fixture
def many(tmp_path: Path, photo: np.ndarray) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b-with-a-rather-long-name-that-takes-half-of-a-narrow-terminal", "c"):
        write_image(tmp_path / "photos" / f"{name}.png", photo)
    return tmp_path / "photos"


@pytest.mark.parametrize("columns", WIDTHS)
def test_results_appear_whole_above_the_bar(columns: int, tiny_bundle: Bundle, many: Path, tmp_path: Path) -> None:
    (many / "broken.png").write_text("no image")
    seen = in_terminal(
        ["encode", tiny_bundle.path, "photos", "-o", "out", "--backend", "ort-cpu"], columns=columns, folder=tmp_path
    )
    assert seen.code == 2
    joined = "".join(line.ljust(columns) for line in seen.lines)  # long lines go on in the next row of the screen
    for name in ("a", "b-with-a-rather-long-name-that-takes-half-of-a-narrow-terminal", "c"):
        assert re.search(
            rf"(^| )out/{name}\.safetensors  688 B  \d+\.\d\d s  101x75 -> 4 x 7x5 codes, one window of 112x80", joined
        )
    starts = [line for line in seen.lines if line.startswith(("out/", "error: ", "3 files"))]
    assert len(starts) == 5, seen.text
    assert "━" not in seen.text, seen.text  # the bar is gone
    barred = [moment for moment in seen.moments if any("━" in line for line in moment)]
    assert barred
    for moment in barred:  # no result shares a row with the bar, and the bar is one row
        assert not [line for line in moment if "━" in line and (" B  " in line or "error" in line)], moment
        assert sum("━" in line for line in moment) == 1, moment


def test_ctrl_c_is_answered_at_once_and_ends_the_program(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_image(tmp_path / "large.png", np.random.default_rng(0).integers(0, 255, (2600, 2600, 3), np.uint8))
    sent: list[float] = []

    def interrupt(_: object, terminal: int, lines: list[str]) -> None:
        if not sent and any("large.png" in line for line in lines):
            time.sleep(0.5)  # well into the run
            sent.append(time.monotonic())
            os.write(terminal, b"\x03")

    words = ["encode", tiny_bundle.path, "large.png", "-o", "out", "--backend", "ort-cpu", "--tiling", "off", "--threads", 1]
    seen = in_terminal(words, folder=tmp_path, react=interrupt)
    assert sent, seen.text
    assert seen.code == 130, seen.text
    assert "stopping…" in seen.lines, seen.text
    assert seen.lines[-1].startswith("interrupted; ") or seen.lines[-1] == "stopping…", seen.text
    assert not list((tmp_path / "out").glob("*")), "something half-written is left"
