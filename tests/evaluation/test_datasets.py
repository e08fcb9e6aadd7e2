"""Which images a folder or a JSON list gives, and samples of them."""

import json
import os
from pathlib import Path

import pytest

from mgvq_export.core.errors import InputError
from mgvq_export.evaluation.datasets import Dataset
from mgvq_export.tests.support.checks import one_line


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def names(dataset: Dataset) -> list[str]:
    return [item.name for item in dataset.items]


def refused(match: str, *arguments: object, **options: object) -> None:
    with pytest.raises(InputError, match=match) as error:
        Dataset.find(*arguments, **options)  # type: ignore[arg-type]
    assert one_line(str(error.value))


def test_folders_are_searched_with_their_class_folders(tmp_path: Path) -> None:
    folder = touch(tmp_path / "val", "n02/b.JPEG", "n01/c.png", "a.webp", "notes.txt", ".hidden.png", ".cache/x.png")
    dataset = Dataset.find(folder)
    assert names(dataset) == ["a.webp", "n01/c.png", "n02/b.JPEG"]
    assert [item.path for item in dataset.items] == [folder / name for name in names(dataset)]
    assert dataset.found == 3


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_class_folders_are_followed_and_cycles_end(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "x.png")
    folder = touch(tmp_path / "val", "a.png")
    (folder / "n01").symlink_to(tmp_path / "elsewhere")
    (folder / "up").symlink_to(folder)
    assert names(Dataset.find(folder)) == ["a.png", "n01/x.png"]


@pytest.mark.parametrize(
    "content",
    [
        ["LIU4k/2.png", "HRSOD/1.jpg"],
        [{"path": "LIU4k/2.png"}, {"file_name": "HRSOD/1.jpg", "width": 3}],
        {"LIU4k": ["LIU4k/2.png"], "HRSOD": ["HRSOD/1.jpg"]},
        {"images": [{"file_name": "LIU4k/2.png"}, {"image": "HRSOD/1.jpg"}]},
    ],
    ids=["paths", "objects", "uhdbench", "coco"],
)
def test_json_lists(content: object, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(content))
    dataset = Dataset.find(tmp_path / "list.json")
    assert names(dataset) == ["HRSOD/1.jpg", "LIU4k/2.png"]
    assert dataset.items[0].path == tmp_path / "HRSOD/1.jpg"
    elsewhere = Dataset.find(tmp_path / "list.json", root=tmp_path / "disk")
    assert elsewhere.items[0].path == tmp_path / "disk/HRSOD/1.jpg"


def test_samples_are_nested_and_depend_on_names_and_seed_alone(tmp_path: Path) -> None:
    listed = [f"{number}.png" for number in range(40)]
    (tmp_path / "a.json").write_text(json.dumps(listed))
    (tmp_path / "b.json").write_text(json.dumps(listed[::-1]))
    ten = names(Dataset.find(tmp_path / "a.json", limit=10))
    assert ten == names(Dataset.find(tmp_path / "b.json", limit=10))
    assert ten == sorted(ten)
    assert len(set(ten)) == 10
    assert set(ten) < set(names(Dataset.find(tmp_path / "a.json", limit=20)))
    assert ten != names(Dataset.find(tmp_path / "a.json", limit=10, seed=1))
    assert Dataset.find(tmp_path / "a.json", limit=10).found == 40


def test_bad_datasets_are_one_line(tmp_path: Path) -> None:
    refused("does not exist", tmp_path / "missing")
    refused("holds no image", touch(tmp_path / "empty", "notes.txt"))
    refused("is no folder and no .json list", touch(tmp_path / "x", "a.png") / "a.png")
    refused("has 1 images; wanted 2", tmp_path / "x", limit=2)
    refused("leave it out", tmp_path / "x", root=tmp_path)
    lists = {
        "{": "no valid JSON",
        "[]": "lists no image",
        '{"a": []}': "lists no image",
        "[3]": "entry without a path",
        '[{"x": "y"}]': "entry without a path",
        '{"a": "b.png"}': "is no list of images",
        '"b.png"': "is no list of images",
    }
    for number, (content, match) in enumerate(lists.items()):
        (tmp_path / f"{number}.json").write_text(content)
        refused(match, tmp_path / f"{number}.json")
    refused("no such file", tmp_path / "no.json")
