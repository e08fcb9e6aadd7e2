"""The bundle inside a repository: one precision of the published one, and its engines where they are used."""

from __future__ import annotations

from pathlib import Path

from mgvq_export.core.bundle import MANIFEST, Bundle, manifest_bytes
from mgvq_export.core.spec import Part


def bundle_files(bundle: Bundle, precision: str, *, engines: bool) -> dict[str, Path | bytes]:
    """Paths inside the copy -> content, or the file to copy: a bundle with one precision and, with ``engines``, its engines.

    Raises :class:`BundleError` when a file is missing or has changed.
    """
    entry = bundle.manifest["precisions"][precision]
    records = [record for record in bundle.engines if engines and record.get("precision") == precision]
    manifest = {**bundle.manifest, "precisions": {precision: entry}, "engines": records}
    files: dict[str, Path | bytes] = {MANIFEST: manifest_bytes(manifest)}
    for part in entry["graphs"]:
        files[entry["graphs"][part]["file"]] = bundle.graph_path(precision, Part(part))
    others = [entry["weights"], *([entry["plan"]] if "plan" in entry else []), *records]
    return files | {other["file"]: bundle.check_file(other) for other in others}
