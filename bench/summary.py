"""Bench results as tables of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mgvq_export.bench.record import CEILING, Entry, Results
from mgvq_export.bench.timing import Percentiles, paired_ratio
from mgvq_export.core.tables import Table

COMPUTE = ("encode", "decode")


def heading(results: Results) -> str:
    """What was measured, the machine, its ceiling, and the cost of timing: one line."""
    machine = results.machine
    what = results.bundle["model"] if results.bundle else results.kind
    text = f"{what} on {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    rounds = max((entry.rounds for entry in results.entries), default=0)
    text += f"; {rounds} round{'s' if rounds > 1 else ''} in turns"
    ceilings = [found for entries in results.groups().values() if (found := ceiling_of(entries))]
    if ceilings:
        rates = [operations / seconds / 1e9 for entry, operations in ceilings for seconds in entry.seconds("matmul")]
        text += f"; ceiling {np.median(rates):.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f}, {ceilings[0][0].facts.get('what', '')})"
    if "overhead_seconds" in results.settings:
        text += f"; timing one graph costs {1e6 * results.settings['overhead_seconds']:.1f} us"
    return text


def ceiling_of(entries: Sequence[Entry]) -> tuple[Entry, int] | None:
    """The entry of a group that timed the matrix product, and its operations; None when it could not run."""
    for entry in entries:
        operations = entry.facts.get("flop", {}).get("matmul")
        if entry.name == CEILING and operations and entry.has("matmul"):
            return entry, operations
    return None


def share_of_ceiling(entry: Entry, stages: Sequence[str], ceiling: tuple[Entry, int] | None) -> float | None:
    """Operations per second of ``stages`` over those of the matrix product of the same round: the median, 0 to 1."""
    flop = entry.facts.get("flop", {})
    operations = sum(flop.get(stage, 0) for stage in stages)
    if ceiling is None or not operations or not entry.has(*stages):
        return None
    rate = operations / np.asarray(entry.seconds(*stages))
    return float(np.median(rate / (ceiling[1] / np.asarray(ceiling[0].seconds("matmul")))))


def megapixels(group: str) -> float:
    """Of a group named WIDTHxHEIGHT."""
    width, _, height = group.partition("x")
    return int(width) * int(height) / 1e6


def tables(results: Results) -> list[Table]:
    """What is printed, in order: for each group an overview, then the stages of each tokenizer."""
    found = []
    for group, entries in results.groups().items():
        found.append(overview(results, group))
        tokenizers = [entry for entry in entries if entry.has("read", *COMPUTE)]
        found += [stages(results, group, entry) for entry in tokenizers]
    return found


def overview(results: Results, group: str) -> Table:
    """A row for each entry of a group."""
    entries = results.groups()[group]
    ceiling = ceiling_of(entries)
    first = next((entry for entry in entries if entry.has(*COMPUTE)), None)
    rows = []
    for entry in entries:
        if entry.name == CEILING and not entry.skipped:
            continue
        if entry.skipped:
            rows.append([entry.name, *[""] * 7, f"not measured: {entry.skipped}"])
        elif first is not None and entry.has(*COMPUTE):
            ratio = paired_ratio(entry.seconds(*COMPUTE), first.seconds(*COMPUTE))
            whole = Percentiles.of(entry.seconds())
            rows.append(
                [
                    entry.name,
                    f"{1000 * Percentiles.of(entry.seconds('encode')).p50:.1f}",
                    f"{1000 * Percentiles.of(entry.seconds('decode')).p50:.1f}",
                    f"{1000 * whole.p50:.0f}" if entry.has("read", "write") else "",
                    f"{megapixels(group) / Percentiles.of(entry.seconds(*COMPUTE)).p50:.2f}",
                    "1" if entry is first else str(ratio),
                    _percent(share_of_ceiling(entry, COMPUTE, ceiling)),
                    f"{entry.memory['peak_bytes'] / 2**20:.0f}",
                    _note(entry),
                ]
            )
    titles = (
        "",
        "encode ms",
        "decode ms",
        "file to file ms",
        "MP/s",
        "time / first",
        "of ceiling",
        "peak MiB",
        "",
    )
    return Table(titles, rows, f"Images of {group}, medians")


def _note(entry: Entry) -> str:
    differ, codes = entry.facts.get("differ", 0), entry.facts.get("codes", 0)
    notes = [entry.facts["encode_plan"]] if "encode_plan" in entry.facts else []
    if differ:
        notes.append(f"{differ:,} of {codes:,} codes differ")
    if "no_flop" in entry.facts:
        notes.append(f"operations not counted: {entry.facts['no_flop']}")
    return "; ".join(notes)


def stages(results: Results, group: str, entry: Entry) -> Table:
    """A row for each stage of a tokenizer, in the order of the work."""
    ceiling = ceiling_of(results.groups()[group])
    whole = Percentiles.of(entry.seconds()).p50
    rows = []
    for stage in ordered_stages(entry):
        found = Percentiles.of(entry.samples[stage])
        operations = entry.facts.get("flop", {}).get(stage)
        rows.append(
            [
                f"  {stage.partition('/')[2]}" if "/" in stage else stage,
                f"{1000 * found.p50:.2f}",
                f"{1000 * found.p90:.2f}" if entry.rounds >= 10 else "",  # of fewer passes it is the slowest, or a guess
                f"{1000 * found.p99:.2f}" if entry.rounds >= 100 else "",
                f"{100 * found.p50 / whole:.1f} %",
                f"{megapixels(group) / found.p50:.2f}",
                f"{operations / 1e9:.2f}" if operations else "",
                f"{operations / found.p50 / 1e9:.1f}" if operations else "",
                _percent(share_of_ceiling(entry, (stage,), ceiling)),
            ]
        )
    titles = ("", "p50 ms", "p90 ms", "p99 ms", "share", "MP/s", "GFLOP", "GFLOP/s", "of ceiling")
    return Table(titles, rows, f"Stages of {entry.name}, {group}")


def ordered_stages(entry: Entry) -> list[str]:
    """Stages in the order of the work, each followed by its parts."""
    found = []
    for stage in (name for name in entry.samples if "/" not in name):
        found += [stage, *(name for name in entry.samples if name.startswith(f"{stage}/"))]
    return found


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
