"""Shards of tokens on the disk: Parquet files, tars for webdataset, folders of token files. Each appears whole or not at all."""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np

from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.files import atomic_folder, atomic_path
from mgvq_export.core.tokens import Tokens
from mgvq_export.core.types import JsonObject, Untyped

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["parquet", "webdataset", "safetensors", "jsonl", "npy"]
FORMATS: tuple[Format, ...] = get_args(Format)

TOKENS = "tokens"  # folder of the shards
_ROW_GROUP_BYTES = 32 << 20  # of codes


class ShardWriter(Protocol):
    """Takes the images of a shard one by one."""

    def add(self, row: Mapping[str, object], tokens: Tokens) -> None:
        """An image: its row of the index, and its tokens."""


def shard_path(folder: Path, format: Format, number: int, shards: int) -> Path:
    """Where a shard lies. ``jsonl`` and ``npy`` are made of Parquet shards at the end."""
    merged = format in ("jsonl", "npy")
    suffix = {"webdataset": ".tar", "safetensors": ""}.get(format, ".parquet")
    return folder / ("_shards" if merged else TOKENS) / f"tokens-{number:05d}-of-{shards:05d}{suffix}"


@contextmanager
def shard_writer(path: Path, format: Format, schema: pa.Schema) -> Iterator[ShardWriter]:
    """A writer to the shard ``path``, which appears when the body ends without error. ``schema``: of :func:`token_schema`."""
    if format == "safetensors":
        with atomic_folder(path, replace=True) as temporary:
            yield _TokenFiles(temporary)
        return
    with atomic_path(path) as temporary:
        if format == "webdataset":
            from webdataset import TarWriter

            with (
                temporary.open("wb") as file,
                TarWriter(file, mtime=0, encoder=False) as tar,
            ):  # no time: equal shards, equal bytes
                yield _Tar(tar)
        else:
            import pyarrow.parquet as pq

            with pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=True) as writer:
                rows = _Parquet(writer, schema)
                yield rows
                rows.flush()


def token_schema(index: pa.Schema, keep: tuple[str, ...], facts: Mapping[str, str]) -> pa.Schema:
    """The columns of a Parquet shard: those of the index that are about the image, sizes, codes. ``facts`` go into its metadata."""
    import pyarrow as pa

    fields = [index.field(name) for name in ("key", "class", "class_id")]
    fields += [pa.field(name, pa.int32()) for name in ("height", "width", "groups", "grid_height", "grid_width")]
    fields += [pa.field("codes", pa.list_(pa.uint16()))]
    return pa.schema([*fields, *(index.field(name) for name in keep)], dict(facts))


class _Parquet:
    """Rows, a row group for every 32 MiB of codes."""

    def __init__(self, writer: Untyped, schema: pa.Schema):
        self._writer, self._schema = writer, schema
        self._rows: list[tuple[Mapping[str, object], Tokens]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, object], tokens: Tokens) -> None:
        self._rows.append((row, tokens))
        self._bytes += tokens.codes.nbytes
        if self._bytes >= _ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        columns: dict[str, Untyped] = {}
        for name, of in (
            ("height", lambda tokens: tokens.image_size[0]),
            ("width", lambda tokens: tokens.image_size[1]),
            ("groups", lambda tokens: tokens.groups),
            ("grid_height", lambda tokens: tokens.grid_size[0]),
            ("grid_width", lambda tokens: tokens.grid_size[1]),
        ):
            columns[name] = [of(tokens) for _, tokens in self._rows]
        codes = [tokens.codes.reshape(-1) for _, tokens in self._rows]
        offsets = np.cumsum([0, *map(len, codes)]).astype(np.int32)
        columns["codes"] = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(codes)))
        arrays = [
            columns[field.name] if field.name == "codes"
            else pa.array(columns.get(field.name) or [row[field.name] for row, _ in self._rows], field.type)
            for field in self._schema
        ]  # fmt: skip
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0


class _Tar:
    """Samples of ``token.npy`` uint16 [G, h, w], ``json``, and ``cls`` where the image has a class."""

    def __init__(self, tar: Untyped):
        self._tar = tar

    def add(self, row: Mapping[str, object], tokens: Tokens) -> None:
        array = io.BytesIO()
        np.save(array, tokens.codes, allow_pickle=False)
        facts = {name: value for name, value in row.items() if name not in ("path", "offset", "length")}
        facts |= {"height": tokens.image_size[0], "width": tokens.image_size[1]}
        facts |= {"model": tokens.model, "codebook_sha256": tokens.codebook_sha256, "codes_per_group": tokens.codes_per_group}
        facts |= {"downsample": tokens.downsample}
        sample = {
            "__key__": tar_key(str(row["key"])),
            "token.npy": array.getvalue(),
            "json": json.dumps(facts, default=str).encode(),
        }
        if row["class_id"] is not None:
            sample["cls"] = str(row["class_id"]).encode()
        self._tar.write(sample)


def tar_key(key: str) -> str:
    """``key`` as a tar's sample can have it: a dot in the last part of the name would end it there, and is written ``%2E``."""
    folder, _, name = key.replace("%", "%25").rpartition("/")
    return f"{folder}/{name.replace('.', '%2E')}" if folder else name.replace(".", "%2E")


class _TokenFiles:
    """Token files, ``<key>.safetensors``."""

    def __init__(self, folder: Path):
        self._folder = folder

    def add(self, row: Mapping[str, object], tokens: Tokens) -> None:
        target = self._folder / f"{row['key']}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        tokens.save(target)


def check_keys(keys: list[str], format: Format) -> None:
    """Raise :class:`InputError` when a key cannot be the name of a file in a shard of ``format``."""
    if format == "safetensors":
        for key in keys:
            if (
                key.startswith("/")
                or posixpath.normpath(key) != key
                or key.split("/")[0] == ".."
                or any(len(p) > 200 for p in key.split("/"))
            ):
                raise InputError(f"the key {shown(key, 200)} cannot be the name of a token file; choose --format parquet")
    if format == "webdataset":
        for key in keys:
            if len(tar_key(key).encode()) > 90:  # the tar format of webdataset has 100 bytes for a name
                raise InputError(f"the key {shown(key, 200)} is too long for a name in a tar file; choose --format parquet")


def read_shard(path: Path, columns: list[str] | None = None) -> Iterator[JsonObject]:
    """The rows of a Parquet shard."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def write_jsonl(target: Path, shards: list[Path]) -> None:
    """One file of lines ``{"class_id", "tokens"}``, as TiTok and RAR read them."""
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for shard in shards:
            for row in read_shard(shard, ["class_id", "codes"]):
                file.write(json.dumps({"class_id": row["class_id"], "tokens": row["codes"]}) + "\n")


def write_npy(folder: Path, shards: list[Path], side: int) -> None:
    """LlamaGen's folders: ``imagenet{side}_codes/{i}.npy`` int64 [1, 1, L] and ``imagenet{side}_labels/{i}.npy`` int64 [1]."""
    codes, labels = (folder / f"imagenet{side}_{what}" for what in ("codes", "labels"))
    with atomic_folder(labels, replace=True) as new_labels, atomic_folder(codes, replace=True) as new_codes:
        number = 0
        for shard in shards:
            for row in read_shard(shard, ["class_id", "codes"]):
                np.save(new_codes / f"{number}.npy", np.array(row["codes"], np.int64)[None, None])
                np.save(new_labels / f"{number}.npy", np.array([row["class_id"]], np.int64))
                number += 1
