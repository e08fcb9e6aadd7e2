"""Our TensorRT code against TensorRT's real Python bindings, 10.16 and 11.4, with neither GPU nor TensorRT's libraries."""

import json
import sys
import types
from pathlib import Path

import pytest

import mgvq_export
from mgvq_export.core.errors import BackendError
from mgvq_export.ops import trt_machine, trt_plugin
from mgvq_export.tests.support import api_scan, stubs

ROOT = Path(mgvq_export.__file__).parent
#: Every module that may speak to TensorRT, in one place; the patterns take in modules added later.
PATTERNS = ("ops/trt_*.py", "export/engines/*.py", "runtime/tensorrt/*.py", "benchmarks/gpu/*.py", "examples/embed_trt.py")
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


def test_the_scan_sees_enums_parser_errors_tensors_and_what_methods_give():
    used = api_scan.used_names((ROOT / "export" / "engines" / "builder.py").read_text())
    used |= api_scan.used_names((ROOT / "examples" / "embed_trt.py").read_text())
    used |= api_scan.used_names((ROOT / "ops" / "trt_machine.py").read_text())
    names = (
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS",
        "ProfilingVerbosity.DETAILED",
        "ProfilingVerbosity.LAYER_NAMES_ONLY",
        "ILogger.Severity.INTERNAL_ERROR",
        "ParserError.node_operator",
        "ParserError.desc",
        "ITensor.name",
        "ITensor.dtype",
        "ICudaEngine.get_tensor_dtype().itemsize",
    )
    assert {f"tensorrt.{name}" for name in names} <= set(used)


@versions
def test_the_scan_finds_what_is_wrong_with_them(version):
    source = (
        "trt.float32\nparser_error.node_nam()\ntensor.typ\nself.engine.get_tensor_dtype(name).size\n"
        "engine.get_tensor_dtype(name).itemsize\nengine.get_tensor_name(0).upper()\nengine.get_tensor_dtype(1, 2).itemsize\n"
    )
    assert sorted(missing_names(version, source)) == [
        "tensorrt.ICudaEngine.get_tensor_dtype with 2 arguments",
        "tensorrt.ICudaEngine.get_tensor_dtype().size",
        "tensorrt.ITensor.typ",
        "tensorrt.ParserError.node_nam",
    ]


@pytest.mark.parametrize("given", ["trt.BuilderFlag", "self._trt.BuilderFlag"])
def test_the_scan_refuses_a_variable_that_hides_names(given):
    with pytest.raises(AssertionError, match="'flags'.*write it out"):
        api_scan.used_names(f"flags = {given}\nconfig.set_flag(flags.TF32)")
    api_scan.used_names("flag = trt.BuilderFlag.TF32\nconfig.set_flag(flag)")


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


#: TensorRT's C++ code calls what Python overrides through the base class, whose methods look the override up, some by another name.
OVERRIDES = """
import tensorrt as trt
from mgvq_export.export.engines import builder as trt_builder
from mgvq_export.ops.trt_machine import process_logger
from mgvq_export.runtime.tensorrt.errors import ErrorLog, error_recorder

recorder, base = error_recorder(trt), trt.IErrorRecorder
assert isinstance(recorder, base)
assert base.report_error(recorder, trt.ErrorCodeTRT.FAILED_EXECUTION, "first") is False
assert base.report_error(recorder, trt.ErrorCodeTRT.FAILED_ALLOCATION, "second") is False
assert base.num_errors(recorder) == recorder.num_errors() == 2, base.num_errors(recorder)
assert base.get_error_code(recorder, 1) == trt.ErrorCodeTRT.FAILED_ALLOCATION
assert base.get_error_desc(recorder, 0) == "first" and base.get_error_desc(recorder, 1) == "second"
assert base.has_overflowed(recorder) is False
base.clear(recorder)
assert base.num_errors(recorder) == 0 and recorder.errors == [] and not ErrorLog(trt)

seen = []
monitor, base = trt_builder._monitor(trt, lambda phase, share: seen.append((phase, share))), trt.IProgressMonitor
base.phase_start(monitor, "Build", None, 4)
base.phase_start(monitor, "Tactics", "Build", 2)
assert base.step_complete(monitor, "Build", 0) is True
monitor.cancelled = True
assert base.step_complete(monitor, "Build", 1) is False
monitor.cancelled = False
base.phase_finish(monitor, "Build")
assert seen == [("Build", 0.0), ("Build", 0.25), ("Build", 1.0)], seen

messages = process_logger(trt)
trt.ILogger.log(messages, trt.ILogger.Severity.WARNING, "no")
trt.ILogger.log(messages, trt.ILogger.Severity.ERROR, "yes")
assert messages.errors == ["yes"], messages.errors
print("good")
"""


