"""``encode --dry-run``: how each image would be run, and what it would take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mgvq_export.commands.inputs import Job
from mgvq_export.commands.output import echo_json, echo_table, progress_bar, say
from mgvq_export.commands.plans import plan_facts
from mgvq_export.commands.run import FilesFailed, read_image_or_standard_input
from mgvq_export.core.errors import MgvqError
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject
from mgvq_export.core.units import format_bytes
from mgvq_export.runtime.tiling.windows import TrunkPlan
from mgvq_export.runtime.tokenizer import Tokenizer

_PROBE = 256  # pixels a side


def dry_run(tokenizer: Tokenizer, jobs: Sequence[Job], max_pixels: int | None, as_json: bool) -> None:
    """Print the plan of every image: windows, overhead, memory and time. Nothing is written.

    The time is predicted from encoding one small picture now, by the number of pixels that the windows hold. Raises :class:`FilesFailed`
    at the end when an image cannot be read or run; each has had its line.
    """
    facts: list[JsonObject] = []
    rows, failed = [], 0
    with progress_bar("dry run", len(jobs)) as update:
        each_pixel = _seconds_per_pixel(tokenizer)
        for index, job in enumerate(jobs):
            update(job.source.name, index)
            try:
                height, width = read_image_or_standard_input(job.source, max_pixels).shape[:2]
                plan = tokenizer.encode_plan(height, width)
            except MgvqError as error:
                failed += 1
                say(f"error: {error if str(job.source) in str(error) else f'{job.source}: {error}'}", err=True)
                facts.append({"input": str(job.source), "error": str(error)})
                continue
            seconds = None if each_pixel is None else each_pixel * height * width * plan.tiling_overhead
            rows.append(_row(job.source, (height, width), plan, seconds))
            facts.append(_facts(job.source, (height, width), plan, seconds))
    if as_json:
        echo_json(facts)
    elif rows:
        echo_table(Table(("image", "size", "windows", "--tile", "overhead", "memory", "time"), rows))
    if failed:
        raise FilesFailed


def _facts(path: Path, size: tuple[int, int], plan: TrunkPlan, seconds: float | None) -> JsonObject:
    predicted = None if seconds is None else round(seconds, 3)
    return {"input": str(path), "image_size": size, "plan": plan_facts(plan), "predicted_seconds": predicted}


def _row(path: Path, size: tuple[int, int], plan: TrunkPlan, seconds: float | None) -> list[str]:
    counts = " + ".join(str(windows.count) for _, windows in plan.steps)
    tiles = [f"{windows.window[1] * windows.scale}x{windows.window[0] * windows.scale}" for _, windows in plan.steps]
    return [
        str(path),
        f"{size[1]}x{size[0]}",
        counts,
        " + ".join(tiles) if plan.total > 1 else "-",
        f"{plan.tiling_overhead:.2f}",
        format_bytes(plan.peak_bytes) if plan.peak_bytes else "-",
        "-" if seconds is None else f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s",
    ]


def _seconds_per_pixel(tokenizer: Tokenizer) -> float | None:
    """Seconds of encoding, per pixel, of a small picture; the graphs are loaded before. None where such a picture does not run."""
    image = np.random.default_rng(0).integers(0, 256, (_PROBE, _PROBE, 3), np.uint8)
    try:
        tokenizer.encode(image)
        start = time.perf_counter()
        plan = tokenizer.encode_plan(_PROBE, _PROBE)
        tokenizer.encode(image, plan=plan)
    except MgvqError:  # engines of other sizes only, or a memory limit below what it takes
        return None
    return (time.perf_counter() - start) / (_PROBE * _PROBE * plan.tiling_overhead)
