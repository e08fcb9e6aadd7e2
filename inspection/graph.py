"""Describes an ONNX graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mgvq_export.core.errors import InputError
from mgvq_export.core.json_files import to_json
from mgvq_export.core.tables import Table
from mgvq_export.inspection.facts import Facts


def describe_graph(path: Path) -> Facts:
    """Inputs, outputs and operators. Raises :class:`InputError` when it is no graph, or onnx is not installed."""
    try:
        import onnx
        from google.protobuf.message import DecodeError

        from mgvq_export.export.graphs.builder import value_entry
    except ImportError:
        raise InputError("inspecting a graph needs onnx: pip install 'mgvq-export[export]'") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise InputError(f"cannot read {path} as an ONNX graph: {' '.join(str(error).split())}") from error
    graph = model.graph
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.node)

    try:
        sides = {
            end: [value_entry(value) for value in values] for end, values in (("input", graph.input), ("output", graph.output))
        }
    except (KeyError, TypeError, ValueError) as error:  # numbers of types that ONNX does not have
        raise InputError(f"cannot read {path} as an ONNX graph: an input or output is of no type that ONNX knows") from error
    values = {
        "kind": "graph",
        "name": graph.name,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": ", ".join(f"{entry.domain or 'onnx'} {entry.version}" for entry in model.opset_import),
        "nodes": len(graph.node),
        "functions": ", ".join(f"{function.domain}::{function.name}" for function in model.functions) or "-",
        "operators": dict(operators.most_common()),
        "inputs": to_json(sides["input"]),
        "outputs": to_json(sides["output"]),
    }
    rows = [[end, v.name, v.dtype, str(list(v.shape))] for end, graph_ends in sides.items() for v in graph_ends]
    counts = [[name, str(count)] for name, count in operators.most_common()]
    return Facts(
        values,
        [
            Table(("", "name", "dtype", "shape"), rows, "Inputs and outputs", identifiers=2),
            Table(("operator", "nodes"), counts, "Operators"),
        ],
    )
