"""A bundle's ``manifest.json`` as typed values. The names of the fields are the keys of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from msgspec import Meta

from mgvq_export.core.errors import BundleError, shown
from mgvq_export.core.json_files import JsonSource, check_plain, convert_json, json_bytes, to_json
from mgvq_export.core.spec import NETWORK_VALUES, TRUNKS, ModelSpec, Part, ReceptiveField
from mgvq_export.core.types import JsonObject, Unchecked

FORMAT = "mgvq-bundle"
VERSION = 1
WEIGHTS = "weights.bin"

#: The inputs and outputs of every graph, by name.
GRAPH_VALUES: dict[Part, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{part: ((source,), (target,)) for part, (source, target) in NETWORK_VALUES.items()},
    Part.QUANTIZER: (("latent",), ("codes", "quantized")),
    Part.DEQUANTIZER: (("codes", "groups"), ("quantized",)),
}

_LARGEST = 2**63 - 1

Text = Annotated[str, Meta(max_length=4096)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
DType = Annotated[str, Meta(pattern=r"^(float32|float16|int32|int64|uint8|bool)\Z")]
Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
Dimension = Annotated[int, Meta(ge=-1, le=_LARGEST)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
PrecisionName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*\Z", max_length=100)]


def graph_name(precision: str, part: Part) -> str:
    """Path of one graph inside a bundle."""
    return f"{precision}/{part}.onnx"


def weights_name(precision: str) -> str:
    """Path of one precision's weights inside a bundle."""
    return f"{precision}/{WEIGHTS}"


def plan_name(precision: str) -> str:
    """Path of one precision's plan inside a bundle."""
    return f"{precision}/plan.json"


def inlined_name(precision: str) -> str:
    """Path of one precision's quantizer without model functions inside a bundle."""
    return f"{precision}/quantizer_inlined.onnx"


class HashedFile(Protocol):
    """An entry that names a file of the bundle, with its size and hash."""

    @property
    def file(self) -> str:
        """Path relative to the bundle."""

    @property
    def bytes(self) -> int:
        """Size of the file."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its path relative to the bundle, size in bytes and SHA-256."""

    file: Text
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class TensorEntry:
    """An input or output: name, numpy dtype, and shape with dynamic dimensions by name (in engines also as -1)."""

    name: Name
    dtype: DType
    shape: tuple[Dimension | Name, ...]


@dataclass(frozen=True)
class GraphEntry(FileEntry):
    """An ONNX graph of the bundle, with its inputs and outputs."""

    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class PrecisionEntry:
    """The graphs of one precision.

    Attributes:
        opset: ONNX operator set of the graphs.
        weights: the file with the weights of all its graphs.
        graphs: by part.
        plan: the file of the plan it was made by; None for ``fp32`` and ``fp16`` as they are.
        calibration: the images that the plan was made on, JSON-ready; None without a plan.
        inlined: the quantizer's graph without model functions, for runtimes that know none; None in bundles of older releases.
    """

    opset: Annotated[int, Meta(ge=1, le=1000)]
    weights: FileEntry
    graphs: Mapping[Part, GraphEntry]
    plan: FileEntry | None = None
    calibration: Mapping[str, object] | None = None
    inlined: FileEntry | None = None

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All its files: weights, graphs, and what it has of the others."""
        return tuple(file for file in (self.weights, *self.graphs.values(), self.plan, self.inlined) if file)


@dataclass(frozen=True)
class SourceEntry:
    """The checkpoint a bundle was exported from: name or path, SHA-256 of its file, revision on the hub, which weights if chosen."""

    name: Text
    sha256: Text
    revision: Text | None = None
    weights: Text | None = None


@dataclass(frozen=True)
class Profile:
    """Shapes of one engine input in one optimisation profile: smallest, the one kernels are chosen for, largest."""

    min: tuple[Count, ...]
    opt: tuple[Count, ...]
    max: tuple[Count, ...]

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max) <= 8:
            raise ValueError("min, opt and max differ in length")


@dataclass(frozen=True)
class EngineOptions:
    """The build options that change an engine without changing its graph or shapes. None: not recorded, or not set."""

    builder_level: Count | None = None
    workspace_bytes: Count | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    detailed: bool = False


@dataclass(frozen=True)
class KernelRecord:
    """The quantizer's GPU kernel inside an engine: hash of its source, version of NVRTC, compute architecture such as 90."""

    source_sha256: Text = ""
    nvrtc: Text = ""
    architecture: Count | None = None


