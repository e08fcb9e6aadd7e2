"""GPU acceptance: the machine, the GPU as CUDA's driver reports it, and the reason when there is none."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from typing import Any

from mgvq_export.core.bundle import package_version
from mgvq_export.core.errors import BackendError
from mgvq_export.ops.cuda_kernel import driver_version, nvrtc_version

_PACKAGES = (
    "mgvq-export",
    "numpy",
    "torch",
    "triton",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu12-bindings",
    "tensorrt-cu12-libs",
    "tensorrt-cu13",
    "tensorrt-cu13-bindings",
    "tensorrt-cu13-libs",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
)


def checked(result: Any) -> Any:
    """The values of a call of ``cuda.bindings.driver``. Raises :class:`BackendError` when it failed."""
    error, *values = result
    if int(error) != 0:
        raise BackendError(f"CUDA driver call failed: {error.name}")
    return values[0] if len(values) == 1 else tuple(values)


def gpu_problem() -> str | None:
    """Why CUDA's driver can use no GPU here, in one line with the remedy; None when it can."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        remedy = "pip install cuda-bindings nvidia-cuda-nvrtc, or pip install 'mgvq-export[tensorrt]'"
        return f"launching the kernel needs cuda-bindings ({error}): {remedy}"
    remedy = "install NVIDIA's driver and check that nvidia-smi lists a GPU"
    try:
        checked(driver.cuInit(0))
        if checked(driver.cuDeviceGetCount()) == 0:
            return f"no NVIDIA GPU (the driver counts none): {remedy}"
    except (RuntimeError, BackendError) as error:  # the bindings raise RuntimeError when they find no driver
        return f"no NVIDIA GPU ({str(error).strip().splitlines()[0]}): {remedy}"
    return None


def describe_run() -> dict[str, Any]:
    """Date, GPU, driver and versions of what the figures depend on; values that are not available are None."""
    driver = driver_version()
    found = {name: package_version(name) for name in _PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": _gpu_facts(),
        "driver_cuda": None if driver is None else f"{driver[0]}.{driver[1]}",
        "nvrtc": _nvrtc(),
        "versions": {name: version for name, version in found.items() if version is not None},
    }


def _nvrtc() -> str | None:
    try:
        return "{}.{}".format(*nvrtc_version())
    except BackendError:
        return None


def _gpu_facts() -> dict[str, str] | None:
    """From nvidia-smi, of the GPU that is used: name, driver, memory, and clocks before the run."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    names = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "power.limit")
    command = [tool, f"--id={_gpu_address()}", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in listed.splitlines()[0].split(",")] if listed.strip() else []
    return dict(zip(names, values, strict=False)) or None


def _gpu_address() -> str:
    """What nvidia-smi calls CUDA's first GPU: its numbers differ from CUDA's, which follow CUDA_VISIBLE_DEVICES and another order."""
    try:
        from cuda.bindings import driver

        checked(driver.cuInit(0))
        return checked(driver.cuDeviceGetPCIBusId(16, checked(driver.cuDeviceGet(0)))).split(b"\0")[0].decode()
    except (ImportError, RuntimeError, BackendError):
        return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
