"""A tokenizer in other people's programs: pickled, after a change of folder, with odd arguments, with damaged bundles, interrupted."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from mgvq_export import Tokenizer
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError
from mgvq_export.core.spec import Part
from mgvq_export.runtime.interrupt import run_interruptibly

IMAGE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def test_a_used_tokenizer_is_pickled_without_its_sessions(tiny_bundle: Bundle) -> None:
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp16", tiling="exact", tile=128, threads=1) as tokenizer:
        wanted = tokenizer.encode(IMAGE)
        data = pickle.dumps(tokenizer)
    assert len(data) < 100_000
    with pickle.loads(data) as again:
        assert (again.backend, again.precision, again.tiling) == ("ort-cpu", "fp16", tokenizer.tiling)
        assert again.encode(IMAGE) == wanted


def test_the_working_folder_may_change(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with Tokenizer.open("bundle", backend="ort-cpu") as tokenizer:
        (tmp_path / "run").mkdir()
        os.chdir(tmp_path / "run")
        assert tokenizer.decode(tokenizer.encode(IMAGE)).shape == IMAGE.shape


def test_wrong_arguments_are_one_line_with_the_remedy(tiny_bundle: Bundle) -> None:
    with Tokenizer.open(tiny_bundle, backend="ort-cpu") as tokenizer:
        codes = tokenizer.encode(IMAGE).codes
        for wrong in (codes, codes.tolist(), None, "photo.safetensors"):
            with pytest.raises(InputError, match=r"Tokens\.from_codes\(tokenizer\.bundle, codes"):
                tokenizer.decode(wrong)  # type: ignore[arg-type]
        for size in ((0, 16), (16, -1), (1.5, 16), (True, 16)):
            with pytest.raises(InputError, match="wanted a whole number of at least 1"):
                tokenizer.encode_plan(*size)
    for threads in (0, -1, 1.5, "two", True):
        with pytest.raises(InputError, match="threads is"):
            Tokenizer.open(tiny_bundle, threads=threads)  # type: ignore[arg-type]


def test_harmless_types_are_taken(tiny_bundle: Bundle) -> None:
    image_module = pytest.importorskip("PIL.Image")
    two = np.int64(2)
    with Tokenizer.open(
        tiny_bundle, backend="ort-cpu", threads=two, tile=np.int32(128), tiling="exact", memory_limit=np.int64(2**40)
    ) as tokenizer:
        wanted = tokenizer.encode(IMAGE)
        assert tokenizer.encode(image_module.fromarray(IMAGE)) == wanted
        assert np.array_equal(tokenizer.decode(wanted, groups=two), tokenizer.decode(wanted, groups=2))
        assert tokenizer.encode_plan(np.int64(48), np.uint16(64)) == tokenizer.encode_plan(48, 64)
        with pytest.raises(InputError, match=r"wanted \[H, W, 3\]"):
            tokenizer.encode(image_module.fromarray(IMAGE).convert("L"))


def test_swapped_graphs_are_one_line(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    graphs = manifest["precisions"]["fp32"]["graphs"]
    for name in ("sha256", "bytes"):
        graphs["encoder_trunk"][name], graphs["decoder_trunk"][name] = (
            graphs["decoder_trunk"][name],
            graphs["encoder_trunk"][name],
        )
    encoder, decoder = (copy / "fp32" / f"{part}.onnx" for part in ("encoder_trunk", "decoder_trunk"))
    kept = encoder.read_bytes()
    encoder.write_bytes(decoder.read_bytes())
    decoder.write_bytes(kept)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with Tokenizer.open(copy, backend="ort-cpu") as tokenizer, pytest.raises(BundleError) as error:
        tokenizer.encode(IMAGE)
    assert "takes 'features' float32; the manifest says 'image' float32" in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_while_running_are_one_line(tiny_bundle: Bundle) -> None:
    with Tokenizer.open(tiny_bundle, backend="ort-cpu") as tokenizer, pytest.raises(BackendError) as error:
        tokenizer.graphs[Part.ENCODER_HEAD].run({"features": np.zeros((1, 3, 4, 4), np.float32)})
    assert "ort-cpu cannot run encoder_head" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("links", ["weights", "graphs", "folder", "all"])
def test_links_out_of_the_bundle_load_what_was_checked(tiny_bundle: Bundle, copy: Path, tmp_path: Path, links: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    if links == "folder":
        shutil.move(copy / "fp32", store / "fp32")
        (copy / "fp32").symlink_to(store / "fp32")
    for path in sorted((copy / "fp32").iterdir()) if links != "folder" else []:
        if links == "all" or (path.suffix == ".bin") == (links == "weights"):
            shutil.move(path, store / path.name)
            path.symlink_to(store / path.name)
    with Tokenizer.open(tiny_bundle, backend="ort-cpu") as tokenizer, Tokenizer.open(copy, backend="ort-cpu") as linked:
        tokens = tokenizer.encode(IMAGE)
        assert linked.encode(IMAGE) == tokens
        assert np.array_equal(linked.decode(tokens), tokenizer.decode(tokens))


def test_with_tiling_shares_the_loaded_graphs(tiny_bundle: Bundle) -> None:
    with Tokenizer.open(tiny_bundle, backend="ort-cpu") as tokenizer:
        other = tokenizer.with_tiling("exact", tile=128)
        assert other.graphs[Part.QUANTIZER] is tokenizer.graphs[Part.QUANTIZER]
        assert (tokenizer.tiling.mode, other.tiling.mode, other.tiling.tile) == ("auto", "exact", (128, 128))
        assert other.encode_plan(304, 304).total > 1 == tokenizer.encode_plan(304, 304).total


def test_errors_and_results_pass_through_the_worker() -> None:
    assert run_interruptibly(lambda: 3, lambda: pytest.fail("stopped")) == 3
    with pytest.raises(ValueError, match="no"):
        run_interruptibly(lambda: (_ for _ in ()).throw(ValueError("no")), lambda: pytest.fail("stopped"))


CHILD = """
    import sys
    import numpy as np
    from mgvq_export import Tokenizer
    from mgvq_export.runtime.ort import sessions

    real = sessions.run_interruptibly

    def observed(work, stop):
        def run():
            print("running", flush=True)
            try:
                return work()
            except Exception as error:
                print("terminated" if "terminate" in str(error) else error, flush=True)
                raise
        return real(run, stop)

    sessions.run_interruptibly = observed
    with Tokenizer.open(sys.argv[1], backend=sys.argv[2], tiling="off", threads=1) as tokenizer:
        try:
            tokenizer.encode(np.zeros((4096, 4096, 3), np.uint8))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sessions.run_interruptibly = real
            tokenizer.encode(np.zeros((16, 16, 3), np.uint8))
            print("usable", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_ends_a_long_run(tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tiny_bundle.path), "ort-cpu"]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "running\n"
        time.sleep(0.5)  # the run takes ten seconds and more
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=20)[0].split() == ["terminated", "interrupted", "usable"]
    finally:
        child.kill()
