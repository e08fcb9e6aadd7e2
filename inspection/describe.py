"""What a file or folder is and holds: the facts behind the ``models`` and ``inspect`` commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.json_files import to_json
from mgvq_export.core.manifest import KernelRecord, TensorEntry
from mgvq_export.core.precision_plan import PrecisionPlan
from mgvq_export.core.spec import VARIANTS, ModelSpec
from mgvq_export.core.tokens import Tokens
from mgvq_export.model.demo import DEMO_SPEC

Table = tuple[str, Sequence[str], list[list[str]]]


@dataclass
class Facts:
    """What was found: ``values`` as JSON-ready data, ``tables`` (title, columns, rows) for people."""

    values: dict[str, Any]
    tables: list[Table] = field(default_factory=list)

    def summary(self) -> list[tuple[str, Any]]:
        """The plain values, without the nested ones that the tables show."""
        return [(name, value) for name, value in self.values.items() if not isinstance(value, (dict, list))]


def known_models() -> list[dict[str, Any]]:
    """One row per model that can be exported by name: the released variants and ``demo``."""
    return [
        {
            "name": spec.name,
            "f": spec.downsample,
            "groups": spec.groups,
            "codes/group": spec.codes_per_group,
            "group dim": spec.group_dim,
            "bits/token": spec.bits_per_token,
            "bits/pixel": round(spec.bits_per_token / spec.downsample**2, 3),
            "checkpoint": "in the package" if spec is DEMO_SPEC else f"{spec.name.replace('-', '_')}.pt",
        }
        for spec in (*VARIANTS.values(), DEMO_SPEC)
    ]


def describe(target: str, *, trust: bool = False, allow_host_code: bool = False) -> Facts:
    """The facts of a bundle folder, ``.onnx`` graph, ``.engine``, token file, precision plan, or checkpoint (also by name or address).

    ``trust``: load an engine that lies in no bundle; ``allow_host_code``: also one that runs code of its own on the host.
    Raises :class:`MgvqError` of the fitting kind when it cannot be read.
    """
    path = Path(target)
    if path.is_dir():
        return _bundle(path)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return _graph(path)
    if suffix in (".engine", ".plan", ".trt"):
        return _engine(path, trust, allow_host_code)
    if suffix == ".npz" or (suffix == ".safetensors" and path.is_file() and _is_token_file(path)):
        return _tokens(path)
    if suffix == ".json":
        plan = PrecisionPlan.load(path)
        measured = ("Measured", ("figure", "value"), _figures(plan.measured))
        tables = [_plan_table(plan), *([measured] if plan.measured else [])]
        return Facts({"kind": "precision plan", **_plan(plan), "plan": plan.to_dict()}, tables)
    return _checkpoint(target)


def _plan(plan: PrecisionPlan) -> dict[str, Any]:
    named = ", ".join(f"{count} {precision}" for precision, count in plan.counts().items())
    budgets = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in vars(plan.budgets).items() if value is not None)
    images = plan.calibration.get("images")  # for people: a plan made by hand may hold anything there
    return {
        "name": plan.name,
        "base": plan.base,
        "nodes": named or "none",
        **{side: f"{kind} (experimental)" if (kind := plan.kind(side)) == "fp8" else kind for side in ("encoder", "decoder")},
        "made for": plan.made_for.model or "-",
        "budgets": budgets or "-",
        "calibrated on": f"{len(images)} images" if images and isinstance(images, list) else "-",
    }


def _figures(values: Mapping[str, Any], where: str = "") -> list[list[str]]:
    """Rows of name and value; the names of nested ones follow one another."""
    rows = []
    for name, value in values.items():
        full = f"{where} {name.replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            rows += _figures(value, full)
        else:
            rows.append([full, f"{value:.5g}" if isinstance(value, float) else str(value)])
    return rows


def _plan_table(plan: PrecisionPlan) -> Table:
    rows = [
        [
            name,
            node.precision,
            ", ".join(f"{position}: {scale:.4g}" for position, scale in sorted(node.scales.items())),
            node.reason,
        ]
        for name, node in plan.nodes.items()
    ]
    return f"Nodes that do not run in {plan.base} as they are", ("node", "precision", "scales of inputs", "reason"), rows


def _is_token_file(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return str((file.metadata() or {}).get("format", "")).startswith("mgvq-tokens")
    except (SafetensorError, OSError):
        return False


def _model(spec: ModelSpec) -> dict[str, Any]:
    return {
        "model": spec.name,
        "pixels per token": f"{spec.downsample}x{spec.downsample}",
        "groups": spec.groups,
        "codes per group": spec.codes_per_group,
        "group dim": spec.group_dim,
        "bits per token": spec.bits_per_token,
    }


def _bundle(path: Path) -> Facts:
    bundle = Bundle.open(path)
    bundle.check_all()
    manifest = bundle.manifest
    halos = ", ".join(
        f"{part.removesuffix('_trunk')} {bundle.reach(part).halo * scale} px"  # type: ignore[arg-type]
        for part, scale in (("encoder_trunk", 1), ("decoder_trunk", bundle.spec.trunk_stride))
    )
    values = {
        "kind": "bundle",
        **_model(bundle.spec),
        "precisions": ", ".join(bundle.precisions),
        "halo": halos,
        "source": manifest.source.name,
        "source sha256": manifest.source.sha256,
        "source revision": manifest.source.revision or "-",
        "codebook sha256": bundle.codebook_sha256,
        "files": "all match their hashes",
        "manifest": manifest.to_json(),
    }
    rows = []
    plans = {name: plan for name in bundle.precisions if (plan := bundle.plan(name))}
    for entry in manifest.precisions.values():
        if entry.plan:
            rows.append([entry.plan.file, f"{entry.plan.bytes / 1e3:.1f} kB", "", ""])
        rows.append([entry.weights.file, f"{entry.weights.bytes / 1e6:.1f} MB", "", ""])
        for graph in entry.graphs.values():
            ends = [", ".join(_value(value) for value in values) for values in (graph.inputs, graph.outputs)]
            rows.append([graph.file, f"{graph.bytes / 1e3:.1f} kB", *ends])
    for engine in bundle.engines:
        rows.append([engine.file, f"{engine.bytes / 1e6:.1f} MB", "", ""])
    tables: list[Table] = [("Files", ("file", "size", "inputs", "outputs"), rows)]
    if plans:
        described = {name: _plan(plan) for name, plan in plans.items()}
        columns = tuple(next(iter(described.values())))
        tables.append(("Precision plans", columns, [[str(value) for value in plan.values()] for plan in described.values()]))
    return Facts(values, tables)


def _value(value: TensorEntry) -> str:
    """``image float32 [batch, 3, height, width]``"""
    return f"{value.name} {value.dtype} [{', '.join(map(str, value.shape))}]"


def _engine(path: Path, trust: bool, allow_host_code: bool) -> Facts:
    from mgvq_export.runtime.tensorrt.describe import describe_engine

    found = describe_engine(path, trust=trust, allow_host_code=allow_host_code)
    record, contents = found.record, found.contents
    values: dict[str, Any] = {"kind": "engine", "bytes": path.stat().st_size}
    if record:
        values |= {
            "part": record.part,
            "precision": record.precision,
            "file": "as it was built (hash in the bundle's manifest)",
            "TensorRT": record.tensorrt,
            "GPU": f"{record.gpu} ({record.compute_capability})",
            "options": ", ".join(
                f"{name.replace('_', ' ')} {value}"
                for name, value in to_json(record.options).items()
                if value not in (None, False)
            ),
            "embedded kernel": _kernel(record.kernel),
            "build": f"{record.build_seconds} s",
        }
    else:
        values["file"] = "of no bundle: nothing vouches for it"
    values["runs here"] = found.runs_here
    stored = to_json(record)
    known = contents or stored
    sides = {"input": known["inputs"], "output": known["outputs"]}
    rows = [[end, v["name"], v["dtype"], str(v["shape"])] for end, side in sides.items() for v in side]
    tables: list[Table] = [("Inputs and outputs", ("", "name", "dtype", "shape"), rows)]
    shapes = [
        [str(index), name, *(str(three[key]) for key in ("min", "opt", "max"))]
        for index, profile in enumerate(known["profiles"])
        for name, three in profile.items()
    ]
    tables.append(("Profiles", ("profile", "input", "min", "opt", "max"), shapes))
    if contents:
        values |= {
            "scratch memory": f"{contents['scratch bytes'] / 1e6:.1f} MB",
            "layers": len(contents["layers"]),
            "plugin layers": contents["plugin layers"],
        }
        layers = [[str(index), layer["name"], layer["type"] or "-"] for index, layer in enumerate(contents["layers"])]
        tables.append(("Layers", ("", "name", "type"), layers))
    else:
        values["layers"] = f"not listed: {found.not_loaded}"
    nested = {"record": stored, "contents": contents}
    return Facts(values | {name: facts for name, facts in nested.items() if facts}, tables)


def _kernel(kernel: KernelRecord | None) -> str:
    if kernel is None or kernel.architecture is None:
        return "none" if kernel is None else "GroupedArgmin"
    return f"GroupedArgmin, from compute capability {kernel.architecture / 10} on"


def _tokens(path: Path) -> Facts:
    tokens = Tokens.load(path)
    height, width = tokens.image_size
    pixels = height * width
    bits = tokens.codes.size * tokens.code_bits
    values = {
        "kind": "tokens",
        "model": tokens.model,
        "image": f"{width}x{height}",
        "codes": f"{tokens.groups} groups of {tokens.grid_size[1]}x{tokens.grid_size[0]}, each 0 to {tokens.codes_per_group - 1}",
        "bits per pixel": round(bits / pixels, 4),
        "codebook sha256": tokens.codebook_sha256,
        "bytes": path.stat().st_size,
    }
    rows = []
    for group, codes in enumerate(tokens.codes):
        rows.append([str(group), str(len(set(codes.ravel().tolist()))), str(int(codes.min())), str(int(codes.max()))])
    return Facts(values, [("Groups, coarse to fine", ("group", "different codes", "smallest", "largest"), rows)])


def _graph(path: Path) -> Facts:
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

    sides = {end: [value_entry(value) for value in values] for end, values in (("input", graph.input), ("output", graph.output))}
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
        values, [("Inputs and outputs", ("", "name", "dtype", "shape"), rows), ("Operators", ("operator", "nodes"), counts)]
    )


def _checkpoint(target: str) -> Facts:
    try:
        from mgvq_export.model.checkpoint import load_checkpoint
    except ImportError:
        raise InputError(f"inspecting the checkpoint {target} needs PyTorch: pip install 'mgvq-export[export]'") from None
    checkpoint = load_checkpoint(target)
    spec = checkpoint.spec
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values())
    values = {
        "kind": "checkpoint",
        **_model(spec),
        "tensors": len(checkpoint.tensors),
        "parameters": f"{parameters / 1e6:.2f} M",
        "dtypes": ", ".join(dtypes),
        "file": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "revision": checkpoint.revision or "-",
        "spec": spec.to_dict(),
    }
    rows = [
        [str(stage), str(2**stage), str(width), kind, str(down), str(up)]
        for stage, (width, kind, down, up) in enumerate(
            zip(spec.widths, spec.blocks, spec.encoder_depths, spec.decoder_depths, strict=True)
        )
    ]
    return Facts(values, [("Stages", ("stage", "1/resolution", "width", "kind", "encoder", "decoder"), rows)])
