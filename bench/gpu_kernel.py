"""GPU acceptance, kernel section: GroupedArgmin on the GPU against the oracle, and its time beside torch's. No TensorRT needed."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mgvq_export.errors import BackendError
from mgvq_export.ops.contract import NEAR_TIE, grouped_argmin, near_tie_margins
from mgvq_export.ops.cuda_kernel import KERNEL_NAMES, compile_ptx, kernel_launch

#: name -> (B, G, K, d, h, w): a 2560x1440 image at f16 and f8 for the released groupings.
REAL_SIZES = {
    "f16 8x2048x4": (1, 8, 2048, 4, 90, 160),
    "f16 4x8192x8": (1, 4, 8192, 8, 90, 160),
    "f8 8x2048x4": (1, 8, 2048, 4, 180, 320),
    "f8 4x8192x8": (1, 4, 8192, 8, 180, 320),
}


def random_case(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Random ``latent`` [B, G*d, h, w] of ``dtype`` and ``codebook`` float32 [G, K, d] with unit rows, for (B, G, K, d, h, w)."""
    batch, groups, rows, dim, height, width = shape
    latent = rng.standard_normal((batch, groups * dim, height, width)).astype(dtype)
    codebook = rng.standard_normal((groups, rows, dim)).astype(np.float32)
    return latent, codebook / np.linalg.norm(codebook, axis=-1, keepdims=True)


def oracle_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, latent, codebook) for both latent types: all paths of the kernel, ties, and values that are not finite."""
    shapes = [
        (1, 1, 1, 1, 1, 1),
        (2, 4, 60, 4, 5, 7),
        (1, 8, 2048, 4, 3, 50),
        (1, 4, 1111, 8, 5, 5),
        (3, 1, 17, 3, 3, 3),
        (1, 2, 300, 13, 6, 6),
        (2, 3, 129, 17, 9, 9),
        (1, 2, 257, 32, 4, 4),
        (1, 32, 20, 1, 2, 2),
        (2, 1, 1500, 5, 10, 11),
    ]
    for index, shape in enumerate(shapes):
        for dtype in KERNEL_NAMES:
            latent, codebook = random_case(np.random.default_rng(index), shape, dtype)
            yield f"random-{'x'.join(map(str, shape))}-{dtype}", latent, codebook
    for dtype in KERNEL_NAMES:
        rng = np.random.default_rng(99)
        latent, codebook = random_case(rng, (1, 2, 200, 4, 8, 9), dtype)
        yield f"all-rows-equal-{dtype}", latent, np.repeat(codebook[:, :1], 200, axis=1)
        yield f"rows-repeated-{dtype}", latent, np.tile(codebook[:, :50], (1, 4, 1))
        yield f"repeated-from-the-end-{dtype}", latent, np.concatenate([codebook[:, :199], codebook[:, :1]], axis=1)
        yield f"zeros-{dtype}", np.zeros_like(latent), codebook
        odd = latent.copy()
        for place, value in enumerate((np.nan, np.inf, -np.inf)):
            odd[0, place, place, :] = value
        yield f"not-finite-{dtype}", odd, codebook
        scale = np.array(2.0**-12 if dtype == "float16" else 2.0**-60, dtype)
        yield f"tiny-{dtype}", latent * scale, codebook
        yield f"large-{dtype}", latent / scale if dtype == "float32" else np.clip(latent * 8000, -60000, 60000), codebook
        signs = np.array(list(np.ndindex(2, 2, 2, 2)), np.float32) - 0.5  # exact in every order of summation: many exact ties
        yield f"exact-ties-{dtype}", np.round(latent), np.tile(signs, (2, 5, 1))


def disagreements(latent: np.ndarray, codebook: np.ndarray, codes: np.ndarray) -> list[float]:
    """Margins of the codes that differ from the oracle's by more than a near-tie; empty when the kernel is right."""
    margins = near_tie_margins(latent, codebook, grouped_argmin(latent, codebook), codes)
    return [float(margin) for margin in margins if margin > NEAR_TIE]


def _checked(result):
    error, *values = result
    if int(error) != 0:
        raise BackendError(f"CUDA driver call failed: {error.name}")
    return values[0] if len(values) == 1 else tuple(values)


def gpu_problem() -> str | None:
    """Why no GPU can be used here, in one line; None when one can."""
    try:
        from cuda.bindings import driver

        _checked(driver.cuInit(0))
        if _checked(driver.cuDeviceGetCount()) == 0:
            return "no NVIDIA GPU: the driver counts none"
    except (ImportError, RuntimeError, BackendError) as error:
        return f"no NVIDIA GPU: {str(error).strip().splitlines()[0]}"
    return None


