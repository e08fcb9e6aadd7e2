"""The GPU and the errors of this process: what is told of them, and which GPU a build runs on."""

import shutil
import threading

import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import Part
from mgvq_export.export.engines.build import build_engines
from mgvq_export.export.engines.cache import BuildCache
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.ops import trt_machine
from mgvq_export.ops.trt_machine import Machine, find_gpu, process_logger
from mgvq_export.runtime.tensorrt.cuda import OutOfDeviceMemory
from mgvq_export.runtime.tensorrt.engines import EngineLoader
from mgvq_export.runtime.tensorrt.errors import ErrorLog

cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
OK = cudart.cudaError_t.cudaSuccess
TOO_OLD = cudart.cudaError_t.cudaErrorInsufficientDriver


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- the GPU


def test_name_and_capability_are_read_from_the_bindings_own_struct(monkeypatch):
    properties = cudart.cudaDeviceProp()
    properties.name = b"NVIDIA H200".ljust(256, b"\0")
    properties.major, properties.minor = 9, 0
    monkeypatch.setattr(cudart, "cudaGetDevice", lambda: (OK, 1))
    monkeypatch.setattr(cudart, "cudaGetDeviceProperties", lambda device: (OK, properties if device == 1 else None))
    assert find_gpu() == ("NVIDIA H200", "9.0")


@pytest.mark.parametrize(
    ("driver", "bindings", "said"),
    [
        (
            12040,
            13050,
            "no usable GPU: its driver is for CUDA 12.4, cuda-bindings is for CUDA 13.5; update the driver, or pip install "
            "tensorrt-cu12 'cuda-bindings==12.*' nvidia-cuda-nvrtc-cu12",
        ),
        (11080, 13050, "no usable GPU: its driver is for CUDA 11.8, cuda-bindings is for CUDA 13.5; update the driver"),
        (11080, 12090, "no usable GPU: its driver is for CUDA 11.8, cuda-bindings is for CUDA 12.9; update the driver"),
    ],
)
def test_a_driver_that_is_too_old(monkeypatch, driver, bindings, said):
    monkeypatch.setattr(cudart, "cudaGetDevice", lambda: (TOO_OLD, None))
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (OK, driver))
    monkeypatch.setattr(cudart, "cudaRuntimeGetVersion", lambda: (OK, bindings))
    with pytest.raises(BackendError) as error:
        find_gpu()
    assert one_line(error) == said


def test_no_driver_is_not_an_old_one(monkeypatch):
    monkeypatch.setattr(cudart, "cudaGetDevice", lambda: (TOO_OLD, None))
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (OK, 0))
    with pytest.raises(BackendError, match="install NVIDIA's driver and check that nvidia-smi lists a GPU") as error:
        find_gpu()
    assert "CUDA 12" not in one_line(error)


# ---- a build's GPU


@pytest.fixture
def devices(monkeypatch):
    """CUDA's current device as CUDA keeps it: one per thread, 0 at first."""
    current = threading.local()
    monkeypatch.setattr(cudart, "cudaGetDevice", lambda: (OK, getattr(current, "device", 0)))
    monkeypatch.setattr(cudart, "cudaSetDevice", lambda device: (setattr(current, "device", device), (OK,))[1])
    return current


@pytest.fixture
def build(tiny_bundle, tmp_path, fake):
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    here = fake()
    options = BuildOptions(shapes=((64, 96),), parts=(Part.QUANTIZER,))
    here.build = lambda: build_engines(Bundle.open(tmp_path / "bundle"), options, cache=BuildCache(tmp_path / "cache"))
    return here


def test_tensorrt_builds_on_the_callers_gpu(build, devices):
    found = []
    build.recorder.during_build = lambda monitor: found.append((trt_machine.current_device(), threading.current_thread())) or True
    cudart.cudaSetDevice(1)
    build.build()
    ((device, thread),) = found
    assert device == 1 and thread is not threading.main_thread()


def test_a_gpu_that_cannot_be_made_current(build, devices, monkeypatch):
    monkeypatch.setattr(cudart, "cudaSetDevice", lambda device: (cudart.cudaError_t.cudaErrorInvalidDevice,))
    with pytest.raises(BackendError, match=r"GPU 0 cannot be used \(cudaErrorInvalidDevice\); check that nvidia-smi") as error:
        build.build()
    assert one_line(error) and "parse" not in build.recorder.names()


# ---- errors


@pytest.mark.parametrize(
    "text",
    [
        "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (8589934592 bytes) could not be allocated",
        "[executionContext.cpp] Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)",
    ],
)
@pytest.mark.parametrize("reported", [True, False], ids=["recorder", "logger"])
def test_memory_that_ran_out_is_found_in_any_error(fake, text, reported):
    here = fake()
    log = ErrorLog(here.trt)
    for said in ("something that came first", text, "something that came after"):
        if reported:
            log.recorder.report_error(here.trt.ErrorCodeTRT.FAILED_EXECUTION, said)
        else:
            process_logger(here.trt).log(here.trt.ILogger.Severity.ERROR, said)
    with pytest.raises(OutOfDeviceMemory) as error:
        log.raise_first("the engine does not run", "report it")
    assert text in one_line(error)
    with pytest.raises(BackendError, match="no reason given; report it") as error:  # they were told once
        log.raise_first("the engine does not run", "report it")
    assert not isinstance(error.value, OutOfDeviceMemory)


def test_an_allocation_that_failed_is_known_by_its_code(fake):
    here = fake()
    log = ErrorLog(here.trt)
    log.recorder.report_error(here.trt.ErrorCodeTRT.FAILED_EXECUTION, "first")
    log.recorder.report_error(here.trt.ErrorCodeTRT.FAILED_ALLOCATION, "no room")
    with pytest.raises(OutOfDeviceMemory, match=r"\(no room\)"):
        log.raise_first("the engine does not run", "report it")


def test_other_errors_are_not_about_memory(fake):
    here = fake()
    log = ErrorLog(here.trt)
    for said in ("first\nof two lines", "second"):
        log.recorder.report_error(here.trt.ErrorCodeTRT.FAILED_EXECUTION, said)
    with pytest.raises(BackendError, match="does not run: first of two lines; report it") as error:
        log.raise_first("the engine does not run", "report it")
    assert not isinstance(error.value, OutOfDeviceMemory)


def test_an_error_of_an_earlier_use_is_not_why_tensorrt_does_not_start(fake):
    here = fake(fail_at=0)
    process_logger(here.trt).log(here.trt.ILogger.Severity.ERROR, "of an earlier use")
    with pytest.raises(BackendError, match=r"TensorRT does not start \(.*returned nullptr\)") as error:
        EngineLoader(Machine("11.4.0.106", "NVIDIA H200", "9.0"))
    assert "of an earlier use" not in one_line(error)
