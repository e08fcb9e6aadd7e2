"""A calibration as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

from mgvq_export.calibration.effects import Effect
from mgvq_export.calibration.plan_search import Calibration
from mgvq_export.calibration.ranges import Ranges
from mgvq_export.calibration.search import Point, pareto
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject

_SHOWN = 8  # values close to float16's limits
_NOTABLE = 0.001  # share of values lost to zero from which it is worth a line

_EFFECT = ("codes equal", "PSNR to fp32", "PSNR lost", "at worst")


def tables(found: Calibration) -> list[Table]:
    """The plan's figures, the curve of every search of convolutions, and the nodes that are named with a reason."""
    rows = [["calibration windows", *_cells(found.effect)], ["held-out images", *_cells(found.held_out)]]
    shown: list[Table] = [Table(("measured on", *_EFFECT), rows, "The plan")]
    for title, one in found.searches.items():
        if title in ("encoder", "decoder"):
            points = [
                [f"{point.share:.1%}", _added(point), *_cells(point.effect), *_chosen(point, one.chosen)]
                for point in pareto(one.curve, title)
            ]
            shown.append(Table(("work", "added last", *_EFFECT, ""), points, f"{title}, work in 8 bits", identifiers=2))
    if close := _close_to_float16(found.ranges):
        shown.append(
            Table(("value", "largest", "infinite in float16", "subnormal", "zero"), close, "Closest to what float16 holds")
        )
    islands = [[name, node.reason] for name, node in found.plan.nodes.items() if node.precision == "fp32"]
    if islands:
        shown.append(Table(("node", "reason"), islands, "in fp32, and why"))
    return shown


def to_dict(found: Calibration) -> JsonObject:
    """JSON-ready: figures, searches, notes; the plan itself is a file of its own."""

    def point(one: Point) -> JsonObject:
        return {"nodes": list(one.names), "share": one.share, **one.effect.to_dict()}

    return {
        "plan": found.plan.name,
        "nodes": found.plan.counts(),
        "share_of_convolution_work": found.shares,
        "calibration_windows": found.effect.to_dict(),
        "held_out": found.held_out.to_dict(),
        "searches": {
            title: {
                "alone": [point(item) for item in one.alone],
                "curve": [point(item) for item in one.curve],
                "chosen": point(one.chosen) if one.chosen else None,
            }
            for title, one in found.searches.items()
        },
        "curve_on_held_out": [{"share": share, **effect.to_dict()} for share, effect in found.curve_held_out],
        "all_but_first_and_last": None
        if found.baseline is None
        else {
            "share": found.baseline[0],
            "calibration_windows": found.baseline[1].to_dict(),
            "held_out": found.baseline[2].to_dict(),
        },
        "notes": found.notes,
    }


def summary(found: Calibration) -> str:
    """What the plan does, in one sentence."""
    shares = ", ".join(
        f"{share:.1%} of the {side}'s convolution work in {found.plan.kind(side)}" for side, share in found.shares.items()
    )
    counts = ", ".join(f"{count} nodes {precision}" for precision, count in found.plan.counts().items())
    return f"plan {found.plan.name}: {counts or 'no node named'}, the rest {found.plan.base}{f'; {shares}' if shares else ''}"


def _close_to_float16(ranges: Ranges) -> list[list[str]]:
    """Values that float16 would make infinite or zero, those with the largest share first."""
    every = {name: one for values in ranges.sides.values() for name, one in values.items()}
    lost = sorted(every, key=lambda name: -every[name].share(every[name].overflow + every[name].lost))
    return [
        [name, f"{one.largest:.3g}", *(f"{one.share(count):.2%}" for count in (one.overflow, one.subnormal, one.lost))]
        for name in lost[:_SHOWN]
        if (one := every[name]).overflow or one.share(one.lost) > _NOTABLE
    ]


def _cells(effect: Effect) -> Sequence[str]:
    if not effect.finite:
        return ("values not finite", "", "", "")
    return (f"{effect.agreement:.2%}", f"{effect.psnr:.2f} dB", f"{effect.drop:.3f} dB", f"{effect.worst_drop:.3f} dB")


def _added(point: Point) -> str:
    return point.names[-1] if point.names else "(nothing)"


def _chosen(point: Point, chosen: Point | None) -> list[str]:
    return ["chosen" if chosen is not None and set(point.names) == set(chosen.names) else ""]
