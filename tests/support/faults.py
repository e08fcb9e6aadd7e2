"""Faults planted in a copy of a bundle, whose manifest then vouches for the changed files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mgvq_export.core.bundle import MANIFEST, file_entry
from mgvq_export.core.json_files import json_bytes, to_json
from mgvq_export.core.manifest import graph_name, weights_name
from mgvq_export.core.spec import Part


def change_graph(bundle: Path, precision: str, part: Part, change: Callable) -> None:
    """Let ``change`` alter the graph, in place, and the manifest vouch for what comes of it."""
    import onnx

    path = bundle / graph_name(precision, part)
    model = onnx.load(path, load_external_data=False)
    change(model)
    onnx.save(model, path)
    vouch(bundle)


def vouch(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    for precision in manifest["precisions"].values():
        for entry in (precision["weights"], *precision["graphs"].values()):
            entry.update(to_json(file_entry(bundle, entry["file"])))
    (bundle / MANIFEST).write_bytes(json_bytes(manifest))


def scale_weight(bundle: Path, precision: str, part: Part, name: str, factor: float) -> None:
    """Scale one tensor of ``weights.bin``, for all graphs that use it."""
    import onnx

    model = onnx.load(bundle / graph_name(precision, part), load_external_data=False)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    stored = np.memmap(bundle / weights_name(precision), dtype, "r+", int(where["offset"]), tuple(tensor.dims))
    stored *= dtype.type(factor)
    stored.flush()
    vouch(bundle)
