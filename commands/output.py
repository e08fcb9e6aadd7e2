"""What the commands print: a line per artifact, tables, JSON, and a progress bar on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import click

from mgvq_export.core.tables import Table


class Lines:
    """Prints one line per artifact as it appears, or all facts as JSON at the end."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self.facts: list[dict[str, Any]] = []

    def add(self, path: Path, seconds: float, note: str = "", **facts: Any) -> None:
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        self.facts.append({"path": str(path), "bytes": size, "seconds": round(seconds, 3), **facts})
        if not self.as_json:
            click.echo(f"{path}  {human_size(size)}  {seconds:.2f} s{f'  {note}' if note else ''}")

    def close(self) -> None:
        if self.as_json:
            echo_json(self.facts)


def human_size(size: float) -> str:
    """Bytes as people read them: 812 B, 31.4 kB, 863.5 MB."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def echo_json(facts: Any) -> None:
    """Facts as indented JSON on standard output."""
    click.echo(json.dumps(facts, indent=2, default=str))


def echo_table(table: Table) -> None:
    """A table on standard output. Its identifiers stay whole at any width; the other columns fold."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=table.title or None, box=None, title_justify="left", pad_edge=False)
    for index, column in enumerate(table.columns):
        shown.add_column(column, no_wrap=index < table.identifiers, overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))  # not str: rich takes [brackets] in a str for markup
    # A pipe has no width: keep rows whole there instead of folding them at 80 columns.
    Console(width=None if sys.stdout.isatty() else 240).print(shown)


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
    """A bar with time left on standard error, gone when done. Yields ``update(description, steps done)``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(task, total=total)
        yield lambda description, done: progress.update(bar, description=description, completed=done)
