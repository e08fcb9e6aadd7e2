"""Triton's ``config.pbtxt`` from plain values: the part of ``model_config.proto`` that the published models use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: numpy's names of types -> Triton's.
TYPES = {
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}


#: How long a request waits for others to join its batch. Not 0: with it the batcher of server 2.51 sleeps now and then for half a second while
#: requests wait and the model is idle, and eight clients get a third of the images.
QUEUE_DELAY_MICROSECONDS = 1000


@dataclass(frozen=True)
class TensorConfig:
    """An input or output of a model.

    Attributes:
        name, dtype: as the client gives them; the dtype by numpy's name.
        dims: -1 for any length; without the batch where the model has a ``max_batch``.
        optional: requests may leave this input out.
        scalar: each request's value has no dimension of its own; ``dims`` is then (1,), since Triton has no empty shape.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False
    scalar: bool = False


@dataclass(frozen=True)
class WarmUp:
    """A request of one image that the server makes before the model is ready, of random bytes or of zeros."""

    name: str
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    content: Literal["random_data", "zero_data"]


@dataclass(frozen=True)
class Step:
    """A member of an ensemble: its model, and the ensemble's name of each of its inputs and outputs."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """One model of a repository.

    Attributes:
        name: the model's folder.
        runs: the line that says what runs it, such as ``backend: "python"``.
        inputs, outputs: what requests give and get.
        max_batch: the largest batch; 0 when ``dims`` are whole shapes.
        max_queue: requests that may wait; further ones are rejected. Used where ``max_batch`` is not 0.
        mixed_sizes: requests of different sizes may be given to the model together.
        instances: the ``instance_group``'s content, such as ``count: 1 kind: KIND_CPU``; empty for an ensemble.
        warm_ups: requests made before the model is ready.
        parameters: strings that the model and its clients read.
        steps: an ensemble's members, in order.
    """

    name: str
    runs: str
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    max_batch: int = 0
    max_queue: int = 0
    mixed_sizes: bool = False
    instances: str = ""
    warm_ups: tuple[WarmUp, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

    @property
    def text(self) -> str:
        """The content of ``config.pbtxt``."""
        lines = [f"name: {_quoted(self.name)}", self.runs, f"max_batch_size: {self.max_batch}"]
        lines += [f"input [ {self._tensor(value, ragged=self.mixed_sizes)} ]" for value in self.inputs]
        lines += [f"output [ {self._tensor(value)} ]" for value in self.outputs]
        if self.instances:
            lines.append(f"instance_group [ {{ {self.instances} }} ]")
        if self.max_queue and self.max_batch:
            policy = f"default_queue_policy {{ max_queue_size: {self.max_queue} timeout_action: REJECT }}"
            lines.append(f"dynamic_batching {{ {policy} max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS} }}")
        lines += [_warm_up(warm_up) for warm_up in self.warm_ups]
        if self.steps:
            lines += ["ensemble_scheduling {", *(f"  step [ {_step(step)} ]" for step in self.steps), "}"]
        for key, value in self.parameters.items():
            lines.append(f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}")
        return "\n".join(lines) + "\n"

    def _tensor(self, value: TensorConfig, *, ragged: bool = False) -> str:
        words = [f"name: {_quoted(value.name)}", f"data_type: {TYPES[value.dtype]}", f"dims: {_dims(value.dims)}"]
        words += ["reshape: { shape: [ ] }"] * value.scalar
        words += ["optional: true"] * value.optional
        words += ["allow_ragged_batch: true"] * ragged
        return f"{{ {' '.join(words)} }}"


def _warm_up(warm_up: WarmUp) -> str:
    inputs = [
        f"inputs {{ key: {_quoted(name)} value: {{ data_type: {TYPES[dtype]} dims: {_dims(dims)} {warm_up.content}: true }} }}"
        for name, (dtype, dims) in warm_up.inputs.items()
    ]
    return f"model_warmup [ {{ name: {_quoted(warm_up.name)} batch_size: 1 {' '.join(inputs)} }} ]"


def _step(step: Step) -> str:
    maps = [f"input_map {{ key: {_quoted(key)} value: {_quoted(value)} }}" for key, value in step.inputs.items()]
    maps += [f"output_map {{ key: {_quoted(key)} value: {_quoted(value)} }}" for key, value in step.outputs.items()]
    return f"{{ model_name: {_quoted(step.model)} model_version: -1 {' '.join(maps)} }}"


def _dims(dims: tuple[int, ...]) -> str:
    return f"[ {', '.join(str(dim) for dim in dims)} ]"


def _quoted(text: str) -> str:
    """A string of protobuf's text format: everything but plain ASCII as octal bytes."""
    plain = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{plain}"'
