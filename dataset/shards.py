"""The unit of work, the same on one machine and on Ray: a shard is read, encoded and written, and a receipt says that it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mgvq_export.core.errors import InputError, MgvqError
from mgvq_export.core.files import atomic_write_bytes, make_folder
from mgvq_export.core.json_files import JsonSource, convert_json, json_bytes, read_json, to_json
from mgvq_export.core.tokens import Tokens
from mgvq_export.dataset import storage
from mgvq_export.dataset.index import open_index
from mgvq_export.dataset.sources import Kind
from mgvq_export.dataset.writers import Format, shard_path, shard_writer, token_schema
from mgvq_export.evaluation.protocol import resize_and_crop
from mgvq_export.runtime.image_files import MAX_PIXELS, decode_image
from mgvq_export.runtime.tokenizer import OpenOptions, Tokenizer

DONE = "_done"
_READERS = 2
_BATCH_BYTES = 64 << 20  # of decoded pixels in a batch; as many again are read ahead
_LONGEST_REASON = 1000

#: Called with the images done since the last call, and how many of those failed.
Count = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What every worker must know of a run.

    Attributes:
        bundle: folder of the bundle; run: arguments of :meth:`Tokenizer.open`.
        output: folder of the result, which all workers see.
        run_id: hash of all that decides the rows.
        shards: how many there are.
        kind: of the source; image_column: of a Parquet source.
        size: (width, height) to resize and crop to; None to leave images as they are.
        as_stored: leave EXIF orientation, colour profile and alpha aside.
        batch: most images encoded together.
    """

    bundle: str
    run: OpenOptions
    output: str
    run_id: str
    shards: int
    kind: Kind
    format: Format = "parquet"
    keep: tuple[str, ...] = ()
    image_column: str = ""
    size: tuple[int, int] | None = None
    as_stored: bool = False
    batch: int = 16
    max_pixels: int = MAX_PIXELS

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        return Path(self.output)

    def shard(self, number: int) -> Path:
        """Where a shard lies."""
        return shard_path(self.folder, self.format, number, self.shards)


@dataclass(frozen=True)
class Receipt:
    """That a shard is done.

    Attributes:
        run_id: of the run's :class:`Job`.
        shard: its number; bytes: of its file, or of all files in its folder.
        rows: images in it; codes: of all these images; pixels: of the images encoded.
        failures: [key, path, reason] of the images that are not.
    """

    run_id: str
    shard: int
    bytes: int
    rows: int
    codes: int
    pixels: int
    failures: list[tuple[str, str, str]] = field(default_factory=list)


def receipt_path(folder: Path, number: int) -> Path:
    """Where the receipt of a shard lies."""
    return folder / DONE / f"{number:05d}.json"


def read_receipt(job: Job, number: int, images: int) -> Receipt | None:
    """The receipt of a shard that is done; None when it is not: no receipt, one of another run, or the shard has gone or changed."""
    path = receipt_path(job.folder, number)
    if not path.exists():
        return None
    source = JsonSource(str(path), "remove it")
    try:
        receipt = convert_json(read_json(path, source), Receipt, source)
    except InputError:
        return None  # done again
    whole = receipt.run_id == job.run_id and receipt.shard == number and receipt.rows + len(receipt.failures) == images
    return receipt if whole and _stored_bytes(job.shard(number)) == receipt.bytes else None


