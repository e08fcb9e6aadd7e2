"""files.py: whole or not at all, whatever goes wrong."""

import contextlib
import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mgvq_export.core import files
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import atomic_folder, atomic_path, atomic_write_bytes, sha256_file

not_root = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_writes_and_replaces(tmp_path):
    target = tmp_path / "a.bin"
    atomic_write_bytes(target, b"one")
    atomic_write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert names(tmp_path) == ["a.bin"]


def test_permissions_are_those_of_a_new_file_then_kept(tmp_path):
    plain, target = tmp_path / "plain", tmp_path / "a.bin"
    plain.write_bytes(b"")
    atomic_write_bytes(target, b"one")
    assert target.stat().st_mode == plain.stat().st_mode
    target.chmod(0o640)
    atomic_write_bytes(target, b"two")
    assert target.stat().st_mode & 0o777 == 0o640


def test_follows_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    atomic_write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failing_body_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        assert temporary.suffix == ".bin"
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(InputError) as error, atomic_path(target), open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        full.write(b"x")
    one_line(error, "a.bin", "disk is full", "free some space")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_disk_that_fills_up_while_flushing(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(InputError) as error:
        atomic_write_bytes(tmp_path / "a.bin", b"x")
    one_line(error, "disk is full")
    with pytest.raises(InputError), atomic_folder(tmp_path / "f") as folder:
        (folder / "x").write_bytes(b"x")
    assert names(tmp_path) == []


def test_real_size_limit(tmp_path):
    script = (
        "import sys, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from mgvq_export.core.files import atomic_write_bytes; from mgvq_export.core.errors import InputError\n"
        "try: atomic_write_bytes(sys.argv[1], bytes(5000))\n"
        "except InputError as error: print(error)\n"
    )
    assert resource.RLIM_INFINITY  # the limit is set in the child only
    run = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path / "a.bin")] if sys.version_info >= (3, 11)
        else [sys.executable, "-c", script, str(tmp_path / "a.bin")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "largest allowed size" in run.stdout
    assert names(tmp_path) == []


def test_refusals_name_the_path_and_the_remedy(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, part in (
        (tmp_path / "none" / "a.bin", "create it first"),
        (tmp_path / "file" / "a.bin", "no folder"),
        (tmp_path, "it is a folder"),
        (tmp_path / ("n" * 300), "name is too long"),
        (Path("/dev/null"), "device or pipe"),
    ):
        with pytest.raises(InputError) as error:
            atomic_write_bytes(path, b"x")
        one_line(error, str(path), part)
    assert names(tmp_path) == ["file"]


@not_root
def test_folder_that_is_not_writable(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError) as error:
            atomic_write_bytes(tmp_path / "a.bin", b"x")
    finally:
        tmp_path.chmod(0o700)
    one_line(error, "permission denied")


def test_folder_that_is_not_writable_simulated(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(InputError) as error:
        atomic_write_bytes(tmp_path / "a.bin", b"x")
    one_line(error, "permission denied", "choose another folder")


def test_an_error_about_another_file_keeps_its_kind(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.bin"):
        (tmp_path / "missing-input").read_bytes()
    assert names(tmp_path) == []


def test_folder_is_filled_then_named(tmp_path):
    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_bytes(b"x")
        assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle" / "sub" / "x").read_bytes() == b"x"
    assert names(tmp_path) == ["bundle"]


def test_empty_folder_is_taken_and_full_one_is_not(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    with atomic_folder(target) as folder:
        (folder / "x").write_bytes(b"old")
    ran = False
    with pytest.raises(InputError) as error, atomic_folder(target):
        ran = True
    one_line(error, str(target), "not empty")
    assert not ran
    assert (target / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["bundle"]


def test_folder_filled_meanwhile_is_not_touched(tmp_path):
    target = tmp_path / "bundle"
    with pytest.raises(InputError), atomic_folder(target) as folder:
        (folder / "x").write_bytes(b"ours")
        target.mkdir()
        (target / "x").write_bytes(b"theirs")
    assert (target / "x").read_bytes() == b"theirs"
    assert names(tmp_path) == ["bundle"]


def test_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with atomic_folder(target, replace=True) as folder:
        (folder / "new").write_bytes(b"new")
        assert names(target) == [folder.name, "old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["bundle"]


def test_failed_replacement_keeps_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_folder(target, replace=True) as folder:
        (folder / "new").write_bytes(b"new")
        raise RuntimeError("no")
    assert names(target) == ["old"]

    real = Path.replace

    def refuse(self, other):
        if self.name == "new" and other.parent == target:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, other)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError), atomic_folder(target, replace=True) as folder:
        (folder / "new").write_bytes(b"new")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_is_filled_where_it_is(tmp_path, monkeypatch):
    """An existing folder stays the same one: it may be a volume, or where the user's shell is."""
    target = tmp_path / "bundle"
    target.mkdir()
    monkeypatch.chdir(target)
    before = target.stat().st_ino
    for content in (b"one", b"two"):
        with atomic_folder(".", replace=True) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "x").write_bytes(content)
            (folder / "manifest.json").write_bytes(content)
        assert Path("sub/x").read_bytes() == Path("manifest.json").read_bytes() == content
        assert names(target) == ["manifest.json", "sub"]
    assert target.stat().st_ino == before


def test_the_manifest_comes_last_and_goes_first(tmp_path, monkeypatch):
    target, seen = tmp_path / "bundle", []
    target.mkdir()
    real = Path.replace

    def watch(self, other):
        seen.append(self.name if other.parent == target else f"-{self.name}")
        return real(self, other)

    monkeypatch.setattr(Path, "replace", watch)
    for _ in range(2):
        with atomic_folder(target, replace=True) as folder:
            for name in ("a", "manifest.json", "z"):
                (folder / name).write_bytes(b"")
    assert seen == ["a", "z", "manifest.json", "-manifest.json", "-a", "-z", "a", "z", "manifest.json"]


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_any_failing_step_puts_the_old_content_back(tmp_path, monkeypatch, step, error):
    target, left = tmp_path / "bundle", [step]
    target.mkdir()
    for name in ("a", "manifest.json", "old"):
        (target / name).write_bytes(b"old")
    real = Path.replace

    def fail(self, other):
        left[0] -= 1
        if left[0] == -1:
            raise error
        return real(self, other)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((OSError, InputError, KeyboardInterrupt)), atomic_folder(target, replace=True) as folder:
        for name in ("a", "manifest.json", "new"):
            (folder / name).write_bytes(b"new")
    assert names(target) == ["a", "manifest.json", "old"]
    assert {entry.read_bytes() for entry in target.iterdir()} == {b"old"}
    assert names(tmp_path) == ["bundle"]


KILLED = """
import os, signal, sys, time
from mgvq_export.core.files import atomic_folder, atomic_path
with atomic_path(sys.argv[1] + "/a.bin") as file, atomic_folder(sys.argv[1] + "/b") as folder, atomic_folder(sys.argv[1] + "/c") as inside:
    for place in (folder, inside):
        (place / "half").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_killed_processes_are_removed_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swept", set())
    (tmp_path / "c").mkdir()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        monkeypatch.setattr(files, "_SETTLED_SECONDS", -1)
        live = {*names(tmp_path), *names(tmp_path / "c")}
        assert len([name for name in live if name.startswith(".mgvq-")]) == 3
        atomic_write_bytes(tmp_path / "x", b"")  # while that process lives, its files are no leftovers
        assert {*names(tmp_path), *names(tmp_path / "c")} == {*live, "x"}
    finally:
        process.kill()
        process.communicate()
    files._swept.clear()
    (tmp_path / ".mgvq-mine").write_bytes(b"")  # called otherwise: not ours
    with atomic_folder(tmp_path / "c") as folder:
        (folder / "whole").write_bytes(b"")
    atomic_write_bytes(tmp_path / "x", b"")
    assert names(tmp_path) == [".mgvq-mine", "c", "x"]
    assert names(tmp_path / "c") == ["whole"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root on Linux")
def test_a_mounted_volume_is_filled(tmp_path):
    for name in ("volume", "bundle"):
        (tmp_path / name).mkdir()
    script = "import sys; from mgvq_export.core.files import atomic_folder\nwith atomic_folder('bundle') as f: (f / 'x').write_bytes(b'x')"
    command = ["unshare", "-m", "bash", "-c", f'mount --bind volume bundle && {sys.executable} -c "$0"', script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "unshare" in run.stderr or "mount:" in run.stderr:
        pytest.skip(f"this system does not let root mount: {run.stderr.strip()[:100]}")
    assert run.returncode == 0, run.stderr
    assert names(tmp_path / "volume") == ["x"]


def test_folder_refusals(tmp_path):
    (tmp_path / "file").write_bytes(b"keep")
    for path, part in ((tmp_path / "file", "a file has that name"), (tmp_path / "none" / "b", "create it first")):
        with pytest.raises(InputError) as error, contextlib.ExitStack() as stack:
            stack.enter_context(atomic_folder(path, replace=True))
        one_line(error, str(path), part)
    assert (tmp_path / "file").read_bytes() == b"keep"


def test_sha256(tmp_path):
    data = os.urandom((1 << 20) + 7)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    for path, part in ((tmp_path / "none", "no such file"), (tmp_path, "folder")):
        with pytest.raises(InputError) as error:
            sha256_file(path)
        one_line(error, str(path), part)
