"""Fresh environments for the tests of the wheel: other interpreters, pip, and what to do where there is no package index."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIRED = os.environ.get("MGVQ_REQUIRE_INDEX") == "1"
_UNREACHABLE = re.compile(r"No matching distribution|Connection ?Error|Failed to establish|Temporary failure", re.IGNORECASE)


def pip(*arguments: str | Path, python: str | Path = sys.executable) -> str:
    """Run this environment's pip for ``python`` and give its output.

    Skips the calling test where the package index cannot be reached, unless MGVQ_REQUIRE_INDEX=1; any other failure fails it.
    """
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        if _UNREACHABLE.search(said) and not REQUIRED:
            pytest.skip("the package index cannot be reached")
        pytest.fail(f"pip {' '.join(map(str, arguments))}:\n{said}")
    return done.stdout + done.stderr


def claimed_versions() -> list[str]:
    """Python versions that the project's metadata names, lowest first: ``["3.10", ...]``."""
    found = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return sorted(found, key=lambda version: int(version.split(".")[1]))


def interpreter(version: str) -> str:
    """The interpreter of a Python version such as ``"3.10"``, on the path or pyenv's. Skips the calling test without one."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [*sorted(map(str, pyenv.glob(f"{version}.*/bin/python"))), shutil.which(f"python{version}")]
    for candidate in filter(None, candidates):
        # pyenv puts commands on the path for versions that are not switched on; those fail.
        asked = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.startswith(f"Python {version}."):
            return candidate
    pytest.skip(f"Python {version} is not installed here")
