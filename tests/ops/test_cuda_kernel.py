"""The GPU kernel without a GPU: its source run on the CPU against the oracle, and what NVRTC and ptxas make of it."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.benchmarks.gpu.kernel import REAL_SIZES, disagreements
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.ops import cases, cuda_kernel

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


def build_host_kernel(folder, *, architecture=90):
    """run(latent, codebook, grid_x=None) -> codes, from the kernel's own source compiled by g++ as for a GPU of ``architecture``."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    library = folder / "kernel.so"
    source = Path(__file__).with_name("host_kernel.cpp")
    command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    command += [f"-DHAS_MMA_K16={int(architecture >= 80)}", f'-DKERNEL_SOURCE="{cuda_kernel.KERNEL_SOURCE}"']
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    functions = ctypes.CDLL(str(library))

    def run(latent, codebook, grid_x=None):
        latent, codebook = np.ascontiguousarray(latent), np.ascontiguousarray(codebook)
        launch = cuda_kernel.kernel_launch(latent.shape, codebook.shape)
        shape = (latent.shape[0], codebook.shape[0], *latent.shape[2:])
        guarded = np.full(int(np.prod(shape)) + 64, -7, np.int32)  # 32 values on either side must stay
        codes = guarded[32:-32]
        function = functions.run_half if latent.dtype == np.float16 else functions.run_float
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (latent, codebook, codes)]
        grid = (grid_x or launch.grid[0], launch.grid[1], launch.block[0])
        status = function(*grid, pointers[0], pointers[1], *launch.scalars, pointers[2])
        assert status == 0, "the kernel's threads disagree, see standard error"
        assert (guarded[:32] == -7).all() and (guarded[-32:] == -7).all(), "wrote outside the codes"
        return codes.reshape(shape)

    return run


@pytest.fixture(scope="module")
def host_kernel(tmp_path_factory):
    return build_host_kernel(tmp_path_factory.mktemp("host"))


@pytest.mark.parametrize(("latent", "codebook"), [pytest.param(z, c, id=name) for name, z, c in cases.cases_of_both_types()])
def test_source_run_on_the_host_equals_the_oracle(host_kernel, latent, codebook):
    codes = host_kernel(latent, codebook)
    assert codes.min() >= 0 and codes.max() < codebook.shape[1]
    assert disagreements(latent, codebook, codes) == []


def test_the_comparison_notices_a_wrong_code(host_kernel):
    latent, codebook = cases.random_case(np.random.default_rng(3), 2, 40, 4, height=3, width=3)
    codes = host_kernel(latent, codebook)
    codes[0, 1, 2, 2] = (codes[0, 1, 2, 2] + 1) % 40
    assert len(disagreements(latent, codebook, codes)) == 1


@pytest.mark.parametrize("dim", range(1, 33))
def test_every_group_dim(host_kernel, dim):
    latent, codebook = cases.random_case(np.random.default_rng(dim), 2, 37, dim, height=4, width=9)
    latent = latent.astype(np.float16)
    assert disagreements(latent, codebook, host_kernel(latent, codebook)) == []


@pytest.mark.parametrize("grid_x", [1, 2, 7])
def test_codes_do_not_depend_on_the_grid(host_kernel, grid_x):
    latent, codebook = cases.random_case(np.random.default_rng(5), 2, 90, 4, batch=2, height=13, width=17)
    np.testing.assert_array_equal(host_kernel(latent, codebook, grid_x), host_kernel(latent, codebook))


def test_turing_computes_the_same_codes(host_kernel, tmp_path):
    """GPUs before Ampere take two smaller matrix products for one."""
    turing = build_host_kernel(tmp_path, architecture=75)
    for dim in (3, 4, 8, 13, 32):
        latent, codebook = cases.random_case(np.random.default_rng(dim), 2, 150, dim, height=9, width=17)
        for dtype in (np.float32, np.float16):
            codes = turing(latent.astype(dtype), codebook)
            assert disagreements(latent.astype(dtype), codebook, codes) == []
            assert (codes == host_kernel(latent.astype(dtype), codebook)).mean() > 0.99


def test_overflowing_scores_still_give_a_valid_code(host_kernel):
    latent = np.full((1, 4, 2, 2), 3e38, np.float32) * np.array([1, -1, 1, -1], np.float32)[:, None, None]
    codebook = np.full((1, 20, 4), 0.5, np.float32)
    codes = host_kernel(latent, codebook)
    assert codes.min() >= 0 and codes.max() < 20


def test_launch_of_the_real_sizes():
    batch, groups, rows, dim, height, width = REAL_SIZES["f16 8x2048x4"]
    launch = cuda_kernel.kernel_launch((batch, groups * dim, height, width), (groups, rows, dim))
    assert launch.grid == (113, 8, 1) and launch.block == (256, 1, 1)
    assert launch.scalars == (14400, 14400, 2048, 4)


@pytest.mark.parametrize(
    ("latent", "codebook", "words"),
    [
        ((1, 30, 2, 2), (4, 10, 8), "4 x 8 = 32"),
        ((1, 33, 2, 2), (1, 10, 33), "d 1 to 32"),
        ((1, 32, 2), (4, 10, 8), "[B, G*d, h, w]"),
        ((0, 32, 2, 2), (4, 10, 8), "0 positions"),
    ],
)
def test_shapes_the_kernel_cannot_take(latent, codebook, words):
    with pytest.raises(InputError, match=re.escape(words)):
        cuda_kernel.kernel_launch(latent, codebook)


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return cuda_kernel.nvrtc_version()
    except BackendError as error:
        pytest.skip(str(error))


