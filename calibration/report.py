"""``mgvq-export calibrate``: checks the options, calibrates, and writes the plan and the report."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mgvq_export.calibration.calibrate import calibrate
from mgvq_export.calibration.options import Options
from mgvq_export.calibration.plan_search import Calibration, Progress
from mgvq_export.calibration.tables import summary, tables, to_dict
from mgvq_export.core.budgets import DEFAULT_BUDGETS, Budgets
from mgvq_export.core.errors import CheckFailed, InputError
from mgvq_export.core.files import atomic_write_bytes
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject


@dataclass(frozen=True)
class Outcome:
    """What a calibration found, as tables and notes of text and as JSON-ready facts; the files written; the budgets missed."""

    tables: list[Table]
    notes: list[str]
    facts: JsonObject
    files: list[Path]
    misses: list[str] = field(default_factory=list)

    def raise_if_failed(self) -> None:
        """Raise :class:`CheckFailed` when the plan misses its budgets on the held-out images; the plan is written all the same."""
        if self.misses:
            raise CheckFailed(
                f"on the held-out images the plan misses its budgets: {'; '.join(self.misses)}; ask for a larger --margin, or calibrate on more images"
            )


def run(
    bundle: Path,
    images: Sequence[Path],
    output: Path,
    *,
    precision: str,
    min_code_agreement: float | None = None,
    min_psnr: float | None = None,
    max_psnr_drop: float | None = None,
    parts: str = "decoder",
    base: str = Options.base,
    measured_islands: bool = Options.measured_islands,
    windows: int = Options.windows,
    window_size: int = Options.window_size,
    search_windows: int = Options.search_windows,
    margin: float = Options.margin,
    name: str | None = None,
    checkpoint: str | None = None,
    held_out: Sequence[Path] = (),
    report_dir: Path | None = None,
    progress: Progress,
) -> Outcome:
    """Calibrate, write the plan to ``output`` and the report into a folder.

    Args:
        min_code_agreement, min_psnr, max_psnr_drop: the budgets; the default of ``precision`` where None.
        parts: ``decoder``, ``encoder``, or both with a comma.
        report_dir: the report's folder; ``<plan>-report`` beside the plan when None.

    The others are fields of :class:`Options` and arguments of :func:`calibrate`. Raises as they do, and :class:`InputError` when
    the plan or the report could not be written.
    """
    if output.is_dir():
        raise InputError(f"cannot write {output}: it is a folder; give the name of a file such as {output / 'plan.json'}")
    parent = Path(os.path.realpath(output)).parent  # of what a link points to, which is where it is written
    if not parent.is_dir():
        raise InputError(f"cannot write {output}: there is no folder {parent}; create it first")
    asked = Budgets(min_code_agreement, min_psnr, max_psnr_drop)
    given = {name: value for name, value in vars(asked).items() if value is not None}
    budgets = replace(DEFAULT_BUDGETS.get(precision, Budgets()), **given)
    sides = tuple(part.strip() for part in parts.split(","))
    wanted = Options(precision, budgets, sides, base, measured_islands, windows, window_size, search_windows, margin, name)
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
