"""``demo``: the main job on the packaged model."""

from __future__ import annotations

from pathlib import Path

import click

from mgvq_export.commands.options import folder_option
from mgvq_export.commands.output import echo_json, echo_tables
from mgvq_export.commands.verb import verb


@verb(folder_option("Folder to write to.", default=Path("demo-out"), show_default=True))
def demo(output: Path, as_json: bool) -> None:
    """Run the main job on the packaged model: export, encode, decode, compare with PyTorch, draw a contact sheet."""
    from mgvq_export.evaluation.demo import run_demo

    result = run_demo(output, say=lambda line: None if as_json else click.echo(line))
    if as_json:
        echo_json(result.facts)
    else:
        echo_tables(result.tables)
    result.raise_if_failed()
