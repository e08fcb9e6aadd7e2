"""The data of a report besides the checks: pictures and figures of one verification. All but the pictures are JSON-ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.json_files import to_json
from mgvq_export.core.manifest import FileEntry
from mgvq_export.core.types import JsonObject
from mgvq_export.parity.results import ParityReport
from mgvq_export.parity.seams import Seams

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PICTURE = {"json": False}  # arrays: shown in the report, left out of the JSON


@dataclass(frozen=True)
class Photo:
    """One image and its reconstruction in the reference precision.

    Attributes:
        name, size: the image's name, height and width (padding cut off).
        psnr_db: of the reconstruction.
        mean_error, largest_error: absolute difference in 8-bit steps, over all pixels and channels.
        histogram: pixels and channels by absolute difference, 0 to 255.
        psnr_by_groups: groups used -> PSNR in dB.
        original: uint8 [H, W, 3].
        by_groups: groups used -> decoding, uint8 [H, W, 3]; the last is the reconstruction.
    """

    name: str
    size: tuple[int, int]
    psnr_db: float
    mean_error: float
    largest_error: int
    histogram: list[int]
    psnr_by_groups: dict[int, float]
    original: np.ndarray = field(repr=False, metadata=_PICTURE)
    by_groups: dict[int, np.ndarray] = field(repr=False, metadata=_PICTURE)

    @property
    def reconstruction(self) -> np.ndarray:
        """The decoding of all groups."""
        return self.by_groups[max(self.by_groups)]


@dataclass(frozen=True)
class CodeMap:
    """Where the codes of one image differ between two computations.

    Attributes:
        comparison: ``fp16 against fp32``.
        photo: name of the image.
        total, differing: codes compared, and those that differ.
        near_ties: those among them whose margin is at most ``limit``.
        median_margin, largest_margin: of the codes that differ; 0 when none does.
        counts: groups that differ at each position, int [h, w].
        margins: of the codes that differ, ascending.
    """

    comparison: str
    photo: str
    total: int
    differing: int
    near_ties: int
    limit: float
    median_margin: float
    largest_margin: float
    counts: np.ndarray = field(repr=False, metadata=_PICTURE)
    margins: np.ndarray = field(repr=False, metadata=_PICTURE)


@dataclass(frozen=True)
class TilingRow:
    """One way of cutting an image into windows, against the run in one window.

    Attributes:
        mode: ``exact`` or ``blend``.
        photo: name of the image.
        encode_plan, decode_plan: the windows, as text.
        codes, codes_changed: codes in all, and those that encoding in windows changes.
        largest_error: of decoding the same codes in windows, in 8-bit steps.
        psnr_db: of that decoding against the decoding in one window; infinite when equal.
        seams: errors at the borders of windows.
        error: largest absolute difference over the channels, uint8 [H, W].
    """

    mode: str
    photo: str
    encode_plan: str
    decode_plan: str
    codes: int
    codes_changed: int
    largest_error: int
    psnr_db: float
    seams: Seams
    error: np.ndarray = field(repr=False, metadata=_PICTURE)


@dataclass(frozen=True)
class TimeRow:
    """Seconds of encoding or decoding one image in memory, untiled: each run, taken in turn with the other rows.

    ``precision``: with the backend, where it is not the one verified.
    """

    precision: str
    direction: str
    size: tuple[int, int]
    seconds: list[float]

    @property
    def median(self) -> float:
        """The median run."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class MemoryRow:
    """Predicted and measured peak memory of a process that encodes or decodes one image.

    ``limit_bytes``: the memory limit the plan was made for; None for one window.
    """

    direction: str
    size: tuple[int, int]
    limit_bytes: int | None
    plan: str
    predicted_bytes: int
    measured_bytes: int


@dataclass
class ReportData:
    """The data of a report on one verification.

    Attributes:
        report: the checks.
        reference: precision of the photos, and what other precisions are compared with.
        created: date and time, ISO 8601 with the offset from UTC.
        about: section -> rows of name and value: the model, the bundle, packages, the machine.
        files: path in the bundle, bytes and SHA-256 of every graph and weights file.
        photos, codes, tiling, time, memory: the sections.
        missing: section -> why it is missing or incomplete.
    """

    report: ParityReport
    reference: str
    created: str
    about: dict[str, dict[str, str]] = field(default_factory=dict)
    files: list[FileEntry] = field(default_factory=list)
    photos: list[Photo] = field(default_factory=list)
    codes: list[CodeMap] = field(default_factory=list)
    tiling: list[TilingRow] = field(default_factory=list)
    time: list[TimeRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """JSON-ready: everything but the pictures; values that are no finite number as text."""
        return {**_fields(self), "report": self.report.to_dict()}


def _fields(value: DataclassInstance) -> JsonObject:
    return {one.name: _plain(getattr(value, one.name)) for one in fields(value) if one.metadata.get("json", True)}


def _plain(value: object) -> object:
    if isinstance(value, ParityReport):
        return None  # its own to_dict
    if is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return to_json(value)
