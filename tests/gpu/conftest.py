"""What the tests of this folder need: a GPU, or the reason why they are skipped."""

import os

import pytest

from mgvq_export.bench.gpu_kernel import gpu_problem


@pytest.fixture(scope="session")
def real_gpu() -> None:
    """Skips the calling test, saying why, without an NVIDIA GPU; fails it under MGVQ_REQUIRE_GPU=1."""
    problem = gpu_problem()
    if problem and os.environ.get("MGVQ_REQUIRE_GPU") == "1":
        pytest.fail(f"MGVQ_REQUIRE_GPU=1, but {problem}")
    if problem:
        pytest.skip(problem)
