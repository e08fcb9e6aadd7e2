"""Finds the nodes at which a difference arises: every value inside the graphs is compared with the same value of a reference.

Nodes have the names of the PyTorch modules they were lowered from, so values and module outputs are matched by name. Each part
(trunk, head) gets the reference's input: an error in one part does not carry over to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.files import PathLike
from mgvq_export.core.json_files import to_json
from mgvq_export.core.spec import Part
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject
from mgvq_export.parity.metrics import relative_l2
from mgvq_export.parity.network import find_network
from mgvq_export.parity.results import format_value
from mgvq_export.parity.tolerances import Tolerance, tolerance
from mgvq_export.runtime.images import to_float

if TYPE_CHECKING:
    import onnx

    from mgvq_export.model.network import MGVQ

_SHOWN = 8  # nodes listed per comparison

_ENCODER = (Part.ENCODER_TRUNK, Part.ENCODER_HEAD)
_DECODER = (Part.DECODER_HEAD, Part.DECODER_TRUNK)

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Origin:
    """A node whose output is above the tolerance while all its inputs are below it: the difference arises here.

    Attributes:
        comparison: ``fp32 against the network``, ``fp16 against fp32``.
        part: the graph.
        node: its name: the PyTorch module, then, for a step inside it, a slash and the step.
        operator: the ONNX operator.
        error: relative L2 of its output; not a number where values overflow.
        error_before: the largest relative L2 among its inputs.
    """

    comparison: str
    part: str
    node: str
    operator: str
    error: float
    error_before: float


@dataclass(frozen=True)
class Bisection:
    """The result of all comparisons.

    Attributes:
        origins: in graph order.
        summary: one line per comparison: how many values were compared, and the largest error.
    """

    origins: list[Origin]
    summary: list[str]

    def to_dict(self) -> JsonObject:
        """JSON-ready."""
        return {"summary": self.summary, "origins": to_json(self.origins)}

    def table(self) -> Table:
        """Columns and rows of text: the first few origins of each comparison."""
        rows: list[list[str]] = []
        for one in self.origins:
            if sum(row[0] == one.comparison for row in rows) < _SHOWN:
                errors = (format_value(one.error_before), format_value(one.error))
                rows.append([one.comparison, one.part, one.node, one.operator, *errors])
        return Table(
            ("comparison", "graph", "node", "operator", "error before", "error"), rows, "Differences arise at", identifiers=3
        )


def bisect(bundle: PathLike | Bundle, image: np.ndarray, *, checkpoint: PathLike | None = None) -> Bisection:
    """Compare every value of the fp32 graphs with the network's, and those of each further precision with fp32.

    Args:
        image: uint8 [H, W, 3], sides multiples of f. All intermediate maps are kept in memory: take a small image.
        checkpoint: as in ``verify``; without a network that comparison is left out; the summary has the reason.

    Raises:
        BackendError: onnx is not installed.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    reference = find_network(bundle, None if checkpoint is None else str(checkpoint))
    network = reference.network
    first = "fp32" if "fp32" in bundle.precisions else bundle.precisions[0]
    origins: list[Origin] = []
    summary: list[str] = [] if network else [f"{first} against the network: skipped, {reference.why}"]
    own = _every_value(bundle, first, image, None)
    if network is not None:
        wanted = {part: _network_values(network, part, feed) for part, (feed, _) in own.items()}
        _compare(bundle, first, f"{first} against the network", own, wanted, (origins, summary))
    for precision in bundle.precisions:
        if precision != first:
            found = _every_value(bundle, precision, image, {part: feed for part, (feed, _) in own.items()})
            wanted = {part: values for part, (_, values) in own.items()}
            _compare(bundle, precision, f"{precision} against {first}", found, wanted, (origins, summary))
    return Bisection(origins, summary)


Run = dict[Part, tuple[np.ndarray, Values]]


def _every_value(bundle: Bundle, precision: str, image: np.ndarray, feeds: Mapping[Part, np.ndarray] | None) -> Run:
    """Input and all values of every part. The input of a part comes from ``feeds``, or from the part before where None."""
    found: Run = {}
    values = to_float(image)
    for part in _ENCODER:
        found[part] = _exposed(bundle, precision, part, values if feeds is None else feeds[part])
        values = found[part][1]["latent" if part is Part.ENCODER_HEAD else "features"]
    from mgvq_export.runtime.ort.sessions import OrtSession

    if feeds is None:
        values = OrtSession(bundle.graph_path(precision, Part.QUANTIZER)).run({"latent": values}, ["quantized"])[0]
    for part in _DECODER:
        found[part] = _exposed(bundle, precision, part, values if feeds is None else feeds[part])
        values = found[part][1]["image" if part is Part.DECODER_TRUNK else "features"]
    return found


