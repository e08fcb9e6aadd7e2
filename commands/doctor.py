"""``doctor``: what can run on this machine."""

from __future__ import annotations

from mgvq_export.commands.output import echo_json, echo_table, echo_tables
from mgvq_export.commands.verb import verb
from mgvq_export.core.tables import Table


@verb()
def doctor(as_json: bool) -> None:
    """Say what is installed, which backends can run here, and how to get the others."""
    from mgvq_export.inspection.doctor import examine

    report = examine()
    if as_json:
        return echo_json(report)
    packages = [[package["name"], package["version"] or "-", package["purpose"]] for package in report["packages"]]
    echo_table(Table(("package", "version", "for"), packages))
    backends = [[backend["name"], "yes" if backend["ready"] else "no", backend["detail"]] for backend in report["backends"]]
    echo_tables([Table(("backend", "ready", ""), backends)])
