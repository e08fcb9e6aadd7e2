"""Graphs written by a precision plan: the arithmetic against numpy, where Q/DQ stand, what stays as it was, and what is refused."""

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, numpy_helper

from mgvq_export.cli import main
from mgvq_export.core.budgets import Budgets
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError
from mgvq_export.core.precision_plan import LARGEST, MadeFor, NodePlan, PrecisionPlan
from mgvq_export.core.spec import TRUNKS, Part
from mgvq_export.export.bundles import export_bundle
from mgvq_export.export.engines.graphs import engine_graph
from mgvq_export.export.graphs import eight_bit
from mgvq_export.export.graphs.builder import FLOAT, FLOAT16, GraphBuilder, WeightStore
from mgvq_export.export.graphs.in_memory import load_session
from mgvq_export.export.graphs.parts import build_graph
from mgvq_export.export.graphs.plans import PlanNode, check_plan, plan_nodes
from mgvq_export.export.graphs.receptive_field import receptive_field
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.model.network import MGVQ
from mgvq_export.model.synthetic import synthetic_image
from mgvq_export.parity.metrics import psnr, relative_l2
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.images import to_float, to_uint8
from mgvq_export.runtime.ort.sessions import OrtSession
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.tests.support.checks import assert_refused, one_line

BASES = {"fp32": (FLOAT, np.float32), "fp16": (FLOAT16, np.float16)}
UP = "decoder.stages.1.op_list.0"  # an UpBlock
RES = "decoder.stages.1.op_list.1"  # a ResBlock


# ---- arithmetic


def to_fp8(values: np.ndarray) -> np.ndarray:
    """The nearest E4M3FN number, ties to even, from its definition: 3 bits after the point, exponents from -6, at most 448."""
    magnitude = np.minimum(np.abs(values.astype(np.float64)), 448)
    exponent = np.maximum(np.floor(np.log2(np.maximum(magnitude, 2.0**-20))), -6)
    step = 2.0 ** (exponent - 3)
    return np.sign(values) * np.minimum(np.rint(magnitude / step) * step, 448)


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    return np.clip(np.rint(values), -128, 127) if kind == "int8" else to_fp8(values)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 convolution with zero padding, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bihwyx,oiyx->bohw", windows, weight) + bias[:, None, None]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("given", [False, True], ids=["own scales", "given scales"])
def test_a_quantized_convolution_is_the_oracle(kind: str, base: str, given: bool, rng: np.random.Generator) -> None:
    dtype, numpy_dtype = BASES[base]
    weight = rng.standard_normal((6, 5, 3, 3)).astype(np.float32) * np.logspace(-4, 1, 6)[:, None, None, None].astype(np.float32)
    weight[3] = 0  # a channel without a range
    bias = rng.standard_normal(6).astype(np.float32)
    x = rng.standard_normal((2, 5, 7, 9)).astype(numpy_dtype)
    scale = 2.0 / LARGEST[kind]  # values above 2 are clipped
    x.flat[:3] = np.array([0.5, 1.5, -2.5]) * (2.0 / 127)  # halves, rounded to even
    weight_scales = tuple((np.arange(6) + 1.0) / LARGEST[kind]) if given else ()
    plan = PrecisionPlan("p", base, {"conv": NodePlan(kind, {0: scale}, weight_scales)})
    store = WeightStore()
    graph = GraphBuilder(store, dtype, plan)
    source = graph.input("x", dtype, ("b", 5, "h", "w"))
    y = graph.node(
        "Conv",
        source,
        graph.weight("w", weight),
        graph.weight("b", bias),
        name="conv",
        kernel_shape=(3, 3),
        pads=[1] * 4,
        group=1,
    )
    graph.output("y", y, ("b", 6, "h", "w"))
    (found,) = load_session(graph.model("g"), store).run(None, {"x": x})

    own = np.abs(weight).max(axis=(1, 2, 3)) / LARGEST[kind]
    wanted_scales = np.array(weight_scales) if given else np.where(own > 0, own, 1)
    scales = store.offsets[f"w.{kind}.scale"][1]
    assert scales.dtype == numpy_dtype and np.all(scales >= wanted_scales)
    np.testing.assert_allclose(scales, wanted_scales, rtol=2e-3 if base == "fp16" else 2e-7, atol=6e-8)
    stored = np.float64(eight_bit.stored_scale(scale, kind, np.dtype(numpy_dtype)))
    values = rounded(np.float64(x) / stored, kind) * stored
    scales = scales.astype(np.float64)[:, None, None, None]
    weights = np.clip(rounded(weight / scales, kind), -LARGEST[kind], LARGEST[kind]) * scales
    expected = convolve(values, weights, bias)
    assert relative_l2(found, expected) < (1e-6 if base == "fp32" else 1e-3)
    assert relative_l2(found, convolve(x, weight, bias)) > 1e-3  # the test would see a convolution that is not quantized


