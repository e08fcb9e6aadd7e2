"""What the tests of this folder share: skipping what cannot run here, a tiny network's bundle, and a fake TensorRT and GPU."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mgvq_export.benchmarks.gpu.report import CannotRun, GpuOptions
from mgvq_export.tests.support.engine_fixtures import use_fake


@pytest.fixture(scope="session")
def where_it_can_run() -> Callable[..., Any]:
    """A context manager: its body skips the calling test, saying why, when it finds at its start that it cannot run here.

    What is ``required`` fails then under MGVQ_REQUIRE_GPU=1. Every other error is the body's own.
    """

    @contextlib.contextmanager
    def guard(*, required: bool) -> Iterator[None]:
        try:
            yield
        except CannotRun as error:
            if required and os.environ.get("MGVQ_REQUIRE_GPU") == "1":
                pytest.fail(f"MGVQ_REQUIRE_GPU=1, but {error}")
            pytest.skip(str(error))

    return guard


@pytest.fixture
def one_thread():
    """PyTorch's threads wait for one another at every one of thousands of small steps, which takes minutes on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def with_bundle(tiny_bundle, tmp_path) -> GpuOptions:
    """Options for the tiny network, whose bundle is already in their folder."""
    folder = tmp_path / "with-bundle"
    shutil.copytree(tiny_bundle.path, folder / "tiny")
    sizes = {"small": (64, 96), "large": (96, 112), "tile": (72, 72)}
    return GpuOptions("cpu", tiny_bundle.spec, repeats=2, folder=folder, **sizes)


@pytest.fixture
def fake(monkeypatch, tmp_path) -> SimpleNamespace:
    """TensorRT's ``recorder`` and the ``gpu`` that stand in for the real ones."""
    from mgvq_export.tests.support import fake_gpu, fake_tensorrt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recorder, gpu = fake_tensorrt.Recorder(), fake_gpu.Gpu()
    use_fake(monkeypatch, recorder, gpu)
    return SimpleNamespace(recorder=recorder, gpu=gpu)
