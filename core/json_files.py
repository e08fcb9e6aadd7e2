"""Reading JSON into typed values: bounded in size and depth, checked against dataclasses, and refused in one line.

Every JSON document that the project reads passes through here. What is wrong is said with the path of the key::

    b/manifest.json is damaged: precisions.fp32.weights.bytes: expected int, got str; export the bundle again
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar, overload

import msgspec

from mgvq_export.core.errors import InputError, MgvqError, shown
from mgvq_export.core.files import PathLike, unreadable
from mgvq_export.core.types import JsonObject

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

MAX_BYTES = 8 << 20
MAX_DEPTH = 32
MAX_VALUES = 500_000

_PLACE = re.compile(r"(?: - at )?(?:`key` in )?`(\$[^`]*)`$")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


@dataclass(frozen=True)
class JsonSource:
    """Where a JSON document comes from, and how its faults are told.

    Attributes:
        where: what messages call it, such as its path.
        remedy: what to do about a damaged one, such as ``export the bundle again``.
        error: the error to raise.
        max_bytes: largest size of the document.
        max_depth: deepest nesting of lists and objects.
        max_values: most values in all, lists and objects included.
    """

    where: str
    remedy: str
    error: type[MgvqError] = InputError
    max_bytes: int = MAX_BYTES
    max_depth: int = MAX_DEPTH
    max_values: int = MAX_VALUES

    def fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        """Raise :attr:`error`: ``where what; remedy``."""
        raise self.error(f"{self.where} {what}; {self.remedy}") from cause


def read_json(path: PathLike, source: JsonSource) -> object:
    """The JSON document in the file ``path``, as plain values; see :func:`parse_json`.

    Raises :class:`InputError` when the file cannot be read, is no regular file or is larger than ``source.max_bytes``, and
    ``source.error`` when it is no such JSON. :class:`FileNotFoundError` passes through only as the cause.
    """
    return parse_json(read_bounded(path, source.max_bytes), source)


def read_bounded(path: PathLike, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most ``max_bytes``. Raises :class:`InputError`; a pipe or device is refused, not waited for."""
    try:
        # O_NONBLOCK: opening a pipe that nothing writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"cannot read {path}: it is no regular file; give the name of a file")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"cannot read {shown(str(path))}: {error}") from error
    if len(data) > max_bytes:
        raise InputError(f"cannot read {path}: it is larger than {max_bytes:,} bytes, the most such a file can have")
    return data


def parse_json(data: bytes | str, source: JsonSource) -> object:
    """The JSON document in ``data``, as plain values.

    Refused beyond JSON's own grammar: NaN and infinite numbers, keys that stand twice in one object, nesting deeper than
    ``source.max_depth``, and text that is no valid Unicode. Raises ``source.error``.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        values: object = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
    except _Refused as error:
        source.fail(f"is damaged: {error}", error)
    except RecursionError as error:
        source.fail("is nested too deeply", error)
    except ValueError as error:  # also UnicodeDecodeError, and whole numbers of thousands of digits
        source.fail(f"is no valid JSON: {shown(' '.join(str(error).split()), 200)}", error)
    check_plain(values, source)
    return values


def check_plain(values: object, source: JsonSource) -> None:
    """Refuse nesting deeper than ``source.max_depth``, too many values, and text that cannot be written as UTF-8."""
    seen = 0
    level: list[object] = [values]
    for depth in range(source.max_depth + 2):
        seen += len(level)
        if seen > source.max_values:
            source.fail(f"is damaged: it holds more than {source.max_values:,} values")
        if not level:
            return
        if depth > source.max_depth:
            break
        deeper: list[object] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value, source)
            elif isinstance(value, Mapping):
                for key in value:
                    if isinstance(key, str):
                        _check_text(key, source)
                deeper.extend(value.values())
            elif isinstance(value, (list, tuple)):
                deeper.extend(value)
            if len(deeper) > source.max_values:
                source.fail(f"is damaged: it holds more than {source.max_values:,} values")
        level = deeper
    source.fail(f"is nested more than {source.max_depth} deep")


def convert_json(values: object, to: type[T], source: JsonSource) -> T:
    """Plain ``values`` as the dataclass (or other type) ``to``. Raises ``source.error`` with the path of the key that is wrong.

    Keys that ``to`` does not know are ignored. What ``to`` refuses itself with a ValueError or :class:`MgvqError` is told likewise.
    """
    try:
        return msgspec.convert(values, to)
    except msgspec.ValidationError as error:
        place, problem = _explained(error, values, to)
        source.fail(f"is damaged: {place}{problem}", error)
    except MgvqError as error:
        source.fail(f"is damaged: {error}", error)


@overload
def to_json(value: DataclassInstance | Mapping[str, object]) -> JsonObject: ...


@overload
def to_json(value: list[T] | tuple[T, ...]) -> list[object]: ...


@overload
def to_json(value: object) -> object: ...


def to_json(value: object) -> object:
    """A dataclass, or what is made of dataclasses, mappings and sequences, as JSON-ready values in the order of its fields.

    JSON has no NaN and no infinity: such numbers become text, ``"nan"`` or ``"inf"``.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(inner) for inner in value]
    # getattr, since msgspec leaves fields that have their defaults out of __dict__.
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return {name: to_json(getattr(value, name)) for name in fields}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def json_bytes(values: object) -> bytes:
    """JSON as the project writes it: two spaces, a final newline."""
    return (json.dumps(values, indent=2) + "\n").encode()


