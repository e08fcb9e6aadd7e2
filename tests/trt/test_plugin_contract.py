"""Our TensorRT code against TensorRT's real Python bindings, 10.16 and 11.4, with neither GPU nor TensorRT's libraries."""

import json
from pathlib import Path

import api_scan
import pytest
import stubs

import mgvq_export
from mgvq_export.errors import BackendError
from mgvq_export.ops import trt_plugin

ROOT = Path(mgvq_export.__file__).parent
#: Every module that may speak to TensorRT, in one place; the patterns take in modules added later.
PATTERNS = ("ops/trt_*.py", "export/engines*.py", "export/trt*.py", "runtime/trt*.py", "bench/gpu*.py", "examples/embed_trt.py")
SOURCES = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})
versions = pytest.mark.parametrize("version", stubs.BINDINGS)


def missing_names(version: str, source: str) -> list[str]:
    output = stubs.run_snippet(version, api_scan.CHECK, json.dumps(api_scan.used_names(source)))
    return json.loads(output.splitlines()[-1])


@versions
def test_the_bindings_are_the_wanted_ones(version):
    code = "import tensorrt, tensorrt.plugin; print(tensorrt.__version__)"
    assert stubs.run_snippet(version, code).splitlines()[-1] == stubs.BINDINGS[version].split("==")[1]


@versions
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_name_and_keyword_our_code_uses_exists(version, path):
    assert missing_names(version, path.read_text()) == []


def test_the_scan_finds_removed_names_and_wrong_keywords():
    source = "trt.BuilderFlag.FP16\nbuilder.platform_has_fast_fp16\nself._context.execute_async_v3(stream_handel=1)\ntrt.BuilderFlag.TF32\n"
    in_11 = missing_names("11.4", source)
    assert "tensorrt.BuilderFlag.FP16" in in_11 and "tensorrt.Builder.platform_has_fast_fp16" in in_11
    assert "tensorrt.IExecutionContext.execute_async_v3(stream_handel=)" in in_11 and len(in_11) == 3
    assert "tensorrt.BuilderFlag.FP16" not in missing_names("10.16", source)


@versions
def test_the_scan_counts_arguments(version):
    source = (
        "trt.float32\ncontext.set_device_memory(1)\ncontext.set_device_memory(1, size=2)\nengine.create_execution_context()\n"
        "engine.create_execution_context(1, 2)\nself.trt.Runtime()\nself._loaded.engine.get_tensor_name(1, 2)\n"
    )
    assert sorted(missing_names(version, source)) == [
        "tensorrt.ICudaEngine.create_execution_context with 2 arguments",
        "tensorrt.ICudaEngine.get_tensor_name with 2 arguments",
        "tensorrt.IExecutionContext.set_device_memory with 1 arguments",
        "tensorrt.Runtime with 0 arguments",
    ]


@versions
def test_the_scan_knows_what_can_be_set(version):
    source = "trt.float32\nself.runtime.error_recorder = 1\ncontext.error_recorder = 1\nengine.num_io_tensors = 3\n"
    assert missing_names(version, source) == ["tensorrt.ICudaEngine.num_io_tensors = ..."]


def test_the_scan_leaves_code_alone_that_does_not_speak_to_tensorrt():
    assert api_scan.used_names("network.latent(1)\nbuilder.anything") == {}


def test_the_scan_sees_the_plugin():
    used = api_scan.used_names((ROOT / "ops" / "trt_plugin.py").read_text())
    assert {"tensorrt.plugin.aot_impl", "tensorrt.plugin.SymInt32", "tensorrt.int32"} <= set(used)


@versions
@pytest.mark.parametrize(("dtype", "kernel"), [("FLOAT", "grouped_argmin_float"), ("HALF", "grouped_argmin_half")])
def test_plugin_through_the_bindings_own_classes(version, dtype, kernel):
    answer = probe(version)
    assert answer["attributes"] == [] and answer["op"]
    found = answer[dtype]
    assert found["types"] == ["INT32"] and found["shapes"] == [["B", "8", "h", "w"]]
    assert found["supported"] == [f"{t} LINEAR" for t in ("FLOAT", "FLOAT", "INT32", "HALF", "FLOAT", "INT32")]
    positions = "PROD(PROD(B,h),w)"
    one = dict.fromkeys(("grid_z", "block_y", "block_z"), "1")
    assert found["launch"] == {"grid_x": f"CEIL_DIV({positions},128)", "grid_y": "8", "block_x": "256", "shared_mem": "0", **one}
    assert found["scalars"] == [positions, "PROD(h,w)", "2048", "4"]
    assert found["kernel"] == kernel and found["entry_found"] and not found["ptx_ends_in_nul"]
    assert found["target"] == ".target sm_75"


_answers: dict[str, dict] = {}


def probe(version: str) -> dict:
    if version not in _answers:
        output = stubs.run_snippet(version, Path(__file__).with_name("plugin_probe.py").read_text())
        _answers[version] = json.loads(output.splitlines()[-1])
    return _answers[version]


def test_without_tensorrt_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(BackendError, match="pip install"):
        trt_plugin.register_plugin(architecture=80)
