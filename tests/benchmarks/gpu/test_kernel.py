"""The kernel on a real GPU, every oracle case."""

import pytest

from mgvq_export.benchmarks.gpu.kernel import GpuKernel, disagreements
from mgvq_export.ops import cases

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu(where_it_can_run) -> GpuKernel:
    with where_it_can_run(required=True):
        return GpuKernel()


@pytest.mark.parametrize(("latent", "codebook"), [pytest.param(z, c, id=name) for name, z, c in cases.cases_of_both_types()])
def test_gpu_codes_equal_the_oracles(gpu, latent, codebook):
    codes, _ = gpu.run(latent, codebook)
    assert disagreements(latent, codebook, codes) == []
