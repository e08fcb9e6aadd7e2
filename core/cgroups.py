"""What the control groups that this process is in (containers, job schedulers) let it use; versions 1 and 2, nested."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MOUNT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


class Memory(NamedTuple):
    """Bytes: the ``limit`` of a group, and what is ``free`` below it, file cache that can be dropped included."""

    limit: int
    free: int


def memory() -> Memory | None:
    """The tightest limits among the groups that this process is in; None where none limits memory."""
    found = []
    for folder in _groups("memory"):
        version2 = (folder / "memory.max").exists()
        names = ("memory.max", "memory.current") if version2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_number(folder / name) for name in names)
        if limit is None or limit >= 1 << 60:  # version 1 says "no limit" with a number
            continue
        cache = _statistic(folder / "memory.stat", "inactive_file" if version2 else "total_inactive_file")
        found.append(Memory(limit, max(0, limit - max(0, (used or 0) - cache))))
    return Memory(min(each.limit for each in found), min(each.free for each in found)) if found else None


def cpu_quota() -> float | None:
    """Processors' worth of time that the tightest of the groups allows; None where none limits it."""
    quotas = []
    for folder in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            if (folder / "cpu.max").exists():
                most, period = (folder / "cpu.max").read_text(encoding="ascii").split()[:2]
            else:
                most, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
            quotas.append(int(most) / int(period))
    return min((quota for quota in quotas if quota > 0), default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, from its own to the outermost that can be seen, where they have files."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)}
    version1 = next((path for names, path in paths.items() if controller in names.split(",")), "/")
    for mount, path in ((_MOUNT, paths.get("", "/")), (_MOUNT / "unified", paths.get("", "/")), (_MOUNT / controller, version1)):
        if not mount.is_dir():
            continue
        # In a container the path may be the host's, of which only the end, or nothing, is to be seen here.
        steps = [step for step in path.split("/") if step not in ("", "..")]
        for count in range(len(steps), -1, -1):
            folder = mount.joinpath(*steps[:count])
            if folder.is_dir():
                yield folder


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _statistic(file: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
