"""The OpenVINO backend against ONNX Runtime: the same codes, exact windows, and one line for whatever it cannot run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
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
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.spec import VARIANTS, Part
from mgvq_export.ops.contract import near_tie_margins
from mgvq_export.parity import graphs
from mgvq_export.parity.metrics import psnr
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.parity.verify import SAMPLES
from mgvq_export.runtime.image_files import read_image
from mgvq_export.runtime.openvino import backend as openvino_backend

pytest.importorskip("openvino", reason="openvino is not installed")

IMAGE = np.random.default_rng(2).integers(0, 256, (75, 101, 3), np.uint8)
LARGE = np.random.default_rng(3).integers(0, 256, (176, 304, 3), np.uint8)


@pytest.fixture(scope="module")
def reference(tiny_bundle: Bundle):
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32", threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Bundle):
    with Tokenizer.open(tiny_bundle, backend="openvino", precision="fp32", threads=2) as opened:
        yield opened


def check_codes(bundle: Bundle, image: np.ndarray) -> None:
    """Codes equal ONNX Runtime's but for near-ties; decoding the same codes gives the same pixels but for rounding."""
    with (
        Tokenizer.open(bundle, backend="ort-cpu", precision="fp32") as wanted,
        Tokenizer.open(bundle, backend="openvino", precision="fp32") as found,
    ):
        tokens = wanted.encode(image)
        latent = graphs.latent_of(wanted, image)
        margins = near_tie_margins(
            latent,
            graphs.codebook_of(wanted),
            found.encode(image).codes[None].astype(np.int32),
            tokens.codes[None].astype(np.int32),
        )
        assert (margins <= tolerance("codes", "fp32").limit).all()
        assert np.abs(found.decode(tokens).astype(int) - wanted.decode(tokens)).max() <= 1


def test_the_demo_model(tmp_path: Path) -> None:
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.model.checkpoint import load_checkpoint

    bundle = export_bundle(load_checkpoint("demo"), tmp_path / "bundle", precisions=("fp32",))
    photo = read_image(SAMPLES / "coffee.jpg")[:256, :384]
    check_codes(bundle, np.ascontiguousarray(photo))
    check_bf16(bundle, np.ascontiguousarray(photo))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mgvq-f16c32-g8" else pytest.mark.slow) for name in VARIANTS]
)
def test_released_variants(name: str, tmp_path: Path) -> None:
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.model.checkpoint import Checkpoint
    from mgvq_export.tests.support.reference import synthetic_state_dict

    spec = VARIANTS[name]
    bundle = export_bundle(
        Checkpoint(spec, synthetic_state_dict(spec), name, tmp_path, "0"), tmp_path / "bundle", precisions=("fp32",)
    )
    try:
        check_codes(bundle, np.ascontiguousarray(read_image(SAMPLES / "chelsea.jpg")[64:128, 64:160]))
    finally:
        shutil.rmtree(bundle.path)  # 800 MB


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (75, 101)])
def test_any_size_and_any_number_of_groups(size: tuple[int, int], tokenizer: Tokenizer, reference: Tokenizer) -> None:
    image = np.ascontiguousarray(IMAGE[: size[0], : size[1]])
    tokens = reference.encode(image)
    assert (tokenizer.encode(image).codes == tokens.codes).mean() > 0.99
    for groups in (1, 2, 4):
        found, wanted = (one.decode(tokens, groups=groups).astype(int) for one in (tokenizer, reference))
        assert np.abs(found - wanted).max() <= 1


def test_the_quantizer_is_the_graphs(tokenizer: Tokenizer, reference: Tokenizer, tiny_bundle: Bundle) -> None:
    latent = np.random.default_rng(0).standard_normal((3, 16, 5, 7), np.float32)
    latent[0, :, 0, 0], latent[1, 3, 2, 2] = 0, np.nan
    for precision, limit in (("fp32", 0), ("fp16", 0)):
        with (
            Tokenizer.open(tiny_bundle, backend="openvino", precision=precision) as one,
            Tokenizer.open(tiny_bundle, backend="ort-cpu", precision=precision) as two,
        ):
            found, wanted = (each.graphs[Part.QUANTIZER].run({"latent": latent}) for each in (one, two))
            assert [array.dtype for array in found] == [array.dtype for array in wanted]
            assert all(np.abs(a - b).max() <= limit for a, b in zip(found, wanted, strict=True))
            (codes,) = one.graphs[Part.QUANTIZER].run({"latent": latent}, ["codes"])
            assert np.array_equal(codes, found[0])


