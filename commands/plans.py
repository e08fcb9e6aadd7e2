"""Tile plans as the commands print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgvq_export.core.types import JsonObject

if TYPE_CHECKING:
    from mgvq_export.runtime.tiling.windows import TrunkPlan


def plan_facts(plan: TrunkPlan) -> JsonObject:
    """The plan as JSON has it: sizes are [height, width] in image pixels, the peak is null where it was not predicted."""
    return {
        "mode": plan.mode,
        "overhead": round(plan.tiling_overhead, 4),
        "peak_bytes": plan.peak_bytes or None,
        "steps": [
            {
                "part": str(part),
                "windows": windows.count,
                "window": [side * windows.scale for side in windows.window],
                "halo_px": windows.reach.halo * windows.scale if windows.count > 1 else 0,
                "batch": windows.batch,
            }
            for part, windows in plan.steps
        ],
    }
