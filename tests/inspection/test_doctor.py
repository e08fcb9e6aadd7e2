"""What doctor says about TensorRT: what is missing and how to get it, or that it works."""

import pytest

from mgvq_export.core.errors import BackendError
from mgvq_export.inspection import doctor
from mgvq_export.ops import cuda_kernel


@pytest.fixture
def rows(monkeypatch):
    """Doctor's rows about TensorRT, for a machine with the packages given."""

    def ask(*packages: str) -> dict[str, tuple[bool, str]]:
        versions = dict.fromkeys(packages, "1.0")
        monkeypatch.setattr(doctor, "package_version", versions.get)
        monkeypatch.setattr(doctor, "_importable", lambda package: False)
        found = {row["name"]: (row["ready"], row["detail"]) for row in doctor._tensorrt()}
        assert list(found) == ["tensorrt", "build (TensorRT)"]
        assert all("\n" not in detail and len(detail) > 9 for _, detail in found.values())
        return found

    return ask


def test_nothing_is_installed(rows, monkeypatch):
    monkeypatch.setattr(doctor, "_gpu", lambda: None)
    ready, detail = rows()["tensorrt"]
    assert not ready and detail.startswith("needs TensorRT and cuda-bindings: pip install 'mgvq-export[tensorrt]'")
    assert "CUDA 12: pip install tensorrt-cu12 'cuda-bindings==12.*' nvidia-cuda-nvrtc-cu12," in detail
    assert "nvcr.io/nvidia/tensorrt" in detail and "nvidia-smi" in detail
    monkeypatch.setattr(doctor, "_gpu", lambda: "NVIDIA H200")
    ready, detail = rows("cuda-bindings")["tensorrt"]
    assert not ready and detail.startswith("needs TensorRT: pip install") and "nvidia-smi" not in detail


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt-cu12", "tensorrt-cu13"])
def test_it_is_too_old_or_there_is_no_gpu(rows, fake, package, monkeypatch):
    fake(version="10.3.0")
    found = rows(package, "cuda-bindings")
    ready, detail = found["tensorrt"]
    assert not ready and detail.startswith(
        "TensorRT 10.3.0 is too old; wanted 10.16.1 or newer: pip install -U 'tensorrt>=10.16.1'"
    )
    assert found["build (TensorRT)"] == (False, "needs a GPU and TensorRT that run engines: see the line above")


def test_it_works(rows, fake, monkeypatch):
    fake()
    monkeypatch.setattr(cuda_kernel, "nvrtc_version", lambda: (13, 5))
    monkeypatch.setattr(cuda_kernel, "driver_version", lambda: (13, 5))
    found = rows("tensorrt", "cuda-bindings", "onnx")
    assert found["tensorrt"] == (
        True,
        "NVIDIA H200 with TensorRT 11.4.0.106; build engines with: mgvq-export build BUNDLE --size WxH",
    )
    assert found["build (TensorRT)"] == (True, "NVRTC 13.5")


def test_building_takes_more_than_running(rows, fake, monkeypatch):
    fake()
    found = rows("tensorrt", "cuda-bindings")
    # Not the extra tensorrt, which would bring packages for CUDA 13 to a machine that has those for CUDA 12.
    assert found["tensorrt"][0] and found["build (TensorRT)"] == (False, "needs onnx: pip install 'mgvq-export[export]'")
    monkeypatch.setattr(cuda_kernel, "nvrtc_version", lambda: (13, 5))
    monkeypatch.setattr(cuda_kernel, "driver_version", lambda: (12, 4))
    ready, detail = rows("tensorrt", "cuda-bindings", "onnx")["build (TensorRT)"]
    assert not ready and "nvidia-cuda-nvrtc-cu12==12.4" in detail

    def missing():
        raise BackendError("compiling the GPU kernel needs NVRTC (no libnvrtc): pip install nvidia-cuda-nvrtc")

    monkeypatch.setattr(cuda_kernel, "nvrtc_version", missing)
    assert "pip install nvidia-cuda-nvrtc" in rows("tensorrt", "cuda-bindings", "onnx")["build (TensorRT)"][1]


def test_this_machine():
    names = [row["name"] for row in doctor.examine()["backends"]]
    assert {"tensorrt", "build (TensorRT)", "ort-cpu"} <= set(names)
