"""Runs over many files: folders, standard streams, bad files among good ones, and what is never written over."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mgvq_export.cli import main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.tokens import Tokens
from mgvq_export.runtime.image_files import read_image, write_image
from mgvq_export.tests.support.checks import assert_refused, one_line

CPU = ("--backend", "ort-cpu")


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def photos(photo: np.ndarray, tmp_path: Path) -> Path:
    """a.png, b.jpg, and sub/c.png, of two sizes."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    Image.fromarray(photo).save(tmp_path / "photos" / "a.png")
    Image.fromarray(photo).save(tmp_path / "photos" / "b.jpg")
    Image.fromarray(photo[:40, :56]).save(tmp_path / "photos" / "sub" / "c.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_folders_and_their_sub_folders(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    flat = succeed("encode", tiny_bundle.path, photos, "-o", tmp_path / "flat", *CPU)
    assert names(tmp_path / "flat") == ["a.safetensors", "b.safetensors"]
    assert flat.stdout.splitlines()[-1].startswith("2 files  ") and "images/s" in flat.stdout
    succeed("encode", tiny_bundle.path, photos, "-o", tmp_path / "deep", "--recursive", *CPU)
    assert names(tmp_path / "deep") == ["a.safetensors", "b.safetensors", "sub/c.safetensors"]
    succeed("decode", tiny_bundle.path, tmp_path / "deep", "-o", tmp_path / "images", "-r", *CPU)
    assert names(tmp_path / "images") == ["a.png", "b.png", "sub/c.png"]
    alone = succeed("encode", tiny_bundle.path, photos / "sub" / "c.png", "-o", tmp_path / "one", *CPU)
    assert "files" not in alone.stdout
    assert Tokens.load(tmp_path / "one" / "c.safetensors") == Tokens.load(tmp_path / "deep" / "sub" / "c.safetensors")


def test_one_bad_file_does_not_stop_the_rest(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (photos / "aa.png").write_bytes((photos / "a.png").read_bytes()[:200])
    missing = photos / "missing.png"
    result = run("encode", tiny_bundle.path, photos, missing, "-o", tmp_path / "out", "--json", *CPU)
    assert result.exit_code == 2
    assert names(tmp_path / "out") == ["a.safetensors", "b.safetensors"]
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: cannot read {photos / 'aa.png'}: the image is damaged")
    assert second == f"error: cannot read {missing}: no such file"
    facts = json.loads(result.stdout)
    assert [Path(fact["input"]).name for fact in facts] == ["a.png", "aa.png", "b.jpg", "missing.png"]
    assert ["error" in fact for fact in facts] == [False, True, False, True]


def test_existing_results_are_left_out_when_asked(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    succeed("encode", tiny_bundle.path, photos / "a.png", "-o", tmp_path / "out", *CPU)
    before = (tmp_path / "out" / "a.safetensors").stat().st_mtime_ns
    result = succeed("encode", tiny_bundle.path, photos, "-o", tmp_path / "out", "--skip-existing", *CPU)
    assert (tmp_path / "out" / "a.safetensors").stat().st_mtime_ns == before
    assert names(tmp_path / "out") == ["a.safetensors", "b.safetensors"]
    assert result.stdout.splitlines()[-1].startswith("1 files, 1 skipped")


def test_json_lines_come_one_a_file(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    result = succeed("encode", tiny_bundle.path, photos, "-o", tmp_path / "out", "--json-lines", *CPU)
    assert [Path(json.loads(line)["path"]).name for line in result.stdout.splitlines()] == ["a.safetensors", "b.safetensors"]


def test_an_output_that_is_an_input_is_refused(tiny_bundle: Bundle, photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    for force in ([], ["--force"]):
        assert_refused(run("reconstruct", tiny_bundle.path, photos / "a.png", "-o", photos, *force, *CPU), "over the input")
    (photos.parent / "link").symlink_to(photos)
    assert_refused(run("reconstruct", tiny_bundle.path, photos / "a.png", "-o", photos.parent / "link", *CPU), "over the input")
    assert (photos / "a.png").read_bytes() == before


def test_files_of_others_are_replaced_only_by_force(tiny_bundle: Bundle, photos: Path, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(photos / "b.png")
    before = (photos / "b.png").read_bytes()
    words = ("reconstruct", tiny_bundle.path, photos / "b.jpg", "-o", photos, *CPU)
    assert_refused(run(*words), f"{photos / 'b.png'} exists and was not written by mgvq-export; give --force")
    assert (photos / "b.png").read_bytes() == before
    succeed(*words, "--force")
    assert (photos / "b.png").read_bytes() != before
    succeed(*words)  # now it is the program's own
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.safetensors").write_text("somebody's weights")
    words = ("encode", tiny_bundle.path, photos / "a.png", "-o", tmp_path / "t", *CPU)
    assert_refused(run(*words), "was not written by mgvq-export")
    succeed(*words, "--force")
    succeed(*words)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files")
def test_an_output_folder_that_takes_nothing_is_found_before_the_work(
    tiny_bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mgvq_export.runtime.tokenizer.Tokenizer.encode", lambda *_, **__: pytest.fail("the work was begun before the check")
    )
    assert_refused(
        run("encode", tiny_bundle.path, photos / "a.png", "-o", "/proc/self/x", *CPU), "cannot write to the folder /proc"
    )
    (tmp_path / "file").write_text("in the way")
    assert_refused(run("encode", tiny_bundle.path, photos / "a.png", "-o", tmp_path / "file" / "x", *CPU), "is a file")


def program(*arguments: object, **kwargs: object) -> "subprocess.CompletedProcess[bytes]":
    words = [sys.executable, "-m", "mgvq_export", *map(str, arguments)]
    return subprocess.run(words, check=False, **{"capture_output": True} | kwargs)  # type: ignore[call-overload,no-any-return]


def test_standard_input_and_output(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    image = (photos / "a.png").read_bytes()
    encoded = program("encode", tiny_bundle.path, "-", "-o", "-", *CPU, input=image)
    assert encoded.returncode == 0, encoded.stderr
    (tmp_path / "a.safetensors").write_bytes(encoded.stdout)
    assert Tokens.load(tmp_path / "a.safetensors").image_size == (75, 101)
    decoded = program("decode", tiny_bundle.path, "-", "-o", "-", *CPU, input=encoded.stdout)
    assert decoded.returncode == 0, decoded.stderr
    (tmp_path / "a.png").write_bytes(decoded.stdout)
    assert read_image(tmp_path / "a.png").shape == (75, 101, 3)
    assert_refused(run("encode", tiny_bundle.path, photos, "-o", "-", *CPU), "standard output takes one result")
    assert_refused(run("encode", tiny_bundle.path, "-", "-o", "-", "--json", *CPU), "leave one of them out")


def test_a_reader_that_goes_away_is_no_error_of_the_program(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mgvq_export", "encode", str(tiny_bundle.path), str(photos), "-o", str(tmp_path / "out"), *CPU]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 2
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        result = program("models", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert result.returncode == 2
    assert one_line(result.stderr.decode()) and b"No space left" in result.stderr


def test_results_come_in_the_order_given_whatever_runs_together(tiny_bundle: Bundle, photo: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for index in range(12):
        cut = photo[: 32 + 16 * (index % 3), :48]
        write_image(tmp_path / "many" / f"{index:02}.png", np.roll(cut, index, axis=1))
    result = succeed("encode", tiny_bundle.path, tmp_path / "many", "-o", tmp_path / "out", "--json", *CPU)
    assert [Path(fact["path"]).stem for fact in json.loads(result.stdout)] == [f"{index:02}" for index in range(12)]
    for index in range(12):
        name = f"{index:02}"
        succeed("encode", tiny_bundle.path, tmp_path / "many" / f"{name}.png", "-o", tmp_path / "single", *CPU)
        assert Tokens.load(tmp_path / "single" / f"{name}.safetensors") == Tokens.load(tmp_path / "out" / f"{name}.safetensors")


def begun(folder: Path) -> bool:
    return any(path.name.startswith(".mgvq") for path in folder.iterdir())


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_other_signals_end_it_like_ctrl_c(name: str, code: int, tmp_path: Path) -> None:
    import signal
    import time

    process = subprocess.Popen(
        [sys.executable, "-m", "mgvq_export", "export", "demo", "-o", "bundle"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and not begun(tmp_path):
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    assert process.stderr
    said = process.stderr.read()
    assert process.wait() == code, said
    assert f"stopped by {name}; nothing half-written is left" in said
    assert not list(tmp_path.iterdir())
    process.stderr.close()


def test_codes_of_a_generator_become_an_image(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    succeed("encode", tiny_bundle.path, photos / "a.png", "-o", tmp_path, *CPU)
    tokens = Tokens.load(tmp_path / "a.safetensors")
    succeed("decode", tiny_bundle.path, tmp_path / "a.safetensors", "-o", tmp_path / "wanted", *CPU)
    wanted = read_image(tmp_path / "wanted" / "a.png")
    np.save(tmp_path / "codes.npy", np.moveaxis(tokens.codes, 0, 2).astype(np.int64))
    words = ("decode", tiny_bundle.path, tmp_path / "codes.npy", "-o", tmp_path / "out", *CPU)
    assert_refused(run(*words), f"{tmp_path / 'codes.npy'}: codes have 5 groups; tiny has 4: choose the layout hwg")
    succeed(*words, "--layout", "hwg", "--size", "101x75")
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "codes.png"), wanted)
    succeed(*words, "--layout", "hwg", "--model-from", tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "codes.png"), wanted)
    np.savez(tmp_path / "codes.npz", codes=tokens.codes)
    succeed("decode", tiny_bundle.path, tmp_path / "codes.npz", "-o", tmp_path / "all", *CPU)
    assert read_image(tmp_path / "all" / "codes.png").shape == (80, 112, 3)


def test_a_dry_run_says_the_plan_and_writes_nothing(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    words = ("encode", tiny_bundle.path, photos, "-o", tmp_path / "out", "--dry-run", "--tile", "64", *CPU)
    shown = succeed(*words).stdout
    assert "101x75" in shown and "64x64" in shown
    facts = json.loads(succeed(*words, "--json").stdout)
    assert not (tmp_path / "out").exists()
    step = facts[0]["plan"]["steps"][0]
    assert facts[0]["image_size"] == [75, 101] and step["window"] == [64, 64] and step["windows"] > 1
    assert facts[0]["plan"]["overhead"] > 1 and facts[0]["plan"]["peak_bytes"] > 2**20 and facts[0]["predicted_seconds"] > 0
    height, width = step["window"]  # what is printed can be given
    succeed("encode", tiny_bundle.path, photos / "a.png", "-o", tmp_path / "out", "--tile", f"{width}x{height}", *CPU)


@pytest.mark.parametrize("name", ["report.md", "report.json", "report.html", "plot.png", "bench.json", "plan.json"])
def test_every_verb_that_writes_a_file_protects_what_exists(
    name: str, tiny_bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / name
    target.write_text("mine")
    words: dict[str, tuple[object, ...]] = {
        "report": ("verify", tiny_bundle.path, photos, "--only", "quantizer", "--report", target),
        "plot": ("bench", tiny_bundle.path, "--plot", target),
        "bench": ("bench", tiny_bundle.path, "-o", target),
        "plan": ("calibrate", tiny_bundle.path, photos, "-o", target),
    }
    assert_refused(run(*words[target.stem]), f"{target} exists and was not written by mgvq-export; give --force")
    assert target.read_text() == "mine"
    if name in ("report.md", "report.json"):  # those that are quickly made
        assert run(*words["report"], "--force").exit_code == 0
        assert run(*words["report"]).exit_code == 0  # now it is the program's own
