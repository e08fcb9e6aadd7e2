"""The package uses nothing newer than the lowest Python that it claims; that it runs there is seen in test_wheel."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mgvq_export.tests.support.installing import ROOT, claimed_versions

LOWEST = claimed_versions()[0]
SHIPPED = sorted({path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "benchmarks"}) + sorted(ROOT.glob("*.py"))


def newer_than_claimed(*paths: Path) -> str:
    """What vermin finds that Python ``LOWEST`` lacks; empty when nothing."""
    program = Path(sys.executable).with_name("vermin")
    if not program.exists():
        pytest.skip("vermin is not installed: pip install vermin")
    command = [program, "--quiet", "--no-tips", "--violations", f"--target={LOWEST}-", *paths]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else found.stdout + found.stderr


def test_nothing_newer_is_used() -> None:
    assert newer_than_claimed(*SHIPPED) == ""


def test_something_newer_is_found(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text("import tomllib\n")
    assert "tomllib" in newer_than_claimed(tmp_path / "new.py")


def test_the_tools_know_the_lowest() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">={LOWEST}"' in text
    assert f'target-version = "py{LOWEST.replace(".", "")}"' in text
    assert re.search(
        rf'; python_version < "{LOWEST[:2]}{int(LOWEST[2:]) + 1}"', (ROOT / "constraints.txt").read_text(encoding="utf-8")
    )
