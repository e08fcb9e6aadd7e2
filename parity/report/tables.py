"""Text and tables of a report, section by section, shared by HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mgvq_export.core.tables import Table
from mgvq_export.parity.report.report_data import ReportData
from mgvq_export.parity.results import CheckResult, count_results, format_value


@dataclass(frozen=True)
class Section:
    """One section: its key (``checks``, then as in :class:`ReportData`), heading, what is shown, tables, and what is missing."""

    key: str
    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    missing: str = ""


def sections(data: ReportData) -> list[Section]:
    """All sections, in the order of a report."""
    missing = data.missing
    return [
        Section("checks", "Checks", CHECKS, [check_table(data)]),
        Section("photos", "Reconstructions", _photos_text(data), _photo_tables(data), missing.get("photos", "")),
        Section("codes", "Codes that differ", CODES, _code_tables(data), missing.get("codes", "")),
        Section("tiling", "Windows and their seams", TILING, _tiling_tables(data), missing.get("tiling", "")),
        Section("time", "Time", _time_text(data), _time_tables(data), missing.get("time", "")),
        Section("memory", "Memory: plan and measurement", MEMORY, _memory_tables(data), missing.get("memory", "")),
        Section("versions", "Versions and hashes", VERSIONS, _version_tables(data)),
    ]


CHECKS = "Each question has a figure of its own, the worst over all images, and a limit with its reason."
CODES = (
    "Where two ways of computing the codes of one image disagree. The margin is the gap between the scores of the two codebook "
    "rows over the length of the sub-vector: a small one is a near-tie, which rounding decides."
)
TILING = (
    "One image cut into windows, against the same image in one window. Exact windows share as much as the network reaches, so "
    "nothing is lost. Blended tiles are computed independently, as in other tiled autoencoders; they are here to compare. Error and "
    "colour step are means in 8-bit steps: the pixels beside the borders of windows, and all others."
)
MEMORY = (
    "The planner's prediction and the highest mark of a process that coded noise of the first image's size, each in a process of its "
    "own that had coded a small image before."
)
VERSIONS = "What was verified, and with what."


def headline(data: ReportData) -> str:
    """``Passed: 41 passed, 1 reported, 1 skipped``; ``NOT passed: ...`` when a check failed or a required one was not made."""
    return f"{'Passed' if data.report.passed else 'NOT passed'}: {count_results(data.report.checks) or 'no checks'}"


def caveat(data: ReportData) -> str:
    """That the network was not compared, and why; empty when it was."""
    return data.report.summary().rpartition("\n")[0]


def facts(data: ReportData) -> list[tuple[str, str]]:
    """What was verified: names and values."""
    known: Mapping[str, object] = data.report.facts
    names = {"model": "model", "bundle": "bundle", "backend": "backend", "precisions": "precisions", "images": "images, padded"}
    rows = [(name, _fact(known[key])) for key, name in names.items() if key in known]
    if "seconds" in data.report.facts:
        rows.append(("checks took", f"{data.report.facts['seconds']:.1f} s"))
    return [*rows, ("made", data.created)]


def _fact(value: object) -> str:
    if isinstance(value, dict):  # images: name -> height and width
        return ", ".join(f"{name} ({width}x{height})" for name, (height, width) in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def check_table(data: ReportData) -> Table:
    """Every check, in the order run."""
    columns = ("check", "question", "value", "limit", "reason of the limit", "result", "detail")
    return Table(columns, [check_row(check) for check in data.report.checks])


def check_row(check: CheckResult) -> list[str]:
    """One check as text, in the order of :func:`check_table`."""
    value = "" if check.value is None else format_value(check.value)
    reason = check.tolerance.reason if check.tolerance else ""
    return [check.name, check.question, value, str(check.tolerance or ""), reason, check.status, check.detail]


def _photos_text(data: ReportData) -> str:
    return (
        f"Originals against what {data.reference} decodes from all groups of codes, and from the first 1, 2, 4, ... of them. "
        "Pictures are compressed to be shown here; the figures are of the pixels themselves."
    )


def _photo_tables(data: ReportData) -> list[Table]:
    if not data.photos:
        return []
    counts = list(data.photos[0].psnr_by_groups)
    columns = ("photo", "size", *(f"{n} group{'s' * (n > 1)}, dB" for n in counts), "mean error", "largest error")
    rows = [
        [
            photo.name,
            f"{photo.size[1]}x{photo.size[0]}",
            *(format_psnr(photo.psnr_by_groups[n]) for n in counts),
            f"{photo.mean_error:.2f}",
            str(photo.largest_error),
        ]
        for photo in data.photos
    ]
    return [Table(columns, rows, "PSNR by groups used; errors of all groups in 8-bit steps")]


def _code_tables(data: ReportData) -> list[Table]:
    if not data.codes:
        return []
    columns = ("comparison", "photo", "codes", "differ", "near-ties", "limit of a near-tie", "median margin", "largest margin")
    rows = [
        [
            one.comparison,
            one.photo,
            f"{one.total:,}",
            f"{one.differing:,} ({one.differing / one.total:.2%})",
            f"{one.near_ties:,}",
            f"{one.limit:g}",
            format_value(one.median_margin),
            format_value(one.largest_margin),
        ]
        for one in data.codes
    ]
    return [Table(columns, rows, "Codes that differ, and their margins")]


def _tiling_tables(data: ReportData) -> list[Table]:
    if not data.tiling:
        return []
    columns = (
        "tiles",
        "codes changed",
        "PSNR to untiled",
        "largest error",
        "error at borders",
        "error inside",
        "colour step at borders",
        "colour step inside",
    )
    rows = [
        [
            row.mode,
            f"{row.codes_changed:,} of {row.codes:,} ({row.codes_changed / row.codes:.1%})",
            format_psnr(row.psnr_db),
            str(row.largest_error),
            *(
                f"{value:.3f}"
                for value in (row.seams.border_error, row.seams.interior_error, row.seams.border_step, row.seams.interior_step)
            ),
        ]
        for row in data.tiling
    ]
    plans = [[row.mode, row.encode_plan, row.decode_plan] for row in data.tiling]
    first = data.tiling[0].photo
    return [
        Table(columns, rows, f"{first}, in windows against in one"),
        Table(("tiles", "encode", "decode"), plans, "The windows"),
    ]


def _time_text(data: ReportData) -> str:
    if not data.time:
        return "Encoding and decoding, measured in this run."
    runs, (height, width) = len(data.time[0].seconds), data.time[0].size
    return (
        f"Measured in this run: the first image, {width}x{height}, in memory, untiled, {runs} runs of each row taken in turn, on a machine "
        "that may have done other things besides."
    )


def _time_tables(data: ReportData) -> list[Table]:
    if not data.time:
        return []
    rows = []
    for row in data.time:
        rate = row.size[0] * row.size[1] / 1e6 / row.median
        spread = (f"{min(row.seconds):.3f}", f"{max(row.seconds):.3f}")
        rows.append([row.precision, row.direction, f"{row.median:.3f}", *spread, f"{rate:.2f}"])
    return [
        Table(("precision", "direction", "median", "fastest", "slowest", "megapixels per second"), rows, "Seconds", identifiers=2)
    ]


def _memory_tables(data: ReportData) -> list[Table]:
    if not data.memory:
        return []
    columns = ("direction", "image", "limit", "plan", "predicted", "measured", "prediction is off by")
    rows = [
        [
            row.direction,
            f"{row.size[1]}x{row.size[0]}",
            "none" if row.limit_bytes is None else _mebibytes(row.limit_bytes),
            row.plan,
            _mebibytes(row.predicted_bytes),
            _mebibytes(row.measured_bytes),
            _percent(row.predicted_bytes / row.measured_bytes - 1),
        ]
        for row in data.memory
    ]
    return [Table(columns, rows, "Peak memory of the process")]


def _version_tables(data: ReportData) -> list[Table]:
    tables = [Table(("", ""), [[name, value] for name, value in rows.items()], title) for title, rows in data.about.items()]
    rows = [[entry.file, f"{entry.bytes:,}", entry.sha256] for entry in data.files]
    return [*tables, Table(("file", "bytes", "SHA-256"), rows, "Files of the bundle")]


def format_psnr(value: float) -> str:
    """``31.42``; ``equal`` for no difference at all."""
    return "equal" if math.isinf(value) else f"{value:.2f}"


def printable(text: str) -> str:
    """A name that can be shown on a page: control characters and bytes that are no text are replaced."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _percent(share: float) -> str:
    return f"{round(share, 3) + 0.0:+.1%}"  # + 0.0: no "-0.0 %"
