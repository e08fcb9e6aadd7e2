"""The quality that is asked for: of a precision plan, and of the graphs that are made by it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from mgvq_export.core.errors import InputError, shown

#: Of 8 bits: dB of the decoder against fp32 on the same codes, and dB lost against the photos.
EIGHT_BIT_PSNR, EIGHT_BIT_DROP = 38.0, 0.15


def is_number(value: object) -> bool:
    """Whether ``value``, from JSON, is a finite number that a float can hold."""
    # A comparison, since math.isfinite fails on integers that no float can hold; it is false for NaN.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Budgets:
    """The quality that was asked for, and that verification holds the graphs to; None: not asked for.

    Attributes:
        min_code_agreement: share of codes, 0 to 1, that equal those of fp32.
        min_psnr: dB, decoding against fp32 decoding of the same codes.
        max_psnr_drop: dB lost against the original images, compared with fp32.
    """

    min_code_agreement: float | None = None
    min_psnr: float | None = None
    max_psnr_drop: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not is_number(value):
                raise InputError(f"budget {name} is {shown(value)}; wanted a finite number, or null to ask for nothing")
        if self.min_code_agreement is not None and not 0 <= self.min_code_agreement <= 1:
            raise InputError(f"budget min_code_agreement is {self.min_code_agreement}; wanted a share, 0 to 1")
        # A negative max_psnr_drop asks for a gain; a PSNR below 0 would allow errors larger than the pixels themselves.
        if self.min_psnr is not None and self.min_psnr < 0:
            raise InputError(f"budget min_psnr is {self.min_psnr}; wanted dB, 0 or more")

    def tightened(self, margin: float) -> Budgets:
        """Budgets that allow ``1 - margin`` of the loss: of codes that change, of squared error, of dB lost. ``margin``: 0 to below 1."""
        left = 1 - margin
        return Budgets(
            None if self.min_code_agreement is None else 1 - left * (1 - self.min_code_agreement),
            None if self.min_psnr is None else self.min_psnr - 10 * math.log10(left),
            None if self.max_psnr_drop is None else self.max_psnr_drop - margin * abs(self.max_psnr_drop),
        )


#: What is asked for unless the user asks for something else, by precision.
DEFAULT_BUDGETS = {
    "fp16": Budgets(min_code_agreement=0.99, min_psnr=50.0, max_psnr_drop=0.01),
    "int8": Budgets(min_code_agreement=0.985, min_psnr=EIGHT_BIT_PSNR, max_psnr_drop=EIGHT_BIT_DROP),
    "fp8": Budgets(min_code_agreement=0.985, min_psnr=EIGHT_BIT_PSNR, max_psnr_drop=EIGHT_BIT_DROP),
}
