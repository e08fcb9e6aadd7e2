"""What the GPU acceptance prints: rows with a verdict or a figure, and the machine they were taken on."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgvq_export.bench.timing import Percentiles
from mgvq_export.bundle import package_version
from mgvq_export.ops.cuda_kernel import driver_version, nvrtc_version
from mgvq_export.parity.tolerances import Tolerance
from mgvq_export.spec import VARIANTS, ModelSpec

Size = tuple[int, int]  # height, width

_PACKAGES = (
    "mgvq-export",
    "numpy",
    "torch",
    "triton",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
)


@dataclass(frozen=True)
class GpuOptions:
    """What is run, and how large.

    Attributes:
        device: ``cuda``, or ``cpu`` to rehearse: the same code where no GPU is; its times mean nothing.
        spec: the network; its weights are synthetic.
        check: size of the image on which the CPU checks the device, (height, width) in pixels.
        small: size of the smaller images, (height, width) in pixels.
        large: size of the larger images, on which everything is timed.
        tile: windows of the tiled engines, (height, width) in pixels.
        repeats: timed runs of each.
        ceiling: side of the square matrices whose product says what the GPU can do.
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
        return tuple(dict.fromkeys((self.small, self.large)))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        check: what was looked at.
        value: what was found; a string where there is no figure.
        unit: of ``value``.
        ok: the verdict; None for a plain figure.
        facts: more of it for the JSON document: the limit and its reason, percentiles.
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
    def timed(cls, check: str, milliseconds: Sequence[float], **facts: Any) -> Row:
        """The median of some times; the other percentiles stand beside it."""
        found = Percentiles.of(milliseconds)
        facts |= {"p90": found.p90, "p99": found.p99, "count": len(milliseconds)}
        return cls(check, found.p50, "ms p50", facts=facts)

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        more = {name: self.facts[name] for name in ("p90", "p99") if name in self.facts}
        spread = "".join(f", {name} {found:.4g}" for name, found in more.items())
        limit = f" (wanted {self.facts['limit']})" if "limit" in self.facts else ""
        note = f", {self.facts['note']}" if "note" in self.facts else ""
        verdict = {True: "ok", False: "FAIL", None: ""}[self.ok]
        return f"{self.check:<62} {verdict:<5} {value} {self.unit}{spread}{limit}{note}".rstrip()


def pixels(size: Size) -> str:
    """``2560x1440``: width x height, as images are spoken of."""
    return f"{size[1]}x{size[0]}"


def describe_run() -> dict[str, Any]:
    """Date, GPU, driver and versions of what the figures depend on; values that cannot be had are None."""
    driver = driver_version()
    found = {name: package_version(name) for name in _PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": _gpu_facts(),
        "driver_cuda": None if driver is None else f"{driver[0]}.{driver[1]}",
        "nvrtc": _nvrtc(),
        "versions": {name: version for name, version in found.items() if version is not None},
    }


def _nvrtc() -> str | None:
    from mgvq_export.errors import BackendError

    try:
        return "{}.{}".format(*nvrtc_version())
    except BackendError:
        return None


def _gpu_facts() -> dict[str, str] | None:
    """What nvidia-smi says of the first GPU: name, driver, memory, and clocks before the run."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    names = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "power.limit")
    command = [tool, f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in listed.splitlines()[0].split(",")] if listed.strip() else []
    return dict(zip(names, values, strict=False)) or None
