"""Limits of control groups, read from folders laid out as both versions lay theirs out."""

from pathlib import Path

import pytest

from mgvq_export.core import cgroups, processors
from mgvq_export.runtime.tiling import memory

GIB = 2**30


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fs").mkdir()
    monkeypatch.setattr(cgroups, "_MOUNT", tmp_path / "fs")
    monkeypatch.setattr(cgroups, "_MEMBERSHIP", tmp_path / "membership")
    return tmp_path / "fs"


def lay_out(mount: Path, membership: str, **files: str) -> None:
    (mount.parent / "membership").write_text(membership)
    for name, content in files.items():
        path = mount / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_no_groups(mount: Path) -> None:
    assert cgroups.memory() is None
    assert cgroups.cpu_quota() is None


def test_version_2_nested(mount: Path) -> None:
    lay_out(
        mount,
        "0::/job/step\n",
        memory_DOT_stat="inactive_file 0\n",
        job__memory_DOT_max=f"{2 * GIB}\n",
        job__memory_DOT_current=f"{GIB}\n",
        job__memory_DOT_stat=f"anon 1\ninactive_file {GIB // 2}\n",
        job__step__memory_DOT_max="max\n",
        job__step__memory_DOT_current="1\n",
        job__cpu_DOT_max="150000 100000\n",
        job__step__cpu_DOT_max="max 100000\n",
    )
    assert cgroups.memory() == (2 * GIB, 3 * GIB // 2)
    assert cgroups.cpu_quota() == 1.5


def test_version_1_nested(mount: Path) -> None:
    lay_out(
        mount,
        "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        memory__memory_DOT_limit_in_bytes="9223372036854771712\n",
        memory__memory_DOT_usage_in_bytes="1\n",
        memory__docker__memory_DOT_limit_in_bytes=f"{GIB}\n",
        memory__docker__memory_DOT_usage_in_bytes=f"{GIB // 4}\n",
        memory__docker__memory_DOT_stat="total_inactive_file 0\n",
        memory__docker__abc__memory_DOT_limit_in_bytes=f"{4 * GIB}\n",
        memory__docker__abc__memory_DOT_usage_in_bytes="0\n",
        cpu__docker__cpu_DOT_cfs_quota_us="50000\n",
        cpu__docker__cpu_DOT_cfs_period_us="100000\n",
        cpu__cpu_DOT_cfs_quota_us="-1\n",
        cpu__cpu_DOT_cfs_period_us="100000\n",
    )
    assert cgroups.memory() == (GIB, 3 * GIB // 4)
    assert cgroups.cpu_quota() == 0.5


@pytest.mark.parametrize("path", ["/", "/docker/of-the-host", "/../../up"])
def test_a_path_that_cannot_be_seen_here(mount: Path, path: str) -> None:
    lay_out(mount, f"0::{path}\n", memory_DOT_max=f"{GIB}\n", memory_DOT_current="0\n")
    assert cgroups.memory() == (GIB, GIB)


def test_defaults_stay_within(mount: Path) -> None:
    lay_out(mount, "0::/\n", memory_DOT_max=f"{GIB // 2}\n", memory_DOT_current=f"{GIB // 4}\n", cpu_DOT_max="10000 100000\n")
    assert memory.default_limit() <= GIB // 2
    assert processors.usable_cpus() == 1


@pytest.mark.parametrize("content", ["", "nonsense", "max", "\xff"])
def test_damaged_files_limit_nothing(mount: Path, content: str) -> None:
    lay_out(mount, content, memory_DOT_max=content, memory_DOT_current=content, cpu_DOT_max=content)
    assert cgroups.memory() is None
    assert cgroups.cpu_quota() is None