def test_small_scales_survive_float16() -> None:
    half = np.dtype(np.float16)
    assert eight_bit.stored_scale(1e-12, "int8", half) > 0
    weight = np.full((2, 1, 1, 1), 1e-5, np.float32)
    scales = eight_bit.weight_scales(weight, "int8", half)
    assert np.all(scales.astype(np.float64) * 127 >= 1e-5)  # nothing is clipped
    assert np.array_equal(eight_bit.quantize(np.array([9e9, -9e9]), np.ones(2), "int8"), np.array([127, -127], np.int8))
    assert eight_bit.quantize(np.array([9e9]), np.ones(1), "fp8").astype(np.float32) == 448
    with pytest.raises(InputError, match="up to 88900; float16 ends at 65504: choose fp32"):
        eight_bit.stored_scale(700, "int8", half)
    assert eight_bit.stored_scale(700, "int8", np.dtype(np.float32)) == 700


def test_fp8_rounds_as_its_definition(rng: np.random.Generator) -> None:
    values = np.concatenate(
        [rng.standard_normal(2000) * np.logspace(-3, 2.5, 2000), np.linspace(-460, 460, 921), [0.0, 2**-9, 2**-10]]
    )
    np.testing.assert_array_equal(eight_bit.quantize(values, np.ones(1), "fp8").astype(np.float64), to_fp8(values))


# ---- plans of the tiny network


@pytest.fixture(scope="module")
def known(tiny_network: MGVQ) -> dict[str, PlanNode]:
    return plan_nodes(tiny_network)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.concatenate([synthetic_image(64, 96, seed) for seed in (1, 2)])


@pytest.fixture(scope="module")
def feeds(tiny_network: MGVQ, image: np.ndarray) -> dict[Part, np.ndarray]:
    import torch

    with torch.inference_mode():
        codes = tiny_network.encode(torch.from_numpy(image))
        return {Part.ENCODER: image, Part.DECODER: tiny_network.quantize.decode(codes).numpy()}


@pytest.fixture(scope="module")
def largest(tiny_network: MGVQ, known: dict[str, PlanNode], feeds: dict[Part, np.ndarray]) -> dict[str, float]:
    """The largest magnitude of every value that a quantized node reads."""
    found = {}
    for part, feed in feeds.items():
        store = WeightStore()
        model = build_graph(tiny_network, part, "fp32", store)
        (source,) = (value.name for value in model.graph.input)
        names = {value for node in known.values() if node.side == part for value in node.inputs} & {
            value for node in model.graph.node for value in node.output
        }
        outputs = load_session(model, store, outputs=sorted(names)).run(None, {source: feed})
        found |= dict(zip(sorted(names), (float(np.abs(value).max()) for value in outputs[1:]), strict=True))
        found[source] = float(np.abs(feed).max())
    return found


@pytest.fixture(scope="module")
def make_plan(known: dict[str, PlanNode], largest: dict[str, float], tiny_network: MGVQ):
    """A plan that quantizes every convolution that can be, and the skip branch of every residual sum."""

    def make(kind: str = "int8", base: str = "fp32", sides: tuple[str, ...] = ("decoder",), name: str = "int8") -> PrecisionPlan:
        nodes = {}
        for node in known.values():
            position = 0 if node.op == "Conv" else node.skip
            if node.side in sides and node.quantizable and position is not None:
                nodes[node.name] = NodePlan(kind, {position: largest[node.inputs[position]] / LARGEST[kind]})
        return PrecisionPlan(name, base, nodes)

    return make


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint_file: Path, make_plan, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """fp32; int8 on a float16 decoder; int8 and fp8 everywhere on float32."""
    plans = [
        make_plan("int8", "fp16"),
        make_plan("int8", "fp32", ("encoder", "decoder"), "int8-all"),
        make_plan("fp8", "fp32", ("encoder", "decoder"), "fp8"),
    ]
    checkpoint = load_checkpoint(tiny_checkpoint_file)
    return export_bundle(checkpoint, tmp_path_factory.mktemp("plans") / "bundle", plans=plans)


