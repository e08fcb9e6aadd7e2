"""What the acceptance says of the machine, and why it finds no GPU."""

import re
import sys
from pathlib import Path

import pytest

from mgvq_export.benchmarks.gpu import machine


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """An nvidia-smi that knows two GPUs by address and by number; without an argument it lists both."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "--id=0000:3B:00.0|--id=1) echo 'NVIDIA H200, 580.1, 143771 MiB, 345 MHz, 1980 MHz, 700.00 W' ;;\n"
        "--id=*) exit 6 ;;\n"
        "*) echo 'NVIDIA L4, 580.1, 23034 MiB, 210 MHz, 2040 MHz, 72.00 W' ;;\n"
        "esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_the_gpu_described_is_the_one_that_is_used(nvidia_smi, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)  # the tests of the launch ask CUDA's driver
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert machine.describe_run()["gpu"]["name"] == "NVIDIA H200"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.describe_run()["gpu"] is None


def test_every_package_of_tensorrt_is_listed(monkeypatch):
    monkeypatch.setattr(machine, "package_version", lambda name: "11.4" if "tensorrt" in name else None)
    names = {f"tensorrt{kind}{part}" for kind in ("-cu12", "-cu13") for part in ("", "-bindings", "-libs")}
    assert set(machine.describe_run()["versions"]) == {"tensorrt", *names}


def test_missing_bindings_are_no_missing_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    problem = machine.gpu_problem()
    assert problem.startswith("launching the kernel needs cuda-bindings (")
    assert "pip install cuda-bindings nvidia-cuda-nvrtc" in problem and "mgvq-export[tensorrt]" in problem


def test_a_missing_gpu_says_what_to_do(monkeypatch):
    driver = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(driver, "cuInit", lambda flags: (driver.CUresult.CUDA_ERROR_NO_DEVICE,))
    problem = machine.gpu_problem()
    assert problem.startswith("no NVIDIA GPU (") and "check that nvidia-smi lists a GPU" in problem and "\n" not in problem


def test_driver_calls_exist():
    driver = pytest.importorskip("cuda.bindings.driver")
    names = set(re.findall(r"driver\.(cu\w+)", Path(machine.__file__).read_text()))
    assert "cuDeviceGetPCIBusId" in names and [name for name in sorted(names) if not hasattr(driver, name)] == []
