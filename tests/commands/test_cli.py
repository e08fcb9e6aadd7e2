"""The command line as a user meets it: what it prints, writes, refuses, and with which exit code."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click import Command, Context
from click.testing import CliRunner, Result
from PIL import Image

from mgvq_export.cli import VERBS, main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.tokens import Tokens
from mgvq_export.tests.support.checks import assert_refused, one_line


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(match: str, *arguments: object) -> None:
    assert_refused(run(*arguments), match)


@pytest.fixture
def image_file(photo: np.ndarray, tmp_path: Path) -> Path:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def verb(name: str) -> Command:
    found = main.get_command(Context(main), name)
    assert found is not None
    return found


@pytest.mark.parametrize("command", sorted(VERBS))
def test_every_command_has_help_and_is_in_the_readme(command: str) -> None:
    result = succeed(command, "--help")
    assert verb(command).help
    assert "--debug" in result.output
    assert f"  {command} " in succeed("--help").output, "no section of --help lists it"
    assert f"`{command}" in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct", "inspect"])
def test_host_code_is_off_unless_it_is_asked_for(command: str) -> None:
    (option,) = (each for each in verb(command).params if each.name == "allow_host_code")
    assert option.opts == ["--allow-host-code"] and option.get_default(Context(verb(command))) is False
    assert "only for engines you trust" in " ".join(succeed(command, "--help").output.split())


def test_help_says_what_the_memory_limit_is_by_default() -> None:
    from mgvq_export.runtime.tensorrt.pipeline import SHARE_OF_FREE as SHARE_OF_GPU
    from mgvq_export.runtime.tiling.memory import SHARE_OF_FREE

    said = " ".join(succeed("encode", "--help").output.split())
    assert f"{SHARE_OF_FREE * 100:.0f} % of what is free, of the GPU's {SHARE_OF_GPU * 100:.0f} %" in said


def test_models() -> None:
    assert "mgvq-f16c32-g8" in succeed("models").output
    rows = json.loads(succeed("models", "--json").stdout)
    assert [row["name"] for row in rows][-1] == "demo"
    assert len(rows) == 7


def test_export_encode_decode(tiny_checkpoint_file: Path, image_file: Path, photo: np.ndarray, tmp_path: Path) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    assert (
        "tiny, fp32 + fp16"
        in succeed("export", tiny_checkpoint_file, "-o", bundle, *("--precision", "fp32", "--precision", "fp16")).output
    )
    line = succeed("encode", bundle, image_file, "-o", out).output
    assert "101x75 -> 4 x 7x5 codes" in line
    tokens = Tokens.load(out / "photo.safetensors")
    assert tokens.image_size == (75, 101)
    facts = json.loads(succeed("decode", bundle, out / "photo.safetensors", "-o", out, "--json").stdout)
    assert facts[0]["path"] == str(out / "photo.png")
    assert np.asarray(Image.open(out / "photo.png")).shape == photo.shape
    again = json.loads(succeed("reconstruct", bundle, image_file, "-o", tmp_path / "again", "--json").stdout)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "again" / "photo.png")), np.asarray(Image.open(out / "photo.png"))
    )
    error = np.mean((np.asarray(Image.open(out / "photo.png")).astype(float) - photo) ** 2)
    assert again[0]["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error))


def test_packed_tokens_are_smaller_and_equal(tiny_bundle: Bundle, image_file: Path, tmp_path: Path) -> None:
    succeed("encode", tiny_bundle.path, image_file, "-o", tmp_path / "a")
    succeed("encode", tiny_bundle.path, image_file, "-o", tmp_path / "b", "--packed")
    first, second = (tmp_path / name / "photo.safetensors" for name in "ab")
    assert Tokens.load(first) == Tokens.load(second)


def test_inspect(tiny_bundle: Bundle, tiny_checkpoint_file: Path, image_file: Path, tmp_path: Path) -> None:
    succeed("encode", tiny_bundle.path, image_file, "-o", tmp_path)
    kinds = {
        tiny_bundle.path: "bundle",
        tiny_bundle.path / "fp32" / "quantizer.onnx": "graph",
        tmp_path / "photo.safetensors": "tokens",
        tiny_checkpoint_file: "checkpoint",
    }
    for target, kind in kinds.items():
        assert json.loads(succeed("inspect", target, "--json").stdout)["kind"] == kind
        assert kind in succeed("inspect", target).output


def test_doctor() -> None:
    report = json.loads(succeed("doctor", "--json").stdout)
    backends = {backend["name"]: backend for backend in report["backends"]}
    assert backends["ort-cpu"]["ready"]
    assert "ort-cpu" in succeed("doctor").output


def test_tables_keep_brackets(tiny_bundle: Bundle) -> None:
    # rich would take them for markup and drop them
    assert "[batch, 3, height, width]" in succeed("inspect", tiny_bundle.path).output


@pytest.mark.parametrize("arguments", [["export", "demo", "-o", "out"], ["inspect", "demo"], ["demo"]])
def test_missing_extras_are_one_line(arguments: list[str], tmp_path: Path) -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split('.')[0] in ('torch', 'onnx', 'huggingface_hub'):
            raise ModuleNotFoundError('blocked', name=name)
sys.meta_path.insert(0, Blocked())
from mgvq_export.cli import main
main()
"""
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 2
    assert one_line(run.stderr)
    assert "pip install 'mgvq-export[export]'" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_images(tiny_bundle: Bundle, photo: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "out"
    frames = [Image.fromarray(photo), Image.fromarray(255 - photo)]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, match in (
        ("animated.gif", "frames"),
        ("text.png", "no image"),
        ("empty.png", "empty"),
        ("absent.png", "no such file"),
    ):
        refused(match, "encode", tiny_bundle.path, tmp_path / name, "-o", out)
    Image.fromarray(photo).save(tmp_path / "big.png")
    refused("--max-pixels", "encode", tiny_bundle.path, tmp_path / "big.png", "-o", out, "--max-pixels", 100)
    (tmp_path / "folder").mkdir()
    refused("holds no file named .jpg, ", "encode", tiny_bundle.path, tmp_path / "folder", "-o", out)
    assert not out.exists()


def test_bad_options(tiny_bundle: Bundle, image_file: Path, tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("groups is 9", "reconstruct", tiny_bundle.path, image_file, "-o", out, "--groups", 9)
    refused("--backend is 'gpu'; choose auto, ", "encode", tiny_bundle.path, image_file, "-o", out, "--backend", "gpu")
    refused("no int8 graphs", "encode", tiny_bundle.path, image_file, "-o", out, "--precision", "int8")
    refused("--precision is 'fp64'; choose fp32, fp16", "export", tiny_checkpoint_file, "-o", out, "--precision", "fp64")
    refused("no model 'mgvq'", "export", tiny_checkpoint_file, "-o", out, "--variant", "mgvq")
    refused("does not fit mgvq-f8c32-g4", "export", tiny_checkpoint_file, "-o", out, "--variant", "mgvq-f8c32-g4")
    refused("no checkpoint", "export", "mgvq-f99", "-o", out)
    refused("does not exist", "encode", tmp_path / "none", image_file, "-o", out)
    copy = tmp_path / "photo.jpg"
    Image.open(image_file).save(copy)
    refused("would both be written", "encode", tiny_bundle.path, image_file, copy, "-o", out)
    assert not out.exists()


def test_truncated_checkpoint(tiny_checkpoint_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_checkpoint_file.read_bytes()[:-100])
    refused("no readable safetensors", "export", cut, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_changed_bundle(tiny_bundle: Bundle, image_file: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    weights = copy / "fp32" / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    refused("has changed", "encode", copy, image_file, "-o", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_tokens_of_another_codebook(tiny_bundle: Bundle, tmp_path: Path) -> None:
    spec = tiny_bundle.spec
    Tokens.from_spec(spec, np.zeros((4, 1, 1), np.int32), (16, 16), "a" * 64).save(tmp_path / "other.safetensors")
    refused("codebook", "decode", tiny_bundle.path, tmp_path / "other.safetensors", "-o", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_output_that_cannot_be_written(
    tiny_bundle: Bundle, image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run("encode", tiny_bundle.path, image_file, "-o", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert one_line(result.stderr)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgvq_export.core.files.os.fsync", full)
    refused("the disk is full", "encode", tiny_bundle.path, image_file, "-o", tmp_path / "full")
    assert not list((tmp_path / "full").iterdir())


def test_read_only_folder(tiny_bundle: Bundle, image_file: Path, tmp_path: Path) -> None:
    import os

    if os.geteuid() == 0:
        pytest.skip("root may write to read-only folders")
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    refused("permission", "encode", tiny_bundle.path, image_file, "-o", folder)


def test_debug_shows_the_traceback(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = run("encode", tiny_bundle.path, tmp_path / "absent.png", "-o", tmp_path, "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: cannot read" in result.stderr


def test_a_bug_is_told_from_bad_input(
    tiny_bundle: Bundle, image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("mgvq_export.runtime.tokenizer.Tokenizer.encode", broken)
    result = run("encode", tiny_bundle.path, image_file, "-o", tmp_path)
    assert result.exit_code == 3
    assert "internal error: ZeroDivisionError: oops" in result.stderr
