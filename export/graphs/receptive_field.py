"""The receptive field of a trunk, computed from its ONNX graph.

Exact tiling needs one number per direction: how far the inputs of an output pixel can lie from it. It is computed from
the graph that runs, so it stays right when the network or its lowering changes. Only the operators that
:mod:`mgvq_export.export.graphs.lowering` writes into trunks have a rule here; any other is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm, prod

import onnx
from onnx import numpy_helper

from mgvq_export.core.errors import SpecError
from mgvq_export.core.spec import ReceptiveField

# An extent is a whole number, or a fraction of an axis of the graph's input: ("height", 1/2) is half its height.
Extent = tuple[str, Fraction]
Layout = tuple[Extent, ...]
Interval = tuple[int, int]  # first and last index needed along an axis
Needs = dict[str, Callable[[Interval], Interval]]

NUMBER = ""
SPATIAL = ("height", "width")

#: Operators that compute every element from the elements at the same place in their inputs.
ELEMENTWISE = {"Add", "Cast", "Mul", "Reciprocal", "Relu", "Sigmoid", "Sqrt"}
PER_CHANNEL = {"DequantizeLinear", "QuantizeLinear"}


@dataclass(frozen=True)
class _Step:
    """What a node asks of each of its data inputs: per spatial axis, the interval it needs for an interval of its output."""

    inputs: tuple[str, ...]
    output: str
    needs: Needs


def receptive_field(model: onnx.ModelProto) -> ReceptiveField:
    """Strides and receptive field of a graph with one image-like input and output, float [B, C, H, W].

    The outputs of one cell are followed back through the graph to the interval of inputs they depend on. The values of weights are
    not read (they need not be loaded): a weight of zero still counts.

    Raises:
        SpecError: an operator reaches over the whole image, or is not known here; the message names the node.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise SpecError(f"graph {graph.name} has {len(inputs)} inputs and {len(graph.output)} outputs; wanted one of each")
    walk = _Forward(initializers, inputs[0])
    for node in graph.node:
        walk.visit(node)
    output = graph.output[0].name
    layout = walk.layouts[output]
    if [name for name, _ in layout[2:]] != list(SPATIAL):
        raise SpecError(f"graph {graph.name}: output {output} has no height and width as its last two axes")
    reaches = [_axis_reach(axis, inputs[0].name, output, walk) for axis in SPATIAL]
    strides = {(r.stride_in, r.stride_out) for r in reaches}
    if len(strides) > 1:
        raise SpecError(f"graph {graph.name} scales height and width differently; exact tiling knows one stride for both")
    (stride_in, stride_out) = strides.pop()
    return ReceptiveField(stride_in, stride_out, max(r.before for r in reaches), max(r.after for r in reaches))


def _axis_reach(axis: str, source: str, target: str, walk: _Forward) -> ReceptiveField:
    scales = [factor for layout in walk.layouts.values() for name, factor in layout if name == axis]
    stride_in = lcm(*(scale.denominator for scale in scales))
    (scale,) = (factor for name, factor in walk.layouts[target] if name == axis)
    stride_out = int(stride_in * scale)
    needed: dict[str, Interval] = {target: (0, stride_out - 1)}
    for step in reversed(walk.steps):
        if step.output not in needed or axis not in step.needs:
            continue
        first, last = step.needs[axis](needed[step.output])
        for name in step.inputs:
            if any(dimension == axis for dimension, _ in walk.layouts[name]):
                needed[name] = _hull([(first, last), *([needed[name]] if name in needed else [])])
    if source not in needed:
        raise SpecError(f"output {target} does not depend on input {source}")
    first, last = needed[source]
    return ReceptiveField(stride_in, stride_out, max(0, -first), max(0, last - (stride_in - 1)))


def _hull(intervals: Sequence[Interval]) -> Interval:
    return min(first for first, _ in intervals), max(last for _, last in intervals)


