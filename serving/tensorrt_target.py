"""The ``triton-tensorrt`` target: the bundle's engines as ``model.plan`` files, run by Triton's TensorRT backend without Python.

Four models and two ensembles::

    mgvq_encode   image -> mgvq_encoder -> mgvq_quantizer -> codes
    mgvq_decode   codes, groups -> mgvq_dequantizer -> mgvq_decoder -> image

Images are uint8 [B, H, W, 3] of the sizes that the engines hold, codes int32 [B, G, h, w]: TensorRT has no uint16. The dequantizer is
the ONNX graph, because its ``groups`` is a number and Triton's tensors have at least one dimension: the ONNX Runtime backend turns [1]
into a number (its pull request 213), of the TensorRT backend that is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BundleError, InputError
from mgvq_export.core.manifest import EngineRecord, TensorEntry
from mgvq_export.core.remedies import build_pattern, engine_sizes
from mgvq_export.core.spec import Part
from mgvq_export.core.units import Size
from mgvq_export.serving.config import ModelConfig, Step, TensorConfig, WarmUp
from mgvq_export.serving.options import PublishOptions
from mgvq_export.serving.target import Model, labels, size_name

Tensors = tuple[TensorConfig, ...]


def plan_models(bundle: Bundle, options: PublishOptions) -> list[Model]:
    """The models to write.

    Raises:
        BundleError: the bundle lacks the precision or an engine, or a file has changed.
        InputError: a declared size that an engine does not hold.
    """
    precision = options.precision or "fp16"
    bundle.entry(precision)  # names the precisions it has when this one is missing
    parameters = labels(bundle, precision)
    encoder, quantizer, decoder = (
        _engine_model(bundle, precision, part, options, parameters) for part in (Part.ENCODER, Part.QUANTIZER, Part.DECODER)
    )
    dequantizer = _graph_model(bundle, precision, Part.DEQUANTIZER, options, parameters)
    return [
        *(member.model for member in (encoder, quantizer, dequantizer, decoder)),
        _ensemble("mgvq_encode", encoder, quantizer, parameters),
        _ensemble("mgvq_decode", dequantizer, decoder, parameters),
    ]


@dataclass(frozen=True)
class _Member:
    """A model, and its tensors with the batch as their first dimension: an ensemble over models of different kinds has whole shapes."""

    model: Model
    inputs: Tensors
    outputs: Tensors


def _engine_model(bundle: Bundle, precision: str, part: Part, options: PublishOptions, parameters: Mapping[str, str]) -> _Member:
    record = _engine(bundle, precision, part)
    held = engine_sizes(bundle.spec, record)
    _check_sizes(part, [size for size, _ in held], options.sizes, bundle.spec.downsample)
    inputs, outputs = _tensors(record.inputs), _tensors(record.outputs)
    profiles = ", ".join(f'"{index}"' for index in range(len(held)))
    config = ModelConfig(
        f"mgvq_{part}",
        'platform: "tensorrt_plan"',
        tuple(_without_batch(value) for value in inputs),
        tuple(_without_batch(value) for value in outputs),
        max_batch=min(options.max_batch, *(batch for _, batch in held)),
        max_queue=options.max_queue,
        # All profiles are listed, and the server takes the one that fits: each was built for one size.
        instances=f"count: {options.instances} kind: KIND_GPU profile: [ {profiles} ]",
        warm_ups=tuple(_warm_up(bundle, _without_batch(inputs[0]), size) for size in options.sizes),
        parameters=parameters,
    )
    return _Member(Model(config, {f"{options.version}/model.plan": bundle.check_file(record)}), inputs, outputs)


def _graph_model(bundle: Bundle, precision: str, part: Part, options: PublishOptions, parameters: Mapping[str, str]) -> _Member:
    entry, weights = bundle.graph(precision, part), bundle.entry(precision).weights
    inputs, outputs = _tensors(entry.inputs), _tensors(entry.outputs)
    instances = f"count: {options.instances} kind: KIND_CPU"
    config = ModelConfig(f"mgvq_{part}", 'backend: "onnxruntime"', inputs, outputs, instances=instances, parameters=parameters)
    # The graph looks for its weights beside itself.
    files: dict[str, Path | bytes] = {
        f"{options.version}/model.onnx": bundle.graph_path(precision, part),
        f"{options.version}/{Path(weights.file).name}": bundle.check_file(weights),
    }
    return _Member(Model(config, files), inputs, outputs)


def _ensemble(name: str, first: _Member, second: _Member, parameters: Mapping[str, str]) -> Model:
    """``first``, then ``second`` on what it gives. All outputs but what goes from one to the other come out."""
    between = {value.name for value in first.outputs} & {value.name for value in second.inputs}
    inputs = [value for member in (first, second) for value in member.inputs if value.name not in between]
    outputs = {value.name: value for member in (first, second) for value in member.outputs if value.name not in between}
    steps = tuple(
        Step(member.model.config.name, {v.name: v.name for v in member.inputs}, {v.name: v.name for v in member.outputs})
        for member in (first, second)
    )
    return Model(
        ModelConfig(name, 'platform: "ensemble"', tuple(inputs), tuple(outputs.values()), parameters=parameters, steps=steps)
    )


def _engine(bundle: Bundle, precision: str, part: Part) -> EngineRecord:
    """The engine of ``part`` that was built last."""
    wanted = ("tensorrt", str(part), precision)
    found = [record for record in bundle.engines if (record.target, record.part, record.precision) == wanted and record.profiles]
    if not found:
        raise BundleError(f"{bundle.path} has no {precision} engine of {part}; build it: {build_pattern(bundle.path, precision)}")
    return found[-1]


def _check_sizes(part: Part, held: list[Size], wanted: Iterable[Size], downsample: int) -> None:
    for height, width in wanted:
        padded = (-(-height // downsample) * downsample, -(-width // downsample) * downsample)
        if padded != (height, width) or padded not in held:
            raise InputError(
                f"no engine of {part} holds images of {width}x{height}; it holds {', '.join(map(size_name, held))}: "
                "choose one, or build the engines for that size too"
            )


def _tensors(values: Iterable[TensorEntry]) -> Tensors:
    return tuple(
        TensorConfig(value.name, value.dtype, tuple(dim if isinstance(dim, int) else -1 for dim in value.shape) or (1,))
        for value in values
    )


def _without_batch(value: TensorConfig) -> TensorConfig:
    dims = value.dims[1:]
    return replace(value, dims=dims) if dims else replace(value, dims=(1,), scalar=True)


def _warm_up(bundle: Bundle, value: TensorConfig, size: Size) -> WarmUp:
    """A request of one image size: random pixels, or zeros where random bytes may be no numbers."""
    if value.name == "image":
        return WarmUp(size_name(size), {"image": (value.dtype, (*size, 3))}, "random_data")
    height, width = (side // bundle.spec.downsample for side in size)
    return WarmUp(size_name(size), {value.name: (value.dtype, (value.dims[0], height, width))}, "zero_data")
