"""``mgvq-export bench compare``: what became slower or larger, beyond noise, between two results of the same bench."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from mgvq_export.bench.record import CEILING, Entry, Results
from mgvq_export.bench.timing import Ratio, unpaired_ratio
from mgvq_export.core.errors import CheckFailed, InputError, shown
from mgvq_export.core.files import PathLike
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject

SLOWER, FASTER, SAME = "SLOWER", "faster", "same"
LARGER, SMALLER = "LARGER", "smaller"

THRESHOLD = 0.1

_PEAK = "peak memory"
_FILES = ("read", "save", "load", "write")  # they depend on the disk; their sum with the other stages is judged
_RESOLUTION = 1e-7  # seconds: files hold seven decimals
_FEWEST_ROUNDS = 5  # with fewer, an interval is meaningless


@dataclass(frozen=True)
class Change:
    """One figure of an entry in both results.

    Attributes:
        group, name: the entry.
        stage: what was timed, ``file to file`` for all of them together, or ``peak memory``.
        before, after: medians in seconds, or bytes.
        ratio: after / before; for memory without an interval.
        verdict: slower, faster, larger, smaller or the same.
        judged: whether it can be a regression; parts of stages, files alone and the matrix product are only shown.
    """

    group: str
    name: str
    stage: str
    before: float
    after: float
    ratio: Ratio
    verdict: str
    judged: bool = True

    @property
    def regressed(self) -> bool:
        """Whether it is judged and became slower or larger."""
        return self.judged and self.verdict in (SLOWER, LARGER)


@dataclass
class Comparison:
    """All changes, and entries that only one of the two has."""

    changes: list[Change]
    unmatched: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """Columns and rows of text."""
        rows = [
            [
                f"{change.name}, {change.group}",
                change.stage,
                _figure(change, change.before),
                _figure(change, change.after),
                f"{change.ratio.value:.2f}" if change.stage == _PEAK else str(change.ratio),
                change.verdict if change.judged else f"({change.verdict.lower()})",
            ]
            for change in self.changes
        ]
        return Table(("", "", "before", "after", "after / before (95 %)", ""), rows, identifiers=2)

    def remarks(self) -> list[str]:
        """Differences between the two runs, entries that only one of them has, and how many figures changed."""
        judged = [change for change in self.changes if change.judged]
        worse = sum(change.regressed for change in judged)
        better = sum(change.verdict in (FASTER, SMALLER) for change in judged)
        only = [f"only one of the two has: {', '.join(self.unmatched)}"] if self.unmatched else []
        return [*self.warnings, *only, f"{worse} worse, {better} better, {len(judged) - worse - better} the same"]

    def to_dict(self) -> JsonObject:
        """JSON-ready."""
        changes = [
            {
                "group": change.group,
                "name": change.name,
                "stage": change.stage,
                "before": change.before,
                "after": change.after,
                "ratio": change.ratio.value,
                "interval": [change.ratio.low, change.ratio.high],
                "verdict": change.verdict.lower(),
                "judged": change.judged,
            }
            for change in self.changes
        ]
        return {"changes": changes, "unmatched": self.unmatched, "warnings": self.warnings}

    def raise_if_regressed(self) -> None:
        """Raise :class:`CheckFailed`, naming every regression, if there is any."""
        found = [change for change in self.changes if change.regressed]
        if found:
            named = "; ".join(f"{change.name}, {change.group}: {change.stage} x {change.ratio.value:.2f}" for change in found)
            raise CheckFailed(f"{len(found)} of {sum(change.judged for change in self.changes)} figures became worse: {named}")


def compare_files(before: PathLike, after: PathLike, *, threshold: float = THRESHOLD, force: bool = False) -> Comparison:
    """:func:`compare` of two files that ``mgvq-export bench`` wrote. Raises also as :meth:`Results.load`."""
    return compare(Results.load(before), Results.load(after), threshold=threshold, force=force)


def compare(before: Results, after: Results, *, threshold: float = THRESHOLD, force: bool = False) -> Comparison:
    """What changed from ``before`` to ``after``.

    A time is a regression when its median grew by more than ``threshold`` (0.1: by a tenth) and the whole 95 % interval of the
    ratio lies above 1; memory when it grew by more than ``threshold``. Judged are encoding, decoding, the time from file to
    file and the peak memory. The interval covers the noise within each run, not differences between the runs; the line of the
    matrix product shows how much the machine itself changed.

    Args:
        force: compare results of different machines, bundles or settings too; what differs becomes a warning.

    Raises:
        InputError: the results cannot be compared, have nothing in common, or too few rounds to tell a change from noise.
    """
    if threshold < 0:
        raise InputError(f"threshold is {threshold}; wanted at least 0, such as 0.1 for a tenth")
    for results in (before, after):
        rounds = max((entry.rounds for entry in results.entries), default=0)
        if rounds < _FEWEST_ROUNDS:
            raise InputError(
                f"results of {rounds} rounds cannot tell a change from noise; wanted at least {_FEWEST_ROUNDS}: bench with --repeat"
            )
    different = _differences(before, after)
    if different and not force:
        raise InputError(f"the two results cannot be compared: {'; '.join(different)}; add --force to do it all the same")
    old, new = ({(entry.group, entry.name): entry for entry in results.entries if entry.samples} for results in (before, after))
    changes: list[Change] = []
    for key in old:
        if key in new:
            changes += _changes(old[key], new[key], threshold)
    if not changes:
        raise InputError("the two results have no entry in common; give two of the same bench, with the same sizes and backends")
    only = [f"{name}, {group}" for group, name in (*old, *new) if ((group, name) in old) != ((group, name) in new)]
    return Comparison(changes, only, different)


def _differences(before: Results, after: Results) -> list[str]:
    found = (
        []
        if before.kind == after.kind
        else [f"one is of {shown(before.kind, quoted=False)}, the other of {shown(after.kind, quoted=False)}"]
    )
    for name in sorted({*before.machine, *after.machine}):
        a, b = before.machine.get(name), after.machine.get(name)
        if a != b:
            found.append(
                f"the machines differ in {shown(name, quoted=False)} ({shown(a, quoted=False)} and {shown(b, quoted=False)})"
            )
    identity = (
        "model",
        "checkpoint_sha256",
        "codebook_sha256",
    )  # not the graphs: comparing a new export of the same network is the purpose
    bundles: list[Mapping[str, object]] = [results.bundle or {} for results in (before, after)]
    for name in identity:
        a, b = (str(bundle.get(name))[:12] for bundle in bundles)
        if a != b:
            found.append(f"the bundles differ in {name} ({shown(a, quoted=False)} and {shown(b, quoted=False)})")
    for name in ("threads", "tile", "memory_limit", "image"):
        a, b = before.settings.get(name), after.settings.get(name)
        if (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            found.append(f"the settings differ in {name} ({_setting(a)} and {_setting(b)})")
    return found


def _setting(value: object) -> str:
    return shown("x".join(map(str, value)) if isinstance(value, (list, tuple)) else value, quoted=False)


def _changes(old: Entry, new: Entry, threshold: float) -> list[Change]:
    found = []
    enough = min(old.rounds, new.rounds) >= _FEWEST_ROUNDS
    for stage in (stage for stage in old.samples if stage in new.samples):
        judged = enough and "/" not in stage and stage not in _FILES and old.name != CEILING
        found.append(_time(old, new, stage, old.seconds(stage), new.seconds(stage), threshold, judged))
    if old.has(*_FILES) and new.has(*_FILES):
        found.append(_time(old, new, "file to file", old.seconds(), new.seconds(), threshold, enough))
    if old.memory and new.memory and old.name != CEILING:
        a, b = old.memory["peak_bytes"], new.memory["peak_bytes"]
        verdict = LARGER if b / a > 1 + threshold else SMALLER if b / a < 1 / (1 + threshold) else SAME
        found.append(Change(old.group, old.name, _PEAK, a, b, Ratio(b / a, b / a, b / a), verdict))
    return found


def _time(old: Entry, new: Entry, stage: str, before: list[float], after: list[float], threshold: float, judged: bool) -> Change:
    # Parts of stages are differences of times, which may round to zero.
    ratio = unpaired_ratio(after, [max(seconds, _RESOLUTION) for seconds in before])
    verdict = SAME
    if ratio.value > 1 + threshold and ratio.low > 1:
        verdict = SLOWER
    elif ratio.value < 1 / (1 + threshold) and ratio.high < 1:
        verdict = FASTER
    return Change(old.group, old.name, stage, statistics.median(before), statistics.median(after), ratio, verdict, judged)


def _figure(change: Change, value: float) -> str:
    return f"{value / 2**20:.0f} MiB" if change.stage == _PEAK else f"{1000 * value:.2f} ms"
