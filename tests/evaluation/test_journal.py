"""The journal: what is found again, what a kill leaves behind, and whose journal it is."""

import json
from pathlib import Path

import pytest

from mgvq_export.core.errors import InputError
from mgvq_export.evaluation.journal import DATA, LINES, Journal
from mgvq_export.tests.support.checks import one_line

IDENTITY = {"model": "tiny", "size": "64x64", "groups": (1, 4), "graphs_sha256": "a" * 64}
RECORDS = {
    "aa": ({"mse": [1.5, 0.1]}, b"codes of a"),
    "bb": ({"mse": [2.5, 0.2]}, b"codes of b, longer"),
    "cc": ({"mse": [3]}, b""),
}


def write(folder: Path) -> Path:
    with Journal(folder, IDENTITY) as journal:
        for sha256, (values, data) in RECORDS.items():
            journal.append(sha256, values, data)
    return folder


def found(folder: Path) -> list[str]:
    with Journal(folder, IDENTITY) as journal:
        for sha256, (values, data) in RECORDS.items():
            if sha256 in journal:
                assert {key: getattr(journal[sha256], key) for key in values} == values
                assert journal.data(sha256) == data
        return [sha256 for sha256 in RECORDS if sha256 in journal]


def refused(match: str, folder: Path, identity: dict = IDENTITY) -> None:
    with pytest.raises(InputError, match=match) as error:
        Journal(folder, identity)
    assert one_line(str(error.value))


def test_records_are_found_again(tmp_path: Path) -> None:
    assert found(write(tmp_path / "out")) == ["aa", "bb", "cc"]


def test_a_cut_at_every_byte_leaves_the_whole_records(tmp_path: Path) -> None:
    """However much of the journal reached the disk, the whole lines before the cut are kept and the run can go on."""
    folder = write(tmp_path / "out")
    lines = (folder / LINES).read_bytes()
    ends = [index + 1 for index, byte in enumerate(lines) if byte == ord("\n")]
    for size in range(len(lines) + 1):
        (folder / LINES).write_bytes(lines[:size])
        assert found(folder) == list(RECORDS)[: max(sum(end <= size for end in ends) - 1, 0)]
        with Journal(folder, IDENTITY) as journal:
            journal.append("cc", *RECORDS["cc"])
        assert "cc" in found(folder)


def test_a_record_whose_data_is_cut_or_changed_is_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "out")
    data = (folder / DATA).read_bytes()
    (folder / DATA).write_bytes(data[:-1])
    assert found(folder) == ["aa", "cc"]
    (folder / DATA).write_bytes(b"C" + data[1:])
    assert found(folder) == ["bb", "cc"]
    with Journal(folder, IDENTITY) as journal:
        journal.append("aa", *RECORDS["aa"])
    assert found(folder) == ["aa", "bb", "cc"]


def test_another_run_is_refused_and_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "out")
    refused("size 64x64 there, 32x32 now", folder, {**IDENTITY, "size": "32x32"})
    refused(r"groups \[1, 4\] there, \[4\] now", folder, {**IDENTITY, "groups": [4]})
    refused("graphs_sha256 aaaaaaaaaaaa... there", folder, {**IDENTITY, "graphs_sha256": "b" * 64})
    assert found(folder) == ["aa", "bb", "cc"]


def test_an_empty_journal_may_be_reused(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", IDENTITY):
        pass
    with Journal(tmp_path / "out", {**IDENTITY, "size": "32x32"}) as journal:
        journal.append("aa", *RECORDS["aa"])
    refused("size 32x32 there", tmp_path / "out")


def test_folders_that_are_no_journal_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("x")
    refused("is not empty and holds no evaluation", tmp_path / "full")
    (tmp_path / "file").write_text("x")
    refused("cannot make the folder", tmp_path / "file")


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"sha256": "aa"}', "7"])
@pytest.mark.parametrize("number", [1, 2])
def test_damage_inside_is_named(number: int, line: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "out")
    lines = (folder / LINES).read_text().splitlines()
    lines[number - 1] = line
    (folder / LINES).write_text("\n".join(lines) + "\n")
    refused(f"line {number}, is (damaged|no valid JSON|no JSON object)|holds another run", folder)


def test_two_runs_cannot_write_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", IDENTITY):
        refused("another evaluation is writing", tmp_path / "out")
    assert json.loads((tmp_path / "out" / LINES).read_text().splitlines()[0])["model"] == "tiny"
