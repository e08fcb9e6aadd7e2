"""Facts about a file, and rows that several kinds of files share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mgvq_export.core.errors import shown
from mgvq_export.core.precision_plan import PrecisionPlan
from mgvq_export.core.spec import ModelSpec
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject

_LONGEST = 2000  # characters of one cell


@dataclass
class Facts:
    """Facts about a file: ``values`` as JSON-ready data, ``tables`` for people."""

    values: JsonObject
    tables: list[Table] = field(default_factory=list)

    def printable(self) -> Facts:
        """The same with the text of tables and plain values shortened and escaped: text from files is not trusted."""
        values = {name: _shown(value) if isinstance(value, str) else value for name, value in self.values.items()}
        return Facts(
            values, [replace(table, rows=[[_shown(cell) for cell in row] for row in table.rows]) for table in self.tables]
        )

    def summary(self) -> list[tuple[str, object]]:
        """The plain values, without the nested ones that the tables show."""
        return [(name, value) for name, value in self.values.items() if not isinstance(value, (dict, list))]


def _shown(text: str) -> str:
    return shown(text, _LONGEST, quoted=False)


def model_rows(spec: ModelSpec) -> JsonObject:
    """Name and sizes of a model, under names for people."""
    return {
        "model": spec.name,
        "pixels per token": f"{spec.downsample}x{spec.downsample}",
        "groups": spec.groups,
        "codes per group": spec.codes_per_group,
        "group dim": spec.group_dim,
        "bits per token": spec.bits_per_token,
    }


def plan_rows(plan: PrecisionPlan) -> JsonObject:
    """A summary of a precision plan."""
    named = ", ".join(f"{count} {precision}" for precision, count in plan.counts().items())
    budgets = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in vars(plan.budgets).items() if value is not None)
    images = plan.calibration.get("images")  # a plan written by hand may have anything here
    return {
        "name": plan.name,
        "base": plan.base,
        "nodes": named or "none",
        **{side: f"{kind} (experimental)" if (kind := plan.kind(side)) == "fp8" else kind for side in ("encoder", "decoder")},
        "made for": plan.made_for.model or "-",
        "budgets": budgets or "-",
        "calibrated on": f"{len(images)} images" if images and isinstance(images, list) else "-",
    }


def plan_table(plan: PrecisionPlan) -> Table:
    """Every node that a plan names, with its scales and the reason."""
    rows = [
        [
            name,
            node.precision,
            ", ".join(f"{position}: {scale:.4g}" for position, scale in sorted(node.scales.items())),
            node.reason,
        ]
        for name, node in plan.nodes.items()
    ]
    return Table(("node", "precision", "scales of inputs", "reason"), rows, f"Nodes that do not run in {plan.base} as they are")


def figure_rows(values: Mapping[str, object], where: str = "") -> list[list[str]]:
    """Rows of name and value; names of nested values are joined."""
    rows = []
    for name, value in values.items():
        full = f"{where} {name.replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            rows += figure_rows(value, full)
        else:
            rows.append([full, f"{value:.5g}" if isinstance(value, float) else str(value)])
    return rows
