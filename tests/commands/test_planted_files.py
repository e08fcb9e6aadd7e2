"""Files called like modules, in the folders that data comes in and in the working folder: no verb may run one."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mgvq_export.cli import VERBS
from mgvq_export.tests.support import planted

#: What a user runs: the installed program.
PROGRAM = Path(sys.executable).with_name("mgvq-export")

#: verb -> arguments, run in this order in one folder that holds "photos" and "checkpoint.safetensors".
RUNS = {
    "models": [],
    "doctor": [],
    "demo": ["-o", "demo"],
    "export": ["checkpoint.safetensors", "-o", "exported", "--precision", "fp16", "--precision", "fp32"],
    "inspect": ["bundle"],
    "encode": ["bundle", "photos/a.png", "-o", "out"],
    "decode": ["bundle", "out/a.safetensors", "-o", "out"],
    "reconstruct": ["bundle", "photos/a.png", "-o", "again"],
    "publish": ["bundle", "-o", "models"],
    "tokenize": ["bundle", "photos", "-o", "tokenized", "--size", "32x32"],
    "verify": ["bundle", "photos/a.png", "--only", "round-trip", "--report", "report.json"],
    "eval": ["bundle", "photos", "-o", "scores", "--size", "32x32", "--metric", "psnr", "--metric", "ssim"],
    "bench": ["bundle", "--size", "64x64", "--repeat", "1", "--against", "plain-ort"],
    "calibrate": [
        "bundle",
        "photos",
        "-o",
        "plan.json",
        "--precision",
        "fp16",
        "--window-size",
        "32",
        "--windows",
        "2",
        "--search-windows",
        "1",
    ],
    "build": ["bundle", "--size", "64x64"],
}


def test_every_verb_has_a_run() -> None:
    assert set(RUNS) == set(VERBS), "a new verb: say above how to run it"


@pytest.fixture(scope="module")
def folder(tiny_bundle, tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(tiny_bundle.path, folder / "bundle")
    shutil.copy(tiny_checkpoint_file, folder / "checkpoint.safetensors")
    (folder / "photos").mkdir()
    (folder / "out").mkdir()
    for index, name in enumerate("ab"):
        Image.linear_gradient("L").resize((72, 56)).rotate(90 * index).convert("RGB").save(folder / "photos" / f"{name}.png")
    for place in (folder, folder / "bundle", folder / "photos", folder / "out"):
        planted.plant(place)
    return folder


@pytest.mark.parametrize("verb", RUNS)
def test_no_verb_runs_a_planted_file(verb: str, folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [PROGRAM, verb, *RUNS[verb]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert planted.executed(folder) == []
    # Without TensorRT or a GPU there is nothing to build with, nor without Ray to tokenize with; the plan of two pictures misses its budgets.
    without_ray = (2,) if importlib.util.find_spec("ray") is None else (0,)
    assert done.returncode in {"build": (0, 2), "calibrate": (0, 1), "tokenize": without_ray}.get(verb, (0,)), done.stderr


def test_planted_files_are_noticed(folder: Path, tmp_path: Path) -> None:
    planted.plant(tmp_path)
    subprocess.run([sys.executable, "-c", "import json, numpy"], cwd=tmp_path, check=False, capture_output=True)
    assert planted.executed(tmp_path) != []
