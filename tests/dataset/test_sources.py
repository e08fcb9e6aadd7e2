"""Every kind of source gives the same codes; what is no source is refused in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.dataset.sources import Fields
from mgvq_export.dataset.tokenize import TokenizeOptions, tokenize_dataset
from mgvq_export.tests.support.token_shards import failure_rows, token_rows

RUN = {"backend": "ort-cpu", "threads": 1}


def tokenized(bundle: Bundle, source: object, output: Path, **options: object) -> list[dict]:
    summary = tokenize_dataset(bundle.path, str(source), output, TokenizeOptions(run=RUN, shard_size=5, batch=4, **options))
    assert summary.failures == []
    return token_rows(output)


def check_codes(rows: list[dict], expected: dict[int, np.ndarray], order: list[int]) -> None:
    assert len(rows) == len(order)
    for row, index in zip(rows, order, strict=True):
        shape = row["groups"], row["grid_height"], row["grid_width"]
        np.testing.assert_array_equal(np.array(row["codes"], np.uint16).reshape(shape), expected[index])
        assert (row["height"], row["width"]) == (32 + 16 * (index % 2), 40)


BY_CLASS = [index for label in range(3) for index in range(label, 12, 3)]  # the order of the sub-folders


def test_a_folder(tiny_bundle: Bundle, images: Path, expected: dict, tmp_path: Path) -> None:
    rows = tokenized(tiny_bundle, images, tmp_path / "out")
    check_codes(rows, expected, BY_CLASS)
    assert [row["key"] for row in rows] == [f"class{index % 3}/{index:04d}" for index in BY_CLASS]
    assert [(row["class"], row["class_id"]) for row in rows] == [(f"class{index % 3}", index % 3) for index in BY_CLASS]
    assert failure_rows(tmp_path / "out") == []


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json"])
def test_a_list(tiny_bundle: Bundle, lists: dict[str, Path], expected: dict, tmp_path: Path, kind: str) -> None:
    keep = ("stars",) if kind == "jsonl" else ()
    rows = tokenized(tiny_bundle, lists[kind], tmp_path / "out", fields=Fields(keep=keep))
    check_codes(rows, expected, BY_CLASS)
    if kind == "jsonl":
        assert [(row["key"], row["stars"]) for row in rows] == [(f"k{place}", place) for place in range(12)]
        assert rows[0]["class"] == "class0"
    else:
        assert rows[0]["key"] == "photos/class0/0000" and rows[0]["class"] is None


def test_a_list_below_another_root(tiny_bundle: Bundle, images: Path, expected: dict, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("class0/0000.png\nclass1/0001.png\n")
    check_codes(tokenized(tiny_bundle, tmp_path / "names.txt", tmp_path / "out", root=str(images)), expected, [0, 1])


@pytest.mark.parametrize("name", ["", "{000..001}.tar", "*.tar"])
def test_tars(tiny_bundle: Bundle, tars: Path, expected: dict, tmp_path: Path, name: str) -> None:
    rows = tokenized(tiny_bundle, f"{tars}/{name}", tmp_path / "out", fields=Fields(keep=("txt",)))
    check_codes(rows, expected, list(range(12)))
    assert [(row["key"], row["class_id"], row["txt"]) for row in rows] == [(f"{i:04d}", i % 3, f"image {i}") for i in range(12)]


@pytest.mark.parametrize("batch", [1, 16])
def test_parquet(tiny_bundle: Bundle, parquet: Path, expected: dict, tmp_path: Path, batch: int) -> None:
    options = TokenizeOptions(run=RUN, shard_size=5, batch=batch, fields=Fields(keep=("caption",)))
    tokenize_dataset(tiny_bundle.path, parquet, tmp_path / "out", options)
    rows = token_rows(tmp_path / "out")
    check_codes(rows, expected, list(range(12)))
    assert [(row["key"], row["class_id"], row["caption"]) for row in rows] == [
        (f"train-{i // 6}/{i % 6:08d}", i % 3, f"image {i}") for i in range(12)
    ]


def test_parquet_with_plain_bytes_and_a_column_of_keys(
    tiny_bundle: Bundle, parquet: Path, expected: dict, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pq.read_table(parquet / "train-0.parquet")
    plain = pa.table({"pixels": [image["bytes"] for image in found.column("image").to_pylist()], "name": list("abcdef")})
    pq.write_table(plain, tmp_path / "plain.parquet")
    rows = tokenized(tiny_bundle, tmp_path / "plain.parquet", tmp_path / "out", fields=Fields(image="pixels", key="name"))
    check_codes(rows, expected, list(range(6)))
    assert [row["key"] for row in rows] == list("abcdef")
    assert rows[0]["class"] is None and rows[0]["class_id"] is None


def test_any_file_system_that_fsspec_knows(tiny_bundle: Bundle, images: Path, tars: Path, expected: dict, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(images), "/bucket/photos", recursive=True)
    memory.put(str(tars), "/bucket/tars", recursive=True)
    rows = tokenized(tiny_bundle, "memory://bucket/photos", tmp_path / "folder")
    check_codes(rows, expected, BY_CLASS)
    assert rows[0]["key"] == "class0/0000" and rows[0]["class"] == "class0"
    check_codes(tokenized(tiny_bundle, "memory://bucket/tars/*.tar", tmp_path / "tars"), expected, list(range(12)))


def test_size_is_that_of_eval(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    from mgvq_export.evaluation.protocol import resize_and_crop
    from mgvq_export.runtime.image_files import read_image
    from mgvq_export.runtime.tokenizer import Tokenizer

    rows = tokenized(tiny_bundle, images, tmp_path / "out", size="32x16")
    assert {(row["height"], row["width"]) for row in rows} == {(16, 32)}
    with Tokenizer.open(tiny_bundle, **RUN) as tokenizer:
        tokens = tokenizer.encode(resize_and_crop(read_image(images / "class0" / "0000.png"), (32, 16)))
    assert rows[0]["codes"] == tokens.codes.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no images in .*wanted a folder of images"),
        (
            lambda folder: (folder / "x.tar").write_bytes(b"") or (folder / "x.png").write_bytes(b""),
            "several kinds .*folder, webdataset",
        ),
        (lambda folder: [(folder / f"x.{s}").write_bytes(b"") for s in ("png", "jpg")], "two images have the key 'x'"),
        (lambda folder: (folder / "x.tar").write_bytes(b"not a tar" * 200), "no tar file, compressed, or damaged"),
        (lambda folder: (folder / "x.parquet").write_bytes(b"no"), "no Parquet file, or damaged"),
    ],
    ids=["nothing", "several kinds", "two of one key", "no tar", "no parquet"],
)
def test_bad_folders(tiny_bundle: Bundle, tmp_path: Path, make, message: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    make(folder)
    with pytest.raises(InputError, match=message):
        tokenized(tiny_bundle, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_columns(tiny_bundle: Bundle, parquet: Path, lists: dict[str, Path], images: Path, tmp_path: Path) -> None:
    for source, fields, message in (
        (parquet, Fields(image="label"), "column 'label' is int64, no image"),
        (parquet, Fields(image="nothing"), "no column 'nothing'; it has image, label, caption: choose with --image-column"),
        (parquet, Fields(keep=("codes",)), "a column of the result itself"),
        (lists["jsonl"], Fields(keep=("moon",)), "line 1 has no 'moon'"),
        (lists["jsonl"], Fields(image="moon"), "line 1 has no path of an image"),
        (images, Fields(key="x"), "has no columns"),
        (images.parent / "none", Fields(), "does not exist"),
        (images / "class0" / "0000.png", Fields(), ""),
    ):
        if not message:
            continue
        with pytest.raises(InputError, match=message):
            tokenized(tiny_bundle, source, tmp_path / "out", fields=fields)
        assert not (tmp_path / "out").exists()


def test_the_result_must_not_join_the_source(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "photos")
    with pytest.raises(InputError, match="inside the source"):
        tokenized(tiny_bundle, tmp_path / "photos", tmp_path / "photos" / "out")


def test_a_pipe_in_a_list_does_not_stop_the_run(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.txt").write_text(f"pipe.png\n{images}/class0/0000.png\n")
    summary = tokenize_dataset(tiny_bundle.path, tmp_path / "list.txt", tmp_path / "out", TokenizeOptions(run=RUN))
    assert summary.manifest.counts.tokenized == 1
    assert "no regular file" in summary.failures[0][2]