@versions
def test_recorder_monitor_and_logger_as_the_libraries_call_them(version):
    assert stubs.run_snippet(version, OVERRIDES) == "good\n"


# ---- standard output is ours


@versions
def test_doctor_prints_json_and_nothing_else(version):
    report = json.loads(stubs.run_snippet(version, "from mgvq_export.cli import main\nmain(['doctor', '--json'])"))
    details = {row["name"]: row["detail"] for row in report["backends"]}
    assert "needs TensorRT" not in details["tensorrt"]  # it was found, and asked


@versions
def test_registering_the_plugin_prints_nothing(version):
    code = "import sys\nfrom mgvq_export.ops import trt_plugin\nfound = trt_plugin.is_registered()\n"
    said = "assert not found and 'tensorrt.plugin' in sys.modules\nprint('then')"
    assert stubs.run_snippet(version, code + said) == "then\n"


@versions
def test_with_standard_output_closed_the_plugin_registers_all_the_same(version):
    code = "import os, sys\nkept = os.dup(1)\nos.close(1)\nfrom mgvq_export.ops import trt_plugin\nassert not trt_plugin.is_registered()\n"
    assert stubs.run_snippet(version, code + "os.dup2(kept, 1)\nprint('then')").endswith("then\n")


@versions
def test_looking_for_the_machine_does_not_import_the_plugin_module(version):
    code = "import sys\nfrom mgvq_export.ops import trt_machine\ntrt_machine.import_tensorrt()\nprint('tensorrt.plugin' in sys.modules)"
    assert stubs.run_snippet(version, code) == "False\n"


# ---- a TensorRT that cannot be used


@pytest.fixture
def installed(monkeypatch):
    """Puts a TensorRT of some version, without ``tensorrt.plugin``, in place."""

    def put(version: str) -> None:
        module = types.ModuleType("tensorrt")
        module.__version__ = version
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.delitem(sys.modules, "tensorrt.plugin", raising=False)

    return put


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_an_old_tensorrt_without_plugin_module_is_called_old(installed, version):
    installed(version)
    for asked in (trt_machine.find_machine, trt_plugin.is_registered, lambda: trt_plugin.register_plugin(architecture=80)):
        with pytest.raises(BackendError, match=rf"^TensorRT {version} is too old; wanted 10.16.1 or newer: pip install") as error:
            asked()
        assert "'tensorrt-cu12>=10.16.1'" in str(error.value) and "\n" not in str(error.value)


def test_a_plugin_module_that_does_not_load(installed):
    installed("11.4.0.106")
    with pytest.raises(
        BackendError, match=r"TensorRT 11.4.0.106 is not usable \(its module tensorrt.plugin does not load: "
    ) as error:
        trt_plugin.is_registered()
    assert "\n" not in str(error.value)


def test_without_tensorrt_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        BackendError, match="pip install 'mgvq-export.tensorrt.' .*CUDA 12: pip install tensorrt-cu12 'cuda-bindings"
    ):
        trt_plugin.register_plugin(architecture=80)
