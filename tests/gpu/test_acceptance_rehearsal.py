"""The GPU acceptance rehearsed on the CPU, tiny: the sections that can run there, and the script.

The kernel's section is tested in ``tests/ops/test_kernel_launch.py``, TensorRT's in ``tests/trt/test_embedding.py``.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mgvq_export
from mgvq_export.bench import gpu_bundle, gpu_engines, gpu_kernel, gpu_network
from mgvq_export.bench.gpu_report import GpuOptions, Row
from mgvq_export.errors import BackendError
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.spec import VARIANTS, ModelSpec

#: Float16 convolutions take PyTorch's slowest way on a CPU, so the network is as small as one can be.
SMALLEST = ModelSpec("smallest", (8, 16, 32), (0, 1, 1), (0, 1, 1), ("res", "res", "evit"), 4, 4 * 60, 16)


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads wait for one another at every one of thousands of small steps, which takes minutes on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def options(tmp_path) -> GpuOptions:
    sizes = {"check": (16, 16), "small": (32, 48), "large": (48, 64)}
    return GpuOptions("cpu", SMALLEST, repeats=2, ceiling=32, compiler="aot_eager", folder=tmp_path / "work", **sizes)


@pytest.fixture
def with_bundle(tiny_bundle, tmp_path):
    """Options for the tiny network, whose bundle is already in their folder."""
    folder = tmp_path / "with-bundle"
    shutil.copytree(tiny_bundle.path, folder / "tiny")
    sizes = {"small": (64, 96), "large": (96, 112), "tile": (72, 72)}
    return GpuOptions("cpu", tiny_bundle.spec, repeats=2, folder=folder, **sizes)


@pytest.fixture(scope="module")
def tool():
    path = Path(mgvq_export.__file__).parent / "tools" / "gpu_acceptance.py"
    spec = importlib.util.spec_from_file_location("gpu_acceptance", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged(rows: list[Row]) -> dict[str, Row]:
    found = {row.check: row for row in rows if row.ok is not None}
    assert all(row.ok for row in found.values()), [str(row) for row in rows]
    return found


def test_network_section(options):
    rows = judged(list(gpu_network.network_section(options)))
    assert len(rows) == 2 + 3 * len(options.sizes)
    assert rows["fp16 48x32 against fp32: latent rel. L2"].value > 1e-5  # the half network really is one
    assert rows["fp32 16x16, cpu against CPU: latent rel. L2"].value == 0


def test_network_section_notices_a_wrong_half(options, monkeypatch):
    monkeypatch.setattr(gpu_network.copy, "deepcopy", lambda network: broken_copy(network))
    rows = {row.check: row for row in gpu_network.network_section(options)}
    assert rows["fp16 48x32 against fp32: latent rel. L2"].ok is False
    assert rows["fp16 48x32 against fp32: equal codes"].ok is False


def broken_copy(network):
    import pickle

    copied = pickle.loads(pickle.dumps(network))
    copied.quant_conv.weight.data *= -1
    return copied


def test_peers_section(options):
    rows = {row.check: row for row in gpu_network.peers_section(options)}
    for way in gpu_network.WAYS:
        for verb in ("encode", "decode"):
            row = rows[f"{way.name}: {verb} 64x48"]
            assert row.value > 0 and row.facts["count"] == 2 and row.facts["share_of_ceiling"] > 0
    assert rows["encode 64x48: work"].value > 0


def test_peers_encode_and_decode_as_the_tokenizer_does(with_bundle):
    import torch

    from mgvq_export.model.synthetic import synthetic_network

    image = gpu_bundle.waves(with_bundle.large)
    with torch.inference_mode():
        network = synthetic_network(with_bundle.spec)
        runner = gpu_network._Runner(network, gpu_network.WAYS[0], torch.from_numpy(image), with_bundle)
        runner.encode()
        runner.decode()
    with Tokenizer.open(with_bundle.folder / "tiny", backend="ort-cpu", precision="fp32") as tokenizer:
        tokens = tokenizer.encode(image)
        decoded = tokenizer.decode(tokens)
    assert np.mean(runner._codes[0].numpy() == tokens.codes) > 0.99
    assert np.abs(runner._pixels.numpy().astype(int) - decoded).max() <= 1


def test_an_image_too_large_for_the_gpu_is_a_row(options, monkeypatch):
    import torch

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_network._Runner, "encode", full)
    rows = list(gpu_network.peers_section(options))
    assert [row.value for row in rows[-len(gpu_network.WAYS) :]] == ["out of memory"] * len(gpu_network.WAYS)


def test_work_is_that_of_the_released_network():
    work = gpu_network.count_work(VARIANTS["mgvq-f16c32-g8"], (256, 256))
    assert work == {"encode": pytest.approx(516e9, rel=0.01), "decode": pytest.approx(683e9, rel=0.01)}


def test_argmin_section(options):
    rows = list(gpu_kernel.torch_section(options))
    assert [row.check for row in rows] == ["torch cdist/argmin rehearsal 2x64x4", "torch matmul/argmax rehearsal 2x64x4"]
    assert all(row.value > 0 and row.facts["differing_codes"] == 0 for row in rows)


def test_onnxruntime_section_makes_its_bundle(options):
    rows = list(gpu_bundle.onnxruntime_section(options))
    assert len(judged(rows)) == 6
    assert [row.unit for row in rows[-2:]] == ["ms p50"] * 2
    assert gpu_bundle.shared_bundle(options).precisions == ("fp32", "fp16")  # found again


def test_rows_say_limit_and_percentiles():
    row = Row.judged("codes", 0.9, tolerance("agreement", "fp16"))
    assert row.ok is False and "FAIL" in str(row) and "wanted >= 0.985" in str(row)
    assert Row.judged("latent", float("nan"), tolerance("latent", "fp16")).ok is False
    timed = Row.timed("encode", [1.0, 2.0, 3.0])
    assert timed.value == 2.0 and timed.facts["p99"] == pytest.approx(2.98) and "p90 2.8, p99 2.98" in str(timed)


# ---- the script


def fake_section(monkeypatch, *sections):
    """Puts functions in the place of all sections; those not named give one row."""
    given = dict(sections)
    for name in ("kernel_section", "torch_section"):
        monkeypatch.setattr(gpu_kernel, name, given.get(name, one_row))
    for name in ("network_section", "peers_section"):
        monkeypatch.setattr(gpu_network, name, given.get(name, one_row))
    monkeypatch.setattr(gpu_bundle, "onnxruntime_section", given.get("onnxruntime_section", one_row))
    monkeypatch.setattr(gpu_engines, "tensorrt_section", given.get("tensorrt_section", one_row))


def one_row(options):
    yield Row("fine", 1.0, "ms", ok=True)


def no_backend(options):
    raise BackendError("not installed")
    yield


def breaks_off(options):
    yield Row("fine so far", 1.0)
    raise ZeroDivisionError("oops")


def run_tool(tool, monkeypatch, tmp_path, *arguments):
    target = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["gpu_acceptance.py", "--rehearse", "--json", str(target), *arguments])
    code = tool.main()
    return code, json.loads(target.read_text())


def test_a_section_that_breaks_off_fails_and_the_others_run(tool, monkeypatch, tmp_path, capsys):
    fake_section(monkeypatch, ("kernel_section", breaks_off))
    code, document = run_tool(tool, monkeypatch, tmp_path)
    assert code == 1
    assert [row["section"] for row in document["rows"]] == ["kernel", *tool.SECTIONS]
    assert document["rows"][1]["value"] == "ZeroDivisionError: oops"
    assert set(document["run"]) >= {"date", "gpu", "driver_cuda", "versions"} and document["rehearsal"] is True
    assert "7 rows, 1 failed" in capsys.readouterr().out


@pytest.mark.parametrize(("required", "code"), [("", 0), ("1", 1)])
def test_what_cannot_run_fails_only_when_a_gpu_is_required(tool, monkeypatch, tmp_path, required, code):
    monkeypatch.setenv("MGVQ_REQUIRE_GPU", required)
    fake_section(monkeypatch, ("peers_section", no_backend), ("tensorrt_section", no_backend))
    found, document = run_tool(tool, monkeypatch, tmp_path)
    verdicts = {row["section"]: row["ok"] for row in document["rows"]}
    assert (found, verdicts["peers"], verdicts["tensorrt"]) == (code, False if required else None, None)


def test_one_section_alone(tool, monkeypatch, tmp_path):
    fake_section(monkeypatch)
    _, document = run_tool(tool, monkeypatch, tmp_path, "--section", "network")
    assert [row["section"] for row in document["rows"]] == ["network"]


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path):
    path = Path(mgvq_export.__file__).parent / "tools" / "gpu_acceptance.py"
    command = [sys.executable, str(path), "--rehearse", "--json", str(tmp_path / "rows.json"), "--folder", "work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MGVQ_REQUIRE_GPU": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = {row["section"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert sections == {"kernel", "argmin", "network", "peers", "onnxruntime", "tensorrt"}


def test_without_a_gpu_the_kernel_section_says_so(options):
    if gpu_kernel.gpu_problem() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        list(gpu_kernel.kernel_section(options))
