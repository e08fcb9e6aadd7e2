"""A dry run of the GPU acceptance on the CPU with a tiny network: the sections that can run there.

The kernel's section is tested in ``tests/ops/test_kernel_launch.py``, TensorRT's in ``test_engines.py`` and
``tests/examples/test_embedding.py``.
"""

import numpy as np
import pytest

from mgvq_export.benchmarks.gpu import bundle, kernel, network
from mgvq_export.benchmarks.gpu.report import GpuOptions, Row, goal
from mgvq_export.core.spec import VARIANTS, ModelSpec
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.tokenizer import Tokenizer

#: Float16 convolutions take PyTorch's slowest path on a CPU, so the network is as small as one can be.
SMALLEST = ModelSpec("smallest", (8, 16, 32), (0, 1, 1), (0, 1, 1), ("res", "res", "evit"), 4, 4 * 60, 16)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def options(tmp_path) -> GpuOptions:
    sizes = {"check": (16, 16), "small": (32, 48), "large": (48, 64)}
    return GpuOptions("cpu", SMALLEST, repeats=2, ceiling=32, compiler="aot_eager", folder=tmp_path / "work", **sizes)


def judged(rows: list[Row]) -> dict[str, Row]:
    found = {row.check: row for row in rows if row.ok is not None}
    assert all(row.ok for row in found.values()), [str(row) for row in rows]
    return found


def test_network_section(options):
    rows = judged(list(network.network_section(options)))
    assert len(rows) == 2 + 3 * len(options.sizes)
    assert rows["fp16 48x32 against fp32: latent rel. L2"].value > 1e-5  # the half network really is one
    assert rows["fp32 16x16, cpu against CPU: latent rel. L2"].value == 0


def test_network_section_notices_a_wrong_half(options, monkeypatch):
    monkeypatch.setattr(network.copy, "deepcopy", lambda network: broken_copy(network))
    rows = {row.check: row for row in network.network_section(options)}
    assert rows["fp16 48x32 against fp32: latent rel. L2"].ok is False
    assert rows["fp16 48x32 against fp32: equal codes"].ok is False


def broken_copy(network):
    import pickle

    copied = pickle.loads(pickle.dumps(network))
    copied.quant_conv.weight.data *= -1
    return copied


def test_peers_section(options):
    rows = {row.check: row for row in network.peers_section(options)}
    for baseline in network.BASELINES:
        for verb in ("encode", "decode"):
            row = rows[f"{baseline.name}: {verb} 64x48"]
            assert row.value > 0 and row.facts["count"] == 2 and row.facts["share_of_ceiling"] > 0
    assert rows["encode 64x48: work"].value > 0


def test_peers_are_timed_as_engines_are(options, monkeypatch):
    """From numpy to numpy on the wall's clock; the device's own time stands beside it."""
    taken = []

    def wall_times(action, repeats, *, dry_run):
        taken.append(action())
        return [7.0] * repeats

    monkeypatch.setattr(network, "wall_times", wall_times)
    monkeypatch.setattr(network, "device_times", lambda action, options: [5.0, 5.0])
    monkeypatch.setattr(network, "BASELINES", network.BASELINES[:1])
    rows = {row.check: row for row in network.peers_section(options)}
    row = rows["torch eager fp32, TF32 off: encode 64x48"]
    assert row.value == 7.0 and row.facts["device_ms"] == 5.0 and "5 ms on the device" in str(row)
    codes, image = taken
    assert codes.dtype == np.int32 and codes.shape == (1, 4, 12, 16)
    assert image.dtype == np.uint8 and image.shape == (48, 64, 3)


def test_peers_encode_and_decode_as_the_tokenizer_does(with_bundle):
    import torch

    from mgvq_export.model.synthetic import synthetic_network

    image = bundle.waves(with_bundle.large)
    with torch.inference_mode():
        synthetic = synthetic_network(with_bundle.spec)
        runner = network._Runner(synthetic, network.BASELINES[0], with_bundle)
        codes = runner.encode(image)
        again = runner.decode(codes)
    with Tokenizer.open(with_bundle.folder / "tiny", backend="ort-cpu", precision="fp32") as tokenizer:
        tokens = tokenizer.encode(image)
        decoded = tokenizer.decode(tokens)
    assert np.mean(codes[0] == tokens.codes) > 0.99
    assert np.abs(again.astype(int) - decoded).max() <= 1


def test_an_image_too_large_for_the_gpu_is_a_row(options, monkeypatch):
    import torch

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(network._Runner, "encode", full)
    rows = list(network.peers_section(options))
    assert [row.value for row in rows[-len(network.BASELINES) :]] == ["out of memory"] * len(network.BASELINES)


def test_work_is_that_of_the_released_network():
    work = network.count_work(VARIANTS["mgvq-f16c32-g8"], (256, 256))
    assert work == {"encode": pytest.approx(516e9, rel=0.01), "decode": pytest.approx(683e9, rel=0.01)}


def test_argmin_section(options):
    rows = list(kernel.torch_section(options))
    assert [row.check for row in rows] == ["torch cdist/argmin dry run 2x64x4", "torch matmul/argmax dry run 2x64x4"]
    assert all(row.value > 0 and row.facts["differing_codes"] == 0 for row in rows)


def test_onnxruntime_section_makes_its_bundle(options):
    rows = list(bundle.onnxruntime_section(options))
    assert len(judged(rows)) == 6
    assert [row.unit for row in rows[-2:]] == ["ms p50"] * 2
    assert bundle.shared_bundle(options).precisions == ("fp32", "fp16")  # found again


def test_rows_say_limit_and_percentiles():
    row = Row.judged("codes", 0.9, tolerance("agreement", "fp16"))
    assert row.ok is False and "FAIL" in str(row) and "wanted >= 0.985" in str(row)
    assert Row.judged("latent", float("nan"), tolerance("latent", "fp16")).ok is False
    timed = Row.timed("encode", [1.0, 2.0, 3.0])
    assert timed.value == 2.0 and timed.facts["p99"] == pytest.approx(2.98) and "p90 2.8, p99 2.98" in str(timed)


@pytest.mark.parametrize(("milliseconds", "ok"), [(9.0, True), (11.0, False)])
def test_a_goal_is_judged_on_the_gpu_it_was_set_for(milliseconds, ok):
    row = Row.timed("encode", [milliseconds], **goal(10, "NVIDIA H200 NVL"))
    assert row.ok is ok and "(wanted <= 10 ms)" in str(row)
    for gpu in ("NVIDIA H100", "NVIDIA GH200 480GB"):
        row = Row.timed("encode", [milliseconds], **goal(10, gpu))
        assert row.ok is None and row.facts["note"] == "wanted on an H200: at most 10 ms"
