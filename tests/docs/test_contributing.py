"""What CONTRIBUTING names is there, and what there is it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: Set by .ci/run before the tests that read it are there.
AHEAD = {"MGVQ_REQUIRE_RTX"}


def test_the_variables_that_forbid_skips() -> None:
    used = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"MGVQ_REQUIRE_[A-Z_]+", path.read_text(encoding="utf-8"))
    }
    assert set(re.findall(r"MGVQ_REQUIRE_[A-Z_]+", PAGE)) == used | AHEAD


def test_the_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", PAGE, re.MULTILINE)) <= set(
        re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    )


def test_files_and_folders() -> None:
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", PAGE)
    missing = [name for name in named if "<" not in name and not (ROOT / name).exists()]
    assert not missing
