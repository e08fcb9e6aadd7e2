"""The graph given to TensorRT: the exported graph with the plugin in place of the function body, and with uint8 images.

TensorRT for RTX has no such plugins: its graphs keep the function body.

The exported graphs take and give float images [B, 3, H, W], so that any runtime can use them. An engine takes and gives uint8
[B, H, W, 3], a quarter of the bytes over the bus and no conversion on the host. TensorRT allows uint8 only at the network's
boundary: the input is cast first and transposed then, the output transposed first and cast last.

Neither a uint8 image nor a code can say that it came from no number, so an engine that gives images or the latent also gives
``non_finite``, int32 [B]: 1 for an image (latent) with a value that was NaN or infinite.

Weights stay in the bundle's ``weights.bin``, which the parser finds through the graph's path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from mgvq_export.core.errors import BundleError
from mgvq_export.core.manifest import TensorEntry
from mgvq_export.core.types import Untyped
from mgvq_export.export.graphs.builder import value_entry
from mgvq_export.ops.contract import DOMAIN, OP_NAME
from mgvq_export.ops.trt_plugin import NODE_ATTRIBUTES

IMAGE = "image"
LATENT = "latent"
NON_FINITE = "non_finite"

#: Operator, name, constant operands (numbers as float32), attributes.
Step = tuple[str, str, tuple[float | np.ndarray, ...], dict[str, Untyped]]


@dataclass(frozen=True)
class EngineGraph:
    """A graph ready for TensorRT's parser.

    Attributes:
        model: serialized, the same bytes every time.
        inputs, outputs: name, numpy dtype and shape of every value at the boundary; dynamic dimensions by name.
        plugins: nodes that must become plugin layers.
    """

    model: bytes
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    plugins: int

    @property
    def sha256(self) -> str:
        """Hash of the graph as TensorRT gets it."""
        return hashlib.sha256(self.model).hexdigest()


def engine_graph(path: Path, target: str = "tensorrt") -> EngineGraph:
    """The graph at ``path``, changed for TensorRT, or for TensorRT for RTX (``target`` is ``rtx``).

    Raises :class:`BundleError` when it is no ONNX graph.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors
        raise BundleError(f"{path} is no ONNX graph ({' '.join(str(error).split())}); export the bundle again") from error
    keep_latent_type(model)
    plugins = use_plugin(model) if target == "tensorrt" else 0
    report_non_finite(model)
    use_uint8_images(model)
    if target == "rtx":
        pad_image_channels(model, path.parent)
    graph = model.graph
    inputs, outputs = [value_entry(value) for value in graph.input], [value_entry(value) for value in graph.output]
    return EngineGraph(model.SerializeToString(deterministic=True), inputs, outputs, plugins)


