"""Every format of the result is read by the library it is for, and holds the same codes."""

import json
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.tokens import Tokens
from mgvq_export.dataset.manifest import read_manifest
from mgvq_export.dataset.sources import Fields
from mgvq_export.dataset.tokenize import Summary, TokenizeOptions, tokenize_dataset
from mgvq_export.tests.support.token_shards import token_rows

RUN = {"backend": "ort-cpu", "threads": 1}
BY_CLASS = [index for label in range(3) for index in range(label, 12, 3)]


def tokenized(bundle: Bundle, source: Path, output: Path, **options: object) -> Summary:
    return tokenize_dataset(bundle.path, source, output, TokenizeOptions(run=RUN, shard_size=5, **options))


def test_parquet_has_plain_types_for_every_reader(tiny_bundle: Bundle, images: Path, expected: dict, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.dataset as pads

    tokenized(tiny_bundle, images, tmp_path / "out")
    found = pads.dataset(tmp_path / "out" / "tokens").to_table()
    assert found.schema.field("codes").type == pa.list_(pa.uint16())
    assert found.schema.metadata[b"mgvq_codebook_sha256"].decode() == tiny_bundle.codebook_sha256
    assert found.num_rows == 12


def test_webdataset_reads_the_tars(tiny_bundle: Bundle, images: Path, expected: dict, tmp_path: Path) -> None:
    import webdataset as wds

    tokenized(tiny_bundle, images, tmp_path / "out", format="webdataset")
    shards = [str(path) for path in sorted((tmp_path / "out" / "tokens").glob("*.tar"))]
    assert len(shards) == 3
    samples = list(wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"class{index % 3}/{index:04d}" for index in BY_CLASS]
    for sample, index in zip(samples, BY_CLASS, strict=True):
        assert sample["token.npy"].dtype == np.uint16
        np.testing.assert_array_equal(sample["token.npy"], expected[index])
        assert sample["cls"] == index % 3
        assert sample["json"]["width"] == 40


def test_a_key_with_dots_stays_whole_in_a_tar(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    import webdataset as wds

    (tmp_path / "list.jsonl").write_text(json.dumps({"path": f"{images}/class0/0000.png", "key": "v1.0/a.b%c"}) + "\n")
    tokenized(tiny_bundle, tmp_path / "list.jsonl", tmp_path / "out", format="webdataset")
    (shard,) = (tmp_path / "out" / "tokens").glob("*.tar")
    with pytest.raises(StopIteration):
        samples = iter(wds.WebDataset(str(shard), shardshuffle=False, empty_check=False).decode())
        sample = next(samples)
        assert sample["json"]["key"] == "v1.0/a.b%c"
        assert {"token.npy", "json"} <= set(sample)
        next(samples)


def test_jsonl_is_as_titok_reads_it(tiny_bundle: Bundle, images: Path, expected: dict, tmp_path: Path) -> None:
    tokenized(tiny_bundle, images, tmp_path / "out", format="jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out" / "pretokenized.jsonl").read_text().splitlines()]
    assert lines == [{"class_id": index % 3, "tokens": expected[index].reshape(-1).tolist()} for index in BY_CLASS]


def test_npy_is_as_llamagen_reads_it(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index, path in enumerate(sorted(images.rglob("*.png"))):
        target = tmp_path / "photos" / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes() if index != 3 else b"damaged")
    summary = tokenized(tiny_bundle, tmp_path / "photos", tmp_path / "out", format="npy", size="32x32")
    assert len(summary.failures) == 1
    codes, labels = tmp_path / "out" / "imagenet32_codes", tmp_path / "out" / "imagenet32_labels"
    assert sorted(int(path.stem) for path in codes.iterdir()) == list(range(11))  # no gap where the damaged one was
    first = np.load(codes / "0.npy")
    assert (first.dtype, first.shape) == (np.int64, (1, 1, tiny_bundle.spec.groups * (32 // tiny_bundle.spec.downsample) ** 2))
    assert [int(np.load(labels / f"{i}.npy")[0]) for i in range(11)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_safetensors_are_token_files(tiny_bundle: Bundle, images: Path, expected: dict, tmp_path: Path) -> None:
    tokenized(tiny_bundle, images, tmp_path / "out", format="safetensors")
    files = sorted((tmp_path / "out" / "tokens").rglob("*.safetensors"))
    assert len(files) == 12
    found = Tokens.load(next(path for path in files if path.name == "0007.safetensors"))
    np.testing.assert_array_equal(found.codes, expected[7])


def test_a_key_that_is_no_name_of_a_file(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": f"{images}/class0/0000.png", "key": "../../up"}) + "\n")
    with pytest.raises(InputError, match="'../../up' cannot be the name of a token file"):
        tokenized(tiny_bundle, tmp_path / "list.jsonl", tmp_path / "out", format="safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "npy"}, "give --size"),
        ({"format": "npy", "size": "32x16"}, "square"),
        ({"format": "jsonl"}, "a class for every image"),
        ({"format": "csv"}, "choose parquet, webdataset"),
    ],
)
def test_formats_that_need_more(tiny_bundle: Bundle, lists: dict[str, Path], tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenized(tiny_bundle, lists["txt"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_what_is_there(tiny_bundle: Bundle, parquet: Path, tmp_path: Path) -> None:
    tokenized(tiny_bundle, parquet, tmp_path / "out", fields=Fields(keep=("caption",)))
    manifest = read_manifest(tmp_path / "out")
    assert manifest.complete
    assert manifest.model.codebook_sha256 == tiny_bundle.codebook_sha256
    rows = token_rows(tmp_path / "out")
    assert manifest.counts.codes == sum(len(row["codes"]) for row in rows)
    assert (manifest.counts.images, manifest.counts.tokenized, manifest.counts.failed) == (12, 12, 0)
    assert manifest.options["keep"] == ["caption"]
