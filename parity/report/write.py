"""Writes a report as a file: one self-contained HTML page, Markdown or JSON, by the suffix."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.files import PathLike, atomic_path
from mgvq_export.parity.report.report_data import ReportData

FORMATS = (".html", ".md", ".json")

_PACKAGES = ("jinja2", "matplotlib")  # what the page needs beyond the others


@contextlib.contextmanager
def open_reports(paths: Sequence[PathLike]) -> Iterator[Callable[[ReportData], None]]:
    """Gives a function that writes all of ``paths``; they appear when the body ends without error, or not at all.

    What can go wrong is found before the body runs, which may take minutes.

    Raises:
        InputError: an unknown suffix, one path twice, or a file that cannot be written.
        BackendError: a package that HTML needs is not installed.
    """
    for path in paths:
        if Path(path).suffix.lower() not in FORMATS:
            raise InputError(f"report {path} has no known suffix; choose {', '.join(FORMATS)}")
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise InputError("one report is named twice; give each its own name")
    if any(Path(path).suffix.lower() == ".html" for path in paths):
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise BackendError(
                f"a report as HTML needs {' and '.join(missing)}: pip install 'mgvq-export[report]', or write .md or .json"
            )
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(atomic_path(path)) for path in paths]

        def write(data: ReportData) -> None:
            for target in targets:
                target.write_text(render(data, target.suffix.lower()), encoding="utf-8")

        yield write


def render(data: ReportData, suffix: str) -> str:
    """The report in the format of ``suffix``, one of :data:`FORMATS`."""
    if suffix == ".json":
        return json.dumps(data.to_dict(), indent=2, allow_nan=False) + "\n"
    if suffix == ".md":
        from mgvq_export.parity.report.markdown import markdown

        return markdown(data)
    from mgvq_export.parity.report.html import html

    return html(data)
