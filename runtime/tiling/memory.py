"""The memory of this process: what it holds, the most it held, and how soon it gives back what it has freed."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from mgvq_export.core import cgroups

SHARE_OF_FREE = 0.8  # the default limit: this share of what is free, beside what the process holds already

_MMAP_THRESHOLD = -3  # mallopt's M_MMAP_THRESHOLD
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Memory this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def default_limit() -> int:
    """What the process holds, and :data:`SHARE_OF_FREE` of what is free beside it, in bytes; in a container of what is free there."""
    import psutil

    held, free = resident_bytes(), psutil.virtual_memory().available
    group = cgroups.memory()
    if group is None:
        return held + int(SHARE_OF_FREE * free)
    return min(held + int(SHARE_OF_FREE * min(free, group.free)), group.limit)


def peak_bytes() -> int:
    """The most memory this process ever held; on Linux since :func:`forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its peak begins with the parent's, which a child inherits, and cannot be reset.
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> bool:
    """Let :func:`peak_bytes` count from here. Returns whether the system can: Linux does."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5", encoding="ascii")
        return True
    return False


def return_freed_memory() -> None:
    """Make glibc give blocks of 1 MiB and more back to the system when they are freed; elsewhere do nothing.

    By default it keeps freed blocks of up to 32 MiB for later, up to some 200 MB of them: more than a limit can bear. It
    holds for the whole process, so it is called only when the user sets a memory limit.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 1 << 20)
