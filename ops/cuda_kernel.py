"""The GPU kernel of GroupedArgmin: compiled to PTX by NVRTC, and the numbers needed to launch it.

The source is ``grouped_argmin.cu`` beside this file; its header says what it computes and what bounds its speed. NVRTC and its
Python bindings (``cuda-bindings``, ``nvidia-cuda-nvrtc``) are needed to compile; neither a GPU nor a driver is.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.types import Untyped

KERNEL_SOURCE = Path(__file__).with_name("grouped_argmin.cu")
KERNEL_NAMES = {"float32": "grouped_argmin_float", "float16": "grouped_argmin_half"}  # by the latent's dtype
THREADS_PER_BLOCK = 256
POSITIONS_PER_BLOCK = 128  # for d <= 8; blocks of wider groups loop, so the grid is right for every d
MAX_GROUP_DIM = 32
MAX_GROUPS = 65535  # grid.y
COMPILE_OPTIONS = ("--std=c++17",)


def kernel_architecture(compute_capability: int) -> int:
    """What to compile for where engines built on a GPU run (capabilities times ten): that GPU, or any from Ampere on.

    Ampere's instructions are all that the kernel can use, and PTX for them runs on every later GPU; a Turing GPU gets its own.
    """
    return min(compute_capability, 80)


@dataclass(frozen=True)
class KernelLaunch:
    """Grid and int32 scalars of one launch. Kernel arguments: latent, codebook, ``*scalars``, codes.

    Attributes:
        grid: blocks in x, y, z.
        block: threads in x, y, z.
        scalars: positions B*h*w, area h*w, rows K, dim d.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    scalars: tuple[int, int, int, int]


