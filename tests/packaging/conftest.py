import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mgvq_export.tests.support.installing import ROOT, interpreter, pip


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel of these sources, and what pip and setuptools said while it was built.

    Built from links to the files, in a folder of its own: setuptools would leave ``build/`` in the sources, and take what an earlier
    build left there into the wheel.
    """
    source = tmp_path_factory.mktemp("source")
    for entry in ROOT.iterdir():
        if entry.name not in {"build", "dist", ".git", ".venv"} and entry.suffix != ".egg-info":
            (source / entry.name).symlink_to(entry)
    target = tmp_path_factory.mktemp("wheel")
    said = pip("wheel", "-v", "--no-deps", "-w", target, source)
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
