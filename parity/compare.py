"""Comparisons over several images: the worst of each figure, and codes that differ with the margin of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from mgvq_export.ops.contract import near_tie_margins
from mgvq_export.parity.results import CheckResult
from mgvq_export.parity.tolerances import Tolerance


@dataclass
class Worst:
    """The worst of one figure over several images, and the image it was found in."""

    name: str
    question: str
    tolerance: Tolerance
    value: float | None = None
    where: str = ""
    when_empty: str = "no image to compare on"

    def add(self, image: str, value: float) -> None:
        """Add the figure of one image. NaN is worse than any number."""
        worse = self.value is None or (value < self.value if self.tolerance.at_least else value > self.value)
        if (worse or math.isnan(value)) and not (self.value is not None and math.isnan(self.value)):
            self.value, self.where = value, image

    def result(self) -> CheckResult:
        """The result; skipped when no image was added."""
        if self.value is None:
            return CheckResult.skipped(self.name, self.question, self.when_empty)
        detail = f"worst: {self.where}" if self.where else ""
        return CheckResult.judged(self.name, self.question, self.value, self.tolerance, detail)


@dataclass
class CodeDifferences:
    """Codes that differ between two computations, each with its margin (:func:`mgvq_export.ops.contract.near_tie_margins`).

    The figure is the largest margin. A difference whose margin is within the tolerance is a near-tie; any other is a real difference.
    """

    name: str
    question: str
    tolerance: Tolerance
    total: int = 0
    invalid: int = 0
    margins: list[float] = field(default_factory=list)
    worst_image: str = ""
    first_real: str = ""
    when_empty: str = "no image to compare on"

    def add(self, image: str, latent: np.ndarray, codebook: np.ndarray, codes: np.ndarray, reference: np.ndarray) -> None:
        """Add the codes [B, G, h, w] of one image; ``latent`` and ``codebook`` are those of ``reference``."""
        self.total += reference.size
        if codes.shape != reference.shape:
            self.invalid += reference.size
            return
        wrong = (codes < 0) | (codes >= codebook.shape[1])
        self.invalid += int(wrong.sum())
        margins = near_tie_margins(latent, codebook, np.where(wrong, reference, codes), reference)
        if margins.size and margins.max() > max(self.margins, default=-1.0):
            self.worst_image = image
        self.margins.extend(margins.tolist())
        real = np.flatnonzero(~(margins <= self.tolerance.limit))
        if real.size and not self.first_real:
            where = tuple(np.argwhere(np.where(wrong, reference, codes) != reference)[real[0]])
            place = f"group {where[1] + 1}, row {where[2]}, column {where[3]}"
            self.first_real = f"{image}, {place}: {codes[where]} instead of {reference[where]}"

    @property
    def agreement(self) -> float:
        """Share of equal codes, 0 to 1."""
        return 1 - (len(self.margins) + self.invalid) / self.total

    @property
    def detail(self) -> str:
        """``12 of 115,200 codes differ, all near-ties, largest margin 3e-06``."""
        text = f"{len(self.margins) + self.invalid:,} of {self.total:,} codes differ"
        if self.invalid:
            return f"{text}, {self.invalid:,} are no valid codes"
        if not self.margins:
            return text
        real = sum(not self.tolerance.holds(margin) for margin in self.margins)
        kind = "all near-ties" if not real else f"{real:,} of them real"
        first = f"; first: {self.first_real}" if real else ""
        return f"{text}, {kind}, largest margin {max(self.margins):.1g} ({self.worst_image}){first}"

    def result(self) -> CheckResult:
        """The result; skipped when no image was added."""
        if not self.total:
            return CheckResult.skipped(self.name, self.question, self.when_empty)
        largest = math.inf if self.invalid else max(self.margins, default=0.0)
        return CheckResult.judged(self.name, self.question, largest, self.tolerance, self.detail)

    def agreement_result(self, tolerance: Tolerance) -> CheckResult:
        """The result by the share of equal codes instead of margins, for precisions, which differ by more than rounding."""
        if not self.total:
            return CheckResult.skipped(self.name, self.question, self.when_empty)
        share = 0.0 if self.invalid else self.agreement
        result = CheckResult.judged(self.name, self.question, share, tolerance)
        text = f"{len(self.margins) + self.invalid:,} of {self.total:,} codes differ"
        if self.margins and not self.invalid:
            text += f", median margin {np.median(self.margins):.1g}, largest {max(self.margins):.1g}"
        return CheckResult(result.name, result.question, result.status, share, tolerance, text)
