"""Options and results of the sections of the GPU acceptance: rows with a verdict or a figure, and why a section cannot run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mgvq_export.bench.timing import Percentiles
from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import VARIANTS, ModelSpec
from mgvq_export.core.units import Size
from mgvq_export.parity.tolerances import Tolerance

_ENGINE_RUNS = 5  # times as many: of 20 runs, p99 is nearly the largest


class CannotRun(BackendError):
    """This machine lacks what a section needs. Raised before it has begun; later errors count as failures."""


@dataclass(frozen=True)
class GpuOptions:
    """What is run, and how large.

    Attributes:
        device: ``cuda``, or ``cpu`` for a dry run: the same code without a GPU; its times are meaningless.
        spec: the network; its weights are synthetic.
        check: size of the image on which the CPU checks the device, (height, width) in pixels.
        small: size of the smaller images, (height, width) in pixels.
        large: size of the larger images, on which everything is timed.
        tile: windows of the tiled engines, (height, width) in pixels.
        repeats: timed runs of each; engines are run more often (:attr:`engine_repeats`).
        ceiling: side of the square matrices whose product measures the GPU's peak.
        compiler: ``torch.compile``'s backend.
        folder: where the bundle and its engines are made, by the first section that needs them.
    """

    device: str = "cuda"
    spec: ModelSpec = VARIANTS["mgvq-f16c32-g8"]
    check: Size = (128, 192)
    small: Size = (512, 512)
    large: Size = (1440, 2560)
    tile: Size = (768, 768)
    repeats: int = 20
    ceiling: int = 8192
    compiler: str = "inductor"
    folder: Path = Path("gpu-acceptance")

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes that engines are built for, (height, width) each, without repeats."""
        return tuple(dict.fromkeys((self.small, self.large)))

    @property
    def engine_repeats(self) -> int:
        """Timed runs of each engine."""
        return _ENGINE_RUNS * self.repeats

    @property
    def dry_run(self) -> bool:
        """Whether the CPU stands in for the GPU; its times are meaningless."""
        return self.device != "cuda"


@dataclass(frozen=True)
class Results:
    """One run of the whole network: latent, codes of that latent, and pixels in [-1, 1] of the codes to decode."""

    latent: np.ndarray
    codes: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        check: what was checked.
        value: what was found; a string where there is no figure.
        unit: of ``value``.
        ok: the verdict; None for a plain figure.
        facts: further facts for the JSON document: the limit and its reason, percentiles.
    """

    check: str
    value: float | int | str
    unit: str = ""
    ok: bool | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def judged(cls, check: str, value: float, tolerance: Tolerance) -> Row:
        """A value that must be within a limit."""
        facts = {"limit": str(tolerance), "reason": tolerance.reason}
        return cls(check, value, tolerance.unit, tolerance.holds(value), facts)

    @classmethod
    def timed(cls, check: str, milliseconds: Sequence[float], *, at_most: float | None = None, **facts: Any) -> Row:
        """The median of some times, judged when it must be ``at_most`` so many; the other percentiles are facts."""
        found = Percentiles.of(milliseconds)
        facts |= {"p90": found.p90, "p99": found.p99, "count": len(milliseconds)}
        if at_most is None:
            return cls(check, found.p50, "ms p50", facts=facts)
        return cls(check, found.p50, "ms p50", found.p50 <= at_most, facts | {"limit": f"<= {at_most:g} ms"})

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        more = {name: self.facts[name] for name in ("p90", "p99") if name in self.facts}
        spread = "".join(f", {name} {found:.4g}" for name, found in more.items())
        limit = f" (wanted {self.facts['limit']})" if "limit" in self.facts else ""
        note = f", {self.facts['note']}" if "note" in self.facts else ""
        verdict = {True: "ok", False: "FAIL", None: ""}[self.ok]
        return f"{self.check:<62} {verdict:<5} {value} {self.unit}{spread}{limit}{note}".rstrip()


def pixels(size: Size) -> str:
    """``2560x1440``: width x height, as sizes are written."""
    return f"{size[1]}x{size[0]}"


def goal(milliseconds: float, gpu: str) -> dict[str, Any]:
    """Arguments of :meth:`Row.timed` for a goal set for an H200: a limit where ``gpu`` is one, elsewhere a note."""
    if re.search(r"\bH200\b", gpu):  # a GH200 is another
        return {"at_most": milliseconds}
    return {"note": f"wanted on an H200: at most {milliseconds:g} ms"}
