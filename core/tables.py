"""A table of text, as the measuring rooms make it and commands and reports show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Columns and rows of text.

    Attributes:
        columns: headings; empty where a column needs none.
        rows: cells of each row, formatted, as many as there are columns.
        title: printed above the table; empty for none.
        identifiers: how many of the first columns name what a row is about. They are never shortened or folded.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    identifiers: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {list(row)}")