def keep_latent_type(model: ModelProto) -> None:
    """Remove the cast to float32 before GroupedArgmin: ONNX Runtime's kernel needs it, the plugin and the function body take float16."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    for node in _argmin_nodes(model):
        if node.input[0] in casts:
            cast = casts[node.input[0]]
            node.input[0] = cast.input[0]
            if not any(cast.output[0] in other.input for other in model.graph.node):
                model.graph.node.remove(cast)


def _argmin_nodes(model: ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OP_NAME)]


def use_plugin(model: ModelProto) -> int:
    """Mark every GroupedArgmin node as TensorRT's plugin and drop its function body; returns how many there are.

    Without the body, a plugin that is not found is a parse error and not a slow engine.
    """
    for function in [f for f in model.functions if (f.domain, f.name) == (DOMAIN, OP_NAME)]:
        model.functions.remove(function)
    nodes = _argmin_nodes(model)
    for node in nodes:
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in NODE_ATTRIBUTES.items())
    return len(nodes)


def report_non_finite(model: ModelProto) -> None:
    """Add the output ``non_finite`` to a graph that gives an image or the latent; call before :func:`use_uint8_images`."""
    for value in [value for value in model.graph.output if value.name in (IMAGE, LATENT)]:
        # x [B, C, H, W] -> whether |x| <= the largest float32 fails anywhere, int32 [B]; NaN compares as false
        steps: list[Step] = [
            ("Cast", "float", (), {"to": TensorProto.FLOAT}),
            ("Abs", "magnitude", (), {}),
            ("LessOrEqual", "finite", (float(np.finfo(np.float32).max),), {}),
            ("Not", "mask", (), {}),
            ("Cast", "number", (), {"to": TensorProto.INT32}),
            ("ReduceMax", "", (np.array([1, 2, 3], np.int64),), {"keepdims": 0}),
        ]
        model.graph.node.extend(_chain(model.graph, value.name, NON_FINITE, steps))
        batch = value.type.tensor_type.shape.dim[0]
        shape = [batch.dim_param or batch.dim_value]
        model.graph.output.append(helper.make_tensor_value_info(NON_FINITE, TensorProto.INT32, shape))


def use_uint8_images(model: ModelProto) -> None:
    """Make an image input or output uint8 [B, H, W, 3]: the arithmetic of ``runtime.images``, in float32. Others stay."""
    for value in model.graph.input:
        if value.name == IMAGE:
            _uint8_input(model.graph, value)
    for value in list(model.graph.output):
        if value.name == IMAGE:
            _uint8_output(model.graph, value)


def pad_image_channels(model: ModelProto, folder: Path) -> None:
    """Give a float16 image a fourth channel, of zeros, and the convolution that reads it zero weights for it.

    Half-precision kernels read channels by fours. TensorRT for RTX else adds the channel itself, and keeps a constant of the image's
    size in the engine for it: 7 MB for 2560x1440 pixels. ``folder``: where the weights are.
    """
    graph, source = model.graph, f"{IMAGE}/typed"
    nodes = list(graph.node)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for index, node in enumerate(nodes):
        weight = initializers.get(node.input[1]) if node.op_type == "Conv" and node.input[0] == source else None
        if weight is None or weight.data_type != TensorProto.FLOAT16:
            continue
        array = numpy_helper.to_array(weight, base_dir=str(folder))  # [O, 3, kh, kw]
        padded, pads = f"{IMAGE}/padded", f"{IMAGE}/padded/pads"
        graph.initializer.append(
            numpy_helper.from_array(np.pad(array, ((0, 0), (0, 1), (0, 0), (0, 0))), f"{weight.name}/padded")
        )
        graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64), pads))
        node.input[0], node.input[1] = padded, f"{weight.name}/padded"
        nodes.insert(index, helper.make_node("Pad", [source, pads], [padded], name=padded))
        graph.initializer.remove(weight)
        nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        return


def _uint8_input(graph: GraphProto, value: onnx.ValueInfoProto) -> None:
    # uint8 [B, H, W, 3] -> (x / 255 - 0.5) * 2 [B, 3, H, W]
    steps: list[Step] = [
        ("Cast", "float", (), {"to": TensorProto.FLOAT}),
        ("Transpose", "planes", (), {"perm": [0, 3, 1, 2]}),
        ("Div", "unit", (255,), {}),
        ("Sub", "centred", (0.5,), {}),
        ("Mul", "scaled", (2,), {}),
        ("Cast", "typed", (), {"to": value.type.tensor_type.elem_type}),
    ]
    for node in graph.node:
        node.input[:] = [f"{IMAGE}/typed" if name == IMAGE else name for name in node.input]
    nodes = _chain(graph, IMAGE, IMAGE, steps)
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
    _make_uint8(value)


def _uint8_output(graph: GraphProto, value: onnx.ValueInfoProto) -> None:
    # x [B, 3, H, W] -> uint8 [B, H, W, 3]; clipped and rounded before the cast, which only cuts off
    steps: list[Step] = [
        ("Cast", "float", (), {"to": TensorProto.FLOAT}),
        ("Mul", "scaled", (127.5,), {}),
        ("Add", "shifted", (127.5,), {}),
        ("Clip", "clipped", (0, 255), {}),
        ("Round", "rounded", (), {}),
        ("Transpose", "pixels", (), {"perm": [0, 2, 3, 1]}),
        ("Cast", "", (), {"to": TensorProto.UINT8}),
    ]
    network = f"{IMAGE}/network"
    for node in graph.node:
        node.input[:] = [network if name == IMAGE else name for name in node.input]
        node.output[:] = [network if name == IMAGE else name for name in node.output]
    graph.node.extend(_chain(graph, network, IMAGE, steps))
    _make_uint8(value)


def _chain(graph: GraphProto, source: str, target: str, steps: Sequence[Step]) -> list[onnx.NodeProto]:
    """Nodes one after the other, from ``source``; each is called ``target/name``, a step without a name ``target`` itself."""
    nodes = []
    for op, step, constants, attributes in steps:
        name = f"{target}/{step}" if step else target
        operands = [f"{name}/constant{index}" for index in range(len(constants))]
        for operand, constant in zip(operands, constants, strict=True):
            array = constant if isinstance(constant, np.ndarray) else np.array(constant, np.float32)
            graph.initializer.append(numpy_helper.from_array(array, operand))
        nodes.append(helper.make_node(op, [source, *operands], [name], name=name, **attributes))
        source = name
    return nodes


def _make_uint8(value: onnx.ValueInfoProto) -> None:
    batch, channels, height, width = (dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
    value.CopyFrom(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [batch, height, width, channels]))
