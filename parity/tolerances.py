"""The table of tolerances: how far two computations of the same values may differ, and why. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mgvq_export.core.budgets import EIGHT_BIT_DROP, EIGHT_BIT_PSNR
from mgvq_export.core.errors import InputError


@dataclass(frozen=True)
class Tolerance:
    """One row of the table.

    Attributes:
        name: as code and reports use it.
        limit: the last value that passes.
        unit: unit of value and limit; empty for a ratio.
        reason: why this limit and no other.
        at_least: whether the value must reach the limit (PSNR, agreement) instead of staying below it (errors).
    """

    name: str
    limit: float
    unit: str
    reason: str
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` is within the limit; NaN never is."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{f' {self.unit}' if self.unit else ''}"


_EPSILON = "float32 rounds at 6e-8; some hundred layers in another order of summing reach about 1e-6, a wrong weight 1e-3"
_HALF = "float16 rounds at 5e-4"

_FLIP = (
    "a value on the edge between two 8-bit values falls to either side; three times what float16 rounding does to the demo model"
)
_ASKED = "the default budget, for a precision plan that states none"


def _eight_bit(kind: str, latent: float, codes: float, steps: float) -> tuple[Tolerance, ...]:
    """Rows of a precision with 8-bit nodes: two runs of the same graphs, and their decoding against that of fp32."""
    return (
        Tolerance(f"latent/{kind}", latent, "", f"relative L2; {_FLIP}"),
        Tolerance(f"codes/{kind}", codes, "", f"largest margin of a code that differs between two runs; {_FLIP}"),
        Tolerance(f"pixels/{kind}", steps * 2 / 255, "", f"largest difference in [-1, 1], {steps:g} 8-bit steps; {_FLIP}"),
        Tolerance(f"steps/{kind}", steps, "8-bit steps", _FLIP),
        Tolerance(f"psnr/{kind}", EIGHT_BIT_PSNR, "dB", f"decoding the same codes; {_ASKED}", True),
    )


TABLE: tuple[Tolerance, ...] = (
    Tolerance("latent/fp32", 1e-5, "", f"relative L2; {_EPSILON}"),
    Tolerance("latent/fp16", 3e-3, "", f"relative L2; {_HALF}, and convolutions accumulate it over the encoder"),
    Tolerance(
        "codes/fp32",
        1e-4,
        "",
        "largest margin of a code that differs; latents 1e-5 apart move a score gap by 2e-5 on average, by more where a sub-vector is short",
    ),
    Tolerance(
        "codes/fp16",
        3e-2,
        "",
        "largest margin of a code that differs between two runs in float16; ten times the error of its latents, since short sub-vectors take more of it",
    ),
    Tolerance(
        "codes/operator",
        1e-6,
        "",
        "largest margin of a code that differs, on identical latents; float32 sums of up to 32 terms differ by no more",
    ),
    Tolerance("codebook/fp32", 1e-6, "", "largest difference of unit rows; the last bit of a division differs between machines"),
    Tolerance("codebook/fp16", 1e-3, "", f"largest difference of unit rows; {_HALF}"),
    Tolerance(
        "agreement/fp16",
        0.985,
        "",
        "share of equal codes; the codebook's rows lie so close that float16 latents change about 1 code in 100",
        True,
    ),
    Tolerance("pixels/fp32", 1e-4, "", f"largest difference in [-1, 1], 1/78 of an 8-bit step; {_EPSILON}"),
    Tolerance("pixels/fp16", 2 / 255, "", f"largest difference in [-1, 1], one 8-bit step; {_HALF}"),
    Tolerance("psnr/fp16", 50.0, "dB", "decoding the same codes; an error of one 8-bit step everywhere is 48 dB", True),
    Tolerance(
        "psnr/bf16",
        48.0,
        "dB",
        "decoding the same codes; bfloat16 rounds at 4e-3, eight times float16's error, sums stay in float32: the demo model loses 54 dB",
        True,
    ),
    Tolerance("drop", EIGHT_BIT_DROP, "dB", f"PSNR against the photo itself, lost by encoding and decoding; {_ASKED}"),
    Tolerance("steps/fp32", 1.0, "8-bit steps", "a difference of 1e-4 can fall on the edge between two 8-bit values"),
    Tolerance("steps/fp16", 1.0, "8-bit steps", "a difference of 1e-3 can fall on the edge between two 8-bit values"),
    *_eight_bit("int8", 7e-2, 3e-2, 18),
    *_eight_bit("fp8", 1e-1, 1e-1, 30),
    Tolerance("exact", 0.0, "", "values that are only copied; nothing is computed on the way"),
)

TOLERANCES: dict[str, Tolerance] = {tolerance.name: tolerance for tolerance in TABLE}


def budget(row: Tolerance, limit: float | None) -> Tolerance:
    """``row`` with the limit that a precision plan states; as it is when the plan states none."""
    return row if limit is None else replace(row, limit=limit, reason="the budget of the precision plan")


def tolerance(kind: str, precision: str | None = None) -> Tolerance:
    """The row ``kind``, or ``kind/precision``. Raises :class:`InputError` when the table has none."""
    name = kind if precision is None else f"{kind}/{precision}"
    try:
        return TOLERANCES[name]
    except KeyError:
        raise InputError(f"no tolerance {name!r}; the table has {', '.join(TOLERANCES)}") from None
