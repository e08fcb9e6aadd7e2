"""Describes a TensorRT engine file."""

from __future__ import annotations

from pathlib import Path

from mgvq_export.core.json_files import to_json
from mgvq_export.core.manifest import EngineRecord, KernelRecord
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject
from mgvq_export.inspection.facts import Facts


def describe_engine_file(path: Path, trust: bool, allow_host_code: bool) -> Facts:
    """The engine ``path``; ``trust`` and ``allow_host_code`` as in :func:`~mgvq_export.inspection.describe.describe`."""
    from mgvq_export.runtime.tensorrt.describe import describe_engine

    found = describe_engine(path, trust=trust, allow_host_code=allow_host_code)
    record, contents = found.record, found.contents
    values: JsonObject = {"kind": "engine", "bytes": path.stat().st_size}
    if record:
        values |= {
            "part": record.part,
            "precision": record.precision,
            "file": "as it was built (hash in the bundle's manifest)",
            "TensorRT for RTX" if record.target == "rtx" else "TensorRT": record.tensorrt,
            "GPU": _gpu(record),
            "options": ", ".join(
                f"{name.replace('_', ' ')} {value}"
                for name, value in to_json(record.options).items()
                if value not in (None, False)
            ),
            "embedded kernel": _kernel(record.kernel),
            "activation memory": "not told" if record.activation_bytes is None else f"{record.activation_bytes / 1e6:.1f} MB",
            "build": f"{record.build_seconds} s" + ", reproducible: the same build gives the same bytes" * record.reproducible,
        }
    else:
        values["file"] = "outside a bundle: its hash cannot be checked"
    values["runs here"] = found.runs_here
    stored = None if record is None else to_json(record)
    if contents:
        sides = {"input": contents["inputs"], "output": contents["outputs"]}
        rows = [[end, one["name"], one["dtype"], str(one["shape"])] for end, side in sides.items() for one in side]
        profiles = contents["profiles"]
    else:
        assert record is not None  # an engine outside a bundle is loaded, or refused
        stored_sides = {"input": record.inputs, "output": record.outputs}
        rows = [[end, one.name, one.dtype, str(list(one.shape))] for end, side in stored_sides.items() for one in side]
        profiles = [
            {name: {"min": list(three.min), "opt": list(three.opt), "max": list(three.max)} for name, three in profile.items()}
            for profile in record.profiles
        ]
    tables: list[Table] = [Table(("", "name", "dtype", "shape"), rows, "Inputs and outputs", identifiers=2)]
    shapes = [
        [str(index), name, *(str(three[key]) for key in ("min", "opt", "max"))]
        for index, profile in enumerate(profiles)
        for name, three in profile.items()
    ]
    tables.append(Table(("profile", "input", "min", "opt", "max"), shapes, "Profiles", identifiers=2))
    if contents:
        values |= {
            "scratch memory": f"{contents['scratch bytes'] / 1e6:.1f} MB",
            "layers": len(contents["layers"]),
            "plugin layers": contents["plugin layers"],
        }
        layers = [[str(index), layer["name"], layer["type"] or "-"] for index, layer in enumerate(contents["layers"])]
        tables.append(Table(("", "name", "type"), layers, "Layers"))
    else:
        values["layers"] = f"not listed: {found.not_loaded}"
    nested: JsonObject = {"record": stored, "contents": contents}
    return Facts(values | {name: facts for name, facts in nested.items() if facts}, tables)


def _gpu(record: EngineRecord) -> str:
    if record.target == "rtx":
        only = ", ".join(record.compute_capabilities)
        return f"those of compute capability {only}" if only else "all that TensorRT for RTX supports"
    return f"{record.gpu} ({record.compute_capability})"


def _kernel(kernel: KernelRecord | None) -> str:
    if kernel is None or kernel.architecture is None:
        return "none" if kernel is None else "GroupedArgmin"
    return f"GroupedArgmin, from compute capability {kernel.architecture / 10} on"
