"""``inspect``: what a file or folder is and holds."""

from __future__ import annotations

import click

from mgvq_export.commands.options import ALLOW_HOST_CODE
from mgvq_export.commands.output import echo_json, echo_table, echo_tables
from mgvq_export.commands.verb import verb
from mgvq_export.core.tables import Table


@verb(
    click.argument("target"),
    click.option("--trust", is_flag=True, help="Load an engine that lies in no bundle."),
    ALLOW_HOST_CODE,
)
def inspect(target: str, trust: bool, allow_host_code: bool, as_json: bool) -> None:
    """Say what TARGET is and holds: a checkpoint, bundle, token file, ONNX graph, TensorRT engine or precision plan."""
    from mgvq_export.inspection.describe import describe

    facts = describe(target, trust=trust, allow_host_code=allow_host_code)
    if as_json:
        return echo_json(facts.values)
    echo_table(Table(("", ""), [[name, str(value)] for name, value in facts.summary()]))
    echo_tables(facts.tables)
