"""The index of a run: every image, in a fixed order, cut into shards. A file of the result's folder, written once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.files import atomic_path
from mgvq_export.dataset.listing import COLUMNS, list_images
from mgvq_export.dataset.sources import Fields, Source

if TYPE_CHECKING:
    import pyarrow as pa

INDEX = "_index.parquet"
_LEAST, _MOST = 100, 5000


def build_index(source: Source, fields: Fields) -> tuple[pa.Table, list[str]]:
    """The images of ``source``, with a column ``class_id``, and the names of the classes by their number.

    Classes that are whole numbers keep them, and have no names; others are numbered from 0 in the order of their names. Raises
    :class:`InputError` when there is no image, or two have one key.
    """
    import pyarrow as pa

    taken = [name for name in fields.keep if name in RESERVED]
    if taken or len(set(fields.keep)) < len(fields.keep):
        raise InputError(f"--keep names {shown((taken or list(fields.keep))[0])}, a column of the result itself, or one twice")
    try:
        table = pa.concat_tables(list(list_images(source, fields)))
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{source.place}: a carried column has another type in another file ({shown(str(error), 200)})"
        ) from error
    if not table.num_rows:
        raise InputError(f"no images in {source.place}; wanted at least one")
    _check_keys(table)
    ids, names = _classes(table.column("class"))
    return table.append_column("class_id", pa.array(ids, pa.int64())), names


#: Columns of the result, which no carried column may have the name of.
RESERVED = (*COLUMNS, "class_id", "height", "width", "grid_height", "grid_width", "groups", "codes", "reason")


def _check_keys(table: pa.Table) -> None:
    import pyarrow.compute as pc

    keys = table.column("key")
    if keys.null_count:
        raise InputError(f"{table.column('path')[0]}: an image has no key; wanted a name for each")
    if pc.count_distinct(keys).as_py() == table.num_rows:
        return
    twice = next(key for key, count in Counter(keys.to_pylist()).items() if count > 1)
    places = table.filter(pc.equal(keys, twice)).column("path").to_pylist()
    raise InputError(
        f"two images have the key {shown(twice, 200)}: in {shown(places[0], 300, quoted=False)} and {shown(places[1], 300, quoted=False)}; "
        "rename one, or run them apart"
    )


def _classes(column: pa.ChunkedArray) -> tuple[list[int | None], list[str]]:
    found = [name for name in column.unique().to_pylist() if name is not None]
    if all(name.removeprefix("-").isdecimal() and name.isascii() and len(name) < 19 for name in found):
        return [None if name is None else int(name) for name in column.to_pylist()], []
    names = sorted(found)
    number = {name: index for index, name in enumerate(names)}
    return [None if name is None else number[name] for name in column.to_pylist()], names


def shard_images(images: int) -> int:
    """How many images a shard has when the user does not say: a hundredth of them, 100 to 5000."""
    return min(_MOST, max(_LEAST, -(-images // 100)))


def write_index(folder: Path, table: pa.Table, shard_size: int) -> None:
    """Write the index; its row groups are the shards."""
    import pyarrow.parquet as pq

    with atomic_path(folder / INDEX) as temporary:
        pq.write_table(table, temporary, row_group_size=shard_size, compression="zstd")


def open_index(folder: Path) -> Any:
    """The index as a :class:`pyarrow.parquet.ParquetFile`. Raises :class:`InputError` when it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(folder / INDEX, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder / INDEX} is missing or damaged; remove {folder} and start again") from error
