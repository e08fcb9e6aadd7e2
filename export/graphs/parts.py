"""The graphs of a bundle: which layers, inputs and outputs each :class:`~mgvq_export.core.spec.Part` has."""

from __future__ import annotations

import numpy as np
import onnx

from mgvq_export.core.precision_plan import PrecisionPlan
from mgvq_export.core.spec import NETWORK_VALUES, ModelSpec, Part
from mgvq_export.export.graphs.builder import FLOAT, INT32, INT64, ONNX_TYPE, GraphBuilder, WeightStore
from mgvq_export.export.graphs.lowering import array, lower
from mgvq_export.model.network import MGVQ
from mgvq_export.ops.contract import DOMAIN, OP_NAME
from mgvq_export.ops.function import grouped_argmin_function

Shape = tuple[int | str, ...]


def value_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """The shape of every value that can enter or leave a graph; names are dynamic dimensions."""
    inner = spec.widths[spec.inner_stage] if spec.inner_stage is not None else 0
    return {
        "image": ("batch", 3, "height", "width"),
        "inner_features": ("batch", inner, "inner_height", "inner_width"),
        "features": ("batch", spec.trunk_channels, "feature_height", "feature_width"),
        "latent": ("batch", spec.latent_channels, "latent_height", "latent_width"),
        "codes": ("batch", spec.groups, "latent_height", "latent_width"),
        "quantized": ("batch", spec.latent_channels, "latent_height", "latent_width"),
    }


def build_graph(network: MGVQ, part: Part, precision: str | PrecisionPlan, weights: WeightStore) -> onnx.ModelProto:
    """The ONNX model of one part. Its weights are added to ``weights`` and referred to as external data.

    Args:
        network: float32 weights.
        precision: ``fp32``; ``fp16``: weights, inputs, outputs and convolutions in float16, norms and attention in float32; or a plan,
            which says so node by node. Nodes it names that are not in this part are passed over.

    Raises:
        InputError: a node cannot run as the plan says.
    """
    functions = []
    if part is Part.QUANTIZER:
        functions = [grouped_argmin_function(network.spec.groups, network.spec.codes_per_group, network.spec.group_dim)]
    return fill_graph(network, part, precision, weights).model(str(part), functions)


def fill_graph(network: MGVQ, part: Part, precision: str | PrecisionPlan, weights: WeightStore) -> GraphBuilder:
    """:func:`build_graph` before the model is made: the builder with all nodes of the part."""
    base, plan = (precision.base, precision) if isinstance(precision, PrecisionPlan) else (precision, None)
    graph = GraphBuilder(weights, ONNX_TYPE[base], plan)
    if part is Part.QUANTIZER:
        _quantizer(graph, network)
    elif part is Part.DEQUANTIZER:
        _dequantizer(graph, network)
    else:
        _layers(graph, network, part)
    return graph


def _layers(graph: GraphBuilder, network: MGVQ, part: Part) -> None:
    names = {module: name for name, module in network.named_modules()}
    shapes = value_shapes(network.spec)
    source, target = NETWORK_VALUES[part]
    x = graph.input(source, graph.default, shapes[source])
    for layer in network.part(part):
        x = lower(layer, graph, x, names[layer])
    graph.output(target, x, shapes[target])


def _codebook(graph: GraphBuilder, network: MGVQ) -> str:
    """The unit codebook rows [G, K, d], float32 in every precision."""
    return graph.weight("quantize.codebook", array(network.quantize.codebook()), dtype=FLOAT)


def _quantizer(graph: GraphBuilder, network: MGVQ) -> None:
    shapes = value_shapes(network.spec)
    latent = graph.input("latent", graph.default, shapes["latent"])
    # The operator sums in float32 anyway; ONNX Runtime's Python operators, which carry the fused kernel, take no float16.
    latent = graph.cast(latent, FLOAT)
    codes = graph.raw_node(OP_NAME, latent, _codebook(graph, network), name="quantize/argmin", dtype=INT32, domain=DOMAIN)
    quantized = _lookup(graph, network, codes, groups=None)
    graph.output("codes", codes, shapes["codes"])
    graph.output("quantized", quantized, shapes["quantized"])


def _dequantizer(graph: GraphBuilder, network: MGVQ) -> None:
    shapes = value_shapes(network.spec)
    codes = graph.input("codes", INT32, shapes["codes"])
    groups = graph.input("groups", INT64, ())
    graph.output("quantized", _lookup(graph, network, codes, groups), shapes["quantized"])


def _lookup(graph: GraphBuilder, network: MGVQ, codes: str, groups: str | None) -> str:
    """Codes [B, G, h, w] -> their rows [B, G*d, h, w]; rows of group ``groups`` and later are zero."""
    spec, name = network.spec, "quantize/lookup"
    stored = _codebook(graph, network)
    kind = graph.types[stored]
    rows = graph.view("quantize.rows", stored, (spec.codebook_size, spec.group_dim))
    first_rows = np.arange(spec.groups, dtype=np.int32)[:, None, None] * np.int32(spec.codes_per_group)
    index = graph.raw_node("Add", codes, graph.constant(first_rows, "quantize.first_rows"), name=f"{name}/row", dtype=INT32)
    x = graph.raw_node("Gather", rows, index, name=f"{name}/rows", dtype=kind, axis=0)  # [B, G, h, w, d]
    x = graph.raw_node("Transpose", x, name=f"{name}/transpose", dtype=kind, perm=[0, 1, 4, 2, 3])
    if groups is not None:
        group = graph.constant(np.arange(spec.groups, dtype=np.int64)[:, None, None, None], "quantize.group")
        used = graph.raw_node("Less", group, groups, name=f"{name}/used", dtype=onnx.TensorProto.BOOL)
        zero = graph.constant(np.zeros((), np.float32), "float:0.0")
        x = graph.raw_node("Where", used, x, zero, name=f"{name}/masked", dtype=kind)
    x = graph.raw_node("Reshape", x, graph.integers(0, -1, 1, 0, 0), name=f"{name}/channels", dtype=kind)
    x = graph.raw_node("Squeeze", x, graph.integers(2), name=name, dtype=kind)
    return graph.cast(x, graph.default)
