"""How many processors a process may use: its affinity, and a container's quota in either form."""

import os
from pathlib import Path

import pytest

from mgvq_export.core import processors


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of eight processors without control groups; their files may be written into the folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processors, "_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(processors, "_V1", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
        ("x y", 8),
    ],
)
def test_a_quota_of_control_groups_2(eight: Path, text: str, expected: int) -> None:
    (eight / "cpu.max").write_text(text)
    assert processors.usable_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3), ("0", 8)])
def test_a_quota_of_control_groups_1(eight: Path, quota: str, expected: int) -> None:
    (eight / "cpu.cfs_quota_us").write_text(quota)
    (eight / "cpu.cfs_period_us").write_text("100000")
    assert processors.usable_cpus() == expected


def test_affinity_without_control_groups(eight: Path) -> None:
    assert processors.usable_cpus() == 8
