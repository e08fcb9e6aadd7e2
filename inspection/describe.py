"""Describes a file or folder: the facts for the ``models`` and ``inspect`` commands."""

from __future__ import annotations

from pathlib import Path

from mgvq_export.core.spec import VARIANTS
from mgvq_export.core.types import JsonObject
from mgvq_export.inspection.facts import Facts
from mgvq_export.model.demo import DEMO_SPEC

__all__ = ["Facts", "describe", "known_models"]


def known_models() -> list[JsonObject]:
    """One row per model that can be exported by name: the released variants and ``demo``."""
    return [
        {
            "name": spec.name,
            "downsample": spec.downsample,
            "groups": spec.groups,
            "codes_per_group": spec.codes_per_group,
            "group_dim": spec.group_dim,
            "bits_per_token": spec.bits_per_token,
            "bits_per_pixel": round(spec.bits_per_token / spec.downsample**2, 3),
            "checkpoint": "in the package" if spec is DEMO_SPEC else f"{spec.name.replace('-', '_')}.pt",
        }
        for spec in (*VARIANTS.values(), DEMO_SPEC)
    ]


def describe(target: str, *, trust: bool = False, allow_host_code: bool = False) -> Facts:
    """What ``target`` is and holds: a bundle folder, any file that the project writes, or a checkpoint (also by name or address).

    Files: ``.onnx`` graphs, engines, token files, and the JSON documents of
    :data:`mgvq_export.inspection.documents.DOCUMENTS`.

    Args:
        trust: load an engine that lies in no bundle.
        allow_host_code: also an engine that runs code of its own on the host.

    Raises:
        MgvqError: of the fitting kind, when it cannot be read.
    """
    path = Path(target)
    suffix = path.suffix.lower()
    if path.is_dir():
        from mgvq_export.inspection.bundle import describe_bundle

        return describe_bundle(path)
    if suffix == ".onnx":
        from mgvq_export.inspection.graph import describe_graph

        return describe_graph(path)
    if suffix in (".engine", ".plan", ".trt"):
        from mgvq_export.inspection.engine import describe_engine_file

        return describe_engine_file(path, trust, allow_host_code)
    if suffix == ".json":
        from mgvq_export.inspection.documents import describe_document

        return describe_document(path)
    if suffix in (".npz", ".npy") or (suffix == ".safetensors" and path.is_file()):
        from mgvq_export.inspection.tokens import describe_tokens, is_token_file

        if suffix != ".safetensors" or is_token_file(path):
            return describe_tokens(path)
    from mgvq_export.inspection.checkpoint import describe_checkpoint

    return describe_checkpoint(target)