def load(bundle: Bundle, precision: str, part: Part) -> onnx.ModelProto:
    return onnx.load(bundle.graph_path(precision, part), load_external_data=False)


class Walk:
    """A graph's nodes by the values they make, its initializers, and the rules that every Q/DQ pair keeps."""

    def __init__(self, model: onnx.ModelProto, kind: int):
        self.kind = kind
        self.nodes = {output: node for node in model.graph.node for output in node.output}
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def scale(self, value: str) -> float | None:
        """The scale of the pair that an activation comes out of; None when there is none."""
        restore = self.nodes.get(value)
        if restore is None or restore.op_type != "DequantizeLinear":
            return None
        quantize = self.nodes[restore.input[0]]
        assert quantize.op_type == "QuantizeLinear"
        assert list(quantize.input[1:]) == list(restore.input[1:])
        scale, zero = (numpy_helper.to_array(self.initializers[name]) for name in quantize.input[1:])
        assert scale.shape == zero.shape == ()
        assert self.initializers[quantize.input[2]].data_type == self.kind and float(zero) == 0
        return float(scale)

    def source(self, value: str) -> str:
        """What goes into the pair that ``value`` comes out of."""
        return self.nodes[self.nodes[value].input[0]].input[0]

    def check_weights(self, node: onnx.NodeProto, quantized: bool) -> None:
        """A convolution's weight has a scale per output channel, along axis 0, or is a float; its bias always is."""
        for name in node.input[1 + quantized :]:
            assert self.initializers[name].data_type in (FLOAT, FLOAT16), node.name
        if quantized:
            restore = self.nodes[node.input[1]]
            assert restore.op_type == "DequantizeLinear" and [a.i for a in restore.attribute if a.name == "axis"] == [0]
            weight, scale = (self.initializers[name] for name in restore.input)
            assert weight.data_type == self.kind and list(scale.dims) == [weight.dims[0]]


CASES = [("int8", TensorProto.INT8), ("int8-all", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)]


@pytest.mark.parametrize(("precision", "kind"), CASES)
def test_q_and_dq_stand_where_the_plan_says_and_nowhere_else(precision: str, kind: int, bundle: Bundle) -> None:
    plan = bundle.plan(precision)
    assert plan is not None
    seen: set[str] = set()
    for part in bundle.spec.parts:
        model = load(bundle, precision, part)
        walk = Walk(model, kind)
        pairs, weights = set(), 0
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                continue
            entry = plan.nodes.get(node.name)
            activations = list(node.input[: 1 if node.op_type == "Conv" else None])
            scales = {position: scale for position, name in enumerate(activations) if (scale := walk.scale(name))}
            assert scales == pytest.approx(dict(entry.scales) if entry else {}, rel=1e-3), node.name
            pairs |= {(walk.source(activations[position]), scale) for position, scale in scales.items()}
            if node.op_type == "Conv":
                walk.check_weights(node, entry is not None)
                weights += entry is not None
            if entry:
                seen.add(node.name)
        counts = Counter(node.op_type for node in model.graph.node)
        assert counts["QuantizeLinear"] == len(pairs)  # one pair per value and scale, and no others
        assert counts["DequantizeLinear"] == len(pairs) + weights
        if part in (Part.QUANTIZER, Part.DEQUANTIZER):
            assert not pairs
    assert seen == set(plan.nodes)


def test_readers_of_one_value_share_a_pair(tiny_network: MGVQ, make_plan) -> None:
    plan = make_plan()
    first, skip = f"{RES}.main.conv1.conv", RES
    assert plan.nodes[first].scales[0] == plan.nodes[skip].scales[0]
    model = build_graph(tiny_network, Part.DECODER, plan, WeightStore())
    nodes = {node.name: node for node in model.graph.node}
    assert nodes[first].input[0] == nodes[skip].input[0] == f"{first}/dequantize_0"
    other = replace(plan, nodes={**plan.nodes, skip: NodePlan("int8", {0: 1.0})})
    nodes = {node.name: node for node in build_graph(tiny_network, Part.DECODER, other, WeightStore()).graph.node}
    assert nodes[first].input[0] != nodes[skip].input[0] == f"{skip}/dequantize_0"


