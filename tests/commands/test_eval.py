"""The command ``eval`` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mgvq_export.cli import main
from mgvq_export.core.bundle import Bundle
from mgvq_export.evaluation.command import EvaluationOptions
from mgvq_export.tests.support.checks import assert_refused

FAST = ("--backend", "ort-cpu", "--size", "48x40", "--metric", "psnr", "--metric", "ssim")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def refused(match: str, *arguments: object) -> None:
    assert_refused(run(*arguments), match)


@pytest.fixture
def photos(photo: np.ndarray, tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for shift in range(3):
        Image.fromarray(np.roll(photo, 9 * shift, axis=0)).save(tmp_path / "photos" / f"{shift}.png")
    (tmp_path / "photos" / "broken.jpg").write_text("no image")
    return tmp_path / "photos"


def test_folder(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle.path, photos, "-o", tmp_path / "out", *FAST)
    assert result.exit_code == 0, result.output
    for text in ("tiny, 3 images at 48x40", "psnr", "ssim", "perplexity", "left out broken.jpg", "without the paper's figures"):
        assert text in result.stdout, text
    assert "paper  " not in result.stdout  # no column of that name
    files = [tmp_path / "out" / name for name in ("results.json", "images.csv", "psnr.png", "groups.png", "codebook.png")]
    assert all(file.stat().st_size > 100 for file in files)
    assert all(str(file) in result.stdout for file in files)


def test_json_and_a_second_run(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    arguments = (tiny_bundle.path, photos, "-o", tmp_path / "out", *FAST, "--limit", 2, "--seed", 4, "--json")
    first, second = run(*arguments), run(*arguments)
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    facts = json.loads(first.stdout)
    assert facts["images"]["asked"] == 2
    assert facts["dataset"]["found"] == 4
    assert facts["codebook"][0]["codes"] == 60


def test_declared_benchmarks_bring_their_size() -> None:
    assert EvaluationOptions().crop == "256x256"
    assert EvaluationOptions(declared="uhdbench").crop == "2560x1440"
    assert EvaluationOptions(declared="uhdbench", size="64x64").crop == "64x64"


def test_paper_column_only_for_the_same_run(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle.path, photos, "-o", tmp_path / "out", *FAST, "--dataset", "imagenet-val")
    assert "without the paper's figures: the paper has no figure of tiny on imagenet-val" in result.stdout


def test_paper_column(tiny_bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgvq_export.evaluation import summary
    from mgvq_export.evaluation.published import Comparison

    monkeypatch.setattr(summary, "compare", lambda *_: Comparison({"psnr": 24.70, "rfid": 0.49}))
    result = run(tiny_bundle.path, photos, "-o", tmp_path / "out", *FAST)
    assert "24.70 dB" in result.stdout
    assert "the paper's PSNR is of pixels not rounded" in result.stdout
    assert "without the paper's figures" not in result.stdout


def test_bad_input_is_one_line(tiny_bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = tiny_bundle.path, tmp_path / "out"
    (tmp_path / "empty").mkdir()
    refused("has no int8 graphs; it has fp32, fp16", bundle, photos, "-o", out, "--precision", "int8")
    refused("holds no image", bundle, tmp_path / "empty", "-o", out)
    refused("does not exist", bundle, tmp_path / "missing", "-o", out)
    refused("is not a bundle", tmp_path / "empty", photos, "-o", out)
    refused("has 4 images; wanted 9", bundle, photos, "-o", out, "--limit", 9)
    refused("--dataset is 'imagenet'; choose imagenet-val, uhdbench", bundle, photos, "-o", out, "--dataset", "imagenet")
    refused("--metric is 'fid'; choose psnr, ssim, lpips, rfid", bundle, photos, "-o", out, "--metric", "fid")
    refused("wanted WIDTHxHEIGHT", bundle, photos, "-o", out, "--size", "256")
    refused("tiny has 4", bundle, photos, "-o", out, "--groups", "1,8")
    refused("is not empty and holds no evaluation", bundle, photos, "-o", tmp_path)
    refused("lies inside the dataset", bundle, photos, "-o", photos / "out")
    assert not out.exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    refused("lpips needs torch: pip install 'mgvq-export[eval]'", bundle, photos, "-o", out, "--metric", "lpips")
    assert not out.exists()


def test_a_folder_of_another_run(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    assert run(tiny_bundle.path, photos, "-o", tmp_path / "out", *FAST).exit_code == 0
    refused(
        "holds another run (precision fp32 there, fp16 now; graphs_sha256 ",
        tiny_bundle.path,
        photos,
        "-o",
        tmp_path / "out",
        *FAST,
        "--precision",
        "fp16",
    )


def test_without_matplotlib_the_figures_are_written_all_the_same(
    tiny_bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name == "matplotlib" else find_spec(name, package)
    )
    result = run(tiny_bundle.path, photos, "-o", tmp_path / "out", *FAST)
    assert result.exit_code == 0, result.output
    assert not list((tmp_path / "out").glob("*.png"))
    assert "without plots: they need matplotlib" in result.stdout
