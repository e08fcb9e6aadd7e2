"""Counted operations against counts by hand, the network's own convolutions, and the released variants' known work."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import Part
from mgvq_export.export.graphs.flops import flops_by_node, graph_flops


def write_graph(path: Path, nodes, inputs, weights) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.mark.parametrize(
    ("node", "shapes", "weight", "wanted"),
    [
        # 2 x outputs [2, 8, 5, 7] x 6 channels x 3 x 3
        (helper.make_node("Conv", ["x", "w"], ["out"], name="n", pads=[1] * 4), (2, 6, 5, 7), (8, 6, 3, 3), 2 * 2 * 8 * 35 * 54),
        # stride 2, no padding: outputs [1, 8, 2, 3]
        (helper.make_node("Conv", ["x", "w"], ["out"], name="n", strides=[2, 2]), (1, 6, 5, 7), (8, 6, 3, 3), 2 * 8 * 6 * 54),
        # depthwise: each output sees one channel
        (helper.make_node("Conv", ["x", "w"], ["out"], name="n", group=6, pads=[1] * 4), (1, 6, 5, 7), (6, 1, 3, 3), 2 * 6 * 35 * 9),
        # batched matrices: 3 x [4, 5] @ [5, 6]
        (helper.make_node("MatMul", ["x", "w"], ["out"], name="n"), (3, 4, 5), (5, 6), 2 * 3 * 4 * 6 * 5),
        (helper.make_node("Gemm", ["x", "w"], ["out"], name="n", transA=1), (5, 4), (5, 6), 2 * 4 * 6 * 5),
        # additions are not counted
        (helper.make_node("Add", ["x", "w"], ["out"], name="n"), (3, 4), (3, 4), 0),
    ],
)  # fmt: skip
def test_counts_by_hand(tmp_path: Path, node, shapes, weight, wanted) -> None:
    path = write_graph(tmp_path / "g.onnx", [node], {"x": [f"d{i}" for i in range(len(shapes))]}, {"w": weight})
    assert graph_flops(path, {"x": shapes}) == wanted


def test_quantizer_is_one_product_per_position_and_row(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    shapes = {"latent": (2, spec.latent_channels, 3, 5)}
    found = flops_by_node(tiny_bundle.graph_path("fp32", Part.QUANTIZER), shapes)
    assert found == {"quantize/argmin": 2 * 2 * 15 * spec.groups * spec.codes_per_group * spec.group_dim}


def test_network_is_what_its_modules_multiply(tiny_bundle: Bundle, tiny_network) -> None:
    """Every convolution of the PyTorch network, counted by a hook while it runs, and the attention's products by hand."""
    import torch

    counted = {}

    def count(name):
        def hook(module, arguments, output):
            counted[name] = 2 * output.numel() * module.weight[0].numel()

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in tiny_network.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.inference_mode():
        tiny_network.latent(torch.zeros(1, 3, 64, 96))
    for hook in hooks:
        hook.remove()
    found = flops_by_node(tiny_bundle.graph_path("fp32", Part.ENCODER), {"image": (1, 3, 64, 96)})
    # Beside the convolutions there is linear attention: per head of 32 channels v k^T, and the product of it and of one row more, the
    # sum of k, with q.
    cells_and_heads = ((8 * 12, 64 // 32), (4 * 6, 64 // 32))
    attention = sum(heads * 2 * cells * 32 * (32 + 33) for cells, heads in cells_and_heads)
    assert sum(counted.values()) > 10**8
    assert sum(found.values()) == sum(counted.values()) + attention


def test_halves_make_the_whole(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    image = {"image": (1, 3, 64, 96)}
    features = {"features": (1, spec.trunk_channels, 64 // spec.trunk_stride, 96 // spec.trunk_stride)}
    trunk = graph_flops(tiny_bundle.graph_path("fp32", Part.ENCODER_TRUNK), image)
    head = graph_flops(tiny_bundle.graph_path("fp32", Part.ENCODER_HEAD), features)
    assert trunk + head == graph_flops(tiny_bundle.graph_path("fp32", Part.ENCODER), image)
    assert graph_flops(tiny_bundle.graph_path("fp16", Part.ENCODER), image) == trunk + head


def test_released_variant_has_its_known_work(tmp_path: Path) -> None:
    """mgvq-f16c32-g8 takes 516 GFLOP to encode 256x256 and 683 to decode it."""
    import torch

    from mgvq_export.core.spec import variant
    from mgvq_export.export.graphs.builder import WeightStore
    from mgvq_export.export.graphs.parts import build_graph
    from mgvq_export.model.network import MGVQ

    with torch.device("meta"):
        network = MGVQ(variant("mgvq-f16c32-g8"))
    network.to_empty(device="cpu")
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.zero_()
    for part, shapes, wanted in (
        (Part.ENCODER, {"image": (1, 3, 256, 256)}, 516),
        (Part.DECODER, {"quantized": (1, 32, 16, 16)}, 683),
    ):
        path = tmp_path / f"{part}.onnx"
        path.write_bytes(build_graph(network, part, "fp32", WeightStore()).SerializeToString())
        assert round(graph_flops(path, shapes) / 1e9) == wanted


def test_bad_shapes_and_operators(tiny_bundle: Bundle, tmp_path: Path) -> None:
    encoder = tiny_bundle.graph_path("fp32", Part.ENCODER)
    for shapes, match in (
        ({}, "shape of image is none; wanted 4 sizes"),
        ({"image": (3, 64, 64)}, "wanted 4 sizes"),
        ({"image": (1, 64, 64, 3)}, "wanted 3 where it has 64"),
    ):
        with pytest.raises(InputError, match=match):
            graph_flops(encoder, shapes)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["out"], name="n")
    path = write_graph(tmp_path / "g.onnx", [node], {"x": [1, 4, 5, 5]}, {"w": (4, 8, 3, 3)})
    with pytest.raises(InputError, match="operations of ConvTranspose are not counted"):
        graph_flops(path, {"x": (1, 4, 5, 5)})