def _load(bundle: Bundle, precision: str, part: Part) -> tuple[onnx.ModelProto, Path]:
    try:
        import onnx
    except ImportError:
        raise BackendError("looking inside the graphs needs onnx: pip install 'mgvq-export[export]'") from None
    path = bundle.graph_path(precision, part)
    return onnx.load(path, load_external_data=False), path.parent


def _exposed(bundle: Bundle, precision: str, part: Part, feed: np.ndarray) -> tuple[np.ndarray, Values]:
    """The input and all values of a graph by name, computed node by node (no fusions)."""
    import onnx

    from mgvq_export.ops.ort_session import load_graph, session_options

    model, folder = _load(bundle, precision, part)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for node in model.graph.node for name in node.output if name not in known
    )
    options = session_options(optimize=False)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = load_graph(model.SerializeToString(), options)
    (entry,) = session.get_inputs()
    dtype = np.float16 if "float16" in entry.type else np.float32
    names = [value.name for value in session.get_outputs()]
    return feed, dict(zip(names, session.run(None, {entry.name: feed.astype(dtype)}), strict=True))


def _network_values(network: MGVQ, part: Part, feed: np.ndarray) -> Values:
    """Outputs of all modules of a part by module name, and the slices of them that single nodes compute."""
    import torch

    from mgvq_export.export.graphs.lowering import channel_slices
    from mgvq_export.model.layers import GatedConv, LinearAttention

    layers = network.part(part)
    inside = set(layers.modules())
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, object, torch.Tensor], None]:
        def hook(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> None:
            found[name] = output.numpy().copy()
            if isinstance(module, torch.nn.BatchNorm2d):  # folded into the convolution before it
                found[f"{name.removesuffix('.norm')}.conv"] = found[name]

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules() if module in inside]
    try:
        with torch.inference_mode():
            layers(torch.from_numpy(feed.astype(np.float32)))
    finally:
        for handle in handles:
            handle.remove()
    for name, module in network.named_modules():
        if module in inside and isinstance(module, (LinearAttention, GatedConv)):
            for node, (whole, channels) in channel_slices(module).items():
                found[f"{name}.{node}"] = found[f"{name}.{whole}"][:, channels]
    return found


def _compare(
    bundle: Bundle, precision: str, title: str, found: Run, wanted: Mapping[Part, Values], into: tuple[list[Origin], list[str]]
) -> None:
    limits = [tolerance("latent", bundle.kind(precision, side)) for side in ("encoder", "decoder")]
    compared, worst, where = 0, 0.0, ""
    for part, (_, values) in found.items():
        model, _ = _load(bundle, precision, part)
        limit = limits[part in _DECODER]
        for node, error, before, measured in _errors(model, values, wanted[part]):
            compared += measured
            if measured and not error <= worst and worst == worst:
                worst, where = error, node.name
            if measured and not limit.holds(error) and limit.holds(before):
                into[0].append(Origin(title, str(part), node.name, node.op_type, error, before))
    into[1].append(
        f"{title}: {compared} values compared, largest error {format_value(worst)} at {where}, limit {_limits(limits)}"
    )


def _limits(limits: Sequence[Tolerance]) -> str:
    """``0.003``, or ``0.003 and 0.07``: the encoder's and the decoder's where they differ."""
    return " and ".join(dict.fromkeys(f"{limit.limit:g}" for limit in limits))


def _errors(model: onnx.ModelProto, values: Values, wanted: Values) -> Iterator[tuple[onnx.NodeProto, float, float, bool]]:
    """Every node with the error of its output, the largest of its inputs, and whether the reference has the value.

    A value that the reference does not have gets the largest error among its inputs.
    """
    errors: dict[str, float] = {}
    for node in model.graph.node:
        before = float(np.max([errors.get(name, 0.0) for name in node.input], initial=0.0))  # NaN stays NaN
        name = node.output[0]
        # The last node of a graph writes the graph's output, but its name is still the module's.
        reference = wanted.get(node.name, wanted.get(name))
        measured = (
            reference is not None
            and reference.shape == values[name].shape
            and reference.dtype.kind == "f"
            and values[name].dtype.kind == "f"
        )
        errors[name] = relative_l2(values[name], reference) if measured and reference is not None else before
        yield node, errors[name], before, measured
