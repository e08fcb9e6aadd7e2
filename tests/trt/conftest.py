"""Lets the tests of this folder import its helpers, and stands a fake TensorRT and GPU in for the real ones."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # last: other folders have a conftest too


def use_fake(patch: pytest.MonkeyPatch, recorder: Any, gpu: Any) -> None:
    """Make ``recorder`` the TensorRT and ``gpu`` the GPU of this process."""
    import fake_gpu

    from mgvq_export.export import engines, trt_builder
    from mgvq_export.ops import trt_machine
    from mgvq_export.runtime import cuda, trt_engines

    fake_gpu.install(recorder, gpu)
    recorder.make_plan = fake_gpu.make_plan
    for module in (trt_builder, trt_machine, trt_engines):
        patch.setattr(module, "import_tensorrt", lambda: recorder.module)
    for module in (trt_builder, engines):
        patch.setattr(module, "register_plugin", lambda *, architecture: recorder("register", architecture))
    patch.setattr(trt_machine, "find_gpu", lambda: fake_gpu.MACHINE)
    patch.setattr(cuda, "import_cudart", lambda: gpu.cudart)


@pytest.fixture(scope="session")
def engine_bundle(tiny_bundle, tmp_path_factory):
    """(name, options...) -> a bundle of the tiny network with fake engines, made once. Tests that change files copy it."""
    import fake_gpu
    import fake_tensorrt

    from mgvq_export.bundle import Bundle
    from mgvq_export.export.engine_cache import BuildCache
    from mgvq_export.export.engines import build_engines

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
    import fake_gpu
    import fake_tensorrt

    def put(version: str = "11.4.0.106", **keywords: Any) -> SimpleNamespace:
        recorder, gpu = fake_tensorrt.Recorder(version=version), fake_gpu.Gpu(**keywords)
        use_fake(monkeypatch, recorder, gpu)
        return SimpleNamespace(gpu=gpu, recorder=recorder, trt=recorder.module)

    return put
