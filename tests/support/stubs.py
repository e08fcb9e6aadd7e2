"""TensorRT's own Python bindings, importable without TensorRT: real wheels from the package index over generated stub libraries.

The bindings wheels hold every class, enum, method and docstring, and the plugin validators; only the C++ libraries are missing. Each
stub library defines the few C functions the bindings import, all returning null, which is enough to import and inspect them.
Code runs in a subprocess (:func:`run_snippet`), so that two versions and the test process never meet.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from platformdirs import user_cache_path

BINDINGS = {"10.16": "tensorrt-cu12-bindings==10.16.1.11", "11.4": "tensorrt-cu13-bindings==11.4.0.106"}
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
REQUIRED = os.environ.get("MGVQ_REQUIRE_TRT_BINDINGS") == "1"


def _cache_folder() -> Path:
    return user_cache_path("mgvq-export", appauthor=False) / "trt-bindings"


def bindings_folder(version: str) -> Path:
    """Folder with ``tensorrt`` (the package) and ``lib`` (the stubs) for a key of ``BINDINGS``; made on first use.

    Skips the calling test, saying why, when it cannot be made; fails it under MGVQ_REQUIRE_TRT_BINDINGS=1.
    """
    name = re.sub(r"\W+", "-", BINDINGS[version]) + f"-py{sys.version_info.major}{sys.version_info.minor}"
    folder = _cache_folder() / name
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=name + ".tmp-"))
    try:
        _build(BINDINGS[version], building)
        building.rename(folder)
    except (OSError, subprocess.SubprocessError) as error:
        if folder.exists():  # another run was faster
            return folder
        detail = getattr(error, "stderr", "") or str(error)
        reason = f"no TensorRT {version} bindings: {detail.strip().splitlines()[-1]}"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _build(requirement: str, folder: Path) -> None:
    def call(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout

    call(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
        str(folder),
        requirement,
    )
    # The wheel that only renames the package needs the library wheels; a link does the same.
    (folder / "tensorrt").symlink_to("tensorrt_bindings", target_is_directory=True)
    extension = next((folder / "tensorrt_bindings").glob("tensorrt*.so"))
    undefined = call("nm", "-D", "--undefined-only", str(extension))
    names = re.findall(r" U ((?:create\w+_INTERNAL|get\w*|initLib\w+))$", undefined, re.MULTILINE)  # libc's have a version suffix
    (folder / "lib").mkdir()
    source = folder / "lib" / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
    needed = set(re.findall(r"\[(lib\w+\.so\.\d+)\]", call("readelf", "-d", str(extension))))
    for library in needed:
        if library.removeprefix("lib").split(".")[0] in LIBRARIES:
            call("gcc", "-shared", "-fPIC", "-fno-builtin", "-o", str(folder / "lib" / library), str(source))


def run_snippet(version: str, code: str, *arguments: str) -> str:
    """Standard output of ``code`` run with ``import tensorrt`` giving these bindings. Fails the test with the traceback otherwise."""
    folder = bindings_folder(version)
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=folder,
    )
    if done.returncode != 0:
        pytest.fail(f"TensorRT {version} bindings, exit code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
