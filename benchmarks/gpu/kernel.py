"""GPU acceptance, kernel section: GroupedArgmin on the GPU against the oracle, and its time beside torch's. No TensorRT needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mgvq_export.benchmarks.gpu.machine import checked, gpu_problem
from mgvq_export.benchmarks.gpu.network import import_torch
from mgvq_export.benchmarks.gpu.report import CannotRun, GpuOptions, Row, goal
from mgvq_export.benchmarks.gpu.timing import burst_times, device_times
from mgvq_export.core.errors import BackendError
from mgvq_export.ops import cases
from mgvq_export.ops.contract import NEAR_TIE, grouped_argmin, near_tie_margins
from mgvq_export.ops.cuda_kernel import (
    KERNEL_NAMES,
    compile_cubin,
    compile_ptx,
    driver_problem,
    driver_version,
    kernel_architecture,
    kernel_launch,
    nvrtc_version,
)

#: name -> (B, G, K, d, h, w): a 2560x1440 image at f16 and f8 for the released groupings.
REAL_SIZES = {
    "f16 8x2048x4": (1, 8, 2048, 4, 90, 160),
    "f16 4x8192x8": (1, 4, 8192, 8, 90, 160),
    "f8 8x2048x4": (1, 8, 2048, 4, 180, 320),
    "f8 4x8192x8": (1, 4, 8192, 8, 180, 320),
}
GOAL = 0.1  # milliseconds, at f16

_ROWS_CHECKED = 8  # of these maps: the oracle takes minutes for all of them


def real_case(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Normal ``latent`` of ``dtype`` and unit rows for (B, G, K, d, h, w)."""
    batch, groups, rows, dim, height, width = shape
    rng = np.random.default_rng(0)
    latent, codebook = cases.random_case(rng, groups, rows, dim, batch=batch, height=height, width=width)
    return latent.astype(dtype), codebook


def disagreements(latent: np.ndarray, codebook: np.ndarray, codes: np.ndarray) -> list[float]:
    """Margins of the codes that differ from the oracle's by more than a near-tie; empty when the kernel is right."""
    margins = near_tie_margins(latent, codebook, grouped_argmin(latent, codebook), codes)
    return [float(margin) for margin in margins if margin > NEAR_TIE]


class GpuKernel:
    """The compiled kernel on GPU 0, through the CUDA driver and its primary context.

    Attributes:
        name: of the GPU.
        note: how the kernel was loaded when not as the PTX that engines carry; else empty.

    Raises :class:`CannotRun` without a GPU, its driver or NVRTC, :class:`BackendError` at every failed call.
    """

    def __init__(self) -> None:
        problem = gpu_problem()
        if problem:
            raise CannotRun(problem)
        try:
            nvrtc_version()
        except BackendError as error:
            raise CannotRun(str(error)) from None
        from cuda.bindings import driver

        self._driver = driver
        device = checked(driver.cuDeviceGet(0))
        self.name = checked(driver.cuDeviceGetName(128, device)).split(b"\0")[0].decode()
        checked(driver.cuCtxSetCurrent(checked(driver.cuDevicePrimaryCtxRetain(device))))
        code, self.note = self._code(device)
        self._module = checked(driver.cuModuleLoadData(code))
        self._functions = {
            dtype: checked(driver.cuModuleGetFunction(self._module, name.encode())) for dtype, name in KERNEL_NAMES.items()
        }

    def _code(self, device: Any) -> tuple[bytes, str]:
        """PTX, or machine code where the driver is older than NVRTC and cannot read its PTX; and a note about the latter."""
        attribute = self._driver.CUdevice_attribute
        major, minor = (
            checked(self._driver.cuDeviceGetAttribute(kind, device))
            for kind in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        problem = driver_problem(nvrtc_version(), driver_version())
        if problem is None:
            return compile_ptx(
                kernel_architecture(10 * major + minor)
            ) + b"\0", ""  # the driver needs the NUL, TensorRT must not have it
        return compile_cubin(10 * major + minor)[0], f"machine code for this GPU, engines cannot be built yet: {problem}"

    def run(self, latent: np.ndarray, codebook: np.ndarray, *, repeats: int = 0) -> tuple[np.ndarray, list[float]]:
        """Codes int32 [B, G, h, w], and the milliseconds of one launch, ``repeats`` times (:func:`burst_times`)."""
        driver = self._driver
        latent, codebook = np.ascontiguousarray(latent), np.ascontiguousarray(codebook)
        launch = kernel_launch(latent.shape, codebook.shape)
        codes = np.full((latent.shape[0], codebook.shape[0], *latent.shape[2:]), -1, np.int32)
        pointers: list = []
        try:
            for array in (latent, codebook, codes):
                pointers.append(checked(driver.cuMemAlloc(array.nbytes)))
                checked(driver.cuMemcpyHtoD(pointers[-1], array.ctypes.data, array.nbytes))
            values = (int(pointers[0]), int(pointers[1]), *launch.scalars, int(pointers[2]))
            types = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 4, ctypes.c_void_p)
            function = self._functions[latent.dtype.name]

            def enqueue() -> None:
                checked(driver.cuLaunchKernel(function, *launch.grid, *launch.block, 0, 0, (values, types), 0))

            enqueue()
            checked(driver.cuCtxSynchronize())
            times = burst_times(lambda launches: self._burst(enqueue, launches), repeats) if repeats else []
            checked(driver.cuMemcpyDtoH(codes.ctypes.data, pointers[2], codes.nbytes))
        finally:
            for pointer in pointers:
                checked(driver.cuMemFree(pointer))
        return codes, times

    def _burst(self, enqueue: Callable[[], None], launches: int) -> float:
        """Milliseconds from before the first of so many launches to after the last."""
        driver = self._driver
        start, end = checked(driver.cuEventCreate(0)), checked(driver.cuEventCreate(0))
        checked(driver.cuEventRecord(start, 0))
        for _ in range(launches):
            enqueue()
        checked(driver.cuEventRecord(end, 0))
        checked(driver.cuEventSynchronize(end))
        elapsed = checked(driver.cuEventElapsedTime(start, end))
        checked(driver.cuEventDestroy(start))
        checked(driver.cuEventDestroy(end))
        return elapsed


