"""The bundle inside a repository: one precision of the published one, and its engines where they are used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mgvq_export.core.bundle import MANIFEST, Bundle
from mgvq_export.core.manifest import HashedFile


def bundle_files(bundle: Bundle, precision: str, *, engines: bool) -> dict[str, Path | bytes]:
    """Paths inside the copy -> content, or the file to copy: a bundle with one precision and, with ``engines``, its engines.

    Raises :class:`BundleError` when the precision or a file is missing, or a file has changed.
    """
    entry = bundle.entry(precision)
    records = tuple(record for record in bundle.engines if engines and record.precision == precision)
    manifest = replace(bundle.manifest, precisions={precision: entry}, engines=records)
    copied: list[HashedFile] = [*entry.files, *records]
    return {MANIFEST: manifest.to_bytes(), **{file.file: bundle.check_file(file) for file in copied}}
