"""The images of a source, file by file, as rows of the index: key, class, where the bytes lie, and the columns carried along."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.json_files import JsonSource, parse_json
from mgvq_export.dataset import storage
from mgvq_export.dataset.sources import Fields, Source, check_text
from mgvq_export.evaluation.datasets import PATH_KEYS
from mgvq_export.evaluation.datasets import SUFFIXES as IMAGE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow as pa

#: Of each image; the carried columns follow. ``offset`` and ``length`` are of the bytes in ``path``; a whole file has length -1, and
#: in a Parquet file ``offset`` is the row's number.
COLUMNS = ("key", "class", "path", "offset", "length")
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_KEY_COLUMNS = ("key", "__key__", "id")
_LABELS = ("class", "label", "cls", "class_id", "class_name")
_WHOLE = -1
_MAX_MEMBER = 1 << 20  # of a tar's .cls, .txt or .json
_LIST_BYTES, _LIST_VALUES = 4 << 30, 50_000_000


def list_images(source: Source, fields: Fields) -> Iterator[pa.Table]:
    """Tables with :data:`COLUMNS` and ``fields.keep``, in the order of the source. Raises :class:`InputError`."""
    yield from {"folder": _folder, "list": _list, "webdataset": _tars, "parquet": _parquets}[source.kind](source, fields)


def find_image_column(source: Source, fields: Fields) -> str:
    """The column of a Parquet source that holds the images. Raises :class:`InputError` when there is none."""
    import pyarrow as pa

    place = source.files[0][0]
    schema = _parquet(place).schema_arrow
    name = _column(schema, fields.image, _IMAGE_COLUMNS, "image", place)
    if name is None:
        columns = shown(", ".join(schema.names), 300, quoted=False)
        raise InputError(
            f"{place} has no column called {', '.join(_IMAGE_COLUMNS)}; it has {columns}: choose with --image-column"
        )
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(
            f"{place}: the column {shown(name)} is {shown(str(kind), quoted=False)}, no image; wanted the bytes of image files, "
            "or a struct with such a field bytes: choose with --image-column"
        )
    return name


def _table(rows: Mapping[str, list[Any]], where: str) -> pa.Table:
    import pyarrow as pa

    types = {"key": pa.string(), "class": pa.string(), "path": pa.string(), "offset": pa.int64(), "length": pa.int64()}
    try:
        return pa.table({name: pa.array(values, types.get(name)) for name, values in rows.items()})
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(f"{where}: the values of a carried column are of several types ({shown(str(error), 200)})") from error


def _folder(source: Source, fields: Fields) -> Iterator[pa.Table]:
    if fields != Fields():
        raise InputError(f"{source.place} is a folder of images, which has no columns; leave the column options and --keep out")
    inside = [_relative(path, source.root) for path, _ in source.files]
    count = len(inside)
    yield _table(
        {
            "key": [posixpath.splitext(name)[0] for name in inside],
            "class": [name.partition("/")[0] if "/" in name else None for name in inside],
            "path": [path for path, _ in source.files],
            "offset": [0] * count,
            "length": [_WHOLE] * count,
        },
        source.place,
    )


def _relative(path: str, root: str) -> str:
    base = root.partition("?")[0].rstrip("/") if storage.is_remote(root) else root.rstrip("/")
    name = (path.partition("?")[0] if storage.is_remote(path) else path).removeprefix(base)
    return name.lstrip("/")


def _list(source: Source, fields: Fields) -> Iterator[pa.Table]:
    place = source.files[0][0]
    rows: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *fields.keep)}
    for where, entry in _entries(place):
        values: Mapping[str, Any] = {"path": entry} if isinstance(entry, str) else entry if isinstance(entry, dict) else {}
        names = (fields.image,) if fields.image else PATH_KEYS
        path = next((values[name] for name in names if name in values), None)
        if not isinstance(path, str) or not path:
            raise InputError(
                f"{where} has no path of an image: {shown(entry)}; wanted a path, or an object with {', '.join(names)}"
            )
        check_text(path, f"{where}: the path")
        key = _value(values, fields.key, ("key",), where) or posixpath.splitext(path)[0]
        missing = [name for name in fields.keep if name not in values]
        if missing:
            raise InputError(f"{where} has no {shown(missing[0])}, which --keep names")
        for name, value in zip(
            COLUMNS, (key, _value(values, fields.label, _LABELS, where), storage.join(source.root, path), 0, _WHOLE), strict=True
        ):
            rows[name].append(value)
        for name in fields.keep:
            value = values[name]
            rows[name].append(json.dumps(value) if isinstance(value, (dict, list)) else value)
    yield _table(rows, place)


def _entries(place: str) -> Iterator[tuple[str, Any]]:
    """(where, entry) of a list: lines of text, JSON lines, or one JSON list (also in the values of an object)."""
    suffix = posixpath.splitext(place.partition("?")[0])[1].lower()
    data = storage.read_bytes(place, max_bytes=_LIST_BYTES)
    if suffix == ".json":
        content = parse_json(data, JsonSource(place, "give a list of paths", max_bytes=_LIST_BYTES, max_values=_LIST_VALUES))
        for name, entries in content.items() if isinstance(content, dict) else [("", content)]:
            if not isinstance(entries, list):
                raise InputError(
                    f"{place} is no list of images; wanted a list of paths, or an object whose values are such lists"
                )
            yield from ((f"{place}: {shown(name, quoted=False)}[{index}]", entry) for index, entry in enumerate(entries))
        return
    for number, line in enumerate(data.splitlines(), 1):
        where = f"{place}, line {number}"
        if not line.strip():
            continue
        if suffix in (".jsonl", ".ndjson"):
            yield where, parse_json(line, JsonSource(where, "wanted one JSON object or path a line"))
            continue
        try:
            yield where, line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise InputError(f"{where} is no valid UTF-8 text; write one path a line") from None


def _value(values: Mapping[str, Any], name: str | None, usual: tuple[str, ...], where: str) -> str | None:
    """The text or whole number under ``name``, or under one of the usual names; None where there is none."""
    if name is not None and name not in values:
        raise InputError(f"{where} has no {shown(name)}; it has {shown(', '.join(map(str, values)), 200, quoted=False)}")
    value = values[name] if name is not None else next((values[each] for each in usual if each in values), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{where}: {shown(name or '/'.join(usual))} is {shown(value)}; wanted text or a whole number")
    return check_text(str(value), f"{where}: the value")


def _tars(source: Source, fields: Fields) -> Iterator[pa.Table]:
    for place, _ in source.files:
        yield _tar(place, fields)


def _tar(place: str, fields: Fields) -> pa.Table:
    """The samples of one tar: members of one name stand together, the file's name up to its first dot is the key."""
    from webdataset.tariterators import base_plus_ext

    wanted = {fields.image.lower()} if fields.image else {suffix[1:] for suffix in IMAGE_SUFFIXES}
    label = fields.label or "cls"
    rows: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *fields.keep)}
    values: dict[str, str | None] = {}
    image: tarfile.TarInfo | None = None
    current: str | None = None

    def finish() -> None:
        if image is None or current is None:
            return
        key = _value(_json_member(values, place, current), fields.key, (), place) if fields.key else current
        found = (key, values.get(label), place, image.offset_data, image.size)
        for name, value in zip(COLUMNS, found, strict=True):
            rows[name].append(value)
        for name in fields.keep:
            rows[name].append(values.get(name))

    try:
        with storage.open_file(place) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, suffix = base_plus_ext(member.name) if member.isreg() else (None, None)
                if key is None or suffix is None or posixpath.basename(key).startswith("__"):
                    continue
                if key != current:
                    finish()
                    current, image, values = key, None, {}
                if suffix.lower() in wanted:
                    if image is not None:
                        raise InputError(f"{place}: the sample {shown(key)} has several images; choose with --image-column")
                    check_text(key, f"{place}: the key")
                    image = member
                elif suffix == label or suffix in fields.keep or (fields.key and suffix == "json"):
                    if member.size > _MAX_MEMBER:
                        raise InputError(
                            f"{place}: {shown(member.name)} has {member.size:,} bytes; at most {_MAX_MEMBER:,} are carried"
                        )
                    content = tar.extractfile(member)
                    values[suffix] = content.read().decode("utf-8").strip() if content else None
            finish()
    except (tarfile.TarError, EOFError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"cannot read {place}: it is no tar file, compressed, or damaged ({shown(' '.join(str(error).split()), 200, quoted=False)})"
        ) from error
    return _table(rows, place)


