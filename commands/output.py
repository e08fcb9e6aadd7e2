"""What the commands show: lines, tables and JSON on standard output, errors and a progress bar on standard error."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from mgvq_export.core.errors import InputError
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_READABLE = 14  # characters that a column is at least given where its text is longer

_bars: list[Progress] = []  # those on the screen, the one in use last
_screen = threading.RLock()  # held while a line is printed or a bar goes: a signal's thread prints too


def say(line: str = "", *, err: bool = False) -> None:
    """A whole line on standard output (``err``: on standard error), above the bar where one is shown."""
    with _screen:
        if _bars and (err or sys.stdout.isatty()):
            from rich.text import Text

            # Through the bar's console, which takes the bar away, prints, and draws the bar again below.
            _bars[-1].console.print(Text(line.lstrip("\r")), soft_wrap=True)
        else:
            click.echo(line, err=err)


class Lines:
    """Prints one line per artifact as it appears, or all facts as JSON at the end, or one JSON object a line as they appear."""

    def __init__(self, as_json: bool, *, json_lines: bool = False, output: Path | None = None):
        """``output``: what ``-o`` says. Where that is standard output, lines go to standard error."""
        self.as_json, self.json_lines = as_json, json_lines
        self.data_on_stdout = str(output) == "-"
        if self.data_on_stdout and self.machine_readable:
            raise InputError(
                "-o - writes the result to standard output, where JSON would be mixed into it; leave one of them out"
            )
        if self.data_on_stdout and sys.stdout.isatty():
            raise InputError("standard output is a terminal; send it to a file or a program, or give a folder with -o")
        self.facts: list[JsonObject] = []

    @property
    def machine_readable(self) -> bool:
        """Whether programs read what is printed."""
        return self.as_json or self.json_lines

    def add(self, path: Path, seconds: float, note: str = "", **facts: object) -> None:
        """An artifact: the file or folder at ``path``."""
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        self.add_facts(
            {"path": str(path), "bytes": size, "seconds": round(seconds, 3), **facts},
            f"{path}  {human_size(size)}  {seconds:.2f} s{f'  {note}' if note else ''}",
        )

    def add_facts(self, facts: JsonObject, line: str) -> None:
        """Any other facts, and the line that says them; no line where it is empty."""
        self.facts.append(facts)
        if self.json_lines:
            say(json_text(facts, indent=None))
        elif not self.as_json and line:
            say(line, err=self.data_on_stdout)

    def close(self) -> None:
        """Print the JSON, where that was asked for."""
        if self.as_json and not self.json_lines:
            echo_json(self.facts)


def human_size(size: float) -> str:
    """Bytes as people read them: 812 B, 31.4 kB, 863.5 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def echo_json(facts: object) -> None:
    """Facts as indented JSON on standard output."""
    click.echo(json_text(facts))


def json_text(facts: object, *, indent: int | None = 2) -> str:
    """``facts`` as strict JSON: what is not finite is written as null, paths and enums as text, numpy's numbers as numbers."""
    return json.dumps(_plain(facts), indent=indent, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):  # a number of numpy's
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or type(value) in (str, int, bool) else str(value)


def echo_table(table: Table) -> None:
    """A table on standard output. Its identifiers stay whole at any width; the other columns fold.

    Columns without any text are left out. Where the screen is too narrow for readable columns, each row becomes a line with its
    identifiers, and below it the other cells with their headings.
    """
    from rich.console import Console

    # A pipe has no width: keep rows whole there instead of folding them at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 240)
    kept = [
        index
        for index in range(len(table.columns))
        if index < table.identifiers or not table.rows or any(row[index] for row in table.rows)
    ]
    columns = [table.columns[index] for index in kept]
    rows = [[row[index] for index in kept] for row in table.rows]
    headings = [max(map(len, [*column.split(), ""])) for column in columns]
    widths = [max(heading, *(len(row[index]) for row in rows), 0) for index, heading in enumerate(headings)]
    needed = sum(width if index < table.identifiers else min(width, _READABLE) for index, width in enumerate(widths)) + 2 * (
        len(widths) - 1
    )
    draw = _draw_columns if needed <= console.width else _draw_records
    draw(console, columns, rows, table)


def _draw_columns(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], table: Table) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=table.title or None, box=None, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        shown.add_column(column, no_wrap=index < table.identifiers, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))  # not str: rich takes [brackets] in a str for markup
    console.print(shown)


def _draw_records(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], table: Table) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if table.title:
        console.print(Text(table.title, style="italic"))
    for row in rows:
        console.print(Text("  ".join(cell for cell in row[: table.identifiers] if cell), overflow="fold"))
        pairs = zip(columns[table.identifiers :], row[table.identifiers :], strict=True)
        text = "   ".join(
            f"{column}\u00a0{cell}" if column and len(cell) < _READABLE else f"{column} {cell}".strip()
            for column, cell in pairs
            if cell
        )
        console.print(Padding(Text(text, overflow="fold"), (0, 0, 0, 4)))


def echo_tables(tables: Iterable[Table], *, between: Literal["before", "after"] = "before") -> None:
    """Tables on standard output, an empty line before (or after) each."""
    for table in tables:
        if between == "before":
            click.echo()
        echo_table(table)
        if between == "after":
            click.echo()


@contextlib.contextmanager
def progress_bar(task: str, total: int) -> Iterator[Callable[[str, float], None]]:
    """A bar with elapsed and remaining time where standard error is a terminal, gone when done.

    Yields ``update(description, steps done)``. While it is shown, lines are printed with :func:`say`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.table import Column

    # One console for lines and bar: where both are the same screen, it knows where the bar is.
    console = Console(stderr=not sys.stdout.isatty())
    shown = sys.stderr.isatty() and console.is_terminal
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Remaining(),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not shown, redirect_stdout=False, redirect_stderr=False)
    number = bar.add_task(task, total=total)
    with _screen:
        bar.start()
        if shown:
            _bars.append(bar)
    try:
        yield lambda description, done: bar.update(number, description=description, completed=done)
    finally:
        with _screen:
            bar.stop()
            if shown:
                _bars.remove(bar)
