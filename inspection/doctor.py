"""What is installed, which backends can run here, and how to get the others. Heavy packages are imported only to probe them."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from typing import TypedDict

from mgvq_export.core.bundle import package_version
from mgvq_export.ops.trt_machine import FOR_CUDA_12

PACKAGES = {
    "numpy": "everything",
    "safetensors": "token files, checkpoints",
    "Pillow": "image files",
    "onnxruntime-gpu": "running graphs (CPU, CUDA)",
    "onnxruntime": "running graphs (CPU)",
    "onnxruntime-extensions": "fused CPU quantizer kernel",
    "numba": "fused CPU quantizer kernel",
    "openvino": "fastest backend without a GPU",
    "torch": "export: reading checkpoints",
    "onnx": "export: writing graphs",
    "huggingface-hub": "export: downloading checkpoints",
    "tensorrt": "TensorRT engines",
    "tensorrt-rtx": "TensorRT for RTX engines",
    "polygraphy": "TensorRT engines",
    "cuda-bindings": "TensorRT engines, GPU kernel",
    "nvidia-cuda-nvrtc": "compiling the GPU kernel",
    "matplotlib": "plots in reports",
    "scikit-image": "image metrics in reports",
    "Jinja2": "reports as HTML",
    "lpips": "eval: LPIPS",
    "clean-fid": "eval: rFID",
}


class System(TypedDict):
    """The machine: versions of Python and of the system, and the names of the GPUs, None for none."""

    python: str
    platform: str
    gpu: str | None


class Package(TypedDict):
    """A package: its version, None when it is not installed, and what it is for."""

    name: str
    version: str | None
    purpose: str


class Line(TypedDict):
    """Whether something can run here; the version, or the reason and remedy when it cannot."""

    name: str
    ready: bool
    detail: str


class Examination(TypedDict):
    """The result of :func:`examine`."""

    system: System
    packages: list[Package]
    backends: list[Line]


def examine() -> Examination:
    """The machine, the packages of :data:`PACKAGES`, and every line of :data:`LINES`."""
    packages: list[Package] = [
        {"name": name, "version": package_version(name), "purpose": purpose} for name, purpose in PACKAGES.items()
    ]
    return {
        "system": {"python": platform.python_version(), "platform": platform.platform(), "gpu": _gpu()},
        "packages": packages,
        "backends": [line for lines in LINES for line in lines()],
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


def _backend(name: str, ready: bool, detail: str) -> Line:
    return {"name": name, "ready": ready, "detail": detail}


def needs(name: str, extra: str, *packages: str) -> Callable[[], list[Line]]:
    """A line of :data:`LINES` for what runs as soon as ``packages`` are installed, which the package's ``extra`` brings."""

    def lines() -> list[Line]:
        missing = [package for package in packages if package_version(package) is None]
        if missing:
            return [_backend(name, False, f"needs {', '.join(missing)}: pip install 'mgvq-export[{extra}]'")]
        return [_backend(name, True, ", ".join(f"{package} {package_version(package)}" for package in packages))]

    return lines


#: Where TensorRT comes from. The extra brings TensorRT 11 or newer for CUDA 13; an older driver needs other packages.
GET_TENSORRT = (
    "pip install 'mgvq-export[tensorrt]' (x86-64, NVIDIA GPU of compute capability 7.5 or later), or with a driver of CUDA 12: "
    f"{FOR_CUDA_12}, or start from NVIDIA's container nvcr.io/nvidia/tensorrt"
)
_AS_ABOVE = "needs a GPU and TensorRT that run engines: see the line above"


