"""Stands a fake TensorRT and GPU in for the real ones."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


def use_fake(patch: pytest.MonkeyPatch, recorder: Any, gpu: Any) -> None:
    """Make ``recorder`` the TensorRT and ``gpu`` the GPU of this process."""
    from mgvq_export.export.engines import build as engines
    from mgvq_export.export.engines import builder as trt_builder
    from mgvq_export.ops import trt_machine
    from mgvq_export.runtime.tensorrt import cuda
    from mgvq_export.runtime.tensorrt import engines as trt_engines
    from mgvq_export.tests.support import fake_gpu

    fake_gpu.install(recorder, gpu)
    recorder.make_plan = fake_gpu.make_plan
    for module in (trt_builder, trt_machine, trt_engines):
        patch.setattr(module, "import_tensorrt", lambda target="tensorrt": recorder.module)
    for module in (trt_builder, engines):
        patch.setattr(module, "register_plugin", lambda *, architecture: recorder("register", architecture))
    patch.setattr(trt_machine, "find_gpu", lambda: fake_gpu.MACHINE)
    patch.setattr(cuda, "import_cudart", lambda: gpu.cudart)


@pytest.fixture(scope="session")
def engine_bundle(tiny_bundle, tmp_path_factory):
    """(name, options...) -> a bundle of the tiny network with fake engines, made once. Tests that change files copy it."""
    from mgvq_export.core.bundle import Bundle
    from mgvq_export.export.engines.build import build_engines
    from mgvq_export.export.engines.cache import BuildCache
    from mgvq_export.tests.support import fake_gpu, fake_tensorrt

    made: dict[tuple[Any, ...], Bundle] = {}

    def make(*options) -> Bundle:
        if options not in made:
            folder = tmp_path_factory.mktemp("engines")
            shutil.copytree(tiny_bundle.path, folder / "bundle")
            with pytest.MonkeyPatch.context() as patch:
                use_fake(patch, fake_tensorrt.Recorder(), fake_gpu.Gpu())
                for each in options:
                    build_engines(Bundle.open(folder / "bundle"), each, cache=BuildCache(folder / "cache"))
            made[options] = Bundle.open(folder / "bundle")
        return made[options]

    return make


@pytest.fixture
def fake(monkeypatch) -> Callable[..., Any]:
    """Puts a fresh fake GPU in place (arguments as ``fake_gpu.Gpu``); gives it and TensorRT's recorder."""
    from mgvq_export.tests.support import fake_gpu, fake_tensorrt

    def put(version: str = "11.4.0.106", **keywords: Any) -> SimpleNamespace:
        recorder, gpu = fake_tensorrt.Recorder(version=version), fake_gpu.Gpu(**keywords)
        use_fake(monkeypatch, recorder, gpu)
        return SimpleNamespace(gpu=gpu, recorder=recorder, trt=recorder.module)

    return put
