"""How each layer of the network is written in ONNX: one function per module class.

The graphs are written layer by layer instead of traced: node and weight names are the module's own, two exports are byte for byte equal,
and shapes stay dynamic without shape arithmetic, because ONNX's reshape codes 0 (copy) and -1 (infer) carry all but one
of them. Each lowering is checked against the layer's own ``forward`` in the tests.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from torch import Tensor, nn

from mgvq_export.core.spec import HEAD_DIM
from mgvq_export.export.graphs.builder import INT64, GraphBuilder
from mgvq_export.model import layers

#: Slices of the gated convolution's hidden channels. Measured on the CPU, a head takes 17 maps with one slice of both halves
#: together, 8 with two, 6 with four, 5 with eight (then the attention holds the peak), and none of them is slower.
GATE_SLICES = 4


def array(tensor: Tensor) -> np.ndarray:
    """A weight as float32 (float64 stays)."""
    return tensor.detach().double().numpy().astype(np.float32)


@singledispatch
def lower(layer: nn.Module, graph: GraphBuilder, x: str, name: str) -> str:
    """Append ``layer``, called ``name``, to ``graph``. ``x``: the value it is applied to. Returns the value it gives."""
    raise TypeError(f"no ONNX lowering for {type(layer).__name__} ({name})")


@lower.register
def _(layer: layers.ConvLayer, graph: GraphBuilder, x: str, name: str) -> str:
    weight, bias = layer.conv.weight, layer.conv.bias
    norm = layer.norm
    if isinstance(norm, nn.BatchNorm2d):
        weight, bias = fold_batch_norm(weight, bias, norm)
        norm = None
    x = convolution(layer.conv, weight, bias, graph, x, f"{name}.conv")
    if norm is not None:
        x = lower(norm, graph, x, f"{name}.norm")
    return x if layer.act is None else lower(layer.act, graph, x, f"{name}.act")


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Convolution weight [O, I, kh, kw] and bias [O] that include the inference-time BatchNorm, computed in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    return weight.double() * scale[:, None, None, None], shift


def convolution(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, graph: GraphBuilder, x: str, name: str) -> str:
    """A Conv node with ``conv``'s geometry; ``weight`` and ``bias`` may be some of its output channels."""
    inputs = [graph.weight(f"{name}.weight", array(weight))]
    if bias is not None:
        inputs.append(graph.weight(f"{name}.bias", array(bias)))
    pad_y, pad_x = (side // 2 for side in conv.kernel_size)  # all convolutions keep the size
    group = max(1, conv.groups * len(weight) // conv.out_channels)  # the groups that these channels make up
    return graph.node(
        "Conv", x, *inputs, name=name, kernel_shape=conv.kernel_size, pads=[pad_y, pad_x, pad_y, pad_x], group=group
    )


@lower.register
def _(layer: nn.Conv2d, graph: GraphBuilder, x: str, name: str) -> str:
    return convolution(layer, layer.weight, layer.bias, graph, x, name)


@lower.register
def _(layer: nn.ReLU, graph: GraphBuilder, x: str, name: str) -> str:
    return graph.node("Relu", x, name=name)


@lower.register
def _(layer: nn.SiLU, graph: GraphBuilder, x: str, name: str) -> str:
    return silu(graph, x, name)


def silu(graph: GraphBuilder, x: str, name: str) -> str:
    """``x * sigmoid(x)``."""
    return graph.node("Mul", x, graph.node("Sigmoid", x, name=f"{name}/sigmoid"), name=name)


@lower.register
def _(layer: layers.RMSNorm2d, graph: GraphBuilder, x: str, name: str) -> str:
    with graph.float32():
        # Not ReduceSumSquare: ONNX Runtime's symbolic shape inference knows no reductions but ReduceSum and ReduceMean.
        square = graph.node("Mul", x, x, name=f"{name}/square")
        mean = graph.node("ReduceMean", square, graph.integers(1), name=f"{name}/mean_square", keepdims=1)
        mean = graph.node("Add", mean, graph.scalar(layers.NORM_EPS), name=f"{name}/add_eps")
        root = graph.node("Reciprocal", graph.node("Sqrt", mean, name=f"{name}/rms"), name=f"{name}/inverse_rms")
        unit = graph.node("Mul", x, root, name=f"{name}/normalize")
        weight = graph.weight(f"{name}.weight", array(layer.weight)[:, None, None])
        bias = graph.weight(f"{name}.bias", array(layer.bias)[:, None, None])
        scaled = graph.node("Mul", unit, weight, name=f"{name}/scale")
        return graph.node("Add", scaled, bias, name=name)


@lower.register
def _(layer: layers.ResBlock, graph: GraphBuilder, x: str, name: str) -> str:
    y = lower(layer.main["conv1"], graph, x, f"{name}.main.conv1")
    y = lower(layer.main["conv2"], graph, y, f"{name}.main.conv2")
    return graph.node("Add", x, y, name=name)


@lower.register
def _(layer: layers.LinearAttention, graph: GraphBuilder, x: str, name: str) -> str:
    # q, k and v are convolutions of their own: no copies of all three to split them. q comes first, so that ONNX Runtime runs it
    # last (see GatedConv), when k and v are summed up in the context.
    conv = layer.qkv.conv
    slices = [(node, channels) for node, (_, channels) in channel_slices(layer).items()]
    q, k, v = (convolution(conv, conv.weight[channels], None, graph, x, f"{name}.{node}") for node, channels in slices)
    heads = graph.integers(0, layer.heads, HEAD_DIM, -1)
    with graph.float32():
        q = graph.node("Relu", graph.node("Reshape", q, heads, name=f"{name}/q"), name=f"{name}/q_relu")
        k = graph.node("Relu", graph.node("Reshape", k, heads, name=f"{name}/k"), name=f"{name}/k_relu")
        v = graph.node("Reshape", v, heads, name=f"{name}/v")
        k = graph.node("Transpose", k, name=f"{name}/k_transposed", perm=[0, 1, 3, 2])
        context = graph.node("MatMul", v, k, name=f"{name}/context")  # [B, heads, 32, 32]
        total = graph.node("ReduceSum", k, graph.integers(2), name=f"{name}/k_sum", keepdims=1)  # [B, heads, 1, 32]
        rows = graph.node("Concat", context, total, name=f"{name}/context_and_sum", axis=2)
        product = graph.node("MatMul", rows, q, name=f"{name}/product")  # [B, heads, 33, N]
        out, weight_sum = f"{name}/numerator", f"{name}/denominator"
        graph.node("Split", product, graph.integers(HEAD_DIM, 1), name=f"{name}/split_product", outputs=[out, weight_sum], axis=2)
        weight_sum = graph.node("Add", weight_sum, graph.scalar(layers.ATTENTION_EPS), name=f"{name}/add_eps")
        out = graph.node("Div", out, weight_sum, name=f"{name}/attention")
        # Height and width, merged for the products, come back: the one place that needs the input's shape.
        size = graph.raw_node("Shape", x, name=f"{name}/size", dtype=INT64, start=2)
        shape = graph.raw_node("Concat", graph.integers(0, -1), size, name=f"{name}/shape", dtype=INT64, axis=0)
        out = graph.node("Reshape", out, shape, name=f"{name}/image")
    return lower(layer.proj, graph, out, f"{name}.proj")


@lower.register
def _(layer: layers.GatedConv, graph: GraphBuilder, x: str, name: str) -> str:
    # The hidden map is 2 * EXPANSION times as wide as x. It is made and summed up in slices of its channels, values and gates
    # apart, so that only one slice exists at a time. ONNX Runtime visits the last-listed and last-created inputs first: with the sums
    # listed last, and the sum so far as their second input, it adds a slice up before it starts the next. The sum is
    # float32, as the norm after it.
    slices, point = channel_slices(layer), layer.point_conv.conv

    def some_channels(module: str, step: str, x: str) -> str:
        node = f"{module}/{step}"
        conv, channels = layer.get_submodule(module), slices[node][1]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        return convolution(conv, conv.weight[channels], conv.bias[channels], graph, x, f"{name}.{node}")

    products = []
    for index in range(GATE_SLICES):
        halves = []
        for step in (f"value_{index}", f"gate_{index}"):
            y = silu(graph, some_channels("inverted_conv.conv", step, x), f"{name}.inverted_conv.act/{step}")
            halves.append(some_channels("depth_conv.conv", step, y))
        gate = silu(graph, halves[1], f"{name}.act/gate_{index}")
        gated = graph.node("Mul", halves[0], gate, name=f"{name}/gated_{index}")
        weight = point.weight[:, slices[f"act/gate_{index}"][1]]
        products.append(convolution(point, weight, None, graph, gated, f"{name}.point_conv.conv/{index}"))
    total = products[0]
    with graph.float32():
        for index, product in enumerate(products[1:], 1):
            step = "" if index == GATE_SLICES - 1 else f"/sum_{index}"
            total = graph.node("Add", product, total, name=f"{name}.point_conv.conv{step}")
    assert layer.point_conv.norm is not None
    return lower(layer.point_conv.norm, graph, total, f"{name}.point_conv.norm")


def channel_slices(layer: layers.LinearAttention | layers.GatedConv) -> dict[str, tuple[str, np.ndarray]]:
    """Nodes that compute some of a module's output channels: node -> (module, int64 channels), named as inside ``layer``."""
    if isinstance(layer, layers.LinearAttention):  # the channels of one head lie together, as q, k, v
        channels = np.arange(layer.qkv.conv.out_channels).reshape(layer.heads, 3, HEAD_DIM)
        return {f"qkv.conv/{which}": ("qkv.conv", channels[:, index].ravel()) for index, which in enumerate("qkv")}
    found = {}
    hidden = layer.point_conv.conv.in_channels  # the first half are values, the second gates
    for index, channels in enumerate(np.split(np.arange(hidden), GATE_SLICES)):
        for module in ("inverted_conv.conv", "inverted_conv.act", "depth_conv.conv"):
            found[f"{module}/value_{index}"] = (module, channels)
            found[f"{module}/gate_{index}"] = (module, hidden + channels)
        found[f"act/gate_{index}"] = ("act", channels)
    return found


@lower.register
def _(layer: layers.Shortcut, graph: GraphBuilder, x: str, name: str) -> str:
    return graph.node("Add", x, lower(layer.main, graph, x, f"{name}.main"), name=name)


@lower.register
def _(layer: layers.EViTBlock, graph: GraphBuilder, x: str, name: str) -> str:
    x = lower(layer.context_module, graph, x, f"{name}.context_module")
    return lower(layer.local_module, graph, x, f"{name}.local_module")


@lower.register
def _(layer: layers.ConvPixelUnshuffle, graph: GraphBuilder, x: str, name: str) -> str:
    return pixel_unshuffle(graph, lower(layer.conv, graph, x, f"{name}.conv"), f"{name}/unshuffle")


@lower.register
def _(layer: layers.ConvPixelShuffle, graph: GraphBuilder, x: str, name: str) -> str:
    return pixel_shuffle(graph, lower(layer.conv, graph, x, f"{name}.conv"), f"{name}/shuffle")


def pixel_unshuffle(graph: GraphBuilder, x: str, name: str) -> str:
    """[B, C, H, W] -> [B, 4C, H/2, W/2], channel order of torch.nn.functional.pixel_unshuffle (SpaceToDepth has another).

    The inserted axes of size 1 keep every dynamic dimension at the index where reshape code 0 copies it.
    """
    x = graph.node("Unsqueeze", x, graph.integers(3), name=f"{name}/rows_axis")
    x = graph.node("Reshape", x, graph.integers(0, 0, -1, 2, 0), name=f"{name}/rows")
    x = graph.node("Unsqueeze", x, graph.integers(5), name=f"{name}/columns_axis")
    x = graph.node("Reshape", x, graph.integers(0, 0, 0, 0, -1, 2), name=f"{name}/columns")
    x = graph.node("Transpose", x, name=f"{name}/transpose", perm=[0, 1, 3, 5, 2, 4])  # [B, C, 2, 2, H/2, W/2]
    x = graph.node("Reshape", x, graph.integers(0, -1, 1, 1, 0, 0), name=f"{name}/channels")
    return graph.node("Squeeze", x, graph.integers(2, 3), name=name)


def pixel_shuffle(graph: GraphBuilder, x: str, name: str) -> str:
    """[B, 4C, H, W] -> [B, C, 2H, 2W], as torch.nn.functional.pixel_shuffle."""
    return graph.node("DepthToSpace", x, name=name, blocksize=2, mode="CRD")


def mean_channels(graph: GraphBuilder, x: str, size: int, name: str) -> str:
    """Mean over consecutive groups of ``size`` channels."""
    if size == 1:
        return x
    x = graph.node("Unsqueeze", x, graph.integers(1), name=f"{name}/axis")
    x = graph.node("Reshape", x, graph.integers(0, -1, size, 0, 0), name=f"{name}/groups")
    return graph.node("ReduceMean", x, graph.integers(2), name=name, keepdims=0)


def repeat_channels(graph: GraphBuilder, x: str, channels: int, repeats: int, name: str) -> str:
    """Every channel ``repeats`` times in a row, as torch.repeat_interleave."""
    if repeats == 1:
        return x
    indices = np.arange(channels, dtype=np.int64).repeat(repeats)
    return graph.node("Gather", x, graph.constant(indices, f"repeat:{channels}x{repeats}"), name=name, axis=1)


@lower.register
def _(layer: layers.DownBlock, graph: GraphBuilder, x: str, name: str) -> str:
    y = lower(layer.main, graph, x, f"{name}.main")
    shortcut = mean_channels(graph, pixel_unshuffle(graph, x, f"{name}/shortcut/unshuffle"), layer.group_size, f"{name}/shortcut")
    return graph.node("Add", y, shortcut, name=name)


@lower.register
def _(layer: layers.UpBlock, graph: GraphBuilder, x: str, name: str) -> str:
    y = lower(layer.main, graph, x, f"{name}.main")
    channels = layer.main.conv.conv.in_channels
    shortcut = pixel_shuffle(
        graph, repeat_channels(graph, x, channels, layer.repeats, f"{name}/shortcut/repeat"), f"{name}/shortcut"
    )
    return graph.node("Add", y, shortcut, name=name)


@lower.register
def _(layer: layers.Stage, graph: GraphBuilder, x: str, name: str) -> str:
    for index, block in enumerate(layer.op_list):
        x = lower(block, graph, x, f"{name}.op_list.{index}")
    return x


@lower.register
def _(layer: layers.ProjectToLatent, graph: GraphBuilder, x: str, name: str) -> str:
    y = lower(layer.main, graph, x, f"{name}.main")
    return graph.node("Add", y, mean_channels(graph, x, layer.group_size, f"{name}/shortcut"), name=name)


@lower.register
def _(layer: layers.ProjectFromLatent, graph: GraphBuilder, x: str, name: str) -> str:
    y = lower(layer.main, graph, x, f"{name}.main")
    channels = layer.main.conv.in_channels
    return graph.node("Add", y, repeat_channels(graph, x, channels, layer.repeats, f"{name}/shortcut"), name=name)
