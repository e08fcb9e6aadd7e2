"""A model repository for Triton Inference Server, written from a bundle: four models, and two ensembles that chain them.

``mgvq_encode`` takes images to codes, ``mgvq_decode`` codes to images. With TensorRT engines images are uint8 [B, H, W, 3]; with ONNX
graphs float [B, 3, H, W] in [-1, 1]. The dequantizer is the ONNX graph in both, because its ``groups`` is a number and Triton's
tensors have at least one dimension: the ONNX Runtime backend turns [1] into a number (its pull request 213), of the TensorRT backend
that is not known.

Formats: the server's user guide ("Model Configuration", "Model Repository") and ``model_config.proto``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BundleError, InputError
from mgvq_export.core.files import PathLike, atomic_folder
from mgvq_export.core.manifest import WEIGHTS, TensorEntry
from mgvq_export.core.remedies import build_pattern
from mgvq_export.core.spec import Part

PARTS = (Part.ENCODER, Part.QUANTIZER, Part.DEQUANTIZER, Part.DECODER)
BACKENDS = ("tensorrt", "onnxruntime")
_TYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32"}


@dataclass(frozen=True)
class Model:
    """One model of the repository.

    Attributes:
        name: its folder.
        inputs, outputs: as the manifest describes them.
        file: what it runs; None for an ensemble.
        profiles: optimisation profiles of an engine; 0 for a graph.
        steps: an ensemble's members, in order.
    """

    name: str
    inputs: Sequence[TensorEntry]
    outputs: Sequence[TensorEntry]
    file: Path | None = None
    profiles: int = 0
    steps: tuple[Model, ...] = ()

    @property
    def config(self) -> str:
        """Its ``config.pbtxt``."""
        kind = 'backend: "onnxruntime"'
        if self.profiles:
            kind = 'platform: "tensorrt_plan"'
        elif self.steps:
            kind = 'platform: "ensemble"'
        # Batch 0: the shapes below are whole ones. Every engine profile then serves the sizes it was built for.
        lines = [f'name: "{self.name}"', kind, "max_batch_size: 0"]
        lines += [f"input [ {_tensor(value)} ]" for value in self.inputs]
        lines += [f"output [ {_tensor(value)} ]" for value in self.outputs]
        if self.profiles:
            listed = ", ".join(f'"{index}"' for index in range(self.profiles))
            lines.append(f"instance_group [ {{ count: 1 kind: KIND_GPU profile: [ {listed} ] }} ]")
        if self.steps:
            lines.append("ensemble_scheduling {")
            lines += [f"  step [ {_step(model, self)} ]" for model in self.steps]
            lines.append("}")
        return "\n".join(lines) + "\n"


def write_repository(bundle: Bundle, path: PathLike, *, precision: str = "fp16", backend: str = "tensorrt") -> list[Path]:
    """Write the repository to the new folder ``path``, whole or not at all; the models' folders.

    Files are linked where the file system allows it, else copied.

    Args:
        precision: which graphs or engines of the bundle.
        backend: ``tensorrt`` (the engines of the bundle; the server must have the TensorRT and the GPU they were built with) or
            ``onnxruntime``.

    Raises:
        InputError: an unknown backend, or a folder that cannot be written.
        BundleError: the bundle lacks a graph or an engine, or a file has changed.
    """
    if backend not in BACKENDS:
        raise InputError(f"no Triton backend {backend!r}; choose {', '.join(BACKENDS)}")
    models = {part: _model(bundle, precision, part, backend) for part in PARTS}
    encode = _ensemble("mgvq_encode", models[Part.ENCODER], models[Part.QUANTIZER])
    decode = _ensemble("mgvq_decode", models[Part.DEQUANTIZER], models[Part.DECODER])
    with atomic_folder(path) as folder:
        for model in (*models.values(), encode, decode):
            version = folder / model.name / "1"
            version.mkdir(parents=True)
            (folder / model.name / "config.pbtxt").write_text(model.config, encoding="utf-8")
            if model.profiles and model.file:
                _place(model.file, version / "model.plan")
            elif model.file:
                _place(model.file, version / "model.onnx")
                _place(model.file.with_name(WEIGHTS), version / WEIGHTS)  # the graph looks for it beside itself
    return sorted(folder for folder in Path(path).iterdir())


def _model(bundle: Bundle, precision: str, part: Part, backend: str) -> Model:
    name = f"mgvq_{part}"
    if backend == "onnxruntime" or part is Part.DEQUANTIZER:
        entry = bundle.graph(precision, part)
        return Model(name, entry.inputs, entry.outputs, bundle.graph_path(precision, part))
    found = [e for e in bundle.engines if (e.part, e.precision) == (str(part), precision)]
    if not found:
        raise BundleError(f"{bundle.path} has no {precision} engine of {part}; build it: {build_pattern(bundle.path, precision)}")
    record = found[-1]  # the one built last
    return Model(name, record.inputs, record.outputs, bundle.check_file(record), max(1, len(record.profiles)))


def _ensemble(name: str, first: Model, second: Model) -> Model:
    """``first``, then ``second`` on what it gives. All outputs but what goes from one to the other come out."""
    between = {value.name for value in first.outputs} & {value.name for value in second.inputs}
    outputs = {value.name: value for model in (first, second) for value in model.outputs if value.name not in between}
    inputs = [value for model in (first, second) for value in model.inputs if value.name not in between]
    return Model(name, inputs, list(outputs.values()), steps=(first, second))


def _step(model: Model, ensemble: Model) -> str:
    """A member: its tensors under the names they have in the ensemble, which are the same."""
    known = {value.name for value in (*ensemble.inputs, *ensemble.outputs)}
    known |= {value.name for step in ensemble.steps for value in step.inputs}
    maps = [f'input_map {{ key: "{v.name}" value: "{v.name}" }}' for v in model.inputs]
    maps += [f'output_map {{ key: "{v.name}" value: "{v.name}" }}' for v in model.outputs if v.name in known]
    return f'{{ model_name: "{model.name}" model_version: -1 {" ".join(maps)} }}'


def _tensor(value: TensorEntry) -> str:
    dims = ", ".join(str(dim if isinstance(dim, int) else -1) for dim in value.shape) or "1"  # Triton knows no rank 0
    return f'{{ name: "{value.name}" data_type: TYPE_{_TYPES[value.dtype]} dims: [ {dims} ] }}'


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