def kernel_launch(latent_shape: tuple[int, ...], codebook_shape: tuple[int, ...]) -> KernelLaunch:
    """The launch for a latent [B, G*d, h, w] and a codebook [G, K, d].

    Raises:
        InputError: the shapes do not fit each other, or exceed what the kernel takes (d 1 to 32, B*h*w below 2**31).
    """
    if len(latent_shape) != 4 or len(codebook_shape) != 3:
        raise InputError(f"latent must be [B, G*d, h, w] and codebook [G, K, d], got {latent_shape} and {codebook_shape}")
    batch, channels, height, width = latent_shape
    groups, rows, dim = codebook_shape
    if channels != groups * dim:
        raise InputError(
            f"latent has {channels} channels, but the codebook {codebook_shape} wants {groups} x {dim} = {groups * dim}"
        )
    if not 1 <= dim <= MAX_GROUP_DIM or not 1 <= groups <= MAX_GROUPS or rows < 1:
        raise InputError(f"codebook {codebook_shape}: the GPU kernel takes G 1 to {MAX_GROUPS}, K from 1, d 1 to {MAX_GROUP_DIM}")
    positions = batch * height * width
    if not 1 <= positions < 2**31:
        raise InputError(f"latent {latent_shape} has {positions} positions; the GPU kernel takes 1 to {2**31 - 1}")
    grid_x = -(-positions // POSITIONS_PER_BLOCK)
    return KernelLaunch((grid_x, groups, 1), (THREADS_PER_BLOCK, 1, 1), (positions, height * width, rows, dim))


def kernel_source_sha256() -> str:
    """Hex sha256 of the kernel's source and of how it is compiled; an engine holding another kernel must be rebuilt."""
    digest = hashlib.sha256(KERNEL_SOURCE.read_bytes())
    digest.update("\0".join(COMPILE_OPTIONS).encode())
    return digest.hexdigest()


def _nvrtc() -> ModuleType:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise BackendError(
            f"compiling the GPU kernel needs cuda-bindings ({error}): pip install 'mgvq-export[tensorrt]'"
        ) from None
    return cast(ModuleType, nvrtc)


def _checked(result: Untyped, what: str) -> Untyped:
    """The values of a bindings call ``(error, *values)``; raises BackendError naming the call."""
    error, *values = result
    if int(error) != 0:
        raise BackendError(f"{what} failed: {error.name}")
    return values[0] if len(values) == 1 else tuple(values)


def nvrtc_version() -> tuple[int, int]:
    """(major, minor) of the NVRTC in use. Raises BackendError when it is not installed."""
    nvrtc = _nvrtc()
    try:
        major, minor = _checked(nvrtc.nvrtcVersion(), "nvrtcVersion")
        return int(major), int(minor)
    except RuntimeError as error:  # the bindings find the library at the first call
        raise BackendError(
            f"compiling the GPU kernel needs NVRTC ({str(error).splitlines()[0]}): pip install nvidia-cuda-nvrtc"
        ) from None


def _compile(target: str, *, extra_options: tuple[str, ...] = ()) -> tuple[bytes, bytes, str]:
    """(PTX, cubin or b"", log) for ``compute_XX`` or ``sm_XX``."""
    nvrtc_version()  # a clear error when NVRTC is missing
    nvrtc = _nvrtc()
    program = _checked(
        nvrtc.nvrtcCreateProgram(KERNEL_SOURCE.read_bytes(), KERNEL_SOURCE.name.encode(), 0, [], []), "nvrtcCreateProgram"
    )
    try:
        options = [o.encode() for o in (f"--gpu-architecture={target}", *COMPILE_OPTIONS, *extra_options)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode(errors="replace")
        if int(status) != 0:
            raise BackendError(f"NVRTC could not compile {KERNEL_SOURCE.name} for {target}: {status.name}\n{log}")
        # The PTX buffer ends in NUL, which TensorRT must not see; a cubin is binary and kept whole.
        ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0")
        cubin = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program) if target.startswith("sm_") else b""
        return ptx, cubin, log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(size_call: Callable[..., Untyped], read_call: Callable[..., Untyped], program: object) -> bytes:
    buffer = bytes(_checked(size_call(program), size_call.__name__))
    _checked(read_call(program, buffer), read_call.__name__)
    return buffer


@functools.cache
def compile_ptx(architecture: int) -> bytes:
    """Generic PTX with both kernels (``KERNEL_NAMES``), without a trailing NUL.

    Args:
        architecture: lowest compute capability it shall run on, times ten (75, 80, 86, 89, 90, 100, 120); every later GPU runs it too.

    Raises:
        BackendError: NVRTC or its bindings are missing, the architecture is unknown to NVRTC, or the installed driver is too old to
            read PTX of this NVRTC (the message names the version to install).
    """
    problem = driver_problem(nvrtc_version(), driver_version())
    if problem:
        raise BackendError(problem)
    supported = _checked(_nvrtc().nvrtcGetSupportedArchs(), "nvrtcGetSupportedArchs")
    archs = supported[-1] if isinstance(supported, tuple) else supported
    if architecture not in list(archs):
        raise BackendError(f"NVRTC {nvrtc_version()} cannot compile for architecture {architecture}; it knows {sorted(archs)}")
    return _compile(f"compute_{architecture}")[0]


def compile_cubin(architecture: int) -> tuple[bytes, str]:
    """(machine code, resource log) for one GPU architecture: what a driver would make of the kernel. Errors as `compile_ptx`."""
    _, cubin, log = _compile(f"sm_{architecture}", extra_options=("--ptxas-options=-v",))
    return cubin, log


def driver_version() -> tuple[int, int] | None:
    """(major, minor) of CUDA that the installed driver supports, or None without a driver."""
    try:
        from cuda.bindings import driver

        error, version = driver.cuDriverGetVersion()
    except (ImportError, RuntimeError):  # the bindings raise RuntimeError when there is no libcuda
        return None
    if int(error) != 0 or version == 0:
        return None
    return version // 1000, version % 1000 // 10


def driver_problem(nvrtc: tuple[int, int], driver: tuple[int, int] | None) -> str | None:
    """One line when a driver of this version cannot load PTX of this NVRTC, else None.

    Minor-version compatibility of CUDA does not cover PTX: a driver reads PTX only up to its own CUDA version
    (CUDA compatibility guide, "PTX"; error CUDA_ERROR_UNSUPPORTED_PTX_VERSION).
    """
    if driver is None or nvrtc <= driver:
        return None
    (n_major, n_minor), (d_major, d_minor) = nvrtc, driver
    version = f"=={d_major}.{d_minor}.*'"
    packages = (
        f"'nvidia-cuda-nvrtc{version}" if d_major >= 13 else f"'nvidia-cuda-nvrtc-cu{d_major}{version} 'cuda-bindings{version}"
    )
    return (
        f"NVRTC {n_major}.{n_minor} writes PTX that this machine's driver (CUDA {d_major}.{d_minor}) cannot load: "
        f"pip install {packages}, or update the driver"
    )
