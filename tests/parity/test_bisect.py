"""Bisection names the node where a planted difference arises, and no other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mgvq_export.core.bundle import MANIFEST, Bundle, file_entry
from mgvq_export.core.json_files import json_bytes, to_json
from mgvq_export.core.manifest import graph_name
from mgvq_export.core.spec import Part
from mgvq_export.parity.bisect import bisect

onnx = pytest.importorskip("onnx")


@pytest.fixture
def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (64, 80, 3), np.uint8)


def scale_initializer(bundle: Path, precision: str, part: Part, name: str, factor: float) -> None:
    path = bundle / graph_name(precision, part)
    model = onnx.load(path, load_external_data=False)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor, str(path.parent))
    with np.errstate(over="ignore"):
        tensor.CopyFrom(onnx.numpy_helper.from_array((values * factor).astype(values.dtype), name))
    onnx.save(model, path)
    manifest = json.loads((bundle / MANIFEST).read_text())
    entry = manifest["precisions"][precision]["graphs"][str(part)]
    entry.update(to_json(file_entry(bundle, entry["file"])))
    (bundle / MANIFEST).write_bytes(json_bytes(manifest))


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def test_a_good_bundle_has_no_origins_and_nearly_every_node_is_compared(tiny_bundle: Bundle, noise: np.ndarray) -> None:
    result = bisect(tiny_bundle, noise)
    assert result.origins == [] and len(result.summary) == 2
    with_network, precisions = (int(line.split(": ")[1].split()[0]) for line in result.summary)
    convolutions = 0
    nodes = 0
    for part in (Part.ENCODER_TRUNK, Part.ENCODER_HEAD, Part.DECODER_HEAD, Part.DECODER_TRUNK):
        graph = onnx.load(tiny_bundle.path / graph_name("fp32", part), load_external_data=False).graph
        # What one slice of the gated convolution's channels adds to its result is the one thing no module computes.
        convolutions += sum(node.op_type == "Conv" and ".point_conv.conv/" not in node.name for node in graph.node)
        nodes += sum(not node.name.endswith(("/size", "/shape")) for node in graph.node)  # those two hold integers
    assert with_network >= convolutions
    assert precisions == nodes


@pytest.mark.parametrize(
    ("part", "module"),
    [
        (Part.DECODER_TRUNK, "decoder.stages.1.op_list.1.main.conv2.conv"),
        (Part.ENCODER_HEAD, "quant_conv"),
        (Part.ENCODER_HEAD, "encoder.stages.3.op_list.0.context_module.main.qkv.conv/k"),
        (Part.DECODER_HEAD, "decoder.stages.4.op_list.0.local_module.main.depth_conv.conv/gate_2"),
    ],
)
def test_a_scaled_weight_is_found_by_the_name_of_its_module(copy: Path, noise: np.ndarray, part: Part, module: str) -> None:
    scale_initializer(copy, "fp32", part, f"{module}.weight", 1.01)
    found = [one for one in bisect(copy, noise).origins if one.comparison == "fp32 against the network"]
    assert [(one.part, one.node, one.operator) for one in found] == [(str(part), module, "Conv")]
    assert found[0].error > 1e-3 and found[0].error_before < 1e-5


def test_a_float16_overflow_is_found_where_it_begins(copy: Path, noise: np.ndarray) -> None:
    module = "encoder.stages.1.op_list.0.main.conv1.conv"
    scale_initializer(copy, "fp16", Part.ENCODER_TRUNK, f"{module}.weight", 2.0**17)
    result = bisect(copy, noise)
    assert [(one.comparison, one.node) for one in result.origins] == [("fp16 against fp32", module)]
    assert not np.isfinite(result.origins[0].error)
    json.loads(json.dumps(result.to_dict(), allow_nan=False))


def test_the_command_prints_the_node(copy: Path, noise: np.ndarray, tmp_path: Path) -> None:
    from mgvq_export.cli import main
    from mgvq_export.runtime.image_files import write_image

    scale_initializer(copy, "fp32", Part.ENCODER_HEAD, "quant_conv.weight", 1.01)
    write_image(tmp_path / "noise.png", noise)
    arguments = ["verify", str(copy), str(tmp_path / "noise.png"), "--only", "network", "--bisect"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "quant_conv" in result.stdout and "Differences arise at" in result.stdout
    facts = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert facts["bisect"]["origins"][0]["node"] == "quant_conv"