@pytest.mark.parametrize("tile", [128, (136, 184)])
def test_exact_tiling_is_exact(tokenizer: Tokenizer, tile: int | tuple[int, int]) -> None:
    tokens = tokenizer.encode(LARGE)
    tiled = tokenizer.with_tiling("exact", tile=tile)
    assert tiled.encode_plan(*LARGE.shape[:2]).total > 1
    assert tiled.encode(LARGE) == tokens
    assert np.array_equal(tiled.decode(tokens), tokenizer.decode(tokens))


def test_blend_runs_and_is_not_exact(tokenizer: Tokenizer) -> None:
    blended = tokenizer.with_tiling("blend", tile=128)
    assert (blended.encode(LARGE).codes != tokenizer.encode(LARGE).codes).any()


def test_batches_equal_single_calls(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((48, 80), (33, 65), (48, 80), (16, 16), (47, 79))]
    tokens = tokenizer.encode_batch(images)
    assert tokens == [tokenizer.encode(image) for image in images]
    assert all(np.array_equal(a, tokenizer.decode(b)) for a, b in zip(tokenizer.decode_batch(tokens), tokens, strict=True))


def test_a_memory_limit(tiny_bundle: Bundle, tokenizer: Tokenizer) -> None:
    with Tokenizer.open(tiny_bundle, backend="openvino", precision="fp32", memory_limit="64GiB", threads=2) as limited:
        assert limited.encode(LARGE) == tokenizer.encode(LARGE)
        with pytest.raises(InputError, match="memory limit of 1MiB is too small"):
            limited.with_tiling(memory_limit="1MiB").encode(LARGE, progress=lambda *_: pytest.fail("it ran"))


@pytest.mark.parametrize("tiled", [False, True])
def test_memory_is_what_was_predicted(tiny_bundle: Bundle, tiled: bool) -> None:
    from mgvq_export.parity.report.peak_memory import measure_peaks

    for row in measure_peaks(tiny_bundle, "fp32", (1088, 1600), tiled=tiled, backend="openvino"):
        assert row.predicted_bytes == pytest.approx(row.measured_bytes, rel=0.15), row


def test_verify_holds_it_to_the_tables_rows(tiny_bundle: Bundle, tmp_path: Path) -> None:
    from mgvq_export.parity.verify import verify
    from mgvq_export.runtime.image_files import write_image

    write_image(tmp_path / "large.png", LARGE)
    report = verify(
        tiny_bundle, [tmp_path / "large.png"], backend="openvino", only=["precision", "backend", "quantizer", "tiling"]
    )
    assert report.passed, report.failed
    rows = {check.name: check for check in report.checks}
    assert rows["backend/fp32/codes"].status == "passed" and "quantizer/fp32/openvino/codes" in rows
    half = rows["precision/bf16/pixels"]
    assert half.tolerance == tolerance("psnr", "bf16")
    assert half.status == ("passed" if openvino_backend.has_bf16() else "skipped")


def test_auto_prefers_it_to_onnx_runtime_on_the_cpu(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgvq_export.runtime.ort.backend.Path.exists", lambda self: False)  # no GPU
    with Tokenizer.open(tiny_bundle) as opened:
        assert opened.backend == "openvino"
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "openvino" else find_spec(name, *rest))
    with Tokenizer.open(tiny_bundle) as opened:
        assert opened.backend == "ort-cpu"
    with pytest.raises(BackendError, match=r"openvino is not installed: pip install 'mgvq-export\[openvino\]'"):
        Tokenizer.open(tiny_bundle, backend="openvino")


