"""What an engine of TensorRT or TensorRT for RTX is and holds: from the bundle's manifest, and from the engine itself where it can be loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.files import PathLike
from mgvq_export.core.manifest import EngineRecord
from mgvq_export.ops.trt_machine import TARGETS, find_machine
from mgvq_export.runtime.tensorrt.engines import LoadedEngine, load_engine
from mgvq_export.runtime.tensorrt.records import engine_problems, find_record


class TensorFacts(TypedDict):
    """An input or output: name, numpy dtype, and shape, dynamic dimensions as -1."""

    name: str
    dtype: str
    shape: list[int]


#: Input name -> ``min``, ``opt`` and ``max`` shape.
Profile = dict[str, dict[str, list[int]]]

#: What an engine itself says; JSON-ready.
EngineContents = TypedDict(
    "EngineContents",
    {
        "inputs": list[TensorFacts],
        "outputs": list[TensorFacts],
        "profiles": list[Profile],
        "layers": list[dict[str, str]],
        "plugin layers": int,
        "scratch bytes": int,
    },
)


@dataclass
class EngineDescription:
    """What is known of an engine.

    Attributes:
        record: its entry in the manifest of the bundle it lies in, its bytes compared with the hash; None outside a bundle.
        runs_here: ``yes``, or why it cannot run on this machine.
        contents: what the engine itself says (:func:`read_contents`); None when it was not loaded.
        not_loaded: why it was not; empty when it was.
    """

    path: Path
    record: EngineRecord | None
    runs_here: str
    contents: EngineContents | None = None
    not_loaded: str = ""


def describe_engine(path: PathLike, *, trust: bool = False, allow_host_code: bool = False) -> EngineDescription:
    """The engine at ``path``.

    One in a bundle is described by the manifest, and by itself as well where TensorRT and its GPU are at hand. One outside a bundle can
    only be asked itself, which means loading it.

    Args:
        trust: load a file that lies in no bundle.
        allow_host_code: load it although it runs code of its own on the host, as version-compatible engines do.

    Raises:
        InputError: no such file, or it lies outside a bundle and is not trusted.
        BundleError: the file has changed since it was built.
        BackendError: outside a bundle: no TensorRT or GPU here, or TensorRT refuses the file.
    """
    path = Path(path)
    found = find_record(path)
    if found is None:
        if not path.is_file():
            raise InputError(f"cannot read {path}: no such file; give the path of an engine")
        if not trust:
            raise InputError(
                f"{path} lies in no bundle, so nothing says who made it, and loading an engine can run code: add --trust if you built it yourself"
            )
        return EngineDescription(path, None, "yes", read_contents(load_engine(path, trust=True, allow_host_code=allow_host_code)))
    bundle, record = found
    bundle.check_file(record)
    try:
        machine = find_machine(record.target if record.target in TARGETS else "tensorrt")
    except BackendError as error:
        return EngineDescription(
            path, record, f"unknown: {error}", not_loaded=f"{TARGETS.get(record.target, 'its library')} is not usable here"
        )
    if problems := engine_problems(record, machine):
        return EngineDescription(path, record, f"no: {problems[0]}", not_loaded="it does not run here")
    try:
        return EngineDescription(path, record, "yes", read_contents(load_engine(path, allow_host_code=allow_host_code)))
    except BackendError as error:
        return EngineDescription(path, record, f"no: {error}", not_loaded="loading it failed")


def read_contents(loaded: LoadedEngine) -> EngineContents:
    """What an engine says of itself: ``inputs``, ``outputs`` and ``profiles`` as in the manifest, ``layers`` (name, type), memory."""
    trt, engine = loaded.loader.trt, loaded.engine
    inputs: list[TensorFacts] = []
    outputs: list[TensorFacts] = []
    for name, dtype in (loaded.inputs | loaded.outputs).items():
        shape = list(engine.get_tensor_shape(name))
        (inputs if name in loaded.inputs else outputs).append({"name": name, "dtype": dtype.name, "shape": shape})
    dynamic = [value["name"] for value in inputs if -1 in value["shape"]]
    profiles = []
    for index in range(engine.num_optimization_profiles):
        shapes = {name: engine.get_tensor_profile_shape(name, index) for name in dynamic}
        profiles.append({name: dict(zip(("min", "opt", "max"), map(list, three), strict=True)) for name, three in shapes.items()})
    inspector = engine.create_engine_inspector()
    layers = parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return {
        "inputs": inputs,
        "outputs": outputs,
        "profiles": profiles,
        "layers": layers,
        "plugin layers": sum(is_plugin(layer) for layer in layers),
        "scratch bytes": int(engine.device_memory_size_v2),
    }


def parse_layers(text: str) -> list[dict[str, str]]:
    """Name and type of every layer in the engine inspector's JSON; the type is empty when the engine was built without details."""
    try:
        entries = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []  # an engine built to tell nothing
    return [
        {"name": str(entry.get("Name", "")), "type": str(entry.get("LayerType", ""))}
        if isinstance(entry, Mapping)
        else {"name": str(entry), "type": ""}
        for entry in entries
    ]


def is_plugin(layer: Mapping[str, str]) -> bool:
    """Whether a layer is the plugin: by its type, or by the name of its node where types are not kept."""
    return "plugin" in layer["type"].lower() or (not layer["type"] and "quantize/argmin" in layer["name"])
