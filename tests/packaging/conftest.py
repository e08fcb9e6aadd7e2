import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mgvq_export.tests.support.installing import ROOT, interpreter, pip


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to these sources, to build in: setuptools leaves ``build/`` there, and takes what an earlier build left."""
    folder = tmp_path_factory.mktemp("sources")
    for entry in ROOT.iterdir():
        if entry.name not in {"build", "dist", ".git", ".venv"} and entry.suffix != ".egg-info":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def built_wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel of these sources, and what pip and setuptools said while it was built."""
    target = tmp_path_factory.mktemp("wheel")
    said = pip("wheel", "-v", "--no-deps", "-w", target, sources)
    (wheel,) = target.glob("*.whl")
    return wheel, said


@pytest.fixture
def environments(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a virtual environment of a Python version such as ``"3.10"``, without pip, and gives its ``bin`` folder."""

    def fresh(version: str) -> Path:
        folder = tmp_path / f"env-{version}"
        subprocess.run([interpreter(version), "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
        return folder / "bin"

    yield fresh
    for folder in tmp_path.glob("env-*"):  # most of a gigabyte each, which pytest would keep for three runs
        shutil.rmtree(folder)
