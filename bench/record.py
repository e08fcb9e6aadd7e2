"""What a bench run leaves behind: raw samples, and what they were taken of and on, as one JSON document.

docs/performance.md describes the document. Percentiles and ratios are computed from the samples whenever they are shown.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgvq_export.bench.processes import Measured
from mgvq_export.core.bundle import Bundle, package_version
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike, atomic_write_bytes, unreadable

FORMAT = "mgvq-bench"
VERSION = 1
CEILING = "ceiling"  # the entry that timed a large matrix product

_NUMBER_LIST = re.compile(r"\[([-+0-9.eE,\s]+)\]")
_PACKAGES = ("mgvq-export", "numpy", "onnxruntime", "onnxruntime-gpu", "onnxruntime-extensions", "numba", "torch", "tensorrt")


@dataclass
class Entry:
    """One measured entry of a group; the first entry of a group is what the others of it are compared with.

    Attributes:
        name: unique in its group, e.g. ``ort-cpu fp32 auto`` or ``torch``.
        group: what all of the group have in common, e.g. the image size ``2560x1440``.
        samples: stage -> seconds of every round. ``encode/quantizer`` is a part of ``encode``; stages without a slash follow
            one another.
        memory: ``base_bytes`` and ``peak_bytes`` of its process (host memory).
        facts: whatever else is known: precision, plan, ``flop`` (stage -> operations of one pass), ``differ`` (codes).
        skipped: why it could not run.
    """

    name: str
    group: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    @classmethod
    def of(cls, name: str, group: str, measured: Measured, facts: Mapping[str, Any]) -> Entry:
        """The entry of what was measured."""
        if measured.skipped is not None:
            return cls(name, group, facts=dict(facts), skipped=measured.skipped)
        memory = {"base_bytes": measured.base_bytes, "peak_bytes": measured.peak_bytes}
        return cls(name, group, measured.samples, memory, dict(facts))

    @property
    def rounds(self) -> int:
        return max((len(samples) for samples in self.samples.values()), default=0)

    def seconds(self, *stages: str) -> list[float]:
        """Seconds of ``stages`` together, round by round; of all that follow one another when none is named."""
        names = stages or tuple(name for name in self.samples if "/" not in name)
        return [sum(values) for values in zip(*(self.samples[name] for name in names), strict=True)]

    def has(self, *stages: str) -> bool:
        return all(stage in self.samples for stage in stages)


@dataclass
class Results:
    """All entries of one run, with machine, versions, bundle and settings."""

    kind: str
    entries: list[Entry]
    settings: dict[str, Any] = field(default_factory=dict)
    bundle: dict[str, Any] | None = None
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))

    def groups(self) -> dict[str, list[Entry]]:
        """Group -> its entries, in order."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.group, []).append(entry)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    def save(self, path: PathLike) -> None:
        """Write the document to ``path``, whole or not at all. Raises :class:`InputError` when that cannot be done."""
        text = json.dumps(_rounded(self.to_dict()), indent=1)
        text = _NUMBER_LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", text)  # one line per list of samples
        atomic_write_bytes(path, (text + "\n").encode())

    @classmethod
    def load(cls, path: PathLike) -> Results:
        """The document at ``path``. Raises :class:`InputError` when it is none, or of another version."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:
            raise InputError(f"{path} is no JSON ({error}); give a file that mgvq-export bench wrote") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise InputError(f"{path} holds no bench results; give a file that mgvq-export bench wrote")
        version = values.pop("version", None)
        if version != VERSION:
            raise InputError(
                f"{path} holds bench results of version {version}; this release reads version {VERSION}: run the bench again"
            )
        try:
            entries = [Entry(**entry) for entry in values.pop("entries")]
            return cls(entries=entries, **values)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); run the bench again") from error


def _rounded(value: Any) -> Any:
    """Floats to a tenth of a microsecond: more digits say nothing about a time."""
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def describe_machine() -> dict[str, Any]:
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
    """Versions of what the figures depend on."""
    versions = {name: package_version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | {name: found for name, found in versions.items() if found is not None}


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
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