class _Forward:
    """Follows the axes of the input through the graph: the layout of every value, and one step per node."""

    def __init__(self, initializers: dict[str, onnx.TensorProto], source: onnx.ValueInfoProto):
        self.constants = {name: tuple(tensor.dims) for name, tensor in initializers.items()}
        self._tensors = initializers
        dims = source.type.tensor_type.shape.dim
        if len(dims) != 4:
            raise SpecError(f"input {source.name} has {len(dims)} axes; wanted [batch, channels, height, width]")
        channels = _number(dims[1].dim_value) if dims[1].dim_value else ("channels", Fraction(1))
        one = Fraction(1)
        self.layouts: dict[str, Layout] = {source.name: (("batch", one), channels, ("height", one), ("width", one))}
        self.steps: list[_Step] = []

    def visit(self, node: onnx.NodeProto) -> None:
        if node.input and all(name in self.constants for name in node.input):  # a weight that is stored in eight bits
            self.constants[node.output[0]] = self.constants[node.input[0]]
            return
        data = tuple(name for name in node.input if name in self.layouts)
        unknown = [name for name in node.input if name and name not in self.layouts and name not in self.constants]
        if not data or unknown or node.domain not in ("", "ai.onnx"):
            raise _not_local(node, "is not an operator on image data that is known here")
        layout, needs = self._rule(node, data)
        (output,) = node.output
        self.layouts[output] = layout
        self.steps.append(_Step(data, output, needs))

    def _rule(self, node: onnx.NodeProto, data: tuple[str, ...]) -> tuple[Layout, Needs]:
        """Layout of the output and needs per axis."""
        op, layout = node.op_type, self.layouts[data[0]]
        same: Needs = dict.fromkeys(SPATIAL, _identity)
        if op in ELEMENTWISE:
            return self._broadcast(node), same
        if op in PER_CHANNEL:
            return layout, same
        if op == "ReduceMean":
            return self._reduced(node, layout), same
        if op == "Gather":
            return self._gathered(node, data), same
        if op in ("Transpose", "Squeeze", "Unsqueeze"):
            return self._moved(node, layout), same
        if op == "Conv":
            return self._convolution(node, layout)
        if op == "Reshape":
            return self._reshape(node, layout)
        if op == "DepthToSpace":
            return self._depth_to_space(node, layout)
        raise _not_local(node, "is not an operator whose reach is known here")

    def _reduced(self, node: onnx.NodeProto, layout: Layout) -> Layout:
        axes = self._axes(node, layout, default=range(len(layout)))
        self._refuse_spatial(layout, axes, node, "sums over")
        keep = _integer(node, "keepdims", 1)
        return tuple(_number(1) if i in axes else e for i, e in enumerate(layout) if keep or i not in axes)

    def _moved(self, node: onnx.NodeProto, layout: Layout) -> Layout:
        if node.op_type == "Transpose":
            return tuple(layout[i] for i in _integers(node, "perm", tuple(reversed(range(len(layout))))))
        if node.op_type == "Squeeze":
            axes = self._axes(node, layout, default=[i for i, extent in enumerate(layout) if extent == _number(1)])
            return tuple(extent for i, extent in enumerate(layout) if i not in axes)
        added = [_number(1)] * len(self._constant(node, 1))
        extents = list(layout)
        for axis in sorted(self._axes(node, (*layout, *added), default=())):
            extents.insert(axis, _number(1))
        return tuple(extents)

    @staticmethod
    def _depth_to_space(node: onnx.NodeProto, layout: Layout) -> tuple[Layout, Needs]:
        block = _integer(node, "blocksize", 1)
        batch, (channels, count), (_, height), (_, width) = layout
        result = (batch, (channels, count / block**2), ("height", height * block), ("width", width * block))
        return result, dict.fromkeys(SPATIAL, _regroup(block, 1))  # height [h, 1] seen as [h / block, block]

    def _broadcast(self, node: onnx.NodeProto) -> Layout:
        one = _number(1)
        shapes = [self.layouts[n] if n in self.layouts else tuple(map(_number, self.constants[n])) for n in node.input if n]
        rank = max(map(len, shapes))
        result = []
        for extents in zip(*((*[one] * (rank - len(shape)), *shape) for shape in shapes), strict=True):
            wide = {extent for extent in extents if extent != one}
            if len(wide) > 1:
                raise _not_local(node, f"combines axes of different extent: {', '.join(map(_text, sorted(wide)))}")
            result.append(wide.pop() if wide else one)
        return tuple(result)

    def _convolution(self, node: onnx.NodeProto, layout: Layout) -> tuple[Layout, Needs]:
        if [name for name, _ in layout[2:]] != list(SPATIAL):
            raise _not_local(node, "does not slide over height and width")
        if any(attribute.name == "auto_pad" for attribute in node.attribute):
            raise _not_local(node, "uses auto_pad; wanted explicit pads")
        weight = self.constants.get(node.input[1])
        if weight is None:
            raise _not_local(node, "computes its own kernel")
        kernel = _integers(node, "kernel_shape", weight[2:])
        strides, dilations = _integers(node, "strides", (1, 1)), _integers(node, "dilations", (1, 1))
        pads = _integers(node, "pads", (0, 0, 0, 0))
        extents = [layout[0], _number(weight[0])]
        needs: Needs = {}
        for axis, name in enumerate(SPATIAL):
            stride, pad, span = strides[axis], pads[axis], dilations[axis] * (kernel[axis] - 1)
            # The windows must fit as often as the stride does: else the output would lose or gain pixels at the end.
            if not -stride <= pad + pads[axis + 2] - span - 1 <= -1:
                raise _not_local(node, f"changes the {name} by other than its stride; wanted pads that keep the size")
            extents.append((name, layout[2 + axis][1] / stride))
            needs[name] = _window(stride, pad, span)
        return tuple(extents), needs

    def _gathered(self, node: onnx.NodeProto, data: tuple[str, ...]) -> Layout:
        layout = self.layouts[data[0]]
        axis = _integer(node, "axis", 0) % len(layout)
        self._refuse_spatial(layout, (axis,), node, "picks from")
        if node.input[0] != data[0] or node.input[1] not in self.constants:
            raise _not_local(node, "looks up by computed indices")
        return (*layout[:axis], *map(_number, self.constants[node.input[1]]), *layout[axis + 1 :])

    def _reshape(self, node: onnx.NodeProto, layout: Layout) -> tuple[Layout, Needs]:
        codes = self._constant(node, 1)
        if _integer(node, "allowzero", 0):
            raise _not_local(node, "uses allowzero")
        target: list[Extent | None] = [layout[i] if c == 0 else None if c == -1 else _number(c) for i, c in enumerate(codes)]
        names, count = _product(layout)
        known, size = _product([extent for extent in target if extent])
        rest = list(names)
        for name in known:
            if name not in rest:
                raise _not_local(node, "copies an axis twice")
            rest.remove(name)
        if None not in target and (rest or count != size):
            raise _not_local(node, "does not keep the number of elements")
        if len(rest) > 1:
            raise _not_local(node, f"merges {' and '.join(rest)} into one axis")
        missing = (rest[0] if rest else NUMBER, count / size)
        result = tuple(extent or missing for extent in target)
        needs: Needs = dict.fromkeys(SPATIAL, _identity)
        for before, after in _groups(layout, result):
            needs |= self._regrouped(node, before, after)
        return result, needs

    def _regrouped(self, node: onnx.NodeProto, before: Layout, after: Layout) -> Needs:
        names = [name for name, _ in before if name]
        if not set(names) & set(SPATIAL) or before == after:
            return {}
        if len(names) > 1:
            raise _not_local(node, f"mixes {' and '.join(names)}")
        (old,) = (i for i, (name, _) in enumerate(before) if name)
        (new,) = (i for i, (name, _) in enumerate(after) if name)
        if _product(before[:old])[1] != 1 or _product(after[:new])[1] != 1:
            raise _not_local(node, f"mixes channels and {names[0]}")
        return {names[0]: _regroup(int(_product(before[old + 1 :])[1]), int(_product(after[new + 1 :])[1]))}

    def _axes(self, node: onnx.NodeProto, layout: Layout, default: Sequence[int]) -> tuple[int, ...]:
        axes = self._constant(node, 1) if len(node.input) > 1 else default
        return tuple(axis % len(layout) for axis in axes)

    def _constant(self, node: onnx.NodeProto, index: int) -> tuple[int, ...]:
        tensor = self._tensors.get(node.input[index])
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise _not_local(node, f"takes {node.input[index]} from a computation; wanted a constant in the graph")
        return tuple(int(value) for value in numpy_helper.to_array(tensor).reshape(-1))

    @staticmethod
    def _refuse_spatial(layout: Layout, axes: Sequence[int], node: onnx.NodeProto, verb: str) -> None:
        for axis in axes:
            if layout[axis][0] in SPATIAL:
                raise _not_local(node, f"{verb} the {layout[axis][0]}")


