"""Our CUDA calls against CUDA's real Python bindings: every name exists and takes as many arguments as we give."""

import inspect
from functools import reduce
from pathlib import Path

import pytest

import mgvq_export
from mgvq_export.runtime.tensorrt.cuda import DeviceMap
from mgvq_export.tests.support import api_scan

cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
ROOT = Path(mgvq_export.__file__).parent
CALLS = sorted(
    {
        call
        for pattern in ("runtime/tensorrt/*.py", "ops/trt_machine.py", "examples/embed_trt.py")
        for path in ROOT.glob(pattern)
        for call in api_scan.cuda_calls(path.read_text())
    },
    key=str,
)


def problem(name: str, count: int | None) -> str | None:
    try:
        value = reduce(getattr, name.split("."), cudart)
    except AttributeError:
        return f"no {name}"
    if count is None or isinstance(value, type):
        return None
    wanted = len(inspect.signature(value).parameters)
    return None if wanted == count else f"{name} takes {wanted} arguments, not {count}"


@pytest.mark.parametrize(("name", "count"), CALLS)
def test_every_call_exists(name, count):
    assert problem(name, count) is None


def test_the_scan_finds_them_and_what_is_wrong():
    assert len(CALLS) > 25 and ("cudaMalloc", 1) in CALLS
    example = api_scan.cuda_calls((ROOT / "examples" / "embed_trt.py").read_text(encoding="utf-8"))
    assert {("cudaMemcpyAsync", 5), ("cudaStreamCreateWithFlags", 1), ("cudaStreamSynchronize", 1)} <= example <= set(CALLS)
    assert ("cudaFree", 2) in api_scan.cuda_calls("cuda(cudart.cudaFree, address, 7)")
    assert problem("cudaMallocArray2", 1) == "no cudaMallocArray2"
    assert problem("cudaMalloc", 2) == "cudaMalloc takes 1 arguments, not 2"
    with pytest.raises(AssertionError, match="keywords"):
        api_scan.cuda_calls("self._cudart.cudaMalloc(size=3)")


def test_the_copy_of_a_rectangle_is_what_the_bindings_structs_hold(monkeypatch):
    """The bindings' own struct, filled by our code, read back."""
    from mgvq_export.runtime.tensorrt.cuda import Cuda

    seen = []

    class Recording:
        def __getattr__(self, name):
            if name == "cudaMemcpy3DAsync":
                return lambda p, stream: (seen.append((p, stream)), (cudart.cudaError_t.cudaSuccess,))[1]
            return getattr(cudart, name)

    cuda = Cuda.__new__(Cuda)
    cuda._cudart, cuda.stream = Recording(), 7
    source, target = DeviceMap(4096, 5, 20, 30, 2), DeviceMap(8192, 5, 8, 9, 2)
    cuda.copy_box(target, (1, 2), source, (10, 11), (6, 7))
    ((p, stream),) = seen
    assert stream == 7 and p.kind == cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    assert (int(p.srcPtr.ptr), p.srcPtr.pitch, p.srcPtr.ysize) == (4096, 60, 20)
    assert (int(p.dstPtr.ptr), p.dstPtr.pitch, p.dstPtr.ysize) == (8192, 18, 8)
    assert (p.srcPos.x, p.srcPos.y, p.srcPos.z, p.dstPos.x, p.dstPos.y, p.dstPos.z) == (22, 10, 0, 4, 1, 0)
    assert (p.extent.width, p.extent.height, p.extent.depth) == (14, 6, 5)
