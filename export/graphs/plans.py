"""What a precision plan can say about a network, and whether a plan fits one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import PrecisionPlan, side_of
from mgvq_export.core.spec import Part
from mgvq_export.export.graphs.builder import FLOAT16, GraphBuilder, WeightStore
from mgvq_export.export.graphs.flops import infer_shapes, node_flops
from mgvq_export.export.graphs.parts import fill_graph
from mgvq_export.model.network import MGVQ

#: The graphs that hold all nodes of each side; the others are cuts of them.
SIDES = (Part.ENCODER, Part.DECODER)

_CELLS = 2  # height and width, in latent cells, of the map that work is counted on


@dataclass(frozen=True)
class PlanNode:
    """A node that a plan may name.

    Attributes:
        name, op: in the graphs.
        side: ``encoder`` or ``decoder``.
        dtype: the type it has in float16 graphs: ``fp16``, or ``fp32`` inside norms and attention.
        inputs: the values it reads, weights and constants aside, by their names in the encoder's or decoder's graph.
        skip: of a residual sum: the position of the branch without the convolution; None for any other node.
        groups: of a convolution; 0 for others.
        macs: multiply-adds per image pixel in convolutions and matrix products; 0 for others.
        quantizable: whether it may be ``int8`` or ``fp8``.
    """

    name: str
    op: str
    side: str
    dtype: str
    inputs: tuple[str, ...]
    skip: int | None
    groups: int
    macs: float
    quantizable: bool


class _ShapesOnly(WeightStore):
    """Keeps no values: enough to read names and shapes off a graph."""

    def add(self, name: str, array: np.ndarray) -> None:
        super().add(name, np.broadcast_to(np.zeros((), array.dtype), array.shape))


def plan_nodes(network: MGVQ) -> dict[str, PlanNode]:
    """Every node that a plan may name, by name: those of the encoder's graph, then the decoder's, in the order they run."""
    return {name: node for part in SIDES for name, node in _nodes(network, part).items()}


def check_plan(plan: PrecisionPlan, network: MGVQ) -> None:
    """Raises :class:`InputError` when ``plan`` names a node that the network does not have, or that cannot run as it says."""
    known = {name for part in SIDES for name in fill_graph(network, part, plan, _ShapesOnly()).choices}
    for name in plan.nodes:
        if name in known:
            continue
        if name.split("/")[0].split(".")[0] == "quantize":
            raise InputError(
                f"plan {plan.name} names {name}: the quantizer's graph is left as it is, since codes are exact; remove it"
            )
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.0)
        raise InputError(
            f"plan {plan.name} names the node {name}, which {network.spec.name} does not have; nearest: {', '.join(near)}"
        )


def _nodes(network: MGVQ, part: Part) -> dict[str, PlanNode]:
    graph = fill_graph(network, part, "fp16", _ShapesOnly())
    shapes = _shapes(graph.model(str(part)), network.spec.downsample)
    pixels = (_CELLS * network.spec.downsample) ** 2
    return {name: _describe(node, graph, shapes, pixels) for name, node in graph.choices.items()}


def _describe(node: onnx.NodeProto, graph: GraphBuilder, shapes: Mapping[str, Sequence[int]], pixels: int) -> PlanNode:
    casts = {cast.output[0]: cast.input[0] for cast in graph.nodes if cast.op_type == "Cast"}
    activations = tuple(casts.get(value, value) for value in node.input if value not in graph.initializers)
    groups = 0
    if node.op_type == "Conv":
        (groups,) = (attribute.i for attribute in node.attribute if attribute.name == "group")
    # The branch of a residual sum that holds the layers is the module ``main`` of the block that the sum is called after.
    shortcuts = [position for position, value in enumerate(activations) if not value.startswith(f"{node.name}.main")]
    residual = node.op_type == "Add" and len(activations) == 2
    return PlanNode(
        name=node.name,
        op=node.op_type,
        side=side_of(node.name),
        dtype="fp16" if graph.types[node.output[0]] == FLOAT16 else "fp32",
        inputs=activations,
        skip=shortcuts[0] if residual and len(shortcuts) == 1 else None,
        groups=groups,
        macs=node_flops(node, shapes) / 2 / pixels,
        quantizable=residual or groups == 1,
    )


def _shapes(model: onnx.ModelProto, downsample: int) -> Mapping[str, Sequence[int]]:
    """The shape of every value for one image of ``_CELLS`` latent cells a side."""
    (value,) = model.graph.input
    side = _CELLS * downsample if value.name == "image" else _CELLS
    for axis, size in ((0, 1), (2, side), (3, side)):
        value.type.tensor_type.shape.dim[axis].dim_value = size
    return infer_shapes(model)
