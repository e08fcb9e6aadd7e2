"""What the README shows runs, and what it lists is what there is."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mgvq_export.cli import VERBS, main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.spec import VARIANTS
from mgvq_export.tests.support.installing import claimed_versions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INDEX = (ROOT / "docs" / "package-index.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Arguments of every mgvq-export line, comments aside."""
    lines = "".join(blocks(text, "sh")).splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True)) and words[0] == "mgvq-export"]


@pytest.fixture
def folder(photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo.jpg as a camera writes it."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save("photo.jpg")
    return tmp_path


@pytest.mark.parametrize("text", [README, INDEX], ids=["README", "package index"])
def test_the_python_runs(text: str, folder: Path, tiny_bundle: Bundle) -> None:
    (code,) = blocks(text, "python")
    (folder / "bundle").symlink_to(tiny_bundle.path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["again"].shape == (75, 101, 3)


def test_the_first_commands_run(folder: Path) -> None:
    """Those of the section on the command line, in their order, on the packaged model."""
    section = README[README.index("## The command line") : README.index("## Python")]
    for words in commands(section):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (words, result.output)
    assert {path.name for path in (folder / "out").iterdir()} == {"photo.safetensors", "photo.png"}


@pytest.mark.parametrize("words", commands(README + INDEX), ids=" ".join)
def test_every_command_is_spelled_as_the_verb_wants_it(words: list[str]) -> None:
    program = main.make_context("mgvq-export", [], resilient_parsing=True)
    verb = main.get_command(program, words[0])
    assert verb is not None
    context = verb.make_context(words[0], words[1:], parent=program, resilient_parsing=True)
    assert not context.args
    known = {option for parameter in verb.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_every_verb_is_listed() -> None:
    table = README[README.index("| verb |") : README.index("Every verb takes")]
    assert re.findall(r"`([a-z]+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.MULTILINE))) == list(VERBS)


def test_the_variants() -> None:
    import torch

    from mgvq_export.model.network import MGVQ

    rows = re.findall(r"^\| (mgvq-\S+) \|(.*)\|$", README, re.MULTILINE)
    assert [name for name, _ in rows] == list(VARIANTS)
    for name, row in rows:
        spec = VARIANTS[name]
        with torch.device("meta"):
            parameters = sum(value.numel() for value in MGVQ(spec).parameters())
        f, bits = spec.downsample, spec.groups * int(np.log2(spec.codes_per_group))
        wanted = [
            f"{f}x{f}",
            spec.groups,
            spec.codes_per_group,
            spec.group_dim,
            bits,
            f"{bits / f**2:.2f}",
            f"{parameters / 1e6:.0f} M",
        ]
        assert [cell.strip() for cell in row.split("|")] == [str(value) for value in wanted], name


def test_the_python_versions() -> None:
    first, *_, last = claimed_versions()
    assert all(f"Python {first} to {last}" in text for text in (README, INDEX))
