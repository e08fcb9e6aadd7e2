"""What is installed, which backends can run here, and how to get the others. Imports nothing heavy that is not asked about."""

from __future__ import annotations

import platform
import shutil
import sys
from typing import Any

from mgvq_export.bundle import package_version

PACKAGES = {
    "numpy": "everything",
    "safetensors": "token files, checkpoints",
    "Pillow": "image files",
    "onnxruntime-gpu": "running graphs (CPU, CUDA)",
    "onnxruntime": "running graphs (CPU)",
    "onnxruntime-extensions": "fused CPU quantizer kernel",
    "numba": "fused CPU quantizer kernel",
    "torch": "export: reading checkpoints",
    "onnx": "export: writing graphs",
    "huggingface-hub": "export: downloading checkpoints",
    "tensorrt": "TensorRT engines",
    "polygraphy": "TensorRT engines",
    "cuda-bindings": "TensorRT engines, GPU kernel",
    "nvidia-cuda-nvrtc": "compiling the GPU kernel",
    "matplotlib": "plots in reports",
    "scikit-image": "image metrics in reports",
}


def examine() -> dict[str, Any]:
    """``system``; ``packages``: name, version or None, purpose; ``backends``: name, ready, detail with the remedy when not."""
    packages = [{"name": name, "version": package_version(name), "purpose": purpose} for name, purpose in PACKAGES.items()]
    return {
        "system": {"python": platform.python_version(), "platform": platform.platform(), "gpu": _gpu()},
        "packages": packages,
        "backends": [_export(), _fused_kernel(), *_onnxruntime(), _engines()],
    }


def _gpu() -> str | None:
    """Names of the NVIDIA GPUs that the driver lists, or None."""
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; ".join(listed.stdout.split("\n")).strip("; ") or None


def _backend(name: str, ready: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ready": ready, "detail": detail}


def _export() -> dict[str, Any]:
    missing = [name for name in ("torch", "onnx") if package_version(name) is None]
    if missing:
        return _backend("export", False, f"needs {', '.join(missing)}: pip install 'mgvq-export[export]'")
    return _backend("export", True, f"torch {package_version('torch')}, onnx {package_version('onnx')}")


def _engines() -> dict[str, Any]:
    from mgvq_export.errors import BackendError

    try:
        from mgvq_export.ops.trt_machine import find_machine

        machine = find_machine()
    except ImportError as error:
        return _backend("build (TensorRT)", False, f"needs {error.name}: pip install 'mgvq-export[export,tensorrt]'")
    except BackendError as error:
        return _backend("build (TensorRT)", False, str(error))
    return _backend("build (TensorRT)", True, f"TensorRT {machine.tensorrt}, {machine.gpu}")


def _onnxruntime() -> list[dict[str, Any]]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        remedy = f"ONNX Runtime does not load ({error}): pip install onnxruntime-gpu (Linux x86-64) or onnxruntime"
        return [_backend(name, False, remedy) for name in ("ort-cpu", "ort-cuda")]
    backends = [_backend("ort-cpu", True, f"onnxruntime {ort.__version__}")]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return [*backends, _backend("ort-cuda", False, "this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu")]
    gpu = _gpu()
    if gpu is None:
        detail = "no NVIDIA GPU or driver found: install the driver, and check that nvidia-smi lists a GPU"
        return [*backends, _backend("ort-cuda", False, detail)]
    return [*backends, _backend("ort-cuda", *_cuda_loads(gpu))]


def _cuda_loads(gpu: str) -> tuple[bool, str]:
    """Whether the CUDA provider really starts: its libraries are looked for only then."""
    import ctypes

    libraries = ("libcudart.so.13", "libcublas.so.13", "libcudnn.so.9") if sys.platform == "linux" else ()
    for library in libraries:
        try:
            ctypes.CDLL(library)
        except OSError:
            return False, f"{gpu}, but {library} does not load: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return True, gpu


def _fused_kernel() -> dict[str, Any]:
    try:
        import onnxruntime as ort

        from mgvq_export.errors import BackendError
        from mgvq_export.ops import register_ort_kernels

        register_ort_kernels(ort.SessionOptions())
    except ImportError as error:
        return _backend("fused quantizer", False, f"ONNX Runtime does not load ({error})")
    except BackendError as error:
        return _backend("fused quantizer", False, str(error))
    return _backend(
        "fused quantizer",
        True,
        f"numba {package_version('numba')}, onnxruntime-extensions {package_version('onnxruntime-extensions')}",
    )
