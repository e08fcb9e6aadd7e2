"""The programs of docs/embedding.md: the Python ones run (TensorRT's on a GPU that is none), the C++ one compiles, the page has them."""

import ctypes
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mgvq_export
from mgvq_export import Tokenizer
from mgvq_export.benchmarks.gpu import bundle, engines
from mgvq_export.benchmarks.gpu.report import GpuOptions
from mgvq_export.core.spec import Part
from mgvq_export.export.engines.graphs import engine_graph
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.tests.support import api_scan, fake_gpu

ROOT = Path(mgvq_export.__file__).parent
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
SIZE = (64, 96)
BOTH_SIZES = BuildOptions(precision="fp32", shapes=((32, 48), SIZE))


@pytest.fixture
def image():
    return np.random.default_rng(3).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def wanted(tiny_bundle, image):
    """Codes and pixels by our own runtime."""
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32", tiling="off") as tokenizer:
        tokens = tokenizer.encode(image)
        return tokens.codes, tokenizer.decode(tokens)


def run_program(name, folder, image, tmp_path):
    np.save(tmp_path / "image.npy", image)
    arguments = [str(folder), str(tmp_path / "image.npy"), str(tmp_path / "again.npz")]
    runpy.run_path(str(EXAMPLES / name))["main"](*arguments)
    with np.load(tmp_path / "again.npz") as found:
        return found["codes"], found["image"]


def test_onnxruntime_program(tiny_bundle, image, wanted, tmp_path):
    np.save(tmp_path / "image.npy", image)
    command = [
        sys.executable,
        EXAMPLES / "embed_ort.py",
        tiny_bundle.path / "fp32",
        tmp_path / "image.npy",
        tmp_path / "again.npz",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=tmp_path, env=environment)
    assert (done.stdout, done.stderr) == (b"", b"")
    with np.load(tmp_path / "again.npz") as found:
        assert np.array_equal(found["codes"], wanted[0])
        assert np.abs(found["image"].astype(int) - wanted[1]).max() <= 1


def test_onnxruntime_program_in_float16(tiny_bundle, image, wanted, tmp_path):
    codes, decoded = run_program("embed_ort.py", tiny_bundle.path / "fp16", image, tmp_path)
    assert np.mean(codes == wanted[0]) > 0.9 and decoded.shape == image.shape