@dataclass
class GpuKernel:
    """The compiled kernel on GPU 0, through the CUDA driver and its primary context. Raises BackendError at every failed call."""

    _functions: dict = field(default_factory=dict)

    def __post_init__(self):
        from cuda.bindings import driver

        problem = gpu_problem()
        if problem:
            raise BackendError(problem)
        self._driver = driver
        device = _checked(driver.cuDeviceGet(0))
        self.name = _checked(driver.cuDeviceGetName(128, device)).split(b"\0")[0].decode()
        _checked(driver.cuCtxSetCurrent(_checked(driver.cuDevicePrimaryCtxRetain(device))))
        self._module = _checked(driver.cuModuleLoadData(compile_ptx() + b"\0"))  # the driver wants the NUL, TensorRT does not
        for dtype, name in KERNEL_NAMES.items():
            self._functions[dtype] = _checked(driver.cuModuleGetFunction(self._module, name.encode()))

    def run(self, latent: np.ndarray, codebook: np.ndarray, *, repeats: int = 0) -> tuple[np.ndarray, list[float]]:
        """Codes int32 [B, G, h, w] of one launch, and the microseconds of ``repeats`` further ones (CUDA events)."""
        driver = self._driver
        latent, codebook = np.ascontiguousarray(latent), np.ascontiguousarray(codebook)
        launch = kernel_launch(latent.shape, codebook.shape)
        codes = np.full((latent.shape[0], codebook.shape[0], *latent.shape[2:]), -1, np.int32)
        pointers: list = []
        try:
            for array in (latent, codebook, codes):
                pointers.append(_checked(driver.cuMemAlloc(array.nbytes)))
                _checked(driver.cuMemcpyHtoD(pointers[-1], array.ctypes.data, array.nbytes))
            values = (int(pointers[0]), int(pointers[1]), *launch.scalars, int(pointers[2]))
            types = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 4, ctypes.c_void_p)
            function = self._functions[latent.dtype.name]

            def enqueue():
                _checked(driver.cuLaunchKernel(function, *launch.grid, *launch.block, 0, 0, (values, types), 0))

            enqueue()
            _checked(driver.cuCtxSynchronize())
            times = [self._timed(enqueue) for _ in range(repeats)]
            _checked(driver.cuMemcpyDtoH(codes.ctypes.data, pointers[2], codes.nbytes))
        finally:
            for pointer in pointers:
                _checked(driver.cuMemFree(pointer))
        return codes, times

    def _timed(self, enqueue) -> float:
        driver = self._driver
        start, end = _checked(driver.cuEventCreate(0)), _checked(driver.cuEventCreate(0))
        _checked(driver.cuEventRecord(start, 0))
        enqueue()
        _checked(driver.cuEventRecord(end, 0))
        _checked(driver.cuEventSynchronize(end))
        elapsed = _checked(driver.cuEventElapsedTime(start, end)) * 1000.0
        _checked(driver.cuEventDestroy(start))
        _checked(driver.cuEventDestroy(end))
        return elapsed


def torch_times(latent: np.ndarray, codebook: np.ndarray, *, repeats: int = 20) -> dict[str, float]:
    """Median microseconds of cdist/argmin and matmul/argmax in torch on the GPU, float32; empty without torch for CUDA."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    groups, _, dim = codebook.shape
    rows = torch.from_numpy(codebook).cuda()
    split = (
        torch.from_numpy(latent.astype(np.float32))
        .cuda()
        .unflatten(1, (groups, dim))
        .permute(1, 0, 3, 4, 2)
        .reshape(groups, -1, dim)
    )
    ways = {
        "torch cdist/argmin": lambda: torch.cdist(split, rows).argmin(-1),
        "torch matmul/argmax": lambda: (split @ rows.mT).argmax(-1),
    }
    medians = {}
    for name, way in ways.items():
        times = []
        for _ in range(repeats + 3):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            way()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1000.0)
        medians[name] = float(np.median(times[3:]))  # the first three warm up
    return medians


def kernel_section() -> list[dict]:
    """Rows of the acceptance table: ``check`` (name), ``ok`` (bool or None for a plain figure), ``value``, ``unit``."""
    gpu = GpuKernel()
    rows: list[dict] = []
    for name, latent, codebook in oracle_cases():
        codes, _ = gpu.run(latent, codebook)
        wrong = len(disagreements(latent, codebook, codes))
        rows.append({"check": f"kernel {name}", "ok": wrong == 0, "value": wrong, "unit": "wrong codes"})
    for name, shape in REAL_SIZES.items():
        for dtype in KERNEL_NAMES:
            latent, codebook = random_case(np.random.default_rng(0), shape, dtype)
            _, times = gpu.run(latent, codebook, repeats=50)
            rows.append(
                {
                    "check": f"kernel {name} {dtype} on {gpu.name}",
                    "ok": None,
                    "value": float(np.median(times[5:])),
                    "unit": "us p50",
                }
            )
        for way, median in torch_times(latent, codebook).items():
            rows.append({"check": f"{way} {name}", "ok": None, "value": median, "unit": "us p50"})
    return rows
