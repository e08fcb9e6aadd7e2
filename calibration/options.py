"""Options of a calibration."""

from __future__ import annotations

from dataclasses import dataclass

from mgvq_export.core.budgets import DEFAULT_BUDGETS, Budgets
from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import LARGEST, NodePlan, PrecisionPlan


@dataclass(frozen=True)
class Options:
    """Options of a calibration. Raises :class:`InputError` on contradictions.

    Attributes:
        precision: ``fp16``, ``int8`` or ``fp8``.
        budgets: see :data:`~mgvq_export.core.budgets.DEFAULT_BUDGETS`.
        parts: sides for which 8 bits are tried, ``decoder`` and ``encoder``. An 8-bit encoder changes codes.
        base: type of what is not in 8 bits, ``fp16`` or ``fp32``.
        measured_islands: start with everything in float16, norms and attention too, instead of keeping them in float32. Only for
            images no larger than the windows: attention sums grow with the image.
        windows, window_size: how many windows of how many pixels a side the ranges are taken from.
        search_windows: how many of them plans are measured on.
        margin: share of the allowed loss that a search leaves unused, 0 to below 1, so that other images stay within the budgets too.
        name: of the plan, and of the folder in a bundle; the precision when None.
    """

    precision: str = "int8"
    budgets: Budgets = DEFAULT_BUDGETS["int8"]
    parts: tuple[str, ...] = ("decoder",)
    base: str = "fp16"
    measured_islands: bool = False
    windows: int = 64
    window_size: int = 256
    search_windows: int = 8
    margin: float = 0.25
    name: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in DEFAULT_BUDGETS:
            raise InputError(f"precision is {self.precision!r}; choose {', '.join(DEFAULT_BUDGETS)}")
        wrong = [part for part in self.parts if part not in ("decoder", "encoder")]
        if wrong or not self.parts:
            raise InputError(f"parts are {', '.join(wrong) or 'none'}; choose decoder, encoder or both")
        # Making such a plan raises an error for a name or base that is not valid.
        nodes = {"decoder.example": NodePlan(self.precision, {0: 1.0})} if self.precision in LARGEST else {}
        PrecisionPlan(self.name or self.precision, self.base, nodes)
        if self.search_windows < 1:
            raise InputError(f"search windows is {self.search_windows}; wanted at least 1")
        if not 0 <= self.margin < 1:
            raise InputError(f"margin is {self.margin}; wanted a share of the allowed loss, 0 to below 1")

    @property
    def target(self) -> Budgets:
        """The budgets that a search must meet on the windows: those asked for, less the margin."""
        return self.budgets.tightened(self.margin)