@dataclass(frozen=True)
class EngineRecord:
    """An engine of the bundle, for TensorRT or TensorRT for RTX: everything that decides what it computes and where it runs.

    Keys that an older or newer release did not write have the defaults, which no engine of this release has; a key of the wrong
    type is damage. So a record of another release is told apart from a damaged one, and is never taken for one of this release.

    Attributes:
        part, precision: which graph.
        file, bytes, sha256: the engine's file.
        graph_sha256, weights_sha256: the exported graph and its weights.
        engine_graph_sha256: the graph that the library was given.
        target: the library: ``tensorrt``, or ``rtx`` for TensorRT for RTX.
        tensorrt: version of the library, as in its ``__version__``.
        gpu, compute_capability: as the driver names it, and e.g. ``9.0``; empty for the target ``rtx``, which builds without a GPU.
        compute_capabilities: of the target ``rtx``: the only GPUs that it runs on; empty: all that the library supports.
        profiles: one per size, input name -> shapes.
        options: how it was built.
        kernel: the quantizer's kernel; None for an engine without the plugin.
        inputs, outputs: the engine's own (uint8 [batch, height, width, 3] images).
        build_seconds: how long it took.
        activation_bytes: device memory for its activations at the largest profile, as the builder plans it; None: not told.
        reproducible: whether the same build gives the same bytes.
    """

    part: Text = ""
    precision: Text = ""
    file: Text = ""
    graph_sha256: Text = ""
    weights_sha256: Text = ""
    engine_graph_sha256: Text = ""
    tensorrt: Text = ""
    gpu: Text = ""
    compute_capability: Text = ""
    profiles: tuple[Mapping[Name, Profile], ...] = ()
    options: EngineOptions = EngineOptions()
    kernel: KernelRecord | None = None
    inputs: tuple[TensorEntry, ...] = ()
    outputs: tuple[TensorEntry, ...] = ()
    bytes: Count = 0
    sha256: Text = ""
    build_seconds: Annotated[float, Meta(ge=0)] | None = None
    target: Text = "tensorrt"
    compute_capabilities: tuple[Name, ...] = ()
    activation_bytes: Count | None = None
    reproducible: bool = False

    @property
    def known_part(self) -> Part | None:
        """The part, or None when this release has no part of that name."""
        return next((part for part in Part if part.value == self.part), None)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        spec: the network.
        source: the checkpoint.
        codebook_sha256: hash of the codebook.
        reach: receptive field of each trunk.
        precisions: by name, such as ``fp16``; at least one.
        engines: TensorRT engines built so far.
        tools: versions of the packages that wrote the bundle; None: not installed.
    """

    format: Literal["mgvq-bundle"] = "mgvq-bundle"
    version: Literal[1] = 1
    spec: ModelSpec
    source: SourceEntry
    codebook_sha256: Sha256
    reach: Mapping[Part, ReceptiveField]
    precisions: Mapping[PrecisionName, PrecisionEntry]
    engines: tuple[EngineRecord, ...] = ()
    tools: Mapping[Name, Text | None] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: object, source: JsonSource) -> Manifest:
        """The manifest in plain JSON ``values``. Raises :class:`BundleError` when they are none, of another version, or contradictory."""
        check_plain(values, source)
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise BundleError(f"{source.where} is no manifest of a bundle; {source.remedy}")
        if values.get("version") != VERSION or isinstance(values["version"], bool):
            raise BundleError(
                f"{source.where} is of a bundle of version {shown(values.get('version'))}; this release reads version {VERSION}"
            )
        if "spec" in values:
            ModelSpec.check_keys(values["spec"])
        manifest = convert_json(values, cls, source)
        if fault := manifest._contradiction():
            source.fail(f"is damaged: {fault}")
        return manifest

    def to_json(self) -> JsonObject:
        """The manifest as JSON-ready values, in the order of the file."""
        values: dict[str, Unchecked] = to_json(self)
        for precision in values["precisions"].values():
            for key in ("plan", "calibration", "inlined"):
                if precision[key] is None:
                    del precision[key]
        return values

    def to_bytes(self) -> bytes:
        """The manifest as it is written."""
        return json_bytes(self.to_json())

    def _contradiction(self) -> str:
        """What keeps the manifest from describing a bundle; empty when nothing does."""
        wanted = self.spec.parts
        missing = [part for part in wanted if part in TRUNKS and part not in self.reach]
        if missing:
            return f"reach: it lacks the key {missing[0]}"
        if not self.precisions:
            return "precisions: it is empty"
        for name, precision in self.precisions.items():
            key = f"precisions.{name}"
            if (name not in ("fp32", "fp16")) and precision.plan is None:
                return f"{key}: it lacks the key plan"
            files = [("weights", precision.weights, weights_name(name))]
            files += [("plan", precision.plan, plan_name(name))] if precision.plan else []
            files += [("inlined", precision.inlined, inlined_name(name))] if precision.inlined else []
            for part in wanted:
                if part not in precision.graphs:
                    return f"{key}.graphs: it lacks the key {part}"
            for part, graph in precision.graphs.items():
                files.append((f"graphs.{part}", graph, graph_name(name, part)))
                ends = tuple(value.name for value in graph.inputs), tuple(value.name for value in graph.outputs)
                if ends != GRAPH_VALUES[part]:
                    return f"{key}.graphs.{part}: inputs or outputs are not those of a graph {part}"
            for where, entry, file in files:
                if entry.file != file:
                    return f"{key}.{where}.file: expected {file}, got {shown(entry.file)}"
        return ""
