"""A report as Markdown: the text and tables of the page, without the pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mgvq_export.parity.report.report_data import ReportData
from mgvq_export.parity.report.tables import caveat, facts, headline, printable, sections
from mgvq_export.parity.results import format_value


def markdown(data: ReportData) -> str:
    """The whole report, ending with a newline."""
    lines = [f"# Verification of {_text(data.report.facts.get('model', 'a bundle'))}", ""]
    lines += [f"**{_text(caveat(data))}**", ""] if caveat(data) else []
    lines += [f"**{headline(data)}**", ""]
    lines += [f"- {name}: {_text(value)}" for name, value in facts(data)]
    if not data.report.passed:
        lines += ["", "## Failed", ""]
        lines += [f"- not checked: {_text(one)}" for one in data.report.missing]
        lines += [
            f"- **{_text(check.name)}** is {format_value(check.value or 0)}, wanted {_text(check.tolerance)}. {_text(check.detail)}".rstrip()
            for check in data.report.failed
        ]
    for section in sections(data):
        lines += ["", f"## {section.title}", "", section.text]
        if section.missing:
            lines += ["", f"*{_text(section.missing)}*"]
        for table in section.tables:
            lines += ["", f"### {_text(table.title)}"] if table.title else []
            lines += ["", *_table(table.columns, table.rows)]
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines]


def _text(value: object) -> str:
    """The value on one line, with Markdown markup escaped."""
    line = printable(" ".join(str(value).split()))
    return re.sub(r"([\\`*_\[\]|~$]|<(?=[A-Za-z/!?])|&(?=#?\w+;))", r"\\\1", line)
