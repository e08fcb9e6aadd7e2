"""The command ``calibrate``: options as the command line has them, files written, and what is said at the end."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgvq_export.calibration.calibrate import calibrate
from mgvq_export.calibration.options import DEFAULT_BUDGETS, Options
from mgvq_export.calibration.plan_search import Calibration, Progress
from mgvq_export.calibration.tables import Table, summary, tables, to_dict
from mgvq_export.core.errors import CheckFailed, InputError
from mgvq_export.core.files import atomic_write_bytes
from mgvq_export.core.precision_plan import Budgets


@dataclass(frozen=True)
class Outcome:
    """What a calibration wrote and says: tables and notes of text, the same as JSON-ready facts, and the files."""

    tables: list[Table]
    notes: list[str]
    facts: dict[str, Any]
    files: list[Path]
    misses: list[str] = field(default_factory=list)

    def raise_if_failed(self) -> None:
        """Raise :class:`CheckFailed` when the plan misses its budgets on the held-out images; the plan is written all the same."""
        if self.misses:
            raise CheckFailed(
                f"on the held-out images the plan misses its budgets: {'; '.join(self.misses)}; ask for a larger --margin, or calibrate on more images"
            )


def run(bundle: Path, images: Sequence[Path], output: Path, options: Mapping[str, Any], *, progress: Progress) -> Outcome:
    """Calibrate, write the plan to ``output`` and the report into a folder.

    ``options``: the command's, by name: those of :class:`Options`, with ``parts`` as text and the budgets one by one (None: the default);
    ``checkpoint``, ``held_out``, and ``report_dir``, which is ``<plan>-report`` beside the plan when None.
    """
    rest = dict(options)
    asked = {name: rest.pop(name) for name in vars(Budgets())}
    checkpoint, held_out, report_dir = (rest.pop(name) for name in ("checkpoint", "held_out", "report_dir"))
    if output.is_dir():
        raise InputError(f"cannot write {output}: it is a folder; give the name of a file such as {output / 'plan.json'}")
    parent = Path(os.path.realpath(output)).parent  # of what a link points to, which is where it is written
    if not parent.is_dir():
        raise InputError(f"cannot write {output}: there is no folder {parent}; create it first")
    defaults = DEFAULT_BUDGETS.get(rest["precision"], Budgets())
    budgets = replace(defaults, **{name: value for name, value in asked.items() if value is not None})
    parts = tuple(part.strip() for part in rest.pop("parts").split(","))
    wanted = Options(budgets=budgets, parts=parts, **rest)
    folder = report_dir or output.with_name(f"{output.stem}-report")
    # Before the long run, not after it.
    for target, place in ((output, parent), (folder, folder)):
        if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
            raise InputError(
                f"cannot write {target}: the folder {place} may not be written to; change its permissions or choose another"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged files that it then refuses: one line is enough
        found = calibrate(bundle, images, wanted, checkpoint=checkpoint, held_out=held_out, report_dir=folder, progress=progress)
    files = _write(found, output, folder, progress)
    return Outcome(
        tables(found), [summary(found), *found.notes], to_dict(found), files, found.held_out.misses(budgets, worst=True)
    )


def _write(found: Calibration, output: Path, folder: Path, progress: Progress) -> list[Path]:
    progress("report", 0.97)
    found.plan.save(output)
    report = folder / "report.json"
    atomic_write_bytes(report, (json.dumps(to_dict(found), indent=2) + "\n").encode())
    files = [output, report]
    try:
        from mgvq_export.calibration.plots import write_plots

        files += write_plots(found, folder)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        found.notes.append("no plots: matplotlib is not installed: pip install 'mgvq-export[report]'")
    return files
