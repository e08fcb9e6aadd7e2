"""The computed reach: the released variants' numbers, sufficiency by perturbation, and what cannot be tiled."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from mgvq_export.core.errors import SpecError
from mgvq_export.core.spec import VARIANTS, ModelSpec, Part, ReceptiveField
from mgvq_export.export.graphs.builder import WeightStore
from mgvq_export.export.graphs.parts import build_graph
from mgvq_export.export.graphs.receptive_field import receptive_field
from mgvq_export.model.network import MGVQ
from mgvq_export.tests.support.checks import RELEASED_REACH

# The released depths, which set the receptive field, with widths that take milliseconds.
NARROW = ModelSpec(
    name="narrow",
    widths=(8, 16, 32, 32),
    encoder_depths=(0, 4, 8, 2),
    decoder_depths=(0, 5, 10, 2),
    blocks=("res", "res", "res", "evit"),
    groups=2,
    codebook_size=32,
    latent_channels=8,
)


@pytest.fixture(scope="module")
def network():
    import torch

    torch.manual_seed(0)
    return MGVQ(NARROW)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("part", RELEASED_REACH)
def test_receptive_field_of_the_released_depths(network, part, precision):
    assert receptive_field(build_graph(network, part, precision, WeightStore())) == RELEASED_REACH[part]


def test_released_variants_share_these_depths():
    for spec in VARIANTS.values():
        assert (spec.encoder_depths[:3], spec.decoder_depths[:3]) == (NARROW.encoder_depths[:3], NARROW.decoder_depths[:3])
    assert RELEASED_REACH[Part.ENCODER_TRUNK].halo == 88
    assert RELEASED_REACH[Part.DECODER_TRUNK].halo * 8 == 120


def session_of(network, part, tmp_path):
    weights = WeightStore()
    model = build_graph(network, part, "fp32", weights)
    onnx.save(model, tmp_path / "part.onnx")
    weights.write(tmp_path / "weights.bin")
    session = ort.InferenceSession(str(tmp_path / "part.onnx"), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("part", [Part.ENCODER_TRUNK, Part.DECODER_TRUNK])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_pixel_at_the_reach_counts_and_the_next_one_does_not(network, part, side, tmp_path):
    limits = receptive_field(build_graph(network, part, "fp32", WeightStore()))
    cells = 40 if part is Part.DECODER_TRUNK else 32
    channels = NARROW.trunk_channels if part is Part.DECODER_TRUNK else 3
    x = np.zeros((1, channels, cells * limits.stride_in, limits.stride_in), np.float32)
    cell = cells // 2
    at = cell * limits.stride_in - limits.before if side == "before" else (cell + 1) * limits.stride_in - 1 + limits.after
    beyond = at - 1 if side == "before" else at + 1
    infer = session_of(network, part, tmp_path)
    assert depends(infer, x, at, cell, limits.stride_out)
    assert not depends(infer, x, beyond, cell, limits.stride_out)


def depends(infer, x, row, cell, stride_out):
    """Whether the output rows of ``cell`` depend on input ``row``: a NaN there reaches all that do, whatever the weights."""
    x = x.copy()
    x[:, :, row] = np.nan
    return bool(np.isnan(infer(x)[:, :, cell * stride_out : (cell + 1) * stride_out]).any())


def model(*nodes, constants=(), channels=4):
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, "h", "w"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants]
    return helper.make_model(helper.make_graph(nodes, "test", [image], [result], tensors))


def conv(kernel=3, **attributes):
    constants = [("w", np.ones((4, 4, kernel, kernel), np.float32))]
    return model(helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes), constants=constants)


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (conv(pads=[1, 1, 1, 1]), ReceptiveField(1, 1, 1, 1)),
        (conv(pads=[2, 2, 2, 2], dilations=[2, 2]), ReceptiveField(1, 1, 2, 2)),
        (conv(5, pads=[4, 4, 0, 0]), ReceptiveField(1, 1, 4, 0)),
        (conv(pads=[1, 1, 1, 1], strides=[2, 2]), ReceptiveField(2, 1, 1, 0)),
        (conv(pads=[0, 0, 1, 1], strides=[2, 2]), ReceptiveField(2, 1, 0, 1)),
        (conv(1), ReceptiveField(1, 1, 0, 0)),
        (model(helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2)), ReceptiveField(1, 2, 0, 0)),
    ],
)
def test_reach_of_single_operators(graph, expected):
    assert receptive_field(graph) == expected


def test_down_and_up_again_works_on_the_coarser_cells():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2]),
        helper.make_node("DepthToSpace", ["a"], ["y"], blocksize=2),
    ]
    assert receptive_field(model(*nodes, constants=[("w", np.ones((4, 4, 2, 2), np.float32))])) == ReceptiveField(2, 2, 0, 0)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            model(helper.make_node("GlobalAveragePool", ["x"], ["y"], name="pool")),
            "node pool (GlobalAveragePool) is not an operator",
        ),
        (
            model(helper.make_node("ReduceMean", ["x", "a"], ["y"], name="mean"), constants=[("a", np.array([2, 3]))]),
            "node mean (ReduceMean) sums over the height",
        ),
        (
            model(helper.make_node("Reshape", ["x", "s"], ["y"], name="flat"), constants=[("s", np.array([0, 0, -1]))]),
            "node flat (Reshape) merges height and width into one axis",
        ),
        (model(helper.make_node("Softmax", ["x"], ["y"], name="soft")), "node soft (Softmax) is not an operator"),
        (model(helper.make_node("Shape", ["x"], ["y"], name="shape")), "node shape (Shape) is not an operator"),
        (conv(), "node conv (Conv) changes the height by other than its stride"),
        (conv(auto_pad="SAME_UPPER"), "node conv (Conv) uses auto_pad"),
        (conv(pads=[1, 0, 1, 0], kernel_shape=[3, 1], strides=[2, 1]), "scales height and width differently"),
    ],
)
def test_what_cannot_be_tiled_names_its_node(graph, message):
    with pytest.raises(SpecError) as error:
        receptive_field(graph)
    assert message in str(error.value)


def test_the_head_cannot_be_tiled(network):
    with pytest.raises(SpecError, match=r"main/[qkv] \(Reshape\) merges height and width"):
        receptive_field(build_graph(network, Part.ENCODER_HEAD, "fp32", WeightStore()))
