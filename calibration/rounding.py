"""Emulates float16 in float32: a graph with every rounding as explicit Casts.

ONNX Runtime's CPU has few float16 kernels. It computes in float32 between Casts of its own and removes those between neighbouring
nodes, so overflow and underflow of float16 values do not show. Here every float16 value is rounded by a Cast to float16
and back, which it keeps: values overflow and underflow as on a GPU.
Sums inside one operator are float32, as they are on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper, shape_inference

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16

#: Operators that copy or select values: no rounding is needed.
COPIES = {
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Relu", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def has_float16(model: onnx.ModelProto) -> bool:
    """Whether any value or weight of the graph is float16."""
    casts = any(node.op_type == "Cast" and _target(node) == FLOAT16 for node in model.graph.node)
    return casts or any(FLOAT16 in (value.type.tensor_type.elem_type,) for value in model.graph.input)


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that computes what the typed ``model`` does; inputs and outputs are float32, weights stay as stored."""
    half = _half_values(model)
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == FLOAT16}
    nodes = [helper.make_node("Cast", [name], [_as_float(name)], to=FLOAT) for name in sorted(weights)]
    renamed = {name: _as_float(name) for name in weights}
    inputs = []
    for value in model.graph.input:
        name = value.name
        inputs.append(_float_value(value) if name in half else value)
        if name in half:
            renamed[name] = f"{name}/rounded"
            nodes += round_trip(name, renamed[name])
    for node in model.graph.node:
        nodes += _rewritten(node, half, renamed)
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        inputs,
        [_float_value(value) if value.name in half else value for value in model.graph.output],
        list(model.graph.initializer),
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions)


def round_trip(source: str, target: str) -> list[onnx.NodeProto]:
    """Nodes that give ``target``, the float32 value ``source`` rounded to float16."""
    half = f"{target}/float16"
    return [
        helper.make_node("Cast", [source], [half], name=f"{target}/to_float16", to=FLOAT16),
        helper.make_node("Cast", [half], [target], name=f"{target}/to_float32", to=FLOAT),
    ]


def _rewritten(node: onnx.NodeProto, half: set[str], renamed: dict[str, str]) -> Iterable[onnx.NodeProto]:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [renamed.get(name, name) for name in node.input]
    if node.op_type == "Cast" and _target(node) in (FLOAT, FLOAT16):
        if node.input[0] in half:  # float32 already
            return [helper.make_node("Identity", copy.input, copy.output, name=node.name)]
        if _target(node) == FLOAT:
            return [copy]
        if node.input[0] not in half:
            return round_trip(copy.input[0], node.output[0])
    exact = [name for name in node.output if name in half and node.op_type not in COPIES]
    copy.output[:] = [f"{name}/exact" if name in exact else name for name in node.output]
    return [copy, *(made for name in exact for made in round_trip(f"{name}/exact", name))]


def _target(node: onnx.NodeProto) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")


def _as_float(name: str) -> str:
    return f"{name}/as_float32"


def _half_values(model: onnx.ModelProto) -> set[str]:
    """Names of all values (weights aside) that are float16."""
    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == FLOAT16}


def _float_value(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    changed = onnx.ValueInfoProto()
    changed.CopyFrom(value)
    changed.type.tensor_type.elem_type = FLOAT
    return changed
