"""How many processors this process may use."""

from __future__ import annotations

import math
import os

from mgvq_export.core.cgroups import cpu_quota


def usable_cpus() -> int:
    """Processors that this process may run on: those of its affinity mask, no more than a container's CPU quota pays for."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))