def kernel_section(options: GpuOptions) -> Iterator[Row]:
    """The kernel on every case of the oracle, then its time at the real sizes. No dry run: the tests run its source on the CPU."""
    gpu = GpuKernel()
    if gpu.note:
        yield Row("kernel loaded as", "cubin", facts={"note": gpu.note})
    wrong_codes = {}
    for name, latent, codebook in cases.cases_of_both_types():
        codes, _ = gpu.run(latent, codebook)
        wrong_codes[name] = len(disagreements(latent, codebook, codes))
    failed = {name: wrong for name, wrong in wrong_codes.items() if wrong}
    yield Row(f"kernel against the oracle, {len(wrong_codes)} cases", len(failed), "failed", not failed, {"failed": failed})
    for name, shape in REAL_SIZES.items():
        for dtype in KERNEL_NAMES:
            latent, codebook = real_case(shape, dtype)
            codes, times = gpu.run(latent, codebook, repeats=options.repeats)
            wanted = goal(GOAL, gpu.name) if name.startswith("f16") else {}
            yield Row.timed(f"kernel {name} {dtype}", times, **wanted)
        wrong = len(disagreements(latent[:, :, :_ROWS_CHECKED], codebook, codes[:, :, :_ROWS_CHECKED]))  # float16 latents
        yield Row(f"kernel {name}, first rows against the oracle", wrong, "wrong codes", wrong == 0)


def torch_section(options: GpuOptions) -> Iterator[Row]:
    """The time of torch for the same codes: cdist/argmin and matmul/argmax, in float32."""
    import_torch(options)
    sizes = {"dry run 2x64x4": (1, 2, 64, 4, 6, 8)} if options.dry_run else REAL_SIZES
    for name, shape in sizes.items():
        latent, codebook = real_case(shape, "float32")
        wanted = grouped_argmin(latent[:, :, :_ROWS_CHECKED], codebook)
        for baseline, action in _torch_baselines(latent, codebook, options.device).items():
            codes = action().cpu().numpy().reshape(shape[1], shape[0], *shape[4:]).swapaxes(0, 1)
            differ = int((codes[:, :, :_ROWS_CHECKED] != wanted).sum())
            yield Row.timed(f"{baseline} {name}", device_times(action, options), differing_codes=differ)


def _torch_baselines(latent: np.ndarray, codebook: np.ndarray, device: str) -> dict[str, Callable[[], Any]]:
    """Name -> codes [G, positions]."""
    import torch

    groups, _, dim = codebook.shape
    rows = torch.from_numpy(codebook).to(device)
    split = torch.from_numpy(latent).to(device).unflatten(1, (groups, dim)).permute(1, 0, 3, 4, 2).reshape(groups, -1, dim)
    return {
        "torch cdist/argmin": lambda: torch.cdist(split, rows).argmin(-1),
        "torch matmul/argmax": lambda: (split @ rows.mT).argmax(-1),
    }