def test_an_older_release_is_one_line(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2024.6.0" if name == "openvino" else version(name))
    with pytest.raises(BackendError, match=r"openvino 2024.6.0 is installed; wanted 2025.2 or later"):
        Tokenizer.open(tiny_bundle, backend="openvino")


def check_bf16(bundle: Bundle, image: np.ndarray) -> None:
    """bfloat16 in the decoder leaves the codes alone; in the encoder it does not. Skipped on processors without."""
    if not openvino_backend.has_bf16():
        pytest.skip("this processor has no bfloat16 instructions")
    with (
        Tokenizer.open(bundle, backend="openvino", precision="fp32") as whole,
        Tokenizer.open(bundle, precision="bf16") as decoder,
        Tokenizer.open(bundle, backend="openvino", precision="bf16-all") as both,
    ):
        assert (decoder.backend, decoder.precision) == ("openvino", "bf16")
        tokens = whole.encode(image)
        assert decoder.encode(image) == tokens
        assert (both.encode(image).codes != tokens.codes).any()
        wanted = whole.decode(tokens)
        for one in (decoder, both):
            found = one.decode(tokens)
            assert tolerance("psnr", "bf16").holds(psnr(found, wanted)) and (found != wanted).any()


def test_bf16_is_refused_where_it_cannot_pay(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="precision bf16 does not run on ort-cpu; choose --backend openvino, or fp32"):
        Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="bf16")
    monkeypatch.setattr(openvino_backend, "has_bf16", lambda: False)
    for backend in ("auto", "openvino"):
        with pytest.raises(BackendError, match="precision bf16-all needs a processor with AVX-512 BF16 or AMX"):
            Tokenizer.open(tiny_bundle, backend=backend, precision="bf16-all")


def test_a_used_tokenizer_is_pickled(tokenizer: Tokenizer) -> None:
    wanted = tokenizer.encode(IMAGE)
    with pickle.loads(pickle.dumps(tokenizer)) as again:
        assert again.backend == "openvino" and again.encode(IMAGE) == wanted


def test_weights_that_are_a_link_are_refused(tiny_bundle: Bundle, tokenizer: Tokenizer, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    shutil.move(copy / "fp32" / "weights.bin", tmp_path / "weights")
    (copy / "fp32" / "weights.bin").symlink_to(tmp_path / "weights")
    with pytest.raises(
        BackendError, match="is a link to another folder, which openvino does not follow: copy the bundle with cp -rL"
    ):
        Tokenizer.open(copy, backend="openvino", precision="fp32")
    with Tokenizer.open(copy) as opened:
        assert opened.backend != "openvino" and opened.encode(IMAGE).codes.shape == tokenizer.encode(IMAGE).codes.shape


def test_errors_are_one_line(tokenizer: Tokenizer, tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="openvino cannot run encoder_head: ") as error:
        tokenizer.graphs[Part.ENCODER_HEAD].run({"features": np.zeros((1, 3, 4, 4), np.float32)})
    assert "\n" not in str(error.value) and "Exception from" not in str(error.value)


CHILD = """
    import sys
    import numpy as np
    from mgvq_export import Tokenizer
    from mgvq_export.runtime.openvino import sessions

    cancel, finish = sessions._cancel, sessions._finish

    def observed_cancel(request):
        cancel(request)
        print("cancelled", flush=True)

    def observed_finish(request):
        print("running", flush=True)
        finish(request)

    sessions._cancel, sessions._finish = observed_cancel, observed_finish
    with Tokenizer.open(sys.argv[1], backend="openvino", tiling="off", threads=1) as tokenizer:
        try:
            tokenizer.encode(np.zeros((4096, 4096, 3), np.uint8))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sessions._finish = finish
            tokenizer.encode(np.zeros((16, 16, 3), np.uint8))
            print("usable", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_ends_a_long_run(tiny_bundle: Bundle) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tiny_bundle.path)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "running\n"
        time.sleep(0.5)  # the run takes several seconds
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=60)[0].split() == ["cancelled", "interrupted", "usable"]
    finally:
        child.kill()
