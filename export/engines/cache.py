"""When an engine on disk may be used again, and what is remembered between builds.

A record in the manifest's ``engines`` (:class:`~mgvq_export.core.manifest.EngineRecord`) holds everything that decides what an
engine computes and where it runs.

Between builds, the user's cache folder keeps TensorRT's timing caches and the build time of each engine on this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import atomic_write_bytes, sha256_file
from mgvq_export.core.json_files import to_json
from mgvq_export.core.manifest import EngineRecord
from mgvq_export.core.types import JsonObject
from mgvq_export.ops.trt_machine import Machine

_HASHES = {
    "graph_sha256": "the exported graph has changed",
    "weights_sha256": "the exported weights have changed",
    "engine_graph_sha256": "the graph handed to TensorRT has changed",
    "profiles": "the sizes or batches asked for (the optimisation profiles) have changed",
    "kernel.source_sha256": "the quantizer's GPU kernel has changed",
}
_VALUES = {
    "part": "the part",
    "precision": "the precision",
    "tensorrt": "TensorRT",
    "gpu": "the GPU",
    "compute_capability": "the compute capability",
    "compute_capabilities": "the GPUs to build for",
    "options.builder_level": "the builder level",
    "options.workspace_bytes": "the workspace limit",
    "options.version_compatible": "version compatibility",
    "options.hardware_compatible": "hardware compatibility",
    "options.detailed": "detailed profiling",
    "kernel.nvrtc": "NVRTC",
    "kernel.architecture": "the kernel's architecture",
}


def engine_name(machine: Machine, precision: str, part: str) -> str:
    """Path of an engine inside a bundle."""
    return f"engines/{machine.folder}/{precision}/{part}.engine"


def reuse_reason(record: EngineRecord, wanted: EngineRecord) -> list[str]:
    """Why the engine of ``record`` is not the ``wanted`` one: a plain sentence per difference; empty when it may be used.

    Only what decides is compared: hashes, versions, machine, profiles, options; not the file, nor how long it took.
    """
    old, new = _flat(to_json(record)), _flat(to_json(wanted))
    reasons = [f"{text} since the engine was built" for key, text in _HASHES.items() if old.get(key) != new.get(key)]
    for key, text in _VALUES.items():
        if old.get(key) != new.get(key):
            reasons.append(f"{text} is {_said(new.get(key))} now and was {_said(old.get(key))} when the engine was built")
    return reasons


def find_engine(bundle: Bundle, wanted: EngineRecord) -> tuple[EngineRecord | None, list[str]]:
    """The record of a whole engine that is the ``wanted`` one, or None and why not (empty: none was built yet).

    The file's size and hash are compared too. Among engines of the part and precision, the one in the same place is looked at
    first: other machines' engines lie elsewhere.
    """
    key = (wanted.part, wanted.precision, wanted.target)
    engines = [e for e in bundle.engines if (e.part, e.precision, e.target) == key]
    if not engines:
        return None, []
    record = next((e for e in engines if e.file == wanted.file), engines[-1])
    reasons = reuse_reason(record, wanted) or _file_reasons(bundle, record)
    return (None, reasons) if reasons else (record, [])


def _file_reasons(bundle: Bundle, record: EngineRecord) -> list[str]:
    path = bundle.path / record.file
    if not path.is_file():
        return ["the engine's file is missing"]
    try:
        if path.stat().st_size == record.bytes and sha256_file(path) == record.sha256:
            return []
    except (OSError, InputError):
        return ["the engine's file is missing"]
    return ["the engine's file has changed since it was written"]


def _flat(record: Mapping[str, object], prefix: str = "") -> JsonObject:
    """Nested objects as dotted keys; profiles stay whole."""
    found: JsonObject = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "all"
    return "not set" if value in (None, "") else str(value)


# ---- what is remembered between builds


@dataclass(frozen=True)
class BuildCache:
    """The user's cache folder: timing caches and build times. A file that cannot be read or written is ignored."""

    folder: Path

    @classmethod
    def default(cls) -> BuildCache:
        """``tensorrt`` in the user's cache folder: on Linux ``$XDG_CACHE_HOME/mgvq-export``, by default ``~/.cache/mgvq-export``."""
        return cls(user_cache_path("mgvq-export", appauthor=False) / "tensorrt")

    def _timing_path(self, machine: Machine, kernel_sha256: str) -> Path:
        # TensorRT does not see the plugin's kernel in its keys: timings of another kernel must not be taken for this one's.
        return self.folder / f"{machine.folder}-kernel{kernel_sha256[:12]}.timing"

    def timings(self, machine: Machine, kernel_sha256: str) -> bytes:
        """TensorRT's serialized timing cache of earlier builds, or ``b""``."""
        with contextlib.suppress(OSError):
            return self._timing_path(machine, kernel_sha256).read_bytes()
        return b""

    def keep_timings(self, machine: Machine, kernel_sha256: str, data: bytes) -> None:
        """Replace the timing cache."""
        self._write(self._timing_path(machine, kernel_sha256), data)

    def estimate(self, wanted: EngineRecord) -> float | None:
        """Seconds that an engine like ``wanted`` (same graph, GPU, TensorRT, options, number of profiles) took last time here."""
        seconds = self._times().get(_similar(wanted))
        return float(seconds) if isinstance(seconds, (int, float)) else None

    def keep_time(self, wanted: EngineRecord, seconds: float) -> None:
        """Remember how long an engine took."""
        times = self._times() | {_similar(wanted): round(seconds, 1)}
        self._write(self.folder / "build-times.json", json.dumps(times, indent=1).encode())

    def _times(self) -> JsonObject:
        try:
            times = json.loads((self.folder / "build-times.json").read_text())
        except (OSError, ValueError):
            return {}
        return times if isinstance(times, dict) else {}

    def _write(self, path: Path, data: bytes) -> None:
        with contextlib.suppress(OSError, InputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, data)


def _similar(wanted: EngineRecord) -> str:
    """The key under which build times are kept: everything but the weights and the exact sizes."""
    values = [
        wanted.engine_graph_sha256,
        wanted.target,
        wanted.gpu,
        wanted.tensorrt,
        to_json(wanted.options),
        len(wanted.profiles),
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
