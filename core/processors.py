"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_V2 = Path("/sys/fs/cgroup/cpu.max")
_V1 = Path("/sys/fs/cgroup/cpu")


def usable_cpus() -> int:
    """Processors that this process may run on: those of its affinity mask, no more than a container's CPU quota pays for."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _quota() -> float | None:
    """Processors of the control group's quota; None without one, or where there are no control groups."""
    try:
        if _V2.exists():
            most, period = _V2.read_text(encoding="ascii").split()[:2]
        else:
            most = (_V1 / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (_V1 / "cpu.cfs_period_us").read_text(encoding="ascii")
        quota = int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None
    return quota if quota > 0 else None
