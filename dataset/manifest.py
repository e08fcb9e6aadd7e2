"""``_manifest.json`` of a result: what was tokenized, with what, how, and how much of it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.files import atomic_write_bytes
from mgvq_export.core.json_files import JsonSource, convert_json, json_bytes, read_json, to_json
from mgvq_export.runtime.tokenizer import Tokenizer

MANIFEST = "_manifest.json"
FORMAT, VERSION = "mgvq-token-dataset", 1


@dataclass(frozen=True)
class Model:
    """What made the codes. ``graphs_sha256`` is the bundle's hash: of all files that the codes depend on."""

    name: str
    codebook_sha256: str
    graphs_sha256: str
    backend: str
    precision: str
    tiling: str
    groups: int
    codes_per_group: int
    downsample: int


@dataclass(frozen=True)
class Counts:
    """Images in all, those tokenized and failed so far; their codes and pixels; bytes of the shards."""

    images: int
    tokenized: int = 0
    failed: int = 0
    codes: int = 0
    pixels: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class RunManifest:
    """The manifest of a result.

    Attributes:
        model: what made the codes.
        source: ``place``, ``kind``, and ``fingerprint`` of its files' names and sizes.
        options: all else that decides the rows, or how they are written.
        classes: names of the classes by their number; empty where they are numbers, or where there are none.
        shards: how many; complete: whether all are done and the result is in its final form.
    """

    model: Model
    source: dict[str, str]
    options: dict[str, Any]
    classes: list[str]
    shards: int
    counts: Counts
    complete: bool = False
    format: str = FORMAT
    version: int = VERSION

    @property
    def run_id(self) -> str:
        """Hash of all that decides the rows."""
        facts = [to_json(self.model), self.source["fingerprint"], self.source["kind"], self.options, self.shards]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write ``_manifest.json``."""
        atomic_write_bytes(folder / MANIFEST, json_bytes(to_json(self)))

    def with_counts(self, counts: Counts, complete: bool) -> RunManifest:
        """The same run, further on."""
        return replace(self, counts=counts, complete=complete)


def model_of(tokenizer: Tokenizer) -> Model:
    """What ``tokenizer`` makes codes with."""
    spec, tiling = tokenizer.spec, tokenizer.tiling
    tile = f" {tiling.tile}" if tiling.tile else ""
    return Model(
        spec.name,
        tokenizer.bundle.codebook_sha256,
        tokenizer.bundle.run_sha256(tokenizer.precision, engines=tokenizer.backend.startswith("tensorrt")),
        tokenizer.backend,
        tokenizer.precision,
        f"{tiling.mode}{tile}",
        spec.groups,
        spec.codes_per_group,
        spec.downsample,
    )


def read_manifest(folder: Path) -> RunManifest:
    """The manifest of the result in ``folder``. Raises :class:`InputError` when there is none, or it is damaged or newer."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} holds no {MANIFEST}; make one with: mgvq-export tokenize BUNDLE SOURCE -o {folder}")
    source = JsonSource(str(path), "make the result again in another folder")
    values = read_json(path, source)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        source.fail(f"is no manifest of a tokenized data set; wanted the format {FORMAT}")
    version = values.get("version")
    if isinstance(version, int) and version > VERSION:
        source.fail(f"is of version {version}; this program reads version {VERSION}: upgrade mgvq-export")
    return convert_json(values, RunManifest, source)


def check_same_run(old: RunManifest, new: RunManifest, folder: Path) -> None:
    """Raise :class:`InputError` unless ``new`` would write the rows that ``old`` has; it says what differs."""
    differences = [
        *_differences(to_json(old.model), to_json(new.model), "the bundle's "),
        *_differences(old.options, new.options, "option "),
    ]
    if old.source["fingerprint"] != new.source["fingerprint"]:
        differences.append("the source: other files, or files of other sizes, than when the run began")
    elif old.shards != new.shards:
        differences.append(f"the number of shards: {old.shards}, now {new.shards}")
    if differences:
        raise InputError(
            f"{folder} holds the result of another run; it differs in {'; '.join(differences[:3])}: choose another -o"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], what: str) -> Sequence[str]:
    names = [name for name in new if old.get(name) != new[name]]
    return [
        f"{what}{name.replace('_', ' ')}: {shown(_text(old.get(name)), 24)}, now {shown(_text(new[name]), 24)}" for name in names
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        manifest: of the result; output: its folder.
        tokenized: images tokenized by this run; images done before are in ``manifest.counts`` only.
        seconds: from the first image on.
        failures: [key, path, reason] of all that failed.
    """

    output: Path
    manifest: RunManifest
    tokenized: int
    seconds: float
    failures: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def images_per_second(self) -> float:
        """Of this run."""
        return self.tokenized / max(self.seconds, 1e-9)
