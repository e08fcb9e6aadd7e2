"""How many processors a process may use: its affinity, and no more than a container's quota pays for."""

import os

import pytest

from mgvq_export.core import processors


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (2.0, 2), (1.5, 2), (0.5, 1), (99.0, 8)])
def test_the_quota_limits_what_the_affinity_allows(quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processors, "cpu_quota", lambda: quota)
    assert processors.usable_cpus() == expected