def _number(value: int) -> Extent:
    return NUMBER, Fraction(value)


def _text(extent: Extent) -> str:
    return f"{extent[1]} {extent[0]}".strip()


def _product(extents: Sequence[Extent]) -> tuple[list[str], Fraction]:
    return [name for name, _ in extents if name], prod((factor for _, factor in extents), start=Fraction(1))


def _groups(before: Layout, after: Layout) -> list[tuple[Layout, Layout]]:
    """The shortest runs of axes on both sides with equal products: what a reshape regroups independently."""
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        start, end = (i, j), (min(i + 1, len(before)), min(j + 1, len(after)))
        while True:
            left, right = _product(before[start[0] : end[0]]), _product(after[start[1] : end[1]])
            if left == right:
                break
            if end == (len(before), len(after)):
                return [(before, after)]  # axes in another order: one group of everything
            # Take the axis a side lacks: a name the other has, else the smaller product grows.
            grow_left = end[0] < len(before) and (end[1] == len(after) or (len(left[0]), left[1]) < (len(right[0]), right[1]))
            end = (end[0] + 1, end[1]) if grow_left else (end[0], end[1] + 1)
        groups.append((before[start[0] : end[0]], after[start[1] : end[1]]))
        i, j = end
    return groups


def _identity(interval: Interval) -> Interval:
    return interval


def _window(stride: int, pad: int, span: int) -> Callable[[Interval], Interval]:
    return lambda interval: (interval[0] * stride - pad, interval[1] * stride - pad + span)


def _regroup(before: int, after: int) -> Callable[[Interval], Interval]:
    """[axis, before] seen as [axis', after], row-major: all of what lies behind an index of either is one run."""
    return lambda interval: (interval[0] * after // before, (interval[1] * after + after - 1) // before)


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _integers(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == name), default)


def _not_local(node: onnx.NodeProto, why: str) -> SpecError:
    return SpecError(f"node {node.name or node.output[0]} ({node.op_type}) {why}; a graph with it cannot be tiled exactly")