def _tensorrt() -> list[Line]:
    """Running engines, and building them, which takes more."""
    from mgvq_export.core.errors import BackendError
    from mgvq_export.ops.trt_machine import find_machine

    names = ("tensorrt", "build (TensorRT)")
    packages = {"TensorRT": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"), "cuda-bindings": ("cuda-bindings",)}
    missing = [what for what, any_of in packages.items() if not any(map(package_version, any_of)) and not _importable(any_of[0])]
    if missing:
        gpu = "" if _gpu() else "; no NVIDIA GPU or driver is found either: check that nvidia-smi lists one"
        needs = f"needs {' and '.join(missing)}: {GET_TENSORRT}{gpu}"
        return [_backend(names[0], False, needs), _backend(names[1], False, _AS_ABOVE)]
    try:
        machine = find_machine()
    except BackendError as error:
        return [_backend(names[0], False, str(error)), _backend(names[1], False, _AS_ABOVE)]
    return [_backend("tensorrt", True, f"{machine}; build engines with: mgvq-export build BUNDLE --size WxH"), _build(names[1])]


def _rtx() -> list[Line]:
    """Running engines of TensorRT for RTX, and building them, which takes no GPU."""
    from mgvq_export.core.errors import BackendError
    from mgvq_export.ops.trt_machine import find_machine, find_rtx_library, rtx_capabilities

    names = ("tensorrt-rtx", "build (TensorRT for RTX)")
    try:
        library, gpus = find_rtx_library(), rtx_capabilities()
    except BackendError as error:
        return [_backend(names[0], False, str(error)), _backend(names[1], False, "needs the library: see the line above")]
    build = f"{library}, for GPUs of compute capability {', '.join(gpus)}: mgvq-export build BUNDLE --target rtx --size WxH"
    onnx = package_version("onnx") is not None
    building = _backend(names[1], onnx, build if onnx else "needs onnx: pip install 'mgvq-export[rtx]'")
    try:
        machine = find_machine("rtx")
    except BackendError as error:
        return [_backend(names[0], False, str(error)), building]
    known = machine.compute_capability in gpus
    unsupported = f"TensorRT for RTX does not support {machine.gpu} ({machine.compute_capability}): use TensorRT"
    return [_backend(names[0], known, str(machine) if known else unsupported), building]


def _importable(package: str) -> bool:
    """Whether a module of that name can be imported. NVIDIA's containers install TensorRT without package metadata."""
    import importlib.util

    name = {"cuda-bindings": "cuda"}.get(package, package)
    return importlib.util.find_spec(name) is not None


def _build(name: str) -> Line:
    from mgvq_export.core.errors import BackendError
    from mgvq_export.ops.cuda_kernel import driver_problem, driver_version, nvrtc_version

    if package_version("onnx") is None:
        return _backend(name, False, "needs onnx: pip install 'mgvq-export[export]'")  # the other extra is for CUDA 13
    try:
        nvrtc = nvrtc_version()
    except BackendError as error:
        return _backend(name, False, str(error))
    problem = driver_problem(nvrtc, driver_version())
    return _backend(name, problem is None, problem or f"NVRTC {nvrtc[0]}.{nvrtc[1]}")


def _onnxruntime() -> list[Line]:
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


def _openvino() -> list[Line]:
    from mgvq_export.core.errors import BackendError
    from mgvq_export.runtime.openvino.backend import check_installed, has_bf16

    try:
        version = check_installed()
    except BackendError as error:
        return [_backend("openvino", False, str(error))]
    return [
        _backend("openvino", True, f"openvino {version}; {'runs' if has_bf16() else 'no'} --precision bf16 on this processor")
    ]


def _cuda_loads(gpu: str) -> tuple[bool, str]:
    """Whether the libraries of the CUDA provider load: ONNX Runtime looks for them only when a session is made."""
    import ctypes

    libraries = ("libcudart.so.13", "libcublas.so.13", "libcudnn.so.9") if sys.platform == "linux" else ()
    for library in libraries:
        try:
            ctypes.CDLL(library)
        except OSError:
            return False, f"{gpu}, but {library} does not load: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return True, gpu


def _fused_kernel() -> list[Line]:
    try:
        import onnxruntime as ort

        from mgvq_export.core.errors import BackendError
        from mgvq_export.ops import register_ort_kernels

        register_ort_kernels(ort.SessionOptions())
    except ImportError as error:
        return [_backend("fused quantizer", False, f"ONNX Runtime does not load ({error})")]
    except BackendError as error:
        return [_backend("fused quantizer", False, str(error))]
    return needs("fused quantizer", "all", "numba", "onnxruntime-extensions")()


#: What is examined, in this order; :func:`needs` makes the lines for what needs packages only.
LINES: tuple[Callable[[], list[Line]], ...] = (
    needs("export", "export", "torch", "onnx"),
    _fused_kernel,
    _onnxruntime,
    _openvino,
    _tensorrt,
    _rtx,
    needs("eval: LPIPS, rFID", "eval", "torch", "torchvision", "lpips", "clean-fid"),
    needs("reports as HTML", "report", "Jinja2", "matplotlib"),
)
