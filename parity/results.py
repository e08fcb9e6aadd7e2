"""The results of a verification: one per check, and the report of all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from mgvq_export.core.errors import CheckFailed
from mgvq_export.core.json_files import to_json
from mgvq_export.core.tables import Table
from mgvq_export.core.types import JsonObject
from mgvq_export.parity.tolerances import Tolerance

PASSED, FAILED, REPORTED, SKIPPED = "passed", "FAILED", "reported", "skipped"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: the check, then what was compared, e.g. ``network/latent``.
        question: what was checked, as a question.
        status: ``passed``, ``FAILED``, ``reported`` (a figure without a limit) or ``skipped``.
        value: the figure; the worst of all images. None when skipped.
        tolerance: its limit; None when there is none.
        detail: where the worst was, how many codes differ, or why it was skipped.
    """

    name: str
    question: str
    status: str
    value: float | None = None
    tolerance: Tolerance | None = None
    detail: str = ""

    @classmethod
    def judged(cls, name: str, question: str, value: float, tolerance: Tolerance, detail: str = "") -> CheckResult:
        """Passed when ``value`` is within ``tolerance``, else failed."""
        status = PASSED if tolerance.holds(value) else FAILED
        return cls(name, question, status, value, tolerance, detail)

    @classmethod
    def skipped(cls, name: str, question: str, why: str) -> CheckResult:
        """A check that could not run."""
        return cls(name, question, SKIPPED, detail=why)

    def to_dict(self) -> JsonObject:
        """JSON-ready; values that are no finite number as text."""
        return {
            "name": self.name,
            "question": self.question,
            "status": self.status.lower(),
            "value": to_json(self.value),
            "limit": self.tolerance and self.tolerance.limit,
            "limit_is": self.tolerance and ("minimum" if self.tolerance.at_least else "maximum"),
            "unit": self.tolerance and self.tolerance.unit,
            "reason": self.tolerance and self.tolerance.reason,
            "detail": self.detail,
        }


class VerificationFacts(TypedDict, total=False):
    """What was verified: ``images`` maps names to height and width, ``seconds`` is how long the checks took."""

    bundle: str
    model: str
    backend: str
    precisions: list[str]
    images: dict[str, list[int]]
    seconds: float


@dataclass
class ParityReport:
    """All results of one verification.

    Attributes:
        checks: in the order run.
        facts: what was verified.
        required: checks that must have a result: those asked for by name; with ``strict`` all, and every result of them.
        strict: no result may be missing.
    """

    checks: list[CheckResult] = field(default_factory=list)
    facts: VerificationFacts = field(default_factory=VerificationFacts)
    required: tuple[str, ...] = ()
    strict: bool = False

    def extend(self, checks: Iterable[CheckResult]) -> None:
        """Add results."""
        self.checks.extend(checks)

    @property
    def failed(self) -> list[CheckResult]:
        """The results above tolerance."""
        return [check for check in self.checks if check.status == FAILED]

    @property
    def passed(self) -> bool:
        """Whether nothing is above tolerance, and nothing that was required is missing."""
        return not self.failed and not self.missing

    @property
    def missing(self) -> list[str]:
        """Why the report cannot pass although nothing is above tolerance: what was required and could not be checked."""
        skipped = [f"{check.name} ({check.detail})" for check in self.checks if check.status == SKIPPED] if self.strict else []
        for name in self.required:
            results = [check for check in self.checks if check.name.split("/")[0] == name]
            if results and all(check.status == SKIPPED for check in results) and not self.strict:
                skipped.append(f"{name} ({results[0].detail})")
            elif not results:
                skipped.append(f"{name} (there is nothing to compare)")
        return skipped

    def to_dict(self) -> JsonObject:
        """JSON-ready."""
        return {**self.facts, "passed": self.passed, "checks": [check.to_dict() for check in self.checks]}

    def table(self) -> Table:
        """Columns and rows of text."""
        rows = []
        for check in self.checks:
            value = "" if check.value is None else format_value(check.value)
            rows.append([check.name, value, str(check.tolerance or ""), check.status, check.detail])
        return Table(("check", "value", "limit", "result", "detail"), rows)

    def summary(self) -> str:
        """``14 passed, 1 FAILED, 2 skipped``; above it, if so, that the network was not compared, and why."""
        counted = count_results(self.checks)
        network = [check for check in self.checks if check.name.split("/")[0] == "network"]
        if network and all(check.status == SKIPPED for check in network):
            return f"NOT compared with the PyTorch network: {network[0].detail}\n{counted}"
        return counted

    def raise_if_failed(self) -> None:
        """Raise :class:`CheckFailed`, naming every result above tolerance and every required one that is missing, if there is any."""
        if self.missing and not self.failed:
            raise CheckFailed(f"not checked: {'; '.join(self.missing)}")
        if self.failed:
            named = "; ".join(
                f"{check.name} is {format_value(check.value or 0)}, wanted {check.tolerance}" for check in self.failed
            )
            raise CheckFailed(f"{len(self.failed)} of {len(self.checks)} checks failed: {named}")


def count_results(checks: Sequence[CheckResult]) -> str:
    """``14 passed, 1 FAILED, 2 skipped``: how many results there are of each kind; kinds without any are left out."""
    counts = [(sum(check.status == status for check in checks), status) for status in (PASSED, FAILED, REPORTED, SKIPPED)]
    return ", ".join(f"{count} {status}" for count, status in counts if count)


def format_value(value: float) -> str:
    """A figure as people read it: 3 significant digits, scientific when small."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:.4g}"