def _stored_bytes(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else -1


def run_shard(tokenizer: Tokenizer, job: Job, number: int, count: Count = lambda done, failed: None) -> Receipt:
    """Read, encode and write one shard, then its receipt. An image that cannot be read or encoded becomes a failure in it.

    Raises :class:`MgvqError` when the shard cannot be written, or the backend fails; nothing of it is visible then.
    """
    index = open_index(job.folder)
    rows = index.read_row_group(number).to_pylist()
    facts = {
        "mgvq_model": tokenizer.spec.name,
        "mgvq_codebook_sha256": tokenizer.bundle.codebook_sha256,
        "mgvq_codes_per_group": str(tokenizer.spec.codes_per_group),
        "mgvq_downsample": str(tokenizer.spec.downsample),
    }
    schema = token_schema(index.schema_arrow, job.keep, facts)
    path = job.shard(number)
    make_folder(path.parent)
    made = codes = pixels = 0
    failures: list[tuple[str, str, str]] = []
    with shard_writer(path, job.format, schema) as writer:
        for some, images in _batches(job, rows):
            failed = 0
            for row, found in zip(some, _encode(tokenizer, images), strict=True):
                if isinstance(found, Tokens):
                    writer.add(row, found)
                    made, codes, pixels = made + 1, codes + found.codes.size, pixels + found.image_size[0] * found.image_size[1]
                else:
                    failed += 1
                    failures.append((row["key"], row["path"], (str(found) or type(found).__name__)[:_LONGEST_REASON]))
            count(len(some), failed)
    receipt = Receipt(job.run_id, number, _stored_bytes(path), made, codes, pixels, failures)
    make_folder(receipt_path(job.folder, number).parent)
    atomic_write_bytes(receipt_path(job.folder, number), json_bytes(to_json(receipt)))
    return receipt


Row = dict[str, Any]
Read = np.ndarray | Exception


def _encode(tokenizer: Tokenizer, images: Sequence[Read]) -> list[Tokens | Exception]:
    """The tokens of the images that were read; errors stay where they are."""
    good = [image for image in images if not isinstance(image, Exception)]
    found: list[Tokens | Exception]
    try:
        found = list(tokenizer.encode_batch(good))
    except (InputError, MemoryError):  # one of them: find out which
        found = [_encode_one(tokenizer, image) for image in good]
    results = iter(found)
    return [image if isinstance(image, Exception) else next(results) for image in images]


def _encode_one(tokenizer: Tokenizer, image: np.ndarray) -> Tokens | Exception:
    try:
        return tokenizer.encode(image)
    except (InputError, MemoryError) as error:
        return error


def _batches(job: Job, rows: list[Row]) -> Iterator[tuple[list[Row], list[Read]]]:
    """The images of a shard, some at a time; the next are read and decoded meanwhile."""
    pool = ThreadPoolExecutor(_READERS, "mgvq-read")
    waiting: deque[tuple[Row, Future[Read]]] = deque()
    together = 1  # until the size of the first image is known

    def take() -> tuple[list[Row], list[Read]]:
        nonlocal together
        some = [waiting.popleft() for _ in range(min(together, len(waiting)))]
        images = [future.result() for _, future in some]
        largest = max((image.nbytes for image in images if isinstance(image, np.ndarray)), default=0)
        if largest:
            together = max(1, min(job.batch, _BATCH_BYTES // largest))
        return [row for row, _ in some], images

    try:
        for row, load in _loads(job, rows):
            waiting.append((row, pool.submit(_read, job, row, load)))
            while len(waiting) >= 2 * together:
                yield take()
        while waiting:
            yield take()
    finally:  # stopped early: what has not begun never does
        pool.shutdown(cancel_futures=True)


def _read(job: Job, row: Row, load: Callable[[], bytes]) -> Read:
    try:
        image = decode_image(load(), row["path"], max_pixels=job.max_pixels, as_stored=job.as_stored)
        return image if job.size is None else resize_and_crop(image, job.size)
    except (MgvqError, MemoryError) as error:
        return error
    except Exception as error:  # of a file system or format library: it says which image, and the others go on
        return InputError(f"cannot read {row['path']}: {' '.join(str(error).split())[:200] or type(error).__name__}")


def _loads(job: Job, rows: list[Row]) -> Iterator[tuple[Row, Callable[[], bytes]]]:
    """Each row and a function that gives the bytes of its image file."""
    if job.kind == "parquet":
        yield from _parquet_loads(job, rows)
    elif job.kind == "webdataset":
        file: Any = None
        opened = ""
        for row in rows:
            if row["path"] != opened:
                file, opened = storage.open_file(row["path"]), row["path"]
            yield row, partial(_bytes_at, file, row["offset"], row["length"])
    else:
        for row in rows:
            yield row, partial(storage.read_bytes, row["path"])


def _bytes_at(file: Any, offset: int, length: int) -> bytes:
    return bytes(file.read_at(length, offset))


def _parquet_loads(job: Job, rows: list[Row]) -> Iterator[tuple[Row, Callable[[], bytes]]]:
    """As :func:`_loads`; a Parquet file is read in the order of its rows, some at a time."""
    import pyarrow.parquet as pq

    start = 0
    while start < len(rows):
        place = rows[start]["path"]
        end = next((index for index in range(start, len(rows)) if rows[index]["path"] != place), len(rows))
        with pq.ParquetFile(storage.open_file(place), pre_buffer=False) as file:
            yield from zip(rows[start:end], _values(job, file, place, rows[start]["offset"], end - start), strict=True)
        start = end


def _values(job: Job, file: Any, place: str, first: int, count: int) -> Iterator[Callable[[], bytes]]:
    """Functions for ``count`` images of a Parquet file from row ``first`` on."""
    base, groups, skipped = 0, [], 0
    for group in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if base + size <= first:
            skipped = base + size
        elif base < first + count:
            groups.append(group)
        base += size
    row = skipped
    for batch in file.iter_batches(batch_size=job.batch, row_groups=groups, columns=[job.image_column]):
        for value in batch.column(0):
            if first <= row < first + count:
                yield partial(_bytes_of, value.as_py(), place)
            row += 1
        if row >= first + count:
            return


def _bytes_of(value: Any, place: str) -> bytes:
    if isinstance(value, dict):  # the datasets library's image: bytes, or a path beside the file
        path = value.get("path")
        value = value.get("bytes")
        if value is None and isinstance(path, str) and path:
            return storage.read_bytes(storage.join(storage.parent(place), path))
    if not isinstance(value, bytes):
        raise InputError("the row has no image")
    return value
