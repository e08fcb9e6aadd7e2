"""Launching the kernel without a GPU: CUDA's real Python bindings over a driver library that runs the kernel's source on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mgvq_export.core.errors import BackendError
from mgvq_export.ops import cuda_kernel

SCRIPT = """
import dataclasses, json
from mgvq_export.benchmarks.gpu import kernel
from mgvq_export.benchmarks.gpu.report import GpuOptions
kernel.cases.NAMES[:] = [name for name in kernel.cases.NAMES if "K8192" not in name and "K2048" not in name]  # slow here
kernel.REAL_SIZES = {"small 2x64x4": (1, 2, 64, 4, 9, 16), "small 3x70x8": (2, 3, 70, 8, 5, 5)}
%s
rows = list(kernel.kernel_section(GpuOptions(repeats=2)))
print(json.dumps([dataclasses.asdict(row) for row in rows]))
"""
TIMES = """
kernel.cases.NAMES[:] = kernel.cases.NAMES[:1]
kernel.REAL_SIZES = {"f16 2x64x4": (1, 2, 64, 4, 9, 16), "f8 2x64x4": (1, 2, 64, 4, 9, 16)}
"""
WRONG = "kernel.kernel_launch = lambda *s, f=kernel.kernel_launch: dataclasses.replace(f(*s), scalars=(*f(*s).scalars[:2], 1, f(*s).scalars[3]))"


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """Folder with a ``libcuda.so.1`` of host code."""
    try:
        nvrtc = cuda_kernel.nvrtc_version()
    except BackendError as error:
        pytest.skip(str(error))
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    if nvrtc[0] < 13:
        pytest.skip(f"written for CUDA 13's bindings; NVRTC is {nvrtc}")
    folder = tmp_path_factory.mktemp("driver")
    command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    source = Path(__file__).with_name("host_driver.cpp")
    arguments = [f'-DKERNEL_SOURCE="{cuda_kernel.KERNEL_SOURCE}"', str(source), "-o", str(folder / "libcuda.so.1"), "-ldl"]
    subprocess.run([*command, *arguments], check=True)
    return folder


def kernel_rows(driver: Path, cuda: tuple[int, int], change: str = "", gpu: str = "no GPU at all") -> list[dict]:
    """The acceptance's kernel section on the driver that is none, which says it is of this CUDA version and has this GPU."""
    return on_driver(driver, SCRIPT % change, MGVQ_STUB_CUDA=str(1000 * cuda[0] + 10 * cuda[1]), MGVQ_STUB_GPU=gpu)


def on_driver(driver: Path, script: str, **variables: str) -> Any:
    """The JSON that the script prints last."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), **variables}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=driver, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_kernel_section(driver):
    rows = kernel_rows(driver, cuda_kernel.nvrtc_version())
    first, *others = rows
    assert first["check"].startswith("kernel against the oracle") and first["ok"] and first["value"] == 0
    assert [row["ok"] for row in others] == [None, None, True] * 2
    # 20 launches in a row, on clocks that have risen: one alone would take 0.03 ms, and cold ones twice as long.
    timed = [row for row in others if row["unit"] == "ms p50"]
    assert [(row["value"], row["facts"]["p99"]) for row in timed] == [pytest.approx((0.0205, 0.0205), rel=1e-3)] * 4


def test_an_older_driver_gets_machine_code(driver):
    if cuda_kernel.nvrtc_version() <= (13, 0):
        pytest.skip("NVRTC is no newer than the driver that this test is about")
    rows = kernel_rows(driver, (13, 0))
    assert rows[0]["value"] == "cubin" and "pip install 'nvidia-cuda-nvrtc==13.0.*'" in rows[0]["facts"]["note"]
    assert rows[1]["ok"]


def test_a_wrong_launch_is_noticed(driver):
    rows = kernel_rows(driver, cuda_kernel.nvrtc_version(), WRONG)
    assert rows[0]["ok"] is False and rows[0]["facts"]["failed"]
    assert rows[-1]["ok"] is False


@pytest.mark.parametrize(("goal", "ok"), [("0.1", True), ("0.01", False)])
def test_the_goal_is_judged_on_an_h200(driver, goal, ok):
    change = f"{TIMES}kernel.GOAL = {goal}"
    rows = kernel_rows(driver, cuda_kernel.nvrtc_version(), change, gpu="NVIDIA H200")
    assert [row["ok"] for row in rows if row["unit"] == "ms p50"] == [ok] * 2 + [None] * 2  # at f8 there is none


def test_on_another_gpu_the_goal_is_a_note(driver):
    rows = kernel_rows(driver, cuda_kernel.nvrtc_version(), TIMES, gpu="NVIDIA L4")
    notes = [(row["ok"], row["facts"].get("note")) for row in rows if row["unit"] == "ms p50"]
    assert notes == [(None, "wanted on an H200: at most 0.1 ms")] * 2 + [(None, None)] * 2


def test_nvidia_smi_is_asked_for_the_gpu_of_the_driver(driver, tmp_path):
    """By its address on the bus: CUDA and nvidia-smi number GPUs differently."""
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "asked for $1"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    script = "import json; from mgvq_export.benchmarks.gpu.machine import describe_run; print(json.dumps(describe_run()))"
    found = on_driver(driver, script, PATH=f"{tmp_path}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="1")
    assert found["gpu"]["name"] == "asked for --id=0000:3B:00.0"
