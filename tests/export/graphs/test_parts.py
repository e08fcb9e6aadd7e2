"""The graphs of a bundle: equal to the network, dynamic in every size, the same bytes every time."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.spec import NETWORK_VALUES, ModelSpec, Part
from mgvq_export.export.bundles import export_bundle
from mgvq_export.export.graphs.builder import FLOAT, GraphBuilder, WeightStore
from mgvq_export.export.graphs.lowering import GATE_SLICES, fold_batch_norm, lower
from mgvq_export.model import layers
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.model.network import MGVQ
from mgvq_export.parity.metrics import relative_l2
from mgvq_export.runtime.ort.sessions import OrtSession
from mgvq_export.tests.support.reference import synthetic_image

LAYERS = {
    "conv": (lambda: layers.ConvLayer(8, 12), 8),
    "res_rms": (lambda: layers.ResBlock(8, "rms", "silu"), 8),
    "res_batch": (lambda: layers.ResBlock(8, "batch", "relu"), 8),
    "down_by_4": (lambda: layers.DownBlock(8, 8), 8),
    "down_by_2": (lambda: layers.DownBlock(8, 16), 8),
    "down_by_1": (lambda: layers.DownBlock(8, 32), 8),
    "up_by_4": (lambda: layers.UpBlock(8, 8), 8),
    "up_by_2": (lambda: layers.UpBlock(16, 8), 16),
    "up_by_1": (lambda: layers.UpBlock(32, 8), 32),
    "attention": (lambda: layers.LinearAttention(64), 64),
    "gated": (lambda: layers.GatedConv(32), 32),
    "evit": (lambda: layers.EViTBlock(32), 32),
    "to_latent": (lambda: layers.ProjectToLatent(32, 8), 32),
    "from_latent": (lambda: layers.ProjectFromLatent(8, 32), 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_lowered_to_what_it_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, channels = LAYERS[name]
    layer = make().eval()
    for buffer_name, buffer in layer.named_buffers():  # BatchNorm statistics that are not the trivial 0 and 1
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if buffer_name.endswith("var") else 0))
    store = WeightStore()
    graph = GraphBuilder(store, FLOAT)
    y = lower(layer, graph, graph.input("x", FLOAT, ("batch", channels, "height", "width")), "layer")
    graph.output("y", y, ("batch", "channels", "out_height", "out_width"))
    store.write(tmp_path / "weights.bin")
    (tmp_path / "layer.onnx").write_bytes(graph.model("layer").SerializeToString())
    onnx.checker.check_model(str(tmp_path / "layer.onnx"), full_check=True)
    session = OrtSession(tmp_path / "layer.onnx", fused_kernels=False)
    for shape in ((1, channels, 4, 6), (2, channels, 10, 2)):
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = layer(x).numpy()
        (found,) = session.run({"x": x.numpy()})
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no ONNX lowering for Dropout \(odd\)"):
        lower(torch.nn.Dropout(), GraphBuilder(WeightStore(), FLOAT), "x", "odd")


def test_batch_norm_folds_exactly() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, bias=True).double()
    norm = torch.nn.BatchNorm2d(5).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data.normal_()
    weight, bias = fold_batch_norm(conv.weight, conv.bias, norm)
    x = torch.randn(2, 3, 6, 6).double()
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, bias), norm(conv(x)))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 3e-3)])
@pytest.mark.parametrize("shape", [(1, 64, 96), (2, 32, 16)])
def test_graphs_equal_the_network(
    precision: str, limit: float, shape: tuple[int, int, int], tiny_bundle: Bundle, tiny_network: MGVQ
) -> None:
    batch, height, width = shape
    image = np.concatenate([synthetic_image(height, width, seed) for seed in range(batch)])
    for part, (source, target) in NETWORK_VALUES.items():
        layers_of_part = tiny_network.part(part)
        with torch.inference_mode():
            x = arriving(tiny_network, part, torch.from_numpy(image))
            expected = layers_of_part(x).numpy()
        (found,) = OrtSession(tiny_bundle.graph_path(precision, part)).run({source: x.numpy()})
        assert found.shape == expected.shape, (part, target)
        assert relative_l2(found, expected) <= limit, part


def arriving(network: MGVQ, part: Part, image: torch.Tensor) -> torch.Tensor:
    """What reaches ``part`` when the network runs on ``image``."""
    if part in (Part.ENCODER, Part.ENCODER_TRUNK, Part.ENCODER_TRUNK_FINE):
        return image
    before = {Part.ENCODER_TRUNK_COARSE: Part.ENCODER_TRUNK_FINE, Part.ENCODER_HEAD: Part.ENCODER_TRUNK}
    if part in before:
        return network.part(before[part])(image)
    quantized = network.quantize.decode(network.encode(image))
    if part in (Part.DECODER, Part.DECODER_HEAD):
        return quantized
    features = network.part(Part.DECODER_HEAD)(quantized)
    return network.part(Part.DECODER_TRUNK_COARSE)(features) if part is Part.DECODER_TRUNK_FINE else features


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_quantizer_and_dequantizer(precision: str, tiny_bundle: Bundle, tiny_network: MGVQ) -> None:
    with torch.inference_mode():
        latent = tiny_network.latent(torch.from_numpy(np.concatenate([synthetic_image(64, 96, s) for s in (1, 2)])))
        latent = latent.to(torch.float16 if precision == "fp16" else torch.float32)
        expected = tiny_network.quantize.encode(latent)
        rows = tiny_network.quantize.decode(expected).numpy()
        two = tiny_network.quantize.decode(expected, 2).numpy()
    for fused in (True, False):
        session = OrtSession(tiny_bundle.graph_path(precision, Part.QUANTIZER), fused_kernels=fused)
        codes, quantized = session.run({"latent": latent.numpy()})
        assert codes.dtype == np.int32
        np.testing.assert_array_equal(codes, expected.numpy())
        np.testing.assert_allclose(quantized, rows, atol=1e-3 if precision == "fp16" else 1e-6)
    session = OrtSession(tiny_bundle.graph_path(precision, Part.DEQUANTIZER))
    (quantized,) = session.run({"codes": expected.numpy(), "groups": np.array(2)})
    np.testing.assert_allclose(quantized, two, atol=1e-3 if precision == "fp16" else 1e-6)


def test_types_of_the_fp16_graphs(tiny_bundle: Bundle) -> None:
    model = onnx.load(tiny_bundle.graph_path("fp16", Part.ENCODER), load_external_data=False)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    assert {kinds[name] for node in convolutions for name in node.input[1:]} == {TensorProto.FLOAT16}
    norms = [node for node in model.graph.node if node.name.endswith("norm/scale")]
    assert norms
    assert {kinds[node.input[1]] for node in norms} == {TensorProto.FLOAT}
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_shape_arithmetic_only_where_attention_needs_it(tiny_bundle: Bundle) -> None:
    for part in tiny_bundle.spec.parts:
        model = onnx.load(tiny_bundle.graph_path("fp32", part), load_external_data=False)
        operators = [node.op_type for node in model.graph.node]
        attentions = sum(node.name.endswith("/attention") for node in model.graph.node)
        assert operators.count("Shape") == attentions
        assert not {"BatchNormalization", "Slice", "Cast", "Identity", "Dropout"} & set(operators)


def test_weights_are_stored_once(tiny_bundle: Bundle) -> None:
    places: dict[str, str] = {}
    for part in tiny_bundle.spec.parts:
        model = onnx.load(tiny_bundle.graph_path("fp32", part), load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in tensor.external_data}
                assert place["location"] == "weights.bin"
                assert places.setdefault(tensor.name, place["offset"]) == place["offset"]
    assert places["quantize.rows"] == places.pop("quantize.codebook")
    del places["quantize.rows"]
    assert len(set(places.values())) == len(places)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_slices_of_the_head_run_one_after_another(precision: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """What bounds the head's memory: ONNX Runtime adds up a slice before it starts the next, and attends before it makes queries."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    path = tiny_bundle.graph_path(precision, Part.ENCODER_HEAD)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dtype = np.float16 if precision == "fp16" else np.float32
    session.run(None, {"features": np.zeros((1, tiny_bundle.spec.trunk_channels, 8, 12), dtype)})
    events = json.loads(Path(session.end_profiling()).read_text())
    names = [event["name"] for event in events if event["name"].endswith("_kernel_time")]
    convolutions = [re.search(r"point_conv\.conv(/\w+?)?(?=_kernel|_nchwc)", name) for name in names]
    steps = [found[1] or "" for found in convolutions if found]
    one_block = ["/0", *(step for i in range(1, GATE_SLICES) for step in (f"/{i}", f"/sum_{i}"))]
    one_block[-1] = ""  # the last sum is the convolution's result
    assert steps == one_block * (len(steps) // len(one_block)) and steps
    order = [next(i for i, name in enumerate(names) if f"main{step}" in name) for step in ("/context", "/q_relu", "/product")]
    assert order == sorted(order)


def test_node_names_are_module_names(tiny_bundle: Bundle, tiny_network: MGVQ) -> None:
    modules = dict(tiny_network.named_modules())
    for part in NETWORK_VALUES:
        model = onnx.load(tiny_bundle.graph_path("fp32", part), load_external_data=False)
        for node in model.graph.node:
            assert node.name.split("/")[0] in modules


def test_two_exports_are_byte_identical(tiny_bundle: Bundle, tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    again = export_bundle(load_checkpoint(tiny_checkpoint_file), tmp_path / "again", precisions=("fp32", "fp16"))
    names = sorted(path.relative_to(again.path) for path in again.path.rglob("*") if path.is_file())
    assert len(names) > 20
    for name in names:
        assert (again.path / name).read_bytes() == (tiny_bundle.path / name).read_bytes(), name


def test_a_network_without_inner_cut(tmp_path: Path) -> None:
    from mgvq_export.tests.support.reference import synthetic_network

    spec = ModelSpec("short", (8, 32, 32), (1, 1, 1), (1, 1, 1), ("res", "evit", "evit"), 2, 2 * 16, latent_channels=8)
    assert len(spec.parts) == len(Part) - 4
    network = synthetic_network(spec)
    assert network(torch.zeros(1, 3, 8, 12)).shape == (1, 3, 8, 12)


# ---- runtimes that others use


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", [*(str(part) for part in Part), "quantizer_inlined"])
def test_symbolic_shapes_are_inferred(tiny_bundle, precision, name):
    """ONNX Runtime's own tool, which its quantization and its TensorRT provider ask for."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    model = onnx.load(tiny_bundle.path / precision / f"{name}.onnx")
    inferred = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.graph.value_info, *inferred.graph.output)}
    assert {name for node in model.graph.node for name in node.output} <= ranks.keys()
    assert [ranks[value.name] for value in model.graph.output] == [len(v.type.tensor_type.shape.dim) for v in model.graph.output]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_inlined_quantizer_is_the_quantizer(tiny_bundle, tiny_spec, precision, rng):
    entry = tiny_bundle.entry(precision).inlined
    path = tiny_bundle.check_file(entry)
    model = onnx.load(path, load_external_data=False)
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    dtype = np.float32 if precision == "fp32" else np.float16
    latent = rng.standard_normal((2, tiny_spec.latent_channels, 5, 7)).astype(dtype)
    wanted = onnxruntime.InferenceSession(str(tiny_bundle.graph_path(precision, Part.QUANTIZER))).run(None, {"latent": latent})
    for run in (_in_onnxruntime, _in_reference, _in_openvino):
        for found, value in zip(run(path, latent), wanted, strict=True):
            np.testing.assert_array_equal(found, value, err_msg=run.__name__)


def _in_onnxruntime(path, latent):
    return onnxruntime.InferenceSession(str(path)).run(None, {"latent": latent})


def _in_reference(path, latent):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load(path)).run(None, {"latent": latent})


def _in_openvino(path, latent):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({"latent": latent})
    return [found[name] for name in ("codes", "quantized")]
