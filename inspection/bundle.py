"""Describes a bundle folder."""

from __future__ import annotations

from pathlib import Path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.manifest import TensorEntry
from mgvq_export.core.spec import Part
from mgvq_export.core.tables import Table
from mgvq_export.inspection.facts import Facts, model_rows, plan_rows


def describe_bundle(path: Path) -> Facts:
    """The bundle in the folder ``path``, all of its files checked. Raises :class:`BundleError` when it is damaged."""
    bundle = Bundle.open(path)
    bundle.check_all()
    manifest = bundle.manifest
    halos = ", ".join(
        f"{part.removesuffix('_trunk')} {bundle.reach(part).halo * scale} px"
        for part, scale in ((Part.ENCODER_TRUNK, 1), (Part.DECODER_TRUNK, bundle.spec.trunk_stride))
    )
    values = {
        "kind": "bundle",
        **model_rows(bundle.spec),
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
        if entry.inlined:
            rows.append([entry.inlined.file, f"{entry.inlined.bytes / 1e3:.1f} kB", "as the quantizer", "as the quantizer"])
        for graph in entry.graphs.values():
            ends = [", ".join(_tensor(value) for value in values) for values in (graph.inputs, graph.outputs)]
            rows.append([graph.file, f"{graph.bytes / 1e3:.1f} kB", *ends])
    for engine in bundle.engines:
        rows.append([engine.file, f"{engine.bytes / 1e6:.1f} MB", "", ""])
    tables: list[Table] = [Table(("file", "size", "inputs", "outputs"), rows, "Files")]
    if plans:
        described = {name: plan_rows(plan) for name, plan in plans.items()}
        columns = tuple(next(iter(described.values())))
        tables.append(Table(columns, [[str(value) for value in plan.values()] for plan in described.values()], "Precision plans"))
    return Facts(values, tables)


def _tensor(value: TensorEntry) -> str:
    """``image float32 [batch, 3, height, width]``"""
    return f"{value.name} {value.dtype} [{', '.join(map(str, value.shape))}]"
