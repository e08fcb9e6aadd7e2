"""The results of a bench run as one JSON document: raw samples, what was measured, and on which machine.

docs/performance.md describes the document. Percentiles and ratios are computed from the samples when they are shown.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

from msgspec import Meta

from mgvq_export.core.bundle import Bundle, package_version
from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.files import PathLike, atomic_write_bytes
from mgvq_export.core.json_files import JsonSource, convert_json, read_json
from mgvq_export.core.types import JsonObject

if TYPE_CHECKING:
    from mgvq_export.bench.processes import Measured

FORMAT = "mgvq-bench"
VERSION = 1
CEILING = "ceiling"  # the entry that timed a large matrix product

_NUMBER_LIST = re.compile(r"\[([-+0-9.eE,\s]+)\]")
_PACKAGES = ("mgvq-export", "numpy", "onnxruntime", "onnxruntime-gpu", "onnxruntime-extensions", "numba", "torch", "tensorrt")

#: A time. ``encode/convert`` is a difference of times, so rounding can make it slightly negative.
Seconds = Annotated[float, Meta(ge=-1, le=1e7)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(max_length=4000)]
Count = Annotated[int, Meta(ge=0, le=2**62)]


class Memory(TypedDict, total=False):
    """Host memory of a process in bytes: loaded and warmed up, and the peak of its first full pass."""

    base_bytes: Annotated[int, Meta(ge=1, le=2**62)]
    peak_bytes: Annotated[int, Meta(ge=1, le=2**62)]


class EntryFacts(TypedDict, total=False):
    """Further facts about an entry.

    ``flop`` maps stages to operations of one pass, ``no_flop`` is the reason why there are none; ``differ`` of ``codes`` are not those of the
    first entry, with ``margin`` the largest margin of one; ``what`` names the matrix product of the ceiling. The others describe what was run.
    """

    backend: Text
    precision: Text
    tiling: Text
    device: Text
    encode_plan: Text
    decode_plan: Text
    what: Text
    flop: dict[Name, Count]
    no_flop: Text
    codes: Count
    differ: Count
    margin: Annotated[float, Meta(ge=0, le=1e9)]
    pixels: Count
    groups: Count
    codes_per_group: Count
    group_dim: Count


class Settings(TypedDict, total=False):
    """How a run was made: options of the command, and the seconds that timing one graph costs."""

    tile: list[Count] | None
    memory_limit: Text | Count | None
    threads: Count | None
    repeat: Count
    against: list[Name]
    image: Text
    window: Count
    overhead_seconds: Seconds


class Machine(TypedDict):
    """The machine of a run; ``cores`` are those that the process may use."""

    processor: Text
    cores: Count | None
    memory_gib: Annotated[float, Meta(ge=0, le=1e9)] | Count
    system: Text


class BundleIdentity(TypedDict):
    """What makes two bundles the same network, and the hashes of the graphs: precision -> part -> SHA-256."""

    model: Name
    checkpoint_sha256: Name | None
    codebook_sha256: Name
    graphs: dict[Name, dict[Name, Name]]


@dataclass
class Entry:
    """One measured entry of a group; the others of a group are compared with its first entry.

    Attributes:
        name: unique in its group, e.g. ``ort-cpu fp32 auto`` or ``torch``.
        group: what all of the group have in common, e.g. the image size ``2560x1440``.
        samples: stage -> seconds of every round. ``encode/quantizer`` is a part of ``encode``; stages without a slash follow
            one another.
        memory: of its process; empty when it could not run.
        facts: precision, plan, operations and the like.
        skipped: why it could not run.
    """

    name: Name
    group: Name
    samples: dict[Name, list[Seconds]] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    facts: EntryFacts = field(default_factory=EntryFacts)
    skipped: Text | None = None

    @classmethod
    def of(cls, name: str, group: str, measured: Measured, facts: EntryFacts) -> Entry:
        """The entry of what was measured."""
        if measured.skipped is not None:
            return cls(name, group, facts=facts, skipped=measured.skipped)
        memory = Memory(base_bytes=measured.base_bytes, peak_bytes=measured.peak_bytes)
        return cls(name, group, measured.samples, memory, facts)

    @property
    def rounds(self) -> int:
        """How many rounds were timed; 0 when it could not run."""
        return max((len(samples) for samples in self.samples.values()), default=0)

    def seconds(self, *stages: str) -> list[float]:
        """Seconds of ``stages`` together, round by round; of all that follow one another when none is named."""
        names = stages or tuple(name for name in self.samples if "/" not in name)
        return [sum(values) for values in zip(*(self.samples[name] for name in names), strict=True)]

    def has(self, *stages: str) -> bool:
        """Whether all of ``stages`` were timed."""
        return all(stage in self.samples for stage in stages)

    def contradiction(self) -> str:
        """How the entry contradicts itself; empty when it does not."""
        for text in (self.name, self.group, *self.samples):
            if not text.isprintable():
                return f"the name {shown(text)} holds control characters"
        if (self.skipped is None) != bool(self.samples):
            return "an entry has samples, or the reason why it was skipped"
        if len({len(samples) for samples in self.samples.values()}) > 1 or (self.samples and not self.rounds):
            return "all stages must have the same number of samples, at least one"
        if any(second <= 0 for stage, samples in self.samples.items() if "/" not in stage for second in samples):
            return "times must be positive"
        if self.samples and not {"base_bytes", "peak_bytes"} <= self.memory.keys():
            return "memory lacks base_bytes or peak_bytes"
        return ""


@dataclass
class Results:
    """All entries of one run, with machine, versions, bundle and settings."""

    kind: Name
    entries: list[Entry]
    settings: Settings = field(default_factory=Settings)
    bundle: BundleIdentity | None = None
    machine: Machine = field(default_factory=lambda: describe_machine())
    versions: dict[Name, Name] = field(default_factory=lambda: installed_versions())
    date: Name = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))

    def groups(self) -> dict[str, list[Entry]]:
        """Group -> its entries, in order."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.group, []).append(entry)
        return found

    def to_dict(self) -> JsonObject:
        """JSON-ready."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    def save(self, path: PathLike) -> None:
        """Write the document to ``path``, atomically. Raises :class:`InputError` when that cannot be done."""
        text = json.dumps(_rounded(self.to_dict()), indent=1)
        text = _NUMBER_LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", text)  # one line per list of samples
        atomic_write_bytes(path, (text + "\n").encode())

    @classmethod
    def load(cls, path: PathLike) -> Results:
        """The document at ``path``. Raises :class:`InputError`, with the path of the key, when it is none, damaged, or of another version."""
        return cls.parse(read_json(path, _source(path)), path)

    @classmethod
    def parse(cls, values: object, path: PathLike) -> Results:
        """:meth:`load` of what ``path`` holds as plain JSON values."""
        source = _source(path)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise InputError(f"{path} holds no bench results; give a file that mgvq-export bench wrote")
        if (version := values.get("version")) != VERSION:
            raise InputError(
                f"{path} holds bench results of version {shown(version)}; this release reads version {VERSION}: run the bench again"
            )
        results = convert_json({"settings": {}, "bundle": None, **values}, _Document, source).results()
        known = {one.name for one in dataclasses.fields(Entry)}
        for index, (entry, given) in enumerate(zip(results.entries, values["entries"], strict=True)):
            if unknown := sorted(given.keys() - known):
                source.fail(f"is damaged: entries[{index}]: unknown key {shown(unknown[0])}")
            if problem := entry.contradiction():
                source.fail(f"is damaged: entries[{index}]: {problem}")
        names = [(entry.group, entry.name) for entry in results.entries]
        if twice := next((name for name in names if names.count(name) > 1), None):
            source.fail(f"is damaged: entries: {shown(twice[1])} stands twice in {shown(twice[0])}")
        return results


@dataclass(frozen=True)
class _Document:
    """:class:`Results` as a file has it: missing values are not filled in from the machine that reads it."""

    kind: Name
    entries: Annotated[list[Entry], Meta(max_length=1000)]
    settings: Settings
    bundle: BundleIdentity | None
    machine: Machine
    versions: dict[Name, Name]
    date: Name

    def results(self) -> Results:
        return Results(self.kind, self.entries, self.settings, self.bundle, self.machine, self.versions, self.date)


def _source(path: PathLike) -> JsonSource:
    return JsonSource(str(path), "give a file that mgvq-export bench wrote, or run the bench again")


def _rounded(value: object) -> object:
    """Floats rounded to a tenth of a microsecond; further digits of a time are noise."""
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def describe_machine() -> Machine:
    """Processor, cores that may be used, memory, system."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed_versions() -> dict[str, str]:
    """Versions of the packages that the figures depend on."""
    versions = {name: package_version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | {name: found for name, found in versions.items() if found is not None}


def describe_bundle(bundle: Bundle) -> BundleIdentity:
    """What makes two bundles the same network: model and hashes of checkpoint and codebook; and the hashes of its graphs."""
    return {
        "model": bundle.spec.name,
        "checkpoint_sha256": bundle.manifest.source.sha256,
        "codebook_sha256": bundle.codebook_sha256,
        "graphs": {
            precision: {str(part): graph.sha256 for part, graph in entry.graphs.items()}
            for precision, entry in bundle.manifest.precisions.items()
        },
    }
