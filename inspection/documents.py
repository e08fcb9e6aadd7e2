"""Describes the JSON documents that the project writes: plans, manifests, bench results, evaluations, verifications, calibrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from mgvq_export.core.bundle import MANIFEST
from mgvq_export.core.errors import InputError
from mgvq_export.core.json_files import JsonSource, convert_json, read_json
from mgvq_export.core.precision_plan import FORMAT as PLAN
from mgvq_export.core.precision_plan import PrecisionPlan
from mgvq_export.core.tables import Table
from mgvq_export.inspection.bundle import describe_bundle
from mgvq_export.inspection.facts import Facts, figure_rows, plan_rows, plan_table

_BYTES, _VALUES = 256 << 20, 50_000_000

Text = Annotated[str, Meta(max_length=10_000)]
Number = float | int | Text | None  # infinite numbers are text
Values = Mapping[str, object]


def describe_document(path: Path) -> Facts:
    """The JSON document ``path``. Raises :class:`InputError`, with the path of the key, when it is damaged or none of :data:`DOCUMENTS`."""
    source = JsonSource(str(path), "give a file as mgvq-export wrote it", max_bytes=_BYTES, max_values=_VALUES)
    values = read_json(path, source)
    if isinstance(values, dict):
        for document in DOCUMENTS:
            if document.matches(values):
                return document.describe(path, values, source).printable()
    raise InputError(
        f"{path} is no JSON document of this project; wanted one of: {', '.join(document.name for document in DOCUMENTS)}"
    )


@dataclass(frozen=True)
class Document:
    """A kind of document.

    Attributes:
        name: as shown to people.
        matches: whether values at the top of a document are those of this kind.
        describe: gives the facts from the path, the values, and the source for error messages.
    """

    name: str
    matches: Callable[[Values], bool]
    describe: Callable[[Path, Values, JsonSource], Facts]


def _has(*keys: str) -> Callable[[Values], bool]:
    return lambda values: set(keys) <= values.keys()


def _is(name: str) -> Callable[[Values], bool]:
    return lambda values: values.get("format") == name


def _plan(path: Path, values: Values, source: JsonSource) -> Facts:
    plan = PrecisionPlan.load(path)
    tables = [plan_table(plan)]
    if plan.measured:
        tables.append(Table(("figure", "value"), figure_rows(plan.measured), "Measured"))
    return Facts({"kind": "precision plan", **plan_rows(plan), "plan": plan.to_dict()}, tables)


def _manifest(path: Path, values: Values, source: JsonSource) -> Facts:
    if path.name != MANIFEST:
        raise InputError(f"{path} is a bundle's manifest under another name; give the bundle's folder, where it is {MANIFEST}")
    return describe_bundle(path.parent)


def _bench(path: Path, values: Values, source: JsonSource) -> Facts:
    from mgvq_export.bench.record import Results
    from mgvq_export.bench.summary import heading

    results = Results.parse(values, path)
    rows = [
        [
            entry.name,
            entry.group,
            str(entry.rounds),
            f"{1000 * sorted(entry.seconds())[entry.rounds // 2]:.1f}" if entry.samples else "",
            f"{entry.memory['peak_bytes'] / 2**20:.0f}" if entry.memory else "",
            f"not measured: {entry.skipped}" if entry.skipped else "",
        ]
        for entry in results.entries
    ]
    facts = {"kind": "bench results", "of": results.kind, "date": results.date, "measured": heading(results)}
    columns = ("", "group", "rounds", "ms, median", "peak MiB", "")
    return Facts(facts | {"results": results.to_dict()}, [Table(columns, rows, "Entries", identifiers=2)])


def _ranges(path: Path, values: Values, source: JsonSource) -> Facts:
    from mgvq_export.calibration.ranges import Ranges

    ranges = Ranges.parse(values, path)
    rows = [
        [name, side, f"{one.largest:.3g}", f"{one.share(one.overflow):.2%}", f"{one.share(one.lost):.2%}"]
        for side, found in ranges.sides.items()
        for name, one in found.items()
    ]
    facts = {"kind": "calibration ranges", "windows": f"{ranges.done} of {ranges.total}", "values": len(rows)}
    return Facts(facts, [Table(("value", "graph", "largest", "infinite in float16", "zero in float16"), rows, "Values")])


@dataclass(frozen=True)
class _Figure:
    name: Text
    value: Number
    unit: Text = ""
    note: Text = ""


@dataclass(frozen=True)
class _Evaluated:
    evaluated: int


@dataclass(frozen=True)
class _Evaluation:
    model: Text
    precision: Text
    backend: Text
    size: Text
    images: _Evaluated
    figures: list[_Figure]


def _evaluation(path: Path, values: Values, source: JsonSource) -> Facts:
    found = convert_json(values, _Evaluation, source)
    rows = [[one.name, _number(one.value), one.unit, one.note] for one in found.figures]
    facts = {
        "kind": "evaluation results",
        "model": found.model,
        "run": f"{found.backend} {found.precision}",
        "images": f"{found.images.evaluated} at {found.size}",
    }
    return Facts(facts | {"results": dict(values)}, [Table(("figure", "value", "unit", "note"), rows, "Figures")])


@dataclass(frozen=True)
class _Check:
    name: Text
    status: Text
    value: Number = None
    limit: Number = None
    detail: Text = ""


@dataclass(frozen=True)
class _Checks:
    checks: list[_Check]
    model: Text = "-"
    backend: Text = "-"


@dataclass(frozen=True)
class _Verification:
    report: _Checks
    created: Text = "-"
    reference: Text = "-"
    missing: dict[Text, Text] = field(default_factory=dict)


def _verification(path: Path, values: Values, source: JsonSource) -> Facts:
    found = convert_json(values, _Verification, source)
    checks = found.report.checks
    counts = {status: sum(one.status == status for one in checks) for status in dict.fromkeys(one.status for one in checks)}
    rows = [[one.name, _number(one.value), _number(one.limit), one.status, one.detail] for one in checks]
    facts = {
        "kind": "verification report",
        "model": found.report.model,
        "backend": found.report.backend,
        "made": found.created,
        "checks": ", ".join(f"{count} {status}" for status, count in counts.items()) or "none",
    }
    return Facts(facts | {"report": dict(values)}, [Table(("check", "value", "limit", "result", "detail"), rows, "Checks")])


@dataclass(frozen=True)
class _Calibration:
    plan: Text
    nodes: dict[Text, int]
    calibration_windows: dict[Text, Number | bool]
    held_out: dict[Text, Number | bool]
    notes: list[Text] = field(default_factory=list)


def _calibration(path: Path, values: Values, source: JsonSource) -> Facts:
    found = convert_json(values, _Calibration, source)
    both = {"calibration windows": found.calibration_windows, "held-out images": found.held_out}
    facts = {
        "kind": "calibration report",
        "plan": found.plan,
        "nodes": ", ".join(f"{count} {precision}" for precision, count in found.nodes.items()) or "none",
        "notes": "; ".join(found.notes) or "-",
    }
    return Facts(facts | {"report": dict(values)}, [Table(("figure", "value"), figure_rows(both), "Measured")])


def _number(value: Number) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


#: The documents that can be described, in the order tried.
DOCUMENTS = (
    Document("precision plan", _is(PLAN), _plan),
    Document("bench results", _is("mgvq-bench"), _bench),
    Document("calibration ranges", _is("mgvq-ranges"), _ranges),
    Document("bundle manifest", _has("spec", "precisions"), _manifest),
    Document("evaluation results", _has("figures", "by_groups"), _evaluation),
    Document("verification report", _has("report", "created"), _verification),
    Document("calibration report", _has("plan", "searches"), _calibration),
)