def test_scales_have_the_graphs_type(bundle: Bundle) -> None:
    for precision, dtype in (("int8", FLOAT16), ("int8-all", FLOAT)):
        model = load(bundle, precision, Part.DECODER_TRUNK)
        kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert {
            kinds[n.input[1]] for n in model.graph.node if n.op_type.endswith("quantizeLinear") or n.op_type == "QuantizeLinear"
        } == {dtype}


def test_only_named_nodes_change(bundle: Bundle, tiny_network: MGVQ) -> None:
    """A decoder plan leaves the encoder, quantizer and dequantizer as float16 has them, to the byte but for places in the file."""

    def without_places(model: onnx.ModelProto) -> bytes:
        for tensor in model.graph.initializer:
            del tensor.external_data[:]
        return model.SerializeToString(deterministic=True)

    store = WeightStore()
    for part in bundle.spec.parts:
        plain = build_graph(tiny_network, part, "fp16", store)
        same = without_places(plain) == without_places(load(bundle, "int8", part))
        assert same is (not part.value.startswith("decoder")), part


def test_weights_are_stored_once_and_small(bundle: Bundle) -> None:
    plan = bundle.plan("int8-all")
    assert plan is not None
    places: dict[str, tuple[str, int]] = {}
    for part in bundle.spec.parts:
        for tensor in load(bundle, "int8-all", part).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in tensor.external_data}
                assert places.setdefault(tensor.name, (place["offset"], tensor.data_type)) == (place["offset"], tensor.data_type)
    convolutions = [name for name in plan.nodes if f"{name}.weight.int8" in places]
    assert len(convolutions) > 20
    for name in convolutions:
        assert places[f"{name}.weight.int8"][1] == TensorProto.INT8
        assert f"{name}.weight" not in places  # no float copy is left


@pytest.mark.parametrize("precision", [precision for precision, _ in CASES])
def test_graphs_run_and_are_near_fp32(precision: str, bundle: Bundle, feeds: dict[Part, np.ndarray]) -> None:
    """Also: trunk and head, and the trunk's halves, give what the whole gives."""
    cuts = {
        Part.ENCODER: [
            (Part.ENCODER_TRUNK, Part.ENCODER_HEAD),
            (Part.ENCODER_TRUNK_FINE, Part.ENCODER_TRUNK_COARSE, Part.ENCODER_HEAD),
        ],
        Part.DECODER: [
            (Part.DECODER_HEAD, Part.DECODER_TRUNK),
            (Part.DECODER_HEAD, Part.DECODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE),
        ],
    }

    def run(which: str, part: Part, x: np.ndarray) -> np.ndarray:
        session = OrtSession(bundle.graph_path(which, part))
        return session.run({next(iter(session.inputs)): x})[0]

    for whole, ways in cuts.items():
        expected, found = run("fp32", whole, feeds[whole]), run(precision, whole, feeds[whole])
        error = relative_l2(found, expected)
        assert error < (0.2 if bundle.kind(precision, whole) in LARGEST else 3e-3), whole
        assert error > 1e-6
        for way in ways:
            x = feeds[whole]
            for part in way:
                x = run(precision, part, x)
            assert relative_l2(x, found) < (1e-2 if bundle.base(precision) == "fp16" else 1e-5), way


def test_the_tokenizer_runs_it(bundle: Bundle, photo: np.ndarray) -> None:
    with Tokenizer.open(bundle, precision="int8") as int8, Tokenizer.open(bundle, precision="fp32") as fp32:
        tokens = fp32.encode(photo)
        assert np.mean(int8.encode(photo).codes == tokens.codes) > 0.95  # a float16 encoder
        assert 25 < psnr(int8.decode(tokens), fp32.decode(tokens)) < 80


def test_reach_is_that_of_fp32(bundle: Bundle) -> None:
    for part in TRUNKS:
        assert receptive_field(load(bundle, "int8-all", part)) == bundle.reach(part)


# ---- islands


