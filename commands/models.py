"""``models``: what can be exported by name."""

from __future__ import annotations

from mgvq_export.commands.output import echo_json, echo_table
from mgvq_export.commands.verb import verb
from mgvq_export.core.tables import Table


@verb()
def models(as_json: bool) -> None:
    """List the released variants and the packaged demo model.

    f: pixels per token, along each axis; codes: of each group; dim: of a group's vectors; bits: of a token.
    """
    from mgvq_export.inspection.describe import known_models

    rows = known_models()
    if as_json:
        return echo_json(rows)
    columns = ("name", "f", "groups", "codes", "dim", "bits", "bits/px", "checkpoint")
    echo_table(Table(columns, [[str(row[key]) for key in row] for row in rows]))
