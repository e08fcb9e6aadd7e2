"""What the command line says to tiles and limits that cannot work: one line, the nearest value that does, nothing written."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mgvq_export.cli import main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.units import parse_bytes
from mgvq_export.runtime.image_files import write_image
from mgvq_export.tests.support.checks import one_line


def encode(bundle: Bundle, folder: Path) -> list[str]:
    """The command for an image of 256x512 pixels."""
    write_image(folder / "image.png", np.full((512, 256, 3), 90, np.uint8))
    return ["encode", str(bundle.path), str(folder / "image.png"), "-o", str(folder / "out"), "--backend", "ort-cpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "40"], "tile height is 40 px, but the halo takes 24 on either side; wanted at least 56"),
        (["--tile", "100"], "tile height is 100 px; wanted a multiple of 8, such as 96"),
        (["--tile", "128x132"], "tile height is 132 px; wanted a multiple of 8, such as 128"),
        (["--tile", "0"], "--tile is '0'; wanted a side in pixels such as 512, or WIDTHxHEIGHT such as 768x512"),
        (["--tile", "wide"], "--tile is 'wide'; wanted a side in pixels such as 512, or WIDTHxHEIGHT such as 768x512"),
        (["--tiling", "fast"], "--tiling is 'fast'; choose auto, off, exact, blend"),
        (["--tiling", "off", "--tile", "128"], "tiling is off, but a tile is given; leave one of them out"),
        (["--tiling", "off", "--memory-limit", "9MiB"], "memory limit of 9MiB is too small for an image of 256x512; untiled"),
        (["--memory-limit", "9MiB"], "memory limit of 9MiB is too small for an image of 256x512; with the smallest windows"),
        (["--memory-limit", "some"], "memory limit is 'some'; wanted a size such as 6GiB or 800MB"),
    ],
)
def test_one_line_and_nothing_written(options: list[str], message: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    arguments = encode(tiny_bundle, tmp_path)
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == 2
    assert one_line(result.stderr) and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_limit_named_in_the_refusal_is_enough(tiny_bundle: Bundle, tmp_path: Path) -> None:
    arguments = encode(tiny_bundle, tmp_path)
    refused = CliRunner().invoke(main, [*arguments, "--memory-limit", "9MiB"])
    needed = parse_bytes(refused.stderr.split()[-1])
    # What the process holds is not the same twice; a twentieth more covers it.
    done = CliRunner().invoke(main, [*arguments, "--memory-limit", f"{needed * 1.05:.0f}"])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "image.safetensors").is_file()


def test_an_image_smaller_than_a_cell_is_padded_not_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_image(tmp_path / "dot.png", np.full((1, 3, 3), 90, np.uint8))
    arguments = ["--backend", "ort-cpu", "-o", str(tmp_path / "out")]
    encoded = CliRunner().invoke(main, ["encode", str(tiny_bundle.path), str(tmp_path / "dot.png"), *arguments, "--tile", "128"])
    assert encoded.exit_code == 0, encoded.stderr
    decoded = CliRunner().invoke(main, ["decode", str(tiny_bundle.path), str(tmp_path / "out" / "dot.safetensors"), *arguments])
    assert decoded.exit_code == 0 and "3x1, one window of 16x16" in decoded.stdout