def test_islands_are_typed_and_cast(tiny_network: MGVQ, feeds: dict[Part, np.ndarray]) -> None:
    conv, norm = f"{RES}.main.conv1.conv", "decoder.project_out.op_list.0/scale"
    plan = PrecisionPlan("fp16", "fp16", {conv: NodePlan("fp32"), norm: NodePlan("fp16")})
    store = WeightStore()
    model = build_graph(tiny_network, Part.DECODER, plan, store)
    walk = Walk(model, 0)
    nodes = {node.name: node for node in model.graph.node}
    assert {walk.initializers[name].data_type for name in nodes[conv].input[1:]} == {FLOAT}
    assert all(walk.initializers[name].name.endswith(".float") for name in nodes[conv].input[1:])
    assert walk.nodes[nodes[conv].input[0]].op_type == "Cast"
    assert walk.initializers[nodes[norm].input[1]].data_type == FLOAT16
    assert model.graph.output[0].type.tensor_type.elem_type == FLOAT16
    inferred = onnx.shape_inference.infer_shapes(inlined(model, store), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert (types[conv], types[norm]) == (FLOAT, FLOAT16)
    (found,) = load_session(model, store).run(None, {"quantized": feeds[Part.DECODER].astype(np.float16)})
    store = WeightStore()
    (wanted,) = load_session(build_graph(tiny_network, Part.DECODER, "fp32", store), store).run(
        None, {"quantized": feeds[Part.DECODER]}
    )
    assert relative_l2(found, wanted) < 5e-3


def inlined(model: onnx.ModelProto, store: WeightStore) -> onnx.ModelProto:
    """The model with its weights inside."""
    arrays = dict(store.offsets.values())
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
            tensor.CopyFrom(numpy_helper.from_array(arrays[offset].reshape(tuple(tensor.dims)), tensor.name))
    return model


# ---- what a plan may name


def test_plan_nodes(known: dict[str, PlanNode], tiny_network: MGVQ) -> None:
    conv = known[f"{RES}.main.conv1.conv"]
    assert conv.op == "Conv" and conv.side == "decoder" and conv.dtype == "fp16" and conv.quantizable and conv.groups == 1
    assert conv.inputs == (UP,)
    assert conv.macs == 32 * 32 * 9 / 4  # at half the resolution
    depthwise = next(node for node in known.values() if ".depth_conv." in node.name)
    assert depthwise.groups > 1 and not depthwise.quantizable
    assert [known[name].skip for name in (RES, UP, "decoder.project_in", "encoder.project_out")] == [0, 1, 1, 1]
    attention = next(node for node in known.values() if node.op == "MatMul")
    assert attention.dtype == "fp32" and not attention.quantizable and attention.macs > 0
    assert known["quant_conv"].side == "encoder" and known["post_quant_conv"].side == "decoder"
    assert not any(name.startswith("quantize") for name in known)
    modules = dict(tiny_network.named_modules())
    for name, node in known.items():
        assert name.split("/")[0] in modules
        assert (node.skip is None) or (node.op == "Add" and node.quantizable)


def test_all_work_is_counted(known: dict[str, PlanNode], tiny_network: MGVQ) -> None:
    """Against PyTorch: the multiply-adds of every convolution module, by a hook on its output."""
    import torch

    counted = 0.0

    def count(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal counted
        counted += module.weight.numel() * output.shape[2] * output.shape[3] / (32 * 48)

    hooks = [m.register_forward_hook(count) for m in tiny_network.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.inference_mode():
        tiny_network.reconstruct(tiny_network.latent(torch.zeros(1, 3, 32, 48)))
    for hook in hooks:
        hook.remove()
    assert sum(node.macs for node in known.values() if node.op == "Conv") == pytest.approx(counted)


REFUSED = {
    "unknown": (f"{RES}.main.conv3.conv", NodePlan("fp32"), rf"does not have; nearest: {RES}.main.conv[12].conv"),
    "quantizer": ("quantize/argmin", NodePlan("fp32"), "the quantizer's graph is left as it is"),
    "depthwise": (".depth_conv.", NodePlan("int8", {0: 1.0}), r"\(Conv\) cannot be int8: it is a depthwise or grouped"),
    "grouped": ("post_quant_conv", NodePlan("int8", {0: 1.0}), "depthwise or grouped"),
    "product": ("/product", NodePlan("fp8", {0: 1.0}), r"\(MatMul\) cannot be fp8: only convolutions and sums"),
    "sum with a constant": ("/add_eps", NodePlan("int8", {0: 1.0}), r"\(Add\) cannot be int8: only convolutions and sums"),
    "the weight's position": (
        f"{RES}.main.conv1.conv",
        NodePlan("int8", {0: 1.0, 1: 1.0}),
        "inputs 0, 1: wanted that of input 0",
    ),
    "weight scales": (
        f"{RES}.main.conv1.conv",
        NodePlan("int8", {0: 1.0}, (1.0, 2.0)),
        "2 weight scales: it has 32 output channels",
    ),
    "third operand": (RES, NodePlan("int8", {2: 1.0}), "a sum has the inputs 0 and 1"),
    "weights of a sum": (RES, NodePlan("int8", {0: 1.0}, (1.0,)), "a sum has no weights"),
    "too large a scale": (f"{RES}.main.conv1.conv", NodePlan("int8", {0: 700.0}), "values up to 88900; float16 ends at 65504"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str, known: dict[str, PlanNode], tiny_network: MGVQ) -> None:
    name, node, match = REFUSED[case]
    name = next((full for full in known if name in full and name[0] in "./"), name)
    with pytest.raises(InputError, match=match) as caught:
        check_plan(PrecisionPlan("mine", "fp16", {name: node}), tiny_network)
    assert one_line(str(caught.value)) and name in str(caught.value)


def test_a_refused_plan_leaves_nothing(tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint_file)

    def refused(match: str, *plans: PrecisionPlan, precisions: tuple[str, ...] = ("fp32",)) -> None:
        with pytest.raises(InputError, match=match) as caught:
            export_bundle(checkpoint, tmp_path / "bundle", precisions=precisions, plans=plans)
        assert one_line(str(caught.value))
        assert list(tmp_path.iterdir()) == []

    refused("nearest", PrecisionPlan("int8", "fp16", {"decoder.conv": NodePlan("fp32")}))
    refused("another checkpoint", PrecisionPlan("int8", "fp16", {}, MadeFor("demo", codebook_sha256="0" * 64)))
    refused("another checkpoint", PrecisionPlan("int8", "fp16", {}, MadeFor("demo", checkpoint_sha256="0" * 64)))
    refused("two precisions are called fp16", PrecisionPlan("fp16", "fp16", {}), precisions=("fp32", "fp16"))
    refused("two precisions are called a", PrecisionPlan("a", "fp16", {}), PrecisionPlan("a", "fp32", {}))
    refused("no precision int8; choose fp32, fp16; int8 needs a plan", precisions=("int8",))


# ---- bundles


def test_the_bundle_records_the_plan(bundle: Bundle, make_plan) -> None:
    assert bundle.precisions == ("fp32", "int8", "int8-all", "fp8")
    assert bundle.plan("fp32") is None
    assert bundle.plan("int8") == make_plan("int8", "fp16")
    assert (bundle.base("int8"), bundle.kind("int8", "encoder"), bundle.kind("int8", "decoder")) == ("fp16", "fp16", "int8")
    bundle.check_all()
    entry = bundle.entry("int8")
    assert entry.plan.file == "int8/plan.json"


def test_a_changed_plan_is_found(tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    plan = PrecisionPlan(
        "mine", "fp16", {RES: NodePlan("int8", {0: 0.5})}, calibration={"images": [{"name": "a", "sha256": "0"}]}
    )
    bundle = export_bundle(load_checkpoint(tiny_checkpoint_file), tmp_path / "bundle", precisions=(), plans=[plan])
    assert bundle.precisions == ("mine",) and bundle.reach(Part.DECODER_TRUNK).stride_out == 8
    assert bundle.entry("mine").calibration == plan.calibration
    path = bundle.path / "mine" / "plan.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(BundleError, match="plan.json has changed since"):
        Bundle.open(bundle.path).check_all()


def test_two_exports_are_byte_identical(bundle: Bundle, make_plan, tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    plans = [make_plan("fp8", "fp32", ("encoder", "decoder"), "fp8")]
    again = export_bundle(load_checkpoint(tiny_checkpoint_file), tmp_path / "again", precisions=(), plans=plans)
    files = sorted(path.name for path in (again.path / "fp8").iterdir())
    assert {"weights.bin", "plan.json"} < set(files)
    for file in files:
        assert (again.path / "fp8" / file).read_bytes() == (bundle.path / "fp8" / file).read_bytes(), file


def test_graphs_in_memory_are_those_on_disk(bundle: Bundle, tiny_network: MGVQ, feeds: dict[Part, np.ndarray]) -> None:
    plan = bundle.plan("int8")
    assert plan is not None
    store = WeightStore()
    model = build_graph(tiny_network, Part.DECODER, plan, store)
    before = model.SerializeToString(deterministic=True)
    session = load_session(model, store, outputs=[UP, f"{RES}.main.conv1.conv"], threads=1)
    assert model.SerializeToString(deterministic=True) == before
    x = feeds[Part.DECODER].astype(np.float16)
    pixels, up, hidden = session.run(None, {"quantized": x})
    assert up.shape == hidden.shape == (2, 32, 32, 48)
    (wanted,) = OrtSession(bundle.graph_path("int8", Part.DECODER), threads=1).run({"quantized": x})
    assert relative_l2(pixels, wanted) < 1e-2


@pytest.mark.parametrize(
    ("precision", "part"),
    [("int8", Part.DECODER), ("int8-all", Part.DECODER), ("int8-all", Part.ENCODER), ("fp8", Part.DECODER)],
)
def test_engine_graphs_of_a_plan(
    precision: str, part: Part, bundle: Bundle, feeds: dict[Part, np.ndarray], rng: np.random.Generator, tmp_path: Path
) -> None:
    """What TensorRT is given: Q/DQ and 8-bit weights stay, images become uint8, and the numbers are the runtime's."""
    import onnxruntime as ort

    path = bundle.graph_path(precision, part)
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(engine_graph(path).model)
    (tmp_path / "weights.bin").write_bytes((path.parent / "weights.bin").read_bytes())
    onnx.checker.check_model(str(changed), full_check=True)
    counts = [Counter(node.op_type for node in onnx.load(p, load_external_data=False).graph.node) for p in (path, changed)]
    assert counts[0]["QuantizeLinear"] == counts[1]["QuantizeLinear"] > 0
    assert counts[0]["DequantizeLinear"] == counts[1]["DequantizeLinear"]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain, engine = (ort.InferenceSession(str(p), options, providers=["CPUExecutionProvider"]) for p in (path, changed))
    if part is Part.ENCODER:
        images = rng.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
        floats = np.concatenate([to_float(image) for image in images])
        (expected,), found = plain.run(None, {"image": floats}), engine.run(["latent"], {"image": images})[0]
        np.testing.assert_array_equal(found, expected)
        return
    (source,) = plain.get_inputs()
    x = feeds[part].astype(np.float16 if source.type == "tensor(float16)" else np.float32)
    expected = np.stack([to_uint8(one) for one in plain.run(None, {"quantized": x})[0].astype(np.float32)])
    found = engine.run(["image"], {"quantized": x})[0]
    # ONNX Runtime computes float16 graphs in float32 and rounds where a value leaves: the image does so in one of them only.
    assert np.abs(found.astype(int) - expected).max() <= (1 if source.type == "tensor(float16)" else 0)


# ---- commands


def test_commands(bundle: Bundle, tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [*map(str, arguments)])

    plan = PrecisionPlan(
        "mine",
        "fp16",
        {RES: NodePlan("fp8", {0: 0.5}, reason="to try")},
        MadeFor("tiny"),
        Budgets(min_psnr=38),
        measured={"held_out": {"psnr": 41.25}},
    )
    plan.save(tmp_path / "plan.json")
    shown = run("inspect", tmp_path / "plan.json")
    assert shown.exit_code == 0 and "fp8 (experimental)" in shown.stdout and "min psnr 38" in shown.stdout
    assert RES in shown.stdout and "0: 0.5" in shown.stdout and "to try" in shown.stdout
    assert re.search(r"held out psnr +41.25", shown.stdout)
    assert json.loads(run("inspect", tmp_path / "plan.json", "--json").stdout)["plan"] == plan.to_dict()

    exported = run("export", tiny_checkpoint_file, "-o", tmp_path / "b", "--precision", "fp16", "--plan", tmp_path / "plan.json")
    assert exported.exit_code == 0 and "tiny, fp16 + mine (experimental)" in exported.stdout, exported.output
    assert Bundle.open(tmp_path / "b").plan("mine") == plan
    shown = run("inspect", tmp_path / "b")
    assert "mine/plan.json" in shown.stdout and "Precision plans" in shown.stdout and "1 fp8" in shown.stdout

    # What stands under "calibration" is for people: a plan made by hand may hold anything there.
    replace(plan, calibration={"images": 5}).save(tmp_path / "byhand.json")
    shown = run("inspect", tmp_path / "byhand.json")
    assert shown.exit_code == 0 and re.search("calibrated on +-", shown.stdout), shown.output

    for arguments, match in (
        (("--plan", tmp_path / "none.json"), "cannot read .*none.json: no such file"),
        (("--plan", tiny_checkpoint_file), "no valid JSON|cannot read"),
        (("--precision", "int8"), "--precision is 'int8'; choose fp32, fp16"),
    ):
        refused = run("export", tiny_checkpoint_file, "-o", tmp_path / "c", *arguments)
        assert refused.exit_code == 2 and re.search(match, refused.stderr), refused.output
        assert one_line(refused.stderr) and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "what", "resumes"),
    [
        (("calibrate", "{path}", "-o", "{path}/plan.json"), "calibration.report.run", True),
        (("eval", "{path}", "{path}", "-o", "{path}/scores"), "evaluation.command.run_evaluation", True),
        (("inspect", "{path}"), "inspection.describe.describe", False),
    ],
    ids=["calibrate", "eval", "inspect"],
)
def test_an_interrupt_says_how_to_go_on(
    arguments: tuple[str, ...], what: str, resumes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mgvq_export.{what}", interrupted)
    result = CliRunner().invoke(main, [argument.format(path=tmp_path) for argument in arguments])
    assert result.exit_code == 130
    said = result.stderr.splitlines()[-1]
    assert said == "interrupted; nothing half-written is left" + "; run the same command again to go on" * resumes


@pytest.mark.parametrize("closed", ["plans", "report"])
def test_calibrate_refuses_early_where_it_cannot_write(closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plans", "report"):
        (tmp_path / name).mkdir()
    # In place of permissions, which do not bind the superuser.
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK or Path(path) != tmp_path / closed)
    arguments = ["calibrate", tmp_path, "-o", tmp_path / "plans" / "p.json", "--report-dir", tmp_path / "report"]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert_refused(result, f"the folder {tmp_path / closed}")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "plans", tmp_path / "report"]


def test_help_of_calibrate_says_what_is_written_and_when_it_fails() -> None:
    shown = " ".join(CliRunner().invoke(main, ["calibrate", "--help"]).stdout.split())
    for text in ("Exit code 1", "written all the same", "<plan>-report beside the plan", "squares cut from", "may be repeated"):
        assert text in shown


@pytest.mark.parametrize("precision", ["int8", "int8-all"])
def test_openvino_computes_what_the_graph_says(precision: str, bundle: Bundle, rng: np.random.Generator) -> None:
    """Of every part, at two sizes: the values that ONNX Runtime computes from the same Q/DQ pairs, on the same inputs."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    with (
        Tokenizer.open(bundle, backend="ort-cpu", precision=precision) as wanted,
        Tokenizer.open(bundle, backend="openvino", precision=precision) as found,
    ):
        for height, width in ((64, 96), (96, 64), (64, 96)):
            inputs = {"image": synthetic_image(height, width, 1)}
            for part in (Part.ENCODER_TRUNK, Part.ENCODER_HEAD, Part.QUANTIZER, Part.DECODER_HEAD, Part.DECODER_TRUNK):
                output = "quantized" if part is Part.QUANTIZER else bundle.graph(precision, part).outputs[0].name
                (expected,), (values,) = (one.graphs[part].run(inputs, [output]) for one in (wanted, found))
                off = np.linalg.norm(values.astype(float) - expected) / np.linalg.norm(expected.astype(float))
                assert tolerance("latent", "int8").holds(off), f"{part} at {width}x{height}: {off:.3f} off"
                inputs = {output: expected}


def test_openvino_refuses_8_bit_floats(bundle: Bundle) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    with pytest.raises(BackendError, match="fp8 computes with 8-bit floats, which openvino does not run"):
        Tokenizer.open(bundle, backend="openvino", precision="fp8")
    with Tokenizer.open(bundle, precision="fp8") as opened:
        assert opened.backend == "ort-cpu"


def test_8_bits_on_onnx_runtime_say_that_they_do_not_pay(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    for precision, said in (("fp32", False), ("int8", True), ("int8-all", True)):
        caplog.clear()
        Tokenizer.open(bundle, backend="ort-cpu", precision=precision)
        assert ("is no faster than fp32 on ort-cpu: pip install 'mgvq-export[openvino]'" in caplog.text) == said