def test_windows_give_the_codes_of_the_whole_image(tiny_bundle, tmp_path, capsys):
    image = np.random.default_rng(4).integers(0, 256, (160, 224, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    target = tmp_path / "codes.npy"
    runpy.run_path(str(EXAMPLES / "embed_tiles.py"))["main"](tiny_bundle.path, "112", tmp_path / "image.npy", target)
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32", tiling="off") as tokenizer:
        assert np.array_equal(np.load(target), tokenizer.encode(image).codes)
    assert "windows 6 of 112x112" in capsys.readouterr().out


class Cudart(fake_gpu.Cudart):
    """Copies from and to pageable memory, as the program makes them: the host's side is read, or written, before the call returns."""

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        gpu, kinds = self.gpu, fake_gpu.real.cudaMemcpyKind
        gpu.run_queue()
        gpu.check(gpu.device, target if kind == kinds.cudaMemcpyHostToDevice else source, size)
        ctypes.memmove(target, source, size)
        return (fake_gpu.OK,)


class Context(fake_gpu.Context):
    """A context with scratch memory of its own."""

    def infer_shapes(self):
        missing = super().infer_shapes()
        if not missing:
            size = max(1, self.scratch_bytes())
            self.set_device_memory(self.gpu.allocate(self.gpu.device, size), size)
        return missing


class DataType(str):
    """The fake's types are strings; TensorRT's also know their size."""

    @property
    def itemsize(self):
        return np.dtype(self.removeprefix("DataType.")).itemsize


@pytest.fixture
def tensorrt(fake, monkeypatch):
    """``import tensorrt`` and ``cuda.bindings.runtime`` give the fakes, as far as the program uses them."""
    here = fake()
    here.trt.Logger = type("Logger", (), {"WARNING": "warning", "__init__": lambda self, severity: None})
    extra = {
        "create_execution_context": lambda self, strategy=None: (Context if strategy is None else fake_gpu.Context)(self),
        "get_tensor_shape": lambda self, name: fake_gpu.shape_of((self.inputs | self.outputs)[name]),
        "get_tensor_profile_shape": lambda self, name, index: list(self.profiles[index][name]),
        "get_tensor_dtype": lambda self, name: DataType(f"DataType.{self.dtype(name).name}"),
    }
    for name, value in extra.items():
        monkeypatch.setattr(fake_gpu.Engine, name, value, raising=False)
    import cuda.bindings

    monkeypatch.setitem(sys.modules, "tensorrt", here.trt)
    monkeypatch.setattr(cuda.bindings, "runtime", Cudart(here.gpu))
    return here


def engine_folder(bundle):
    return (bundle.path / bundle.engines[0].file).parent


def test_tensorrt_program(engine_bundle, tensorrt, image, wanted, tmp_path):
    codes, decoded = run_program("embed_trt.py", engine_folder(engine_bundle(BOTH_SIZES)), image, tmp_path)
    assert codes.dtype == np.int32 and np.array_equal(codes, wanted[0])
    assert decoded.dtype == np.uint8 and np.array_equal(decoded, wanted[1])


def test_tensorrt_program_says_what_is_wrong(engine_bundle, tensorrt, image, tmp_path):
    folder = engine_folder(engine_bundle(BOTH_SIZES))
    with pytest.raises(ValueError, match="not built for"):
        run_program("embed_trt.py", folder, image[:48], tmp_path)
    tensorrt.gpu.non_finite = True
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        run_program("embed_trt.py", folder, image, tmp_path)


def run_in_this_process(monkeypatch, changed=0):
    """The acceptance starts the program as a process of its own, which the fakes would not reach."""

    def run(command, **_):
        _, _, program, *arguments = command  # python -I program ...
        try:
            runpy.run_path(program)["main"](*arguments)
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback ...\n{type(error).__name__}: {error}")
        if changed:
            with np.load(arguments[-1]) as found:
                np.savez(arguments[-1], codes=found["codes"] + changed, image=found["image"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(engines.subprocess, "run", run)


@pytest.fixture
def acceptance(tiny_bundle, tensorrt, tmp_path, monkeypatch):
    """Options of a GPU acceptance of the tiny network, whose bundle is there already."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "acceptance"
    shutil.copytree(tiny_bundle.path, folder / "tiny")
    sizes = {"small": (64, 96), "large": (96, 112), "tile": (72, 72)}
    return GpuOptions("cpu", tiny_bundle.spec, repeats=2, folder=folder, **sizes)


def test_acceptance_builds_compares_times_and_embeds(acceptance, monkeypatch):
    run_in_this_process(monkeypatch)
    rows = list(engines.tensorrt_section(acceptance))
    assert [str(row) for row in rows if row.ok is False] == []
    verdicts = {row.check: row for row in rows if row.ok}
    assert {"untiled engines: used again", "engines for windows of 72x72: used again"} < set(verdicts)
    assert "windows 6 of 72x72" in verdicts["tiled against untiled, 112x96: equal codes"].facts["note"]
    assert verdicts["embedding example: codes and pixels of the tokenizer"].value == "equal"
    assert sum(row.unit == "ms p50" for row in rows) == 2 * 2 * 2  # directions, tilings, with and without CUDA graphs
    built = {row.check: row.facts["note"] for row in rows if row.check.startswith("engine ")}
    assert built["engine encoder"].endswith("built") and built["engine quantizer"].endswith("kept")  # the second time
    assert engines._goal("encode", GpuOptions()) == {"note": "wanted on an H200: at most 50 ms"}
    assert engines._goal("encode", acceptance) == {}


def test_acceptance_notices_another_result_of_the_program(acceptance, monkeypatch):
    run_in_this_process(monkeypatch, changed=1)
    (row,) = (row for row in engines.tensorrt_section(acceptance) if row.check.startswith("embedding example"))
    assert row.ok is False and row.value == "different"
    monkeypatch.setattr(engines, "engine_folder", lambda bundle: bundle.path / "nowhere")
    shared = bundle.shared_bundle(acceptance)
    (row,) = engines._example(shared, bundle.waves(acceptance.small), acceptance)
    assert row.ok is False and row.value.startswith("FileNotFoundError")


def test_polygraphy_reads_and_runs_the_graphs(tiny_bundle):
    """The commands of the page, those that need no GPU."""
    pytest.importorskip("polygraphy", reason="pip install polygraphy")

    def polygraphy(*arguments: str) -> str:
        command = [sys.executable, "-c", "from polygraphy.tools import main; main()", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    graph = tiny_bundle.path / "fp32"
    assert "Op: GroupedArgmin" in polygraphy("inspect", "model", str(graph / "quantizer.onnx"), "--show", "layers")
    ran = polygraphy("run", str(graph / "quantizer.onnx"), "--onnxrt", "--input-shapes", "latent:[1,16,2,3]")
    assert "PASSED" in ran and "codes [dtype=int32, shape=(1, 4, 2, 3)]" in ran


def test_the_python_programs_use_nothing_of_ours():
    for name in ("embed_trt.py", "embed_ort.py"):
        assert "mgvq_export" not in (EXAMPLES / name).read_text(encoding="utf-8")


def test_the_scan_reads_the_tensorrt_program():
    used = api_scan.used_names((EXAMPLES / "embed_trt.py").read_text(encoding="utf-8"))
    assert {"tensorrt.ICudaEngine.get_tensor_profile_shape", "tensorrt.IExecutionContext.execute_async_v3"} <= set(used)


@pytest.fixture
def cuda_headers():
    """CUDA's own headers, from the package nvidia-cuda-runtime (and nvidia-cuda-crt, which it needs)."""
    for entry in importlib.util.find_spec("nvidia").submodule_search_locations if importlib.util.find_spec("nvidia") else ():
        for folder in Path(entry).glob("*/include"):
            if (folder / "cuda_runtime_api.h").is_file() and (folder / "crt" / "host_defines.h").is_file():
                return folder
    pytest.skip("CUDA's headers are not installed: pip install nvidia-cuda-runtime nvidia-cuda-nvcc")


def compile_program(cuda_headers, tmp_path, source: str):
    """The C++ program against CUDA's own headers and declarations of what it uses of TensorRT."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "program.cpp").write_text(source, encoding="utf-8")
    ours = Path(__file__).with_name("headers")
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{ours}", "-isystem", str(cuda_headers)]
    return subprocess.run([*command, "program.cpp"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)


def test_cpp_program_compiles(cuda_headers, tmp_path):
    done = compile_program(cuda_headers, tmp_path, (EXAMPLES / "embed_trt.cpp").read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr


def test_the_compiler_would_notice_a_removed_call(cuda_headers, tmp_path):
    source = (EXAMPLES / "embed_trt.cpp").read_text(encoding="utf-8").replace("enqueueV3", "enqueueV2")
    done = compile_program(cuda_headers, tmp_path, source)
    assert done.returncode != 0 and "enqueueV2" in done.stderr


# ---- the page


@pytest.mark.parametrize(
    ("name", "language"),
    [("embed_trt.py", "python"), ("embed_ort.py", "python"), ("embed_tiles.py", "python"), ("embed_trt.cpp", "cpp")],
)
def test_the_page_shows_the_program(name, language):
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert (EXAMPLES / name).read_text(encoding="utf-8") in blocks, f"copy examples/{name} into docs/embedding.md again"


def test_the_page_lists_every_input_and_output(tiny_bundle):
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert [part for part, _, _ in rows] == [str(part) for part in Part]
    for part, *sides in rows:
        graph = engine_graph(tiny_bundle.path / "fp16" / f"{part}.onnx")
        for side, values in zip(sides, (graph.inputs, graph.outputs), strict=True):
            assert re.findall(r"`(\w+)` (\w+)", side) == [(v.name, v.dtype.replace("float16", "float")) for v in values], part
            ranks = [len(shape.split(",")) if shape else 0 for shape in re.findall(r"\[(.*?)\]", side)]
            assert ranks == [len(v.shape) for v in values], part
