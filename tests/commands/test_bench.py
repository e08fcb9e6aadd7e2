"""mgvq-export bench on the tiny bundle: measured, written, drawn, compared; and what it refuses, in one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mgvq_export.bench.latency import BenchOptions, TokenizerJob, _operations, bench, passes
from mgvq_export.bench.peers import PEERS, CeilingJob, PeerOptions, build_peer
from mgvq_export.bench.processes import reason
from mgvq_export.bench.record import Results
from mgvq_export.cli import main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import Part
from mgvq_export.export.graphs.flops import graph_flops
from mgvq_export.runtime.backend import RunOptions
from mgvq_export.runtime.image_files import write_image
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.tests.support.checks import one_line
from mgvq_export.tests.support.manifests import edited_manifest


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def measured(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run of the command with everything in it, and the folder with what it wrote."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["--size", "150x120", "--backend", "ort-cpu", "--tiling", "off", "--tiling", "exact", "--tile", 80, "--threads", 2]
    files = ["-o", folder / "a.json", "--plot", folder / "a.png"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mgvq_export.bench.latency.CEILING_SIDE", 512)  # seconds saved
        return folder, run(tiny_bundle.path, *words, "--against", "plain-ort", "--repeat", 5, *files)


def test_everything_is_measured_written_and_drawn(measured: tuple[Path, Result], tiny_bundle: Bundle) -> None:
    folder, printed = measured
    assert printed.exit_code == 0, printed.output
    results = Results.load(folder / "a.json")
    off, exact, plain, ceiling = results.entries
    assert [entry.name for entry in results.entries] == ["ort-cpu fp32 off", "ort-cpu fp32 exact", "plain-ort", "ceiling"]
    assert {entry.group for entry in results.entries} == {"150x120"}
    for entry in (off, exact):
        assert list(entry.samples)[:6] == ["read", "encode", "save", "load", "decode", "write"]
        parts = [name for name in entry.samples if name.startswith("encode/")]
        assert {"encode/convert", "encode/encoder_head", "encode/quantizer"} <= set(parts)
        np.testing.assert_allclose(entry.seconds(*parts), entry.seconds("encode"), atol=1e-6)  # they are rounded in the file
        assert entry.facts["flop"]["encode"] == sum(entry.facts["flop"].get(part, 0) for part in parts)
        assert entry.memory["peak_bytes"] >= entry.memory["base_bytes"] > 2**24
    assert "windows" in exact.facts["encode_plan"]
    assert exact.facts["flop"]["encode"] > off.facts["flop"]["encode"]  # halos are computed too
    for entry in (off, exact, plain):
        assert entry.rounds == 5
        assert entry.facts["codes"] == 4 * 10 * 8
        assert entry.facts["differ"] <= 1  # near-ties only
        assert entry.name in printed.output
    assert len(ceiling.samples["matmul"]) == 5
    assert results.bundle and results.bundle["codebook_sha256"] == tiny_bundle.codebook_sha256
    assert results.settings["threads"] == 2
    assert results.settings["overhead_seconds"] > 0
    assert "ceiling" in printed.output.splitlines()[-3]
    with Image.open(folder / "a.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 5  # something is drawn on it


def test_two_results_are_compared(measured: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = measured
    same = run("compare", folder / "a.json", folder / "a.json")
    assert same.exit_code == 0, same.output
    assert "0 worse" in same.output
    steady = [0.100, 0.101, 0.102, 0.103, 0.104]  # those of a busy machine may scatter by more than the change
    slower = json.loads((folder / "a.json").read_text())
    slower["entries"][0]["samples"]["encode"] = steady
    (tmp_path / "a.json").write_text(json.dumps(slower))
    slower["entries"][0]["samples"]["encode"] = [3 * value for value in steady]
    (tmp_path / "b.json").write_text(json.dumps(slower))
    found = run("compare", tmp_path / "a.json", tmp_path / "b.json", "--threshold", 0.5, "--json")
    assert found.exit_code == 1
    assert "ort-cpu fp32 off, 150x120: encode x 3.00" in found.stderr
    changes = {(change["name"], change["stage"]): change for change in json.loads(found.stdout)["changes"]}
    assert changes["ort-cpu fp32 off", "encode"]["verdict"] == "slower"
    assert changes["ort-cpu fp32 exact", "encode"]["verdict"] == "same"
    slower["machine"]["processor"] = "another"
    (tmp_path / "c.json").write_text(json.dumps(slower))
    assert run("compare", tmp_path / "a.json", tmp_path / "c.json").exit_code == 2
    assert run("compare", tmp_path / "a.json", tmp_path / "c.json", "--force").exit_code == 1


def test_help_shows_the_measuring_and_names_the_comparing() -> None:
    for words in (["--help"], ["-h"]):
        shown = run(*words)
        assert shown.exit_code == 0
        assert "Usage: mgvq-export bench [OPTIONS] BUNDLE" in shown.output
        assert "bench compare before.json after.json" in shown.output
        for peer in PEERS:
            assert peer in shown.output.replace("-\n  ", "-")
    assert "BEFORE AFTER" in run("compare", "--help").output


def test_bad_input_is_one_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tiny_bundle.path
    (tmp_path / "other.json").write_text('{"format": "mgvq-bench", "version": 7}')
    image = tmp_path / "photo.png"
    write_image(image, np.zeros((40, 40, 3), np.uint8))
    cases = [
        ("does not exist", tmp_path / "none"),
        ("no int8 graphs", path, "--precision", "int8"),
        ("--backend is 'gpu'; choose auto, ort-cpu", path, "--backend", "gpu"),
        ("--tiling is 'fast'; choose auto", path, "--tiling", "fast"),
        ("no larger than one cell of tiny, 16x16; wanted at least 32x32", path, "--size", "16x300"),
        ("size is '512'; wanted WIDTHxHEIGHT", path, "--size", "512"),
        ("no peer jax; choose torch, ", path, "--against", "torch,jax"),
        ("memory limit is 'lots'", path, "--memory-limit", "lots"),
        ("memory limit of 64MiB is too small for an image of 64x48", path, "--size", "64x48", "--memory-limit", "64MiB"),
        ("no such file", path, "--image", tmp_path / "none.png"),
        ("leave one of them out", path, "--image", image, "--size", "64x64"),
        ("no figure format has the suffix '.gif'", path, "--plot", tmp_path / "a.gif"),
        ("there is no folder", path, "-o", tmp_path / "none" / "a.json"),
        ("it is a folder", path, "-o", tmp_path),
        ("of version 7; this release reads version 1", "compare", tmp_path / "other.json", tmp_path / "other.json"),
        ("no such file", "compare", tmp_path / "none.json", tmp_path / "none.json"),
    ]
    for match, *words in cases:
        result = run(*words)
        assert result.exit_code == 2, (words, result.output)
        assert result.stdout == ""
        assert one_line(result.stderr), result.stderr
        assert match in result.stderr, result.stderr


def test_figures_without_matplotlib_are_one_line(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(tiny_bundle.path, "--plot", tmp_path / "a.png")
    assert result.exit_code == 2
    assert one_line(result.stderr)
    assert "pip install 'mgvq-export[report]'" in result.stderr


@pytest.mark.parametrize("name", [name for name in PEERS if name != "torch-compile"])
def test_peers_compute_what_the_tokenizer_computes(name: str, tiny_bundle: Bundle, photo: np.ndarray, tmp_path: Path) -> None:
    if name.startswith("openvino"):
        pytest.importorskip("openvino", reason="openvino is not installed")
    half = name.endswith("bf16")
    write_image(tmp_path / "photo.png", photo)
    job = build_peer(name, PeerOptions(tiny_bundle.path, tmp_path / "photo.png", "fp32", "ort-cpu"))
    job.warm_up()
    assert list(job.run()) == ["encode", "decode"]
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as tokenizer:
        tokens = tokenizer.encode(photo)
        wanted = tokenizer.decode(tokens)
    assert np.mean(job.outcome()["codes"] != tokens.codes) < (0.2 if half else 0.01)  # near-ties
    padded = job._network.decode(tokens.codes[None].astype(np.int32))
    assert padded.dtype == np.uint8
    difference = np.abs(padded[:75, :101].astype(int) - wanted)
    assert np.mean(difference > (16 if half else 1)) < 0.01


@pytest.mark.slow
def test_torch_compile_runs_or_says_why(tiny_bundle: Bundle) -> None:
    options = BenchOptions(sizes=((64, 64),), backends=("ort-cpu",), against=("torch-compile",), repeat=1)
    entry = next(entry for entry in bench(tiny_bundle, options).entries if entry.name == "torch-compile")
    assert entry.skipped or entry.rounds == 1
    assert entry.skipped is None or one_line(entry.skipped)


def test_a_peer_without_its_network_says_why(tiny_bundle: Bundle, tmp_path: Path, photo: np.ndarray) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.path, copy)
    bundle = Bundle.open(copy)
    with edited_manifest(bundle) as manifest:
        manifest["source"]["name"] = "gone.pt"
    write_image(tmp_path / "photo.png", photo)
    with pytest.raises(BackendError, match="'gone.pt' is not here; give it with --checkpoint"):
        build_peer("torch", PeerOptions(copy, tmp_path / "photo.png", "fp32", "ort-cpu"))


@pytest.mark.parametrize("name", ["torch", "torch-channels-last", "torch-compile"])
def test_peers_without_torch_are_one_line(
    name: str, tiny_bundle: Bundle, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "photo.png", photo)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError) as refused:
        build_peer(name, PeerOptions(tiny_bundle.path, tmp_path / "photo.png", "fp32", "ort-cpu"))
    assert reason(refused.value) == "torch is not installed: pip install 'mgvq-export[export]'"


class Opaque:
    """A backend that does not run graph by graph."""

    graphs = None

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)


def test_other_backends_are_timed_as_a_whole(
    tiny_bundle: Bundle, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32")
    tokenizer = Tokenizer(opened.bundle, Opaque(opened.implementation), RunOptions())
    monkeypatch.setattr(Tokenizer, "open", lambda *_, **__: tokenizer)
    write_image(tmp_path / "photo.png", photo)
    job = TokenizerJob(tiny_bundle.path, {}, tmp_path / "photo.png", tmp_path)
    job.warm_up()
    assert list(job.run()) == ["read", "encode", "save", "load", "decode", "write"]
    found = _operations(tiny_bundle, "fp32", job.outcome())
    assert found == {"no_flop": "this backend does not run graph by graph"}


def test_operations_without_onnx_are_a_note(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [("encoder", {"image": (1, 3, 64, 64)}, 2)]
    counted = _operations(tiny_bundle, "fp32", {"encode": runs, "decode": []})["flop"]
    once = graph_flops(tiny_bundle.graph_path("fp32", Part.ENCODER), {"image": (1, 3, 64, 64)})
    assert counted == {"encode/encoder": 2 * once, "encode": 2 * once, "decode": 0}
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = _operations(tiny_bundle, "fp32", {"encode": runs, "decode": []})
    assert found == {"no_flop": "onnx is not installed: pip install 'mgvq-export[export]'"}


def test_a_pass_is_the_way_the_files_take(tiny_bundle: Bundle, photo: np.ndarray, tmp_path: Path) -> None:
    """The image that a pass leaves is that of encoding and decoding by hand."""
    write_image(tmp_path / "photo.png", photo)
    (tmp_path / "out").mkdir()
    job = TokenizerJob(tiny_bundle.path, {"backend": "ort-cpu", "precision": "fp32"}, tmp_path / "photo.png", tmp_path / "out")
    job.warm_up()
    job.run()
    (written,) = (tmp_path / "out").glob("*.png")
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as tokenizer:
        tokens = tokenizer.encode(photo)
        np.testing.assert_array_equal(np.asarray(Image.open(written)), tokenizer.decode(tokens))
    np.testing.assert_array_equal(job.outcome()["codes"], tokens.codes)


def test_the_ceiling_is_a_matrix_product() -> None:
    job = CeilingJob("ort-cpu", "fp32", 64)
    job.warm_up()
    assert list(job.run()) == ["matmul"]
    assert job.outcome()["facts"] == {"what": "numpy float32 64", "flop": {"matmul": 2 * 64**3}}


def test_passes_are_counted() -> None:
    options = BenchOptions(sizes=((64, 64), (96, 96)), precisions=("fp32", "fp16"), against=("torch",), repeat=3)
    assert passes(options) == 2 * (2 + 1 + 1) * (3 + 1)
