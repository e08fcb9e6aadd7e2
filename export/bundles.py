"""From a checkpoint to a bundle on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner

from mgvq_export.core.bundle import MANIFEST, Bundle, file_entry, package_version
from mgvq_export.core.errors import InputError, one_line
from mgvq_export.core.files import PathLike, atomic_folder
from mgvq_export.core.manifest import (
    GraphEntry,
    Manifest,
    PrecisionEntry,
    SourceEntry,
    graph_name,
    inlined_name,
    plan_name,
    weights_name,
)
from mgvq_export.core.precision_plan import FLOATS, LARGEST, PrecisionPlan
from mgvq_export.core.spec import TRUNKS, Part
from mgvq_export.core.version import __version__
from mgvq_export.export.graphs.builder import OPSET, WeightStore, value_entry
from mgvq_export.export.graphs.parts import build_graph
from mgvq_export.export.graphs.plans import check_plan
from mgvq_export.export.graphs.receptive_field import receptive_field
from mgvq_export.model.checkpoint import Checkpoint
from mgvq_export.model.network import MGVQ

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What a bundle shall hold and where it goes, as :func:`check_target` found it possible.

    Attributes:
        path: the folder.
        precisions: what its graphs are made from, by the names of their folders: ``fp32``, ``fp16`` or a plan.
        replace: whether there is a bundle at ``path`` already, which is to be replaced.
    """

    path: Path
    precisions: Mapping[str, str | PrecisionPlan]
    replace: bool


def export_bundle(
    checkpoint: Checkpoint,
    path: PathLike,
    *,
    precisions: Sequence[str] = ("fp32",),
    plans: Sequence[PrecisionPlan] = (),
    replace: bool = False,
    progress: Progress = lambda step: None,
) -> Bundle:
    """Write the bundle of ``checkpoint`` to the folder ``path``, whole or not at all.

    Args:
        precisions: ``fp32``, ``fp16``, or both; equal ones are written once.
        plans: further precisions, each written to the folder called as its plan is.
        replace: replace an existing bundle; any other non-empty folder is refused all the same.
        progress: called with the name of each graph before it is built.

    Raises:
        InputError: an unknown precision, a plan made for another checkpoint or for nodes it does not have, or a folder that cannot
            be written.
    """
    return write_bundle(checkpoint, check_target(path, precisions, plans, replace=replace), progress=progress)


def check_target(path: PathLike, precisions: Sequence[str], plans: Sequence[PrecisionPlan] = (), *, replace: bool) -> Target:
    """Check what can be checked without the checkpoint, so that a wrong folder is refused before a download.

    Raises :class:`InputError`: an unknown precision, two of one name, or a non-empty folder that is no bundle or not to be replaced.
    """
    unknown = [precision for precision in precisions if precision not in FLOATS]
    if unknown or not (precisions or plans):
        also = f"; {unknown[0]} needs a plan: calibrate, then export with --plan" if unknown and unknown[0] in LARGEST else ""
        raise InputError(f"no precision {', '.join(unknown) or '(none given)'}; choose {', '.join(FLOATS)}{also}")
    names = [*dict.fromkeys(precisions), *(plan.name for plan in plans)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two precisions are called {name}: give each plan a name of its own, or leave --precision {name} out"
            )
    wanted: dict[str, str | PrecisionPlan] = {precision: precision for precision in precisions}
    wanted |= {plan.name: plan for plan in plans}
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"cannot write the bundle {path}: a file has that name; choose another")
    if not path.is_dir() or not any(path.iterdir()):
        return Target(path, wanted, replace=False)
    if not (path / MANIFEST).is_file():
        raise InputError(f"cannot write the bundle {path}: the folder is not empty and no bundle; choose another")
    if not replace:
        raise InputError(
            f"cannot write the bundle {path}: there is one already; add --force to replace it, or choose another folder"
        )
    return Target(path, wanted, replace=True)


def write_bundle(checkpoint: Checkpoint, target: Target, *, progress: Progress = lambda step: None) -> Bundle:
    """:func:`export_bundle` for a target that has been checked.

    Build every graph of every precision, check it, compute the receptive fields of the trunks, write; the manifest comes last.
    """
    network = checkpoint.network()
    codebook = codebook_sha256(network)
    for plan in target.precisions.values():
        if isinstance(plan, PrecisionPlan):
            plan.check_made_for(checkpoint_sha256=checkpoint.sha256, codebook_sha256=codebook)
            check_plan(plan, network)
    with atomic_folder(target.path, replace=target.replace) as folder:
        entries: dict[str, PrecisionEntry] = {}
        for name, precision in target.precisions.items():
            entries[name], models = _write_precision(network, name, precision, folder, progress)
        manifest = Manifest(
            spec=checkpoint.spec,
            # A path may hold what is no valid text; the name is for people, and to find the file again where it is valid.
            source=SourceEntry(one_line(checkpoint.source), checkpoint.sha256, checkpoint.revision, checkpoint.weights),
            codebook_sha256=codebook,
            # The same in every precision: quantizing a value moves nothing.
            reach={part: receptive_field(models[part]) for part in TRUNKS if part in models},
            precisions=entries,
            tools={"mgvq-export": __version__} | {name: package_version(name) for name in ("torch", "onnx", "numpy")},
        )
        (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return Bundle.open(target.path)


def codebook_sha256(network: MGVQ) -> str:
    """Hash of the trained codebook rows, float32 little-endian, before they are made unit vectors.

    The stored rows are hashed, not the unit rows, because the last bit of a division may differ between machines.
    """
    rows = network.quantize.embedding.weight.detach().float().numpy()
    return hashlib.sha256(np.ascontiguousarray(rows, "<f4").tobytes()).hexdigest()


def _write_precision(
    network: MGVQ, name: str, precision: str | PrecisionPlan, folder: Path, progress: Progress
) -> tuple[PrecisionEntry, dict[Part, onnx.ModelProto]]:
    """Write the graphs of one precision. Returns its entry in the manifest, and the graphs."""
    (folder / name).mkdir()
    weights = WeightStore()
    models = {}
    for part in network.spec.parts:
        progress(f"{name}/{part}")
        models[part] = build_graph(network, part, precision, weights)
    weights.write(folder / weights_name(name))
    graphs = {}
    for part, model in models.items():
        file = graph_name(name, part)
        (folder / file).write_bytes(model.SerializeToString(deterministic=True))
        # With the path, the checker also looks for the external weights; full_check runs strict shape inference.
        onnx.checker.check_model(str(folder / file), full_check=True)
        stored = file_entry(folder, file)
        inputs, outputs = (tuple(map(value_entry, values)) for values in (model.graph.input, model.graph.output))
        graphs[part] = GraphEntry(stored.file, stored.bytes, stored.sha256, inputs, outputs)
    inlined = onnx.inliner.inline_local_functions(models[Part.QUANTIZER])
    (folder / inlined_name(name)).write_bytes(inlined.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(folder / inlined_name(name)), full_check=True)
    plan = calibration = None
    if isinstance(precision, PrecisionPlan):
        (folder / plan_name(name)).write_bytes(precision.to_bytes())
        plan, calibration = file_entry(folder, plan_name(name)), precision.calibration
    weights_entry, inlined_entry = (file_entry(folder, path) for path in (weights_name(name), inlined_name(name)))
    entry = PrecisionEntry(OPSET, weights_entry, graphs, plan, calibration, inlined_entry)
    return entry, models
