"""Floating-point operations of an ONNX graph at given input shapes, counted node by node.

Counted: convolutions, matrix products and ``mgvq::GroupedArgmin``, two operations per multiplication and addition. Elementwise
work, norms and additions of biases are left out, as is usual: about one per cent, and bound by memory.
Padding counts as if it were data, as the kernels compute it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mgvq_export.core.errors import InputError
from mgvq_export.ops.contract import DOMAIN, OP_NAME

if TYPE_CHECKING:
    import onnx

Shape = Sequence[int]

# Operators that multiply but are not counted: a graph with one of them is refused, as its total would be too small.
_UNCOUNTED = {
    ("", op)
    for op in (
        "Attention",
        "ConvInteger",
        "ConvTranspose",
        "Einsum",
        "GRU",
        "LSTM",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    )
}


def graph_flops(path: Path, shapes: Mapping[str, Shape]) -> int:
    """Operations of the graph at ``path`` for inputs of ``shapes`` (name -> sizes). The weights file is not read.

    Raises:
        InputError: ``shapes`` do not fit the inputs, or the graph has a multiplying operator that is not counted.
        ModuleNotFoundError: onnx is not installed.
    """
    return sum(flops_by_node(path, shapes).values())


def flops_by_node(path: Path, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """:func:`graph_flops` apart: node name -> operations, for the nodes that have any, in the graph's order."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    _set_shapes(model, shapes, path)
    known = infer_shapes(model)
    found = {}
    for node in model.graph.node:
        kind = (node.domain, node.op_type)
        if kind in _UNCOUNTED:
            raise InputError(
                f"{path.name}: operations of {node.op_type} are not counted; give a graph of convolutions and MatMul"
            )
        if operations := node_flops(node, known):
            found[node.name] = operations
    return found


def node_flops(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Operations of one node, 0 for those that are not counted; ``shapes`` of all values and weights by name.

    Raises :class:`InputError` when a shape that is needed is not known.
    """
    count = _COUNTS.get((node.domain, node.op_type))
    return 0 if count is None else count(node, shapes)


def _set_shapes(model: onnx.ModelProto, shapes: Mapping[str, Shape], path: Path) -> None:
    for value in model.graph.input:
        declared = value.type.tensor_type.shape.dim
        sizes = shapes.get(value.name)
        if sizes is None or len(sizes) != len(declared):
            got = "none" if sizes is None else list(sizes)
            raise InputError(f"{path.name}: shape of {value.name} is {got}; wanted {len(declared)} sizes")
        for dim, size in zip(declared, sizes, strict=True):
            if dim.dim_value and dim.dim_value != size:
                raise InputError(
                    f"{path.name}: shape of {value.name} is {list(sizes)}; wanted {dim.dim_value} where it has {size}"
                )
            dim.dim_value = size


def infer_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of all values and weights by name, where the shapes of the inputs, given in ``model``, decide them; ``model`` is changed."""
    import onnx

    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if all(sizes):
            known[value.name] = sizes
    return known | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _conv(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int:
    _, *kernel = _shape(known, node.input[1], node)  # [C_out, C_in / groups, kernel...]
    return 2 * math.prod(_shape(known, node.output[0], node)) * math.prod(kernel)


def _matmul(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int:
    return 2 * math.prod(_shape(known, node.output[0], node)) * _shape(known, node.input[0], node)[-1]


def _gemm(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    inner = _shape(known, node.input[0], node)[0 if transposed else 1]
    return 2 * math.prod(_shape(known, node.output[0], node)) * inner


def _grouped_argmin(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int:
    batch, _, height, width = _shape(known, node.input[0], node)
    groups, rows, dim = _shape(known, node.input[1], node)
    return 2 * batch * height * width * groups * rows * dim


def _shape(known: Mapping[str, Shape], value: str, node: onnx.NodeProto) -> Shape:
    if value not in known:
        raise InputError(f"the shape of {value}, which {node.name} needs, is not known; give a graph with static shapes inside")
    return known[value]


_COUNTS: dict[tuple[str, str], Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    ("", "Conv"): _conv,
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    (DOMAIN, OP_NAME): _grouped_argmin,
}
