"""The backend tensorrt-rtx on a GPU that is none: the session of TensorRT, but for contexts, which are compiled once and kept."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mgvq_export import Tokenizer
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.ops import trt_machine
from mgvq_export.runtime.tensorrt.session import TensorRtOptions
from mgvq_export.tests.support import fake_gpu

VERSION = "1.7.1.116"
SIZE = (64, 96)


@pytest.fixture
def bundle(engine_bundle, tmp_path: Path) -> Bundle:
    """Engines for TensorRT for RTX: the stand-in's, whose records say so."""
    made = engine_bundle(BuildOptions(precision="fp32", shapes=(SIZE,)))
    shutil.copytree(made.path, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    for record in manifest["engines"]:
        record |= {"target": "rtx", "tensorrt": VERSION, "gpu": "", "compute_capability": "", "kernel": None}
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def here(fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The stand-in as TensorRT for RTX on a GPU that it supports."""
    found = fake(VERSION)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trt_machine, "find_gpu", lambda: ("NVIDIA GeForce RTX 4090", "8.9"))
    return found


def caches(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "mgvq-export" / "tensorrt-rtx").glob("*"))


def round_trip(bundle: Bundle, tiny_bundle: Bundle, **keywords) -> None:
    image = np.random.default_rng(5).integers(0, 256, (SIZE[0] - 7, SIZE[1] - 3, 3), dtype=np.uint8)
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32", tiling="off") as wanted:
        tokens = wanted.encode(image)
        pixels = wanted.decode(tokens)
    with Tokenizer.open(bundle, backend="tensorrt-rtx", precision="fp32", **keywords) as tokenizer:
        assert tokenizer.backend == "tensorrt-rtx"
        for _ in range(3):
            assert np.array_equal(tokenizer.encode(image).codes, tokens.codes)
            assert np.array_equal(tokenizer.decode(tokens), pixels)


def test_it_equals_onnx_runtime_and_compiles_once(bundle, tiny_bundle, here, tmp_path) -> None:
    round_trip(bundle, tiny_bundle)
    assert here.gpu.compiled == [True] * 4 and here.gpu.leaks() == {}
    assert "cudaStreamBeginCapture" not in here.gpu.calls  # the library records graphs itself
    kept = caches(tmp_path)
    assert len(kept) == 4 and all(path.read_bytes() == b"kernels" for path in kept)
    round_trip(bundle, tiny_bundle)
    assert here.gpu.compiled[4:] == [False] * 4 and caches(tmp_path) == kept


def test_a_cache_that_does_not_fit_is_made_anew(bundle, tiny_bundle, here, tmp_path) -> None:
    round_trip(bundle, tiny_bundle)
    for path in caches(tmp_path):
        path.write_bytes(b"of another driver")
    round_trip(bundle, tiny_bundle)
    assert here.gpu.compiled == [True] * 8
    assert all(path.read_bytes() == b"kernels" for path in caches(tmp_path))


def test_a_cache_folder_that_cannot_be_written_is_done_without(bundle, tiny_bundle, here, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    round_trip(bundle, tiny_bundle)


@pytest.mark.parametrize("graphs", [True, False])
def test_graphs_are_the_librarys(bundle, tiny_bundle, here, graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    compile_now = fake_gpu.RuntimeConfig.compile
    monkeypatch.setattr(
        fake_gpu.RuntimeConfig, "compile", lambda self: (seen.append(self.cuda_graph_strategy), compile_now(self))
    )
    round_trip(bundle, tiny_bundle, tensorrt=TensorRtOptions(cuda_graphs=graphs))
    strategies = fake_gpu.CudaGraphStrategy
    assert set(seen) == {strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED}


def test_auto_takes_it(bundle, here) -> None:
    with Tokenizer.open(bundle, precision="fp32") as tokenizer:
        assert tokenizer.backend == "tensorrt-rtx"


def test_a_context_that_is_not_made_is_one_line(bundle, here) -> None:
    failing = here.gpu.fails
    here.gpu.fails = lambda name: failing(name) or name == "create_runtime_config"
    with (
        pytest.raises(BackendError, match="the engine fp32/encoder does not make a context"),
        Tokenizer.open(bundle, backend="tensorrt-rtx") as tokenizer,
    ):
        tokenizer.encode(np.zeros((*SIZE, 3), np.uint8))


@pytest.mark.parametrize(
    ("gpu", "version", "message"),
    [
        (
            ("NVIDIA H100", "9.0"),
            VERSION,
            "does not support this GPU, NVIDIA H100 has 9.0: use TensorRT, building with --target tensorrt",
        ),
        (("NVIDIA GeForce RTX 4090", "8.9"), "1.8.0.5", "it was built with TensorRT for RTX 1.7.1.116, here is 1.8.0.5"),
    ],
)
def test_where_it_does_not_run(bundle, fake, monkeypatch, gpu, version, message) -> None:
    fake(version)
    monkeypatch.setattr(trt_machine, "find_gpu", lambda: gpu)
    with pytest.raises(BackendError) as error:
        Tokenizer.open(bundle, backend="tensorrt-rtx")
    text = str(error.value)
    assert message in text and "\n" not in text and f"mgvq-export build {bundle.path} --target rtx" in text


def test_rtx_engines_are_not_tensorrts(bundle, fake) -> None:
    fake()
    with pytest.raises(BackendError, match=r"has no fp.. TensorRT engines \(it has TensorRT for RTX ones\); build them here"):
        Tokenizer.open(bundle, backend="tensorrt")


def test_tensorrts_engines_are_not_rtx_ones(engine_bundle, here) -> None:
    other = engine_bundle(BuildOptions(precision="fp32", shapes=(SIZE,)))
    with pytest.raises(BackendError, match=r"has no fp.. TensorRT for RTX engines \(it has TensorRT ones\); .* --target rtx"):
        Tokenizer.open(other, backend="tensorrt-rtx")


def test_an_image_of_another_size_names_the_command(bundle, here) -> None:
    with Tokenizer.open(bundle, backend="tensorrt-rtx") as tokenizer, pytest.raises(BackendError) as error:
        tokenizer.encode(np.zeros((200, 300, 3), np.uint8))
    assert "no TensorRT for RTX engines here encode" in str(error.value) and "--target rtx" in str(error.value)