def test_the_architecture_follows_the_gpu():
    assert [cuda_kernel.kernel_architecture(gpu) for gpu in ARCHITECTURES] == [75, 80, 80, 80, 80, 80, 80]


@pytest.mark.parametrize("architecture", [75, 80])
def test_ptx_is_generic_and_ends_without_nul(nvrtc, architecture):
    ptx = cuda_kernel.compile_ptx(architecture)
    assert f"\n.target sm_{architecture}\n".encode() in ptx and not ptx.endswith(b"\0")
    assert (b"mma.sync.aligned.m16n8k16" in ptx) == (architecture >= 80)
    for name in cuda_kernel.KERNEL_NAMES.values():
        entry = re.search(rb"\.entry " + name.encode() + rb"\((.*?)\)", ptx, re.DOTALL)
        assert entry is not None
        kinds = re.findall(rb"\.param \.(u64|u32)", entry[1])  # latent, codebook, four scalars, codes: no hidden argument
        assert kinds == [b"u64", b"u64", b"u32", b"u32", b"u32", b"u32", b"u64"]


def assert_resources(log: str):
    """No spills, at most 48 KB of shared memory and 80 registers, for both kernels."""
    assert len(re.findall(r"\b0 bytes spill stores, 0 bytes spill loads", log)) == 2, log
    registers = [int(value) for value in re.findall(r"Used (\d+) registers", log)]
    shared = [int(value) for value in re.findall(r"(\d+) bytes smem", log)]
    assert len(registers) == len(shared) == 2
    assert max(registers) <= 80 and max(shared) <= 48 * 1024, log


def test_machine_code_straight_from_nvrtc(nvrtc):
    cubin, log = cuda_kernel.compile_cubin(90)
    assert cubin.startswith(b"\x7fELF")
    assert_resources(log)


def find_ptxas(ptx: bytes) -> tuple[str | None, str]:
    """(path or None, reason): a ptxas that reads this PTX, from MGVQ_PTXAS, PATH, the CUDA toolkit or a package."""
    candidates = [os.environ.get("MGVQ_PTXAS"), shutil.which("ptxas")]
    candidates += [str(p) for p in Path("/usr/local").glob("cuda*/bin/ptxas")]
    candidates += [str(p) for folder in sys.path if folder for p in Path(folder).glob("nvidia/**/bin/ptxas")]
    reason = "no ptxas found: pip install nvidia-cuda-nvcc"
    version = re.search(rb"^\.version (\d+)\.(\d+)", ptx, re.MULTILINE)  # of the PTX language: older ptxas refuse it
    assert version is not None
    wanted = (int(version[1]), int(version[2]))
    for path in filter(None, candidates):
        text = subprocess.run([path, "--version"], check=False, capture_output=True, text=True).stdout
        match = re.search(r"release (\d+)\.(\d+)", text)
        # CUDA 12.0 reads PTX 8.0, 13.0 reads 9.0; minor versions go along.
        if match and (int(match[1]) - 4, int(match[2])) >= wanted:
            return path, ""
        reason = (
            f"{path} is CUDA {match[1]}.{match[2] if match else '?'}, too old for PTX {wanted}"
            if match
            else f"{path} does not run"
        )
    return None, reason


@pytest.mark.parametrize(
    ("compiled_for", "architecture"),
    [(lowest, gpu) for lowest in (75, 80) for gpu in ARCHITECTURES if gpu >= lowest],
)
def test_ptxas_accepts_the_generic_ptx(nvrtc, compiled_for, architecture, tmp_path):
    ptx = cuda_kernel.compile_ptx(compiled_for)
    ptxas, reason = find_ptxas(ptx)
    if ptxas is None:
        pytest.skip(reason)
    (tmp_path / "kernel.ptx").write_bytes(ptx)
    command = [ptxas, f"-arch=sm_{architecture}", "-v", str(tmp_path / "kernel.ptx"), "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_resources(done.stdout + done.stderr)


def test_unknown_architecture_is_named(nvrtc):
    with pytest.raises(BackendError, match="cannot compile for architecture 33"):
        cuda_kernel.compile_ptx(33)


def test_an_old_driver_is_explained():
    assert cuda_kernel.driver_problem((13, 0), None) is None
    assert cuda_kernel.driver_problem((13, 0), (13, 0)) is None
    assert cuda_kernel.driver_problem((12, 9), (13, 0)) is None
    assert "nvidia-cuda-nvrtc==13.0.*" in (cuda_kernel.driver_problem((13, 5), (13, 0)) or "")
    assert "'nvidia-cuda-nvrtc-cu12==12.8.*' 'cuda-bindings==12.8.*'" in (cuda_kernel.driver_problem((13, 0), (12, 8)) or "")


def test_source_hash_follows_the_source(monkeypatch, tmp_path):
    before = cuda_kernel.kernel_source_sha256()
    changed = tmp_path / "changed.cu"
    changed.write_bytes(cuda_kernel.KERNEL_SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(cuda_kernel, "KERNEL_SOURCE", changed)
    assert before != cuda_kernel.kernel_source_sha256() and len(before) == 64


def test_driver_calls_of_the_gpu_section_exist():
    driver = pytest.importorskip("cuda.bindings.driver")
    source = (Path(cuda_kernel.__file__).parents[1] / "benchmarks" / "gpu" / "kernel.py").read_text()
    names = set(re.findall(r"driver\.(cu\w+)", source))
    assert "cuLaunchKernel" in names
    assert [name for name in sorted(names) if not hasattr(driver, name)] == []
