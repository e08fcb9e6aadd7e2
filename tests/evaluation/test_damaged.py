"""Damaged image lists and journals: read, or refused in one line."""

import json
from pathlib import Path

import pytest

from mgvq_export.core.errors import InputError
from mgvq_export.evaluation.datasets import Dataset
from mgvq_export.evaluation.journal import LINES, Journal
from mgvq_export.tests.support import fuzz

LISTS = (
    ["a/1.png", "a/2.png", "b/3.png"],
    [{"path": "a/1.png", "width": 3}, {"file_name": "b.png"}],
    {"first": ["a/1.png"], "second": [{"image": "b.png"}, "c.png"]},
)
IDENTITY = {"model": "tiny", "groups": (1, 4), "metrics": ["psnr", "ssim"]}


@pytest.mark.parametrize("content", LISTS)
def test_every_mutation_of_a_list_is_read_or_refused_in_one_line(content: object, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    for what, data in (*fuzz.mutations(content, 150), *fuzz.damaged(json.dumps(content).encode(), 50)):
        path.write_bytes(data)
        fuzz.assert_read_or_refused(lambda: Dataset.find(path, limit=1), what)


def test_the_entry_of_a_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"good": ["a.png"], "bad": ["b.png", "c\n.png"]}))
    with pytest.raises(InputError, match=r"bad\[1\] is no path of an image: 'c\\n.png'"):
        Dataset.find(tmp_path / "list.json")


def journal(folder: Path) -> list[bytes]:
    """The lines of a journal of two images."""
    with Journal(folder, IDENTITY) as written:
        for sha256 in ("aa", "bb"):
            values = {"mse": [1.5, 0.1], "ssim": [0.9, 0.8], "seconds": 0.5, "source_size": [8, 9], "plan": ["one", "one"]}
            written.append(sha256, values, sha256.encode() * 10)
    return (folder / LINES).read_bytes().splitlines()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_mutation_of_a_journal_is_read_or_refused_in_one_line(number: int, tmp_path: Path) -> None:
    lines = journal(tmp_path / "out")

    def read() -> None:
        with Journal(tmp_path / "out", IDENTITY) as opened:
            for sha256 in ("aa", "bb"):
                if sha256 in opened:
                    assert opened.data(sha256) == sha256.encode() * 10
                    assert len(opened[sha256].mse) >= 0

    for what, data in (*fuzz.mutations(json.loads(lines[number]), 150, number), *fuzz.damaged(lines[number], 50, number)):
        (tmp_path / "out" / LINES).write_bytes(b"\n".join([*lines[:number], data, *lines[number + 1 :], b""]))
        fuzz.assert_read_or_refused(read, what)


def test_the_line_and_the_key_are_named(tmp_path: Path) -> None:
    lines = journal(tmp_path / "out")
    (tmp_path / "out" / LINES).write_bytes(b"\n".join([*lines, b""]).replace(b'"ssim":[0.9,', b'"ssim":[7,', 1))
    with pytest.raises(InputError, match=r"journal.jsonl, line 2, is damaged: ssim\[0\]: .*choose another folder"):
        Journal(tmp_path / "out", IDENTITY)
