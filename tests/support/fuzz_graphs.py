"""Runs damaged graphs whose hashes in the manifest were mended, as somebody else's bundle could hold them: in a process of its own, since
what ONNX Runtime does with them might end it.

    python -m mgvq_export.tests.support.fuzz_graphs BUNDLE COUNT SEED

prints one line per violation, and the number of the last case it began. ``BUNDLE`` is a copy that may be changed.
"""

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import onnx

from mgvq_export import Tokenizer
from mgvq_export.core.errors import MgvqError
from mgvq_export.tests.support import fuzz


def hashed_files(manifest: object):
    """Every object of the manifest that names a file with its hash."""
    if isinstance(manifest, dict):
        if isinstance(manifest.get("file"), str) and "sha256" in manifest:
            yield manifest
        for value in manifest.values():
            yield from hashed_files(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from hashed_files(value)


def mend(bundle: Path) -> None:
    """Make the manifest's hashes and sizes those of the files."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    for entry in hashed_files(manifest):
        data = (bundle / entry["file"]).read_bytes()
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        if "bytes" in entry:
            entry["bytes"] = len(data)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def change(graph: Path, others: list[Path], chooser: random.Random) -> tuple[str, bytes]:
    """One graph changed: another's content, a tensor or node renamed, removed or retyped, or bytes changed."""
    data = graph.read_bytes()
    kind = chooser.choice(("swap", "rename", "remove", "shape", "attribute", "bytes", "bytes"))
    if kind == "swap":
        other = chooser.choice(others)
        return f"{graph.name} has the content of {other.name}", other.read_bytes()
    if kind == "bytes":
        return next(fuzz.damaged(data, 1, chooser.randrange(2**31)))
    model = onnx.load_from_string(data)
    values = [*model.graph.input, *model.graph.output]
    node = chooser.choice(model.graph.node)
    if kind == "rename":
        value = chooser.choice(values)
        value.name += "x"
    elif kind == "remove":
        model.graph.node.remove(node)
    elif kind == "shape":
        shape = chooser.choice(values).type.tensor_type
        shape.elem_type = chooser.choice((1, 2, 6, 7, 10, 11))
        if shape.shape.dim:
            chooser.choice(shape.shape.dim).dim_value = chooser.choice((0, 1, 3, 2**40))
    elif node.attribute:
        attribute = chooser.choice(node.attribute)
        if attribute.ints:
            attribute.ints[0] = chooser.choice((-1, 0, 7, 2**40))
        else:
            attribute.i = chooser.choice((-1, 0, 7, 2**40))
    return f"{kind} in {graph.name}", model.SerializeToString()


def main() -> None:
    bundle, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    graphs = sorted((bundle / "fp32").glob("*.onnx"))
    image = np.zeros((40, 24, 3), np.uint8)
    for number in range(seed, seed + count):
        chooser = random.Random(number)
        graph = chooser.choice(graphs)
        good = graph.read_bytes()
        what, data = change(graph, graphs, chooser)
        graph.write_bytes(data)
        mend(bundle)
        print(f"case {number}: {what}", flush=True)
        try:
            with Tokenizer.open(bundle, backend="ort-cpu", precision="fp32", threads=1) as tokenizer:
                tokenizer.decode(tokenizer.encode(image))
        except MgvqError as error:
            if len(str(error)) >= 700 or not str(error).isprintable():
                print(f"VIOLATION {number}: {what}: a message of {len(str(error))} characters: {error!s:.300}")
        except Exception as error:
            print(f"VIOLATION {number}: {what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        graph.write_bytes(good)


if __name__ == "__main__":
    main()
