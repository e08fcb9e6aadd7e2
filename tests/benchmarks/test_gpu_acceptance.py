"""The script of the GPU acceptance: what counts as a failure, what does not, and what is left of a run that was interrupted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mgvq_export
from mgvq_export.benchmarks.gpu import bundle, engines, kernel, network
from mgvq_export.benchmarks.gpu.report import CannotRun, GpuOptions, Row
from mgvq_export.core.errors import BackendError

PATH = Path(mgvq_export.__file__).parent / "benchmarks" / "gpu_acceptance.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("gpu_acceptance", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_section(monkeypatch, *sections):
    """Puts functions in the place of all sections; those not named give one row."""
    given = dict(sections)
    for name in ("kernel_section", "torch_section"):
        monkeypatch.setattr(kernel, name, given.get(name, one_row))
    for name in ("network_section", "peers_section"):
        monkeypatch.setattr(network, name, given.get(name, one_row))
    monkeypatch.setattr(bundle, "onnxruntime_section", given.get("onnxruntime_section", one_row))
    monkeypatch.setattr(engines, "tensorrt_section", given.get("tensorrt_section", one_row))


def one_row(options):
    yield Row("fine", 1.0, "ms", ok=True)


def lacks_something(options):
    raise CannotRun("not installed")
    yield


def breaks_off(options):
    yield Row("fine so far", 1.0)
    raise ZeroDivisionError("oops")


def backend_fails(options):
    yield Row("fine so far", 1.0)
    raise BackendError("CUDA driver call failed: CUDA_ERROR_ILLEGAL_ADDRESS")


def run_tool(tool, monkeypatch, tmp_path, *arguments):
    target = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["gpu_acceptance.py", "--dry-run", "--json", str(target), *arguments])
    code = tool.main()
    return code, json.loads(target.read_text())


def test_a_section_that_breaks_off_fails_and_the_others_run(tool, monkeypatch, tmp_path, capsys):
    fake_section(monkeypatch, ("kernel_section", breaks_off))
    code, document = run_tool(tool, monkeypatch, tmp_path)
    assert code == 1
    assert [row["section"] for row in document["rows"]] == ["kernel", *tool.SECTIONS]
    assert document["rows"][1]["value"] == "ZeroDivisionError: oops"
    assert set(document["run"]) >= {"date", "gpu", "driver_cuda", "versions"} and document["dry_run"] is True
    assert "7 rows, 1 failed" in capsys.readouterr().out


def test_a_backend_that_fails_on_the_way_is_a_failure(tool, monkeypatch, tmp_path):
    monkeypatch.setenv("MGVQ_REQUIRE_GPU", "")
    fake_section(monkeypatch, ("tensorrt_section", backend_fails))
    code, document = run_tool(tool, monkeypatch, tmp_path)
    assert code == 1 and document["rows"][-1]["ok"] is False
    assert document["rows"][-1]["value"] == "BackendError: CUDA driver call failed: CUDA_ERROR_ILLEGAL_ADDRESS"


@pytest.mark.parametrize(("required", "code"), [("", 0), ("1", 1)])
def test_what_cannot_run_fails_only_when_a_gpu_is_required(tool, monkeypatch, tmp_path, required, code):
    monkeypatch.setenv("MGVQ_REQUIRE_GPU", required)
    fake_section(monkeypatch, ("peers_section", lacks_something), ("tensorrt_section", lacks_something))
    found, document = run_tool(tool, monkeypatch, tmp_path)
    verdicts = {row["section"]: row["ok"] for row in document["rows"]}
    assert (found, verdicts["peers"], verdicts["tensorrt"]) == (code, False if required else None, None)


def test_rows_are_written_as_they_come(tool, monkeypatch, tmp_path):
    def interrupted(options):
        yield Row("built in an hour", 1.0)
        raise KeyboardInterrupt

    fake_section(monkeypatch, ("tensorrt_section", interrupted))
    with pytest.raises(KeyboardInterrupt):
        run_tool(tool, monkeypatch, tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["check"] for row in rows] == ["fine"] * 5 + ["built in an hour"]


def test_one_section_alone(tool, monkeypatch, tmp_path):
    fake_section(monkeypatch)
    _, document = run_tool(tool, monkeypatch, tmp_path, "--section", "network")
    assert [row["section"] for row in document["rows"]] == ["network"]


@pytest.mark.slow
def test_the_whole_dry_run(tmp_path):
    command = [sys.executable, str(PATH), "--dry-run", "--json", str(tmp_path / "rows.json"), "--folder", "work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MGVQ_REQUIRE_GPU": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = {row["section"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert sections == {"kernel", "argmin", "network", "peers", "onnxruntime", "tensorrt"}


# ---- what is found at the start of a section, and what is not


def refuses(*_, **__):
    raise BackendError("not here")


SECTIONS = {
    "kernel": (kernel.kernel_section, kernel, "gpu_problem", lambda: "no NVIDIA GPU"),
    "kernel, no compiler": (kernel.kernel_section, kernel, "nvrtc_version", refuses),
    "onnxruntime": (bundle.onnxruntime_section, bundle, "OrtSession", refuses),
    "tensorrt": (engines.tensorrt_section, engines, "find_machine", refuses),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_what_a_section_lacks_is_found_before_it_begins(name, monkeypatch, tmp_path):
    section, module, part, replacement = SECTIONS[name]
    if name != "kernel":
        monkeypatch.setattr(kernel, "gpu_problem", lambda: None)
    monkeypatch.setattr(module, part, replacement)
    with pytest.raises(CannotRun, match="no NVIDIA GPU|not here"):
        list(section(GpuOptions(folder=tmp_path / "work")))
    assert not (tmp_path / "work").exists()  # no bundle was exported for nothing


@pytest.mark.parametrize("section", [kernel.torch_section, network.network_section, network.peers_section])
@pytest.mark.parametrize("available", [False, True])
def test_torch_decides_about_its_own_sections(section, available, monkeypatch):
    """They need no cuda-bindings, and PyTorch's word counts and not that of another library."""
    import torch

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    if available:
        assert network.import_torch(GpuOptions()) is torch
    else:
        with pytest.raises(CannotRun, match="finds no GPU"):
            list(section(GpuOptions()))


@pytest.mark.parametrize("failure", ["parse", "inlined", "types", "build"])
def test_a_failure_of_the_builder_is_a_failed_row(tool, fake, with_bundle, monkeypatch, failure):
    monkeypatch.setenv("MGVQ_REQUIRE_GPU", "")
    fake.recorder.failure = failure
    *_, last = tool.run_section("tensorrt", with_bundle)
    assert last.ok is False and last.value.startswith("BackendError: ")


def test_values_that_are_not_finite_are_a_failed_row(tool, fake, with_bundle):
    fake.gpu.non_finite = True
    *_, last = tool.run_section("tensorrt", with_bundle)
    assert last.ok is False and "not finite" in last.value


def test_tests_skip_what_cannot_run_and_nothing_else(where_it_can_run, monkeypatch):
    def outcome(error, required):
        try:
            with where_it_can_run(required=required):
                raise error
        except BaseException as found:  # what skips is no Exception
            return type(found)

    for variable in ("", "1"):
        monkeypatch.setenv("MGVQ_REQUIRE_GPU", variable)
        assert outcome(BackendError("failed"), required=False) is BackendError
        assert outcome(CannotRun("no TensorRT"), required=False) is pytest.skip.Exception
        wanted = pytest.fail.Exception if variable else pytest.skip.Exception
        assert outcome(CannotRun("no GPU"), required=True) is wanted
