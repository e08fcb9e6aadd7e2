"""The sections of the acceptance on a real GPU, on a released network and small images. Times are for ``benchmarks/gpu_acceptance.py``."""

import pytest

from mgvq_export.benchmarks.gpu.bundle import onnxruntime_section
from mgvq_export.benchmarks.gpu.engines import tensorrt_section
from mgvq_export.benchmarks.gpu.kernel import torch_section
from mgvq_export.benchmarks.gpu.network import network_section, peers_section
from mgvq_export.benchmarks.gpu.report import GpuOptions

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SECTIONS = (torch_section, network_section, peers_section, onnxruntime_section, tensorrt_section)
OPTIONAL = (onnxruntime_section, tensorrt_section)  # need more than a GPU and PyTorch


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> GpuOptions:
    sizes = {"small": (256, 256), "large": (512, 768), "tile": (384, 384)}
    return GpuOptions(repeats=3, ceiling=2048, folder=tmp_path_factory.mktemp("gpu"), **sizes)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_section(section, options, where_it_can_run):
    with where_it_can_run(required=section not in OPTIONAL):
        rows = list(section(options))
    assert rows
    assert [str(row) for row in rows if row.ok is False] == []