class _Refused(ValueError):
    pass


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    """A JSON object. A key that stands there twice is refused: all but its last value would be lost silently."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Refused(f"the key {shown(twice)} is given more than once in one object; leave one of them")
    return values


def _finite(text: str) -> float:
    """A JSON number; NaN, Infinity and what is too large for a float are refused: they could not be written as JSON again."""
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"it holds the number {text[:40]}; wanted finite numbers, or null for none")
    return value


def _check_text(text: str, source: JsonSource) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            source.fail(f"is damaged: the text {shown(text)} is no valid Unicode", error)
    if "\0" in text:
        source.fail(f"is damaged: the text {shown(text)} holds a NUL")


def _explained(error: msgspec.ValidationError, values: object, to: type[object]) -> tuple[str, str]:
    """The path of the key that is wrong, ending in a colon (empty for the document itself), and what is wrong with it."""
    text = str(error)
    found = _PLACE.search(text)
    problem = text[: found.start()] if found else text
    is_key = found is not None and "`key` in" in found[0]
    steps = [match[1] or match[2] for match in _STEP.finditer(found[1])] if found else []
    if "..." in steps or is_key:
        steps = list(_narrowed(values, to, steps, text, is_key))
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in map(_step, steps)).lstrip(".")
    problem = problem.replace("`", "").strip().replace("Object missing required field", "it lacks the key")
    problem = problem[:1].lower() + problem[1:]
    return (f"{place}: " if place else ""), shown(problem, 240, quoted=False)


def _step(step: str) -> int | str:
    return int(step) if step.isascii() and step.isdigit() else shown(step, 60, quoted=False)


def _narrowed(values: object, to: type[object], steps: list[str], text: str, is_key: bool) -> Iterator[str]:
    """``steps`` with the keys that msgspec writes as ``...``: halve the object until the one that is wrong is left."""
    here = values
    path: list[str] = []

    def replaced(inner: Mapping[str, object]) -> object:
        return _replaced(values, path, inner)

    for step in [*steps, "..."] if is_key else steps:
        if step == "..." and isinstance(here, Mapping) and here:
            step = _wrong_key(here, lambda inner: _same_fault(replaced(inner), to, text))
        yield step
        path.append(step)
        if isinstance(here, Mapping):
            here = here.get(step)
        elif isinstance(here, (list, tuple)) and step.isdigit():
            here = here[int(step)]


def _wrong_key(values: Mapping[str, object], wrong: Callable[[Mapping[str, object]], bool]) -> str:
    keys = list(values)
    while len(keys) > 1:
        half = keys[: len(keys) // 2]
        keys = half if wrong({key: values[key] for key in half}) else keys[len(half) :]
    return str(keys[0])


def _same_fault(values: object, to: type[object], text: str) -> bool:
    try:
        msgspec.convert(values, to)
    except msgspec.ValidationError as error:
        return str(error) == text
    except MgvqError:
        return False
    return False


def _replaced(values: object, path: list[str], inner: object) -> object:
    """``values`` with ``inner`` at ``path``; what is not on the path is shared."""
    if not path:
        return inner
    first, rest = path[0], path[1:]
    if isinstance(values, Mapping):
        return {**values, first: _replaced(values[first], rest, inner)}
    assert isinstance(values, (list, tuple))
    index = int(first)
    return [*values[:index], _replaced(values[index], rest, inner), *values[index + 1 :]]