def _json_member(values: Mapping[str, str | None], place: str, key: str) -> dict[str, Any]:
    content = parse_json(values.get("json") or "{}", JsonSource(f"{place}: {shown(key)}.json", "repair the tar"))
    return content if isinstance(content, dict) else {}


def _parquet(place: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(storage.open_file(place))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {place}: it is no Parquet file, or damaged ({shown(str(error), 200)})") from error


def _column(schema: pa.Schema, name: str | None, usual: tuple[str, ...], what: str, place: str) -> str | None:
    if name is not None and name not in schema.names:
        columns = shown(", ".join(schema.names), 300, quoted=False)
        raise InputError(f"{place} has no column {shown(name)}; it has {columns}: choose with --{what}-column")
    return name or next((each for each in usual if each in schema.names), None)


def _parquets(source: Source, fields: Fields) -> Iterator[pa.Table]:
    import pyarrow as pa

    for place, _ in source.files:
        file = _parquet(place)
        schema, count = file.schema_arrow, file.metadata.num_rows
        key = _column(schema, fields.key, _KEY_COLUMNS, "key", place)
        label = _column(schema, fields.label, _LABELS, "class", place)
        for name in fields.keep:
            _column(schema, name, (), "keep", place)
        read = file.read(columns=[name for name in dict.fromkeys((key, label, *fields.keep)) if name])
        stem = posixpath.splitext(_relative(place, source.root))[0]
        columns: dict[str, Any] = {
            "key": _texts(read.column(key), key, place)
            if key
            else pa.array([f"{stem}/{row:08d}" for row in range(count)], pa.string()),
            "class": _texts(read.column(label), label or "", place) if label else pa.nulls(count, pa.string()),
            "path": pa.array([place] * count, pa.string()),
            "offset": pa.array(range(count), pa.int64()),
            "length": pa.array([_WHOLE] * count, pa.int64()),
        }
        yield pa.table(columns | {name: read.column(name) for name in fields.keep})


def _texts(column: Any, name: str, place: str) -> Any:
    """A column of text or whole numbers as text."""
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise InputError(f"{place}: the column {shown(name)} is {shown(str(kind), quoted=False)}; wanted text or whole numbers")
    return column.cast(pa.string())
