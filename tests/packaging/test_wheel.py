"""What the wheel holds, and that it works alone: with the core dependencies, under the lowest and newest Python claimed and this one."""

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import numpy as np
import pytest

import mgvq_export
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.tokens import Tokens
from mgvq_export.runtime.image_files import read_image
from mgvq_export.tests.support.installing import ROOT, claimed_versions, pip

#: Folders of the repository that are for its developers.
NOT_SHIPPED = {"benchmarks", "docker", "docs", "examples", "tests", "tools"}


@pytest.fixture(scope="session")
def names(built_wheel: tuple[Path, str]) -> set[str]:
    with zipfile.ZipFile(built_wheel[0]) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def complaints(said: str) -> list[str]:
    """Lines of a build that warn, those aside that are about this machine: its indexes, PYTHONDONTWRITEBYTECODE."""
    lines = [line for line in said.splitlines() if not re.search(r"byte-compiling is disabled|^WARNING: Location 'file:", line)]
    return [line for line in lines if re.search(r"warning|deprecat", line, re.IGNORECASE)]


def test_it_is_built_without_warnings(built_wheel: tuple[Path, str]) -> None:
    assert complaints(built_wheel[1]) == []


def test_a_clone_is_installed_without_warnings(sources: Path, tmp_path: Path) -> None:
    """As ``pip install -e .`` does it; later releases of pip than the tests' own repeat a build's warnings."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    assert complaints(pip("install", "-v", "--no-deps", "-e", sources, python=python)) == []
    found = subprocess.run(
        [python, "-c", "import mgvq_export; print(mgvq_export.__version__)"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == mgvq_export.__version__


def test_it_holds_the_package_and_nothing_else(names: set[str]) -> None:
    modules = {
        f"mgvq_export/{path.relative_to(ROOT)}"
        for path in ROOT.rglob("*.py")
        if not {*path.relative_to(ROOT).parts[:-1]} & {*NOT_SHIPPED, "build", "dist"}
        and not path.relative_to(ROOT).parts[0].startswith(".")
    }
    assert {name for name in names if name.endswith(".py")} == modules, "list every room under packages in pyproject.toml"
    others = {name for name in names - modules if ".dist-info/" not in name}
    assert others >= {"mgvq_export/py.typed", "mgvq_export/model/demo.safetensors", "mgvq_export/ops/grouped_argmin.cu"}
    for folder in ("parity/report/page", "parity/samples"):
        assert others >= {f"mgvq_export/{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
    assert {Path(name).suffix for name in others} <= {".typed", ".safetensors", ".cu", ".css", ".js", ".j2", ".jpg", ".md"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_its_metadata(built_wheel: tuple[Path, str], names: set[str]) -> None:
    with zipfile.ZipFile(built_wheel[0]) as archive:
        metadata = message_from_bytes(archive.read(next(name for name in names if name.endswith("METADATA"))))
    assert metadata["Version"] == mgvq_export.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == f">={claimed_versions()[0]}"
    # An index page has no files beside it: no pictures, no links to them.
    links = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert [link for link in links if not link.startswith("https://")] == []


IMPORT_ALL = """
import importlib, pkgutil, mgvq_export
for module in pkgutil.walk_packages(mgvq_export.__path__, "mgvq_export."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name.startswith("mgvq_export"):
                raise
            print(error.name.split(".")[0])
"""


def optional_packages() -> set[str]:
    """What the extras bring, by import names."""
    return {"torch", "onnx", "huggingface_hub", "ml_dtypes", "matplotlib", "skimage", "jinja2", "openvino", "ray"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "version", sorted({claimed_versions()[0], claimed_versions()[-1], f"3.{sys.version_info.minor}"}, key=lambda v: int(v[2:]))
)
def test_it_works_alone(
    version: str, environments: Callable[[str], Path], built_wheel: tuple[Path, str], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Installed by the pins with the core dependencies only: every verb's help, doctor, encode and decode, and every module loads."""
    programs = environments(version)
    pip("install", "--no-compile", "-c", ROOT / "constraints.txt", built_wheel[0], python=programs / "python")
    away = tmp_path / "away"
    away.mkdir()

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [str(programs / command[0]), *map(str, command[1:])], cwd=away, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    listed = run("mgvq-export", "--help")
    assert run("python", "-m", "mgvq_export", "--help").splitlines()[1:] == listed.splitlines()[1:]
    verbs = re.findall(r"^  ([a-z]+)  +\S", listed[listed.index("--help") :], re.MULTILINE)
    assert {"encode", "decode", "doctor"} <= set(verbs)
    for verb in verbs:
        run("mgvq-export", verb, "--help")
    assert "ort-cpu" in run("mgvq-export", "doctor")
    photo = ROOT / "parity" / "samples" / "chelsea.jpg"
    run("mgvq-export", "encode", tiny_bundle.path, photo, "-o", "out")
    run("mgvq-export", "decode", tiny_bundle.path, "out/chelsea.safetensors", "-o", "out")
    with mgvq_export.Tokenizer.open(tiny_bundle.path, backend="ort-cpu") as tokenizer:
        tokens = tokenizer.encode(read_image(photo))
        image = tokenizer.decode(tokens)
    found = Tokens.load(away / "out" / "chelsea.safetensors").codes
    # Other releases of the libraries may sum in another order.
    assert found.shape == tokens.codes.shape and np.mean(found != tokens.codes) < 1e-3
    assert np.mean(np.abs(read_image(away / "out" / "chelsea.png").astype(int) - image)) < 1
    assert set(run("python", "-c", IMPORT_ALL).split()) <= optional_packages()


def test_the_version_is_written_once() -> None:
    tree = ast.parse((ROOT / "core" / "version.py").read_text(encoding="utf-8"))
    (version,) = [
        node for node in ast.walk(tree) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert re.fullmatch(r"\d+\.\d+\.\d+", ast.literal_eval(version.value))
    assert '\nversion = "' not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
