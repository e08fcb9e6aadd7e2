"""Runs a graph in segments, so that all its values can be read in bounded memory and none is computed twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from mgvq_export.export.graphs.builder import WeightStore
from mgvq_export.export.graphs.in_memory import load_session

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes of a graph as a model of its own.

    Attributes:
        model: the nodes, with the weights they use.
        values: every float value they compute, in graph order.
        inputs: values the nodes need from before.
        needed: values of this or an earlier segment that a later one reads; others can be dropped.
    """

    model: onnx.ModelProto
    values: list[str]
    inputs: list[str]
    needed: set[str] = field(default_factory=set)


def cut(model: onnx.ModelProto, shape: tuple[int, ...], limit: int) -> list[Segment]:
    """``model``, of one input, as segments whose values take at most about ``limit`` bytes each (one node at least).

    ``shape``: the input's shape.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for dimension, size in zip(fixed.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = size
    for output in fixed.graph.output:
        output.type.tensor_type.shape.ClearField("dim")
    graph = shape_inference.infer_shapes(fixed, data_prop=True).graph
    types = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
    groups: list[list[onnx.NodeProto]] = [[]]
    held = 0
    for node in graph.node:
        size = sum(_bytes(types[name]) for name in node.output)
        if groups[-1] and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(node)
        held += size
    return _models(model, groups, types)


def _bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    return 4 * math.prod(dim.dim_value or 1 for dim in tensor.shape.dim)


def _models(
    model: onnx.ModelProto, groups: list[list[onnx.NodeProto]], types: Mapping[str, onnx.ValueInfoProto]
) -> list[Segment]:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    segments: list[Segment] = []
    for index, nodes in enumerate(groups):
        made = [name for node in nodes for name in node.output]
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        inputs = [name for name in read if name not in made and name not in weights]
        later = {name for group in groups[index + 1 :] for node in group for name in node.input} - set(weights)
        values = [name for name in made if types[name].type.tensor_type.elem_type in FLOATS]
        outputs = dict.fromkeys([*values, *(name for name in made if name in later)])
        graph = helper.make_graph(
            nodes,
            f"{model.graph.name}.{index}",
            [helper.make_tensor_value_info(name, types[name].type.tensor_type.elem_type, None) for name in inputs],
            [helper.make_tensor_value_info(name, types[name].type.tensor_type.elem_type, None) for name in outputs],
            [weights[name] for name in read if name in weights],
        )
        part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions)
        segments.append(Segment(part, values, inputs, later))
    return segments


class SegmentedGraph:
    """A graph of one input, loaded in pieces; :meth:`run` gives all its float values in order."""

    def __init__(self, model: onnx.ModelProto, weights: WeightStore, shape: tuple[int, ...], limit: int):
        self.input = model.graph.input[0].name
        self._weights = weights  # the sessions read its arrays in place
        self._loaded = [(segment, load_session(segment.model, weights)) for segment in cut(model, shape, limit)]

    def run(self, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Every float value (name, array) of the graph on the input ``values``, in graph order; the graph's output comes last."""
        held = {self.input: values}
        for segment, session in self._loaded:
            names = [output.name for output in session.get_outputs()]
            found = dict(zip(names, session.run(names, {name: held[name] for name in segment.inputs}), strict=True))
            for name in segment.values:
                yield name, found[name]
            held = {name: array for name, array in (held | found).items() if name in segment.needed}
