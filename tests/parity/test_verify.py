"""verify: a good bundle passes, planted faults are caught by the question that names them, figures are recomputed independently."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mgvq_export.core.bundle import MANIFEST, Bundle
from mgvq_export.core.errors import BundleError, CheckFailed, InputError
from mgvq_export.core.json_files import json_bytes
from mgvq_export.core.manifest import graph_name
from mgvq_export.core.spec import Part
from mgvq_export.parity.results import FAILED, PASSED, SKIPPED, ParityReport
from mgvq_export.parity.verify import compare_with_network, verify
from mgvq_export.runtime.image_files import write_image
from mgvq_export.tests.support.faults import change_graph, scale_weight

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def good(tiny_bundle: Bundle, pictures: list[Path]) -> ParityReport:
    return verify(tiny_bundle, pictures)


def failed(report: ParityReport) -> set[str]:
    return {check.name for check in report.failed}


def statuses(report: ParityReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def codes_through(*nodes: "onnx.NodeProto") -> Callable:
    """A change of the quantizer graph: its codes pass through ``nodes``, from ``raw`` to ``codes``."""

    def change(model: "onnx.ModelProto") -> None:
        (codes,) = (node for node in model.graph.node if node.domain == "mgvq")
        at = list(model.graph.node).index(codes) + 1
        name = codes.output[0]
        codes.output[0] = "raw"
        nodes[-1].output[0] = name
        for offset, node in enumerate(nodes):
            model.graph.node.insert(at + offset, node)

    return change


# ---- good bundles


def test_a_good_bundle_passes(good: ParityReport, tiny_bundle: Bundle) -> None:
    assert good.passed, good.failed
    assert [name for name, status in statuses(good).items() if status == SKIPPED] == ["backend"]
    checks = {name.split("/")[0] for name in statuses(good)}
    assert checks == {"network", "precision", "backend", "quantizer", "decoder", "graphs", "batch", "tiling", "round-trip"}
    good.raise_if_failed()
    assert good.facts["images"] == {"a.png": [192, 224], "b.png": [80, 112]}


def test_the_figures_are_those_of_an_independent_computation(
    good: ParityReport, tiny_bundle: Bundle, tiny_network, pictures
) -> None:
    """Plain ONNX Runtime sessions without our kernel, PyTorch, numpy and scikit-image give the same figures."""
    skimage = pytest.importorskip("skimage.metrics")
    import torch
    from PIL import Image

    def session(precision: str, part: Part) -> "ort.InferenceSession":
        path = tiny_bundle.path / graph_name(precision, part)
        return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    latent_errors, half_errors, differing, total, pixel_errors, qualities = [], [], 0, 0, [], []
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        pixels = np.pad(pixels, ((0, -pixels.shape[0] % 16), (0, -pixels.shape[1] % 16), (0, 0)), mode="edge")
        image = (pixels.astype(np.float32) / 255 * 2 - 1).transpose(2, 0, 1)[None]
        with torch.inference_mode():
            wanted = tiny_network.latent(torch.from_numpy(image)).double()
            wanted_codes = tiny_network.encode(torch.from_numpy(image))
            wanted_pixels = tiny_network.decode(wanted_codes).numpy()
        (latent,) = session("fp32", Part.ENCODER).run(None, {"image": image})
        (half,) = session("fp16", Part.ENCODER).run(None, {"image": image.astype(np.float16)})
        latent_errors.append(float((torch.from_numpy(latent) - wanted).norm() / wanted.norm()))
        half_errors.append(float((torch.from_numpy(half) - torch.from_numpy(latent).double()).norm() / wanted.norm()))
        codes, quantized = session("fp32", Part.QUANTIZER).run(None, {"latent": latent})
        (half_codes, _) = session("fp16", Part.QUANTIZER).run(None, {"latent": half})
        differing, total = differing + int((codes != half_codes).sum()), total + codes.size
        assert (codes == wanted_codes.numpy()).all()
        (decoded,) = session("fp32", Part.DECODER).run(None, {"quantized": quantized})
        (half_decoded,) = session("fp16", Part.DECODER).run(None, {"quantized": quantized.astype(np.float16)})
        pixel_errors.append(float(np.abs(decoded - wanted_pixels).max()))
        qualities.append(skimage.peak_signal_noise_ratio(decoded, half_decoded.astype(np.float32), data_range=2))
    found = {check.name: check.value for check in good.checks}
    # Between fp32 ways the figure is rounding itself, which the order of operations decides: same size, not same digits.
    assert 0.2 < found["network/latent"] / max(latent_errors) < 5
    assert 0.2 < found["network/pixels"] / max(pixel_errors) < 5
    assert found["precision/fp16/latent"] == pytest.approx(max(half_errors), rel=0.5)
    assert found["precision/fp16/codes"] == pytest.approx(1 - differing / total, abs=0.005)
    assert found["precision/fp16/pixels"] == pytest.approx(min(qualities), abs=2)


def test_comparing_with_a_network_in_hand(tiny_bundle: Bundle, tiny_network) -> None:
    from mgvq_export.runtime.tokenizer import Tokenizer

    image = np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8)
    with Tokenizer.open(tiny_bundle) as tokenizer:
        report = compare_with_network(tokenizer, tiny_network, [image])
        assert statuses(report) == dict.fromkeys(
            ("network/codebook", "network/latent", "network/codes", "network/pixels"), PASSED
        )
        tiny_network.quant_conv.bias[0] += 0.1
        try:
            report = compare_with_network(tokenizer, tiny_network, {"noise": image})
        finally:
            tiny_network.quant_conv.bias[0] -= 0.1
    assert failed(report) == {"network/latent", "network/codes"}


# ---- planted faults


def test_a_swapped_pair_of_rows_in_the_quantizer(copy: Path, pictures: list[Path]) -> None:
    def swap(model: "onnx.ModelProto") -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "quantize.codebook")
        rows = onnx.numpy_helper.to_array(tensor, str(copy / "fp32")).copy()
        rows[1, [3, 17]] = rows[1, [17, 3]]  # two of 60 rows of one of 4 groups
        tensor.CopyFrom(onnx.numpy_helper.from_array(rows, tensor.name))

    change_graph(copy, "fp32", Part.QUANTIZER, swap)
    report = verify(copy, pictures[1:], only=["quantizer"])
    assert failed(report) >= {"quantizer/fp32/fused/rules", "quantizer/fp32/function/rules"}
    assert not any("fp16" in name for name in failed(report))
    (rules,) = (check for check in report.checks if check.name == "quantizer/fp32/fused/rules")
    assert re.search(r"of them real, .*first: probe, group 2, .*: (3 instead of 17|17 instead of 3)$", rules.detail), rules.detail


def test_a_decoder_weight_scaled(copy: Path, pictures: list[Path]) -> None:
    name = "decoder.stages.1.op_list.1.main.conv1.conv.weight"
    scale_weight(copy, "fp32", Part.DECODER_TRUNK, name, 1.01)
    report = verify(copy, pictures[1:], only=["network", "graphs", "precision"])
    assert failed(report) == {"network/pixels"}
    with pytest.raises(CheckFailed, match="network/pixels"):
        report.raise_if_failed()


@pytest.mark.parametrize("part", ["encoder_trunk", "decoder_trunk"])
def test_a_halo_short_by_one_step(copy: Path, pictures: list[Path], part: str) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    reach = manifest["reach"][part]
    halo = Bundle.open(copy).reach(Part(part)).halo
    reach["before"] = reach["after"] = halo - reach["stride_in"]
    (copy / MANIFEST).write_bytes(json_bytes(manifest))
    report = verify(copy, pictures[:1], only=["tiling", "batch"])
    figure = "latent" if part == "encoder_trunk" else "pixels"
    assert f"tiling/fp32/{figure}" in failed(report)
    assert all(name.startswith("tiling/") for name in failed(report))


def test_ties_broken_the_other_way(copy: Path, pictures: list[Path]) -> None:
    def last_wins(model: "onnx.ModelProto") -> None:
        (loop,) = (node for function in model.functions for node in function.node if node.op_type == "Loop")
        body = onnx.helper.get_node_attr_value(loop, "body")
        (arg_max,) = (node for node in body.node if node.op_type == "ArgMax")
        (last,) = (attribute for attribute in arg_max.attribute if attribute.name == "select_last_index")
        last.i = 1
        del loop.attribute[:]
        loop.attribute.append(onnx.helper.make_attribute("body", body))

    change_graph(copy, "fp32", Part.QUANTIZER, last_wins)
    report = verify(copy, pictures[1:], only=["quantizer"])
    assert failed(report) == {"quantizer/fp32/function/rules"}


def test_a_quantizer_off_by_one_group(copy: Path, pictures: list[Path], tiny_spec) -> None:
    order = onnx.numpy_helper.from_array(np.roll(np.arange(tiny_spec.groups), 1), "order")
    constant = onnx.helper.make_node("Constant", [], ["order"], value=order)
    gather = onnx.helper.make_node("Gather", ["raw", "order"], [""], axis=1)
    change_graph(copy, "fp32", Part.QUANTIZER, codes_through(constant, gather))
    report = verify(copy, pictures[1:], only=["quantizer", "network"])
    lowerings = {f"quantizer/fp32/{name}/{row}" for name in ("fused", "function") for row in ("codes", "rules")}
    assert failed(report) == {*lowerings, "network/codes"}


def test_codes_out_of_range_are_real_differences(copy: Path, pictures: list[Path]) -> None:
    offset = onnx.helper.make_node("Constant", [], ["offset"], value=onnx.numpy_helper.from_array(np.int32(-1), "offset"))
    change_graph(copy, "fp32", Part.QUANTIZER, codes_through(offset, onnx.helper.make_node("Add", ["raw", "offset"], [""])))
    report = verify(copy, pictures[1:], only=["network"])
    (codes,) = report.failed
    assert codes.name == "network/codes" and "are no valid codes" in codes.detail


def test_a_float16_overflow(copy: Path, pictures: list[Path]) -> None:
    """The map between trunk and head grows beyond 65504; the head scales it back, so nothing but the range is wrong."""

    def scaled(constant: float, *, at_start: bool) -> Callable:
        def change(model: "onnx.ModelProto") -> None:
            factor = onnx.numpy_helper.from_array(np.float16(constant), "factor")
            model.graph.initializer.append(factor)
            name = (model.graph.input if at_start else model.graph.output)[0].name
            for node in model.graph.node:
                names = node.input if at_start else node.output
                for index, used in enumerate(names):
                    if used == name:
                        names[index] = f"{name}_inside"
            ends = (name, f"{name}_inside") if at_start else (f"{name}_inside", name)
            node = onnx.helper.make_node("Mul", [ends[0], "factor"], [ends[1]])
            model.graph.node.insert(0 if at_start else len(model.graph.node), node)

        return change

    change_graph(copy, "fp16", Part.DECODER_HEAD, scaled(32768, at_start=False))
    change_graph(copy, "fp16", Part.DECODER_TRUNK, scaled(1 / 32768, at_start=True))
    report = verify(copy, pictures[:1], only=["precision", "graphs", "tiling"])
    assert failed(report) >= {"precision/fp16/pixels", "graphs/fp16/decoder", "tiling/fp16/pixels", "tiling/fp16/image"}
    assert all("fp16" in name for name in failed(report))
    assert statuses(report)["precision/fp16/latent"] == PASSED
    json.loads(json.dumps(report.to_dict(), allow_nan=False))


# ---- what is asked for, and bad input


def test_without_the_checkpoint_the_rows_say_why(copy: Path, pictures: list[Path]) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["source"]["name"] = "moved.safetensors"
    (copy / MANIFEST).write_bytes(json_bytes(manifest))
    report = verify(copy, pictures[1:], only=["network", "decoder"])
    skipped = [check for check in report.checks if check.status == SKIPPED]
    assert len(skipped) == 5 and all("--checkpoint" in check.detail for check in skipped)
    with pytest.raises(CheckFailed, match="not checked: network "):  # they were asked for by name
        report.raise_if_failed()
    ParityReport(report.checks).raise_if_failed()


def test_the_checkpoint_may_have_moved_but_must_be_the_right_one(
    copy: Path, pictures: list[Path], tiny_checkpoint_file: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    moved = Path(shutil.copy(tiny_checkpoint_file, tmp_path / "moved.safetensors"))
    report = verify(copy, pictures[1:], only=["network"], checkpoint=moved)
    assert [check.status for check in report.checks] == [PASSED] * 4
    tensors = load_file(moved)
    tensors["quantize.embedding.weight"][0] *= -1
    save_file(tensors, moved)
    with pytest.raises(BundleError, match="another codebook"):
        verify(copy, pictures[1:], only=["network"], checkpoint=moved)


def test_small_images_of_the_same_name_are_both_verified(tiny_bundle: Bundle, tmp_path: Path) -> None:
    paths = [tmp_path / folder / "same.png" for folder in ("one", "two")]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        write_image(path, np.random.default_rng(seed).integers(0, 256, (17, 33 + seed, 3), np.uint8))
    report = verify(tiny_bundle, paths, only=["tiling", "round-trip"])
    assert list(report.facts["images"]) == [str(path) for path in paths]
    assert all(check.detail == "no image is large enough to be cut into windows" for check in report.checks[:-1])
    assert not report.failed and {check.status for check in report.checks[:-1]} == {SKIPPED}
    assert report.missing == ["tiling (no image is large enough to be cut into windows)"]  # it was asked for by name


def test_unknown_questions_are_refused_with_a_list(tiny_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no check colour; choose network, precision, "):
        verify(tiny_bundle, only=["colour"])


def test_the_command(copy: Path, pictures: list[Path]) -> None:
    from mgvq_export.cli import main

    runner = CliRunner()
    result = runner.invoke(main, ["verify", str(copy), str(pictures[1]), "--only", "graphs", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["passed"] and {check["name"].split("/")[0] for check in facts["checks"]} == {"graphs"}
    scale_weight(copy, "fp32", Part.DECODER_TRUNK, "decoder.stages.1.op_list.1.main.conv1.conv.weight", 1.01)
    result = runner.invoke(main, ["verify", str(copy), str(pictures[1]), "--only", "network"])
    assert result.exit_code == 1 and FAILED in result.stdout
    assert result.stderr.count("\n") == 1 and "1 of 4 checks failed: network/pixels is" in result.stderr
    result = runner.invoke(main, ["verify", str(copy), "missing.png"])
    assert result.exit_code == 2 and "cannot read missing.png: no such file" in result.stderr


def without_its_checkpoint(bundle: Bundle, folder: Path) -> Bundle:
    """A copy whose manifest names a checkpoint that is nowhere."""
    import json
    import shutil

    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["source"]["name"] = "gone.safetensors"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(folder)


def test_a_named_check_that_cannot_be_made_fails(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = without_its_checkpoint(tiny_bundle, tmp_path / "bundle")
    named = verify(bundle, only=["network"], backend="ort-cpu")
    assert not named.passed and named.to_dict()["passed"] is False
    assert named.summary().startswith("NOT compared with the PyTorch network: the checkpoint 'gone.safetensors' is not here")
    with pytest.raises(CheckFailed, match="not checked: network .*gone.safetensors"):
        named.raise_if_failed()
    lax = ParityReport(named.checks)
    lax.raise_if_failed()  # among others it may be skipped
    strict = ParityReport(named.checks, strict=True)
    with pytest.raises(CheckFailed, match="not checked: network/"):
        strict.raise_if_failed()


def test_the_checkpoint_is_found_beside_the_bundle(
    tiny_bundle: Bundle, tiny_checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    bundle = without_its_checkpoint(tiny_bundle, tmp_path / "there" / "bundle")
    shutil.copy(tiny_checkpoint_file, tmp_path / "there" / "gone.safetensors")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert verify(bundle, only=["network"], backend="ort-cpu").passed
