"""Changes a bundle's ``manifest.json`` as its JSON, also to what no release would write."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mgvq_export.core.bundle import MANIFEST, Bundle
from mgvq_export.core.json_files import json_bytes


@contextmanager
def edited_manifest(bundle: Path | Bundle) -> Iterator[dict[str, Any]]:
    """The manifest's JSON, written again when the body ends; a ``Bundle`` given then has the new one."""
    folder = bundle.path if isinstance(bundle, Bundle) else bundle
    values = json.loads((folder / MANIFEST).read_text())
    yield values
    (folder / MANIFEST).write_bytes(json_bytes(values))
    if isinstance(bundle, Bundle):
        bundle.manifest = Bundle.open(folder).manifest
