"""Damaged documents from fixed seeds: JSON with one value changed, and files with bytes changed."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mgvq_export.core.errors import MgvqError
from mgvq_export.tests.support.checks import one_line

#: What a value is replaced by: wrong types, numbers at and beyond all limits, text that no terminal should be given.
REPLACEMENTS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, -1e-320, float("nan"), float("inf"),
    "", "x", "a\nb", "\x1b[31mred", "\u202eevil", "\ud800", "nul\0", "x" * 5000, "../../etc/passwd", "1", "NaN",
    [], [[]], [None], [1, "x"], {}, {"x": 1}, {"": {}},
)  # fmt: skip


def places(value: object, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside a JSON document, itself included."""
    yield where
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*where, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*where, index))


def mutations(document: object, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """``count`` times the document with one value replaced, removed or doubled, as (what was changed, JSON)."""
    chooser = random.Random(seed)
    known = list(places(document))
    for _ in range(count):
        where = chooser.choice(known)
        changed: Any = copy.deepcopy(document)
        kind = chooser.choice(("replace", "replace", "replace", "remove", "double"))
        new = chooser.choice(REPLACEMENTS)
        if not where:
            kind, changed = "replace", new
        else:
            holder = changed
            for step in where[:-1]:
                holder = holder[step]
            if kind == "replace":
                holder[where[-1]] = new
            elif kind == "remove":
                del holder[where[-1]]
            elif isinstance(holder, list):
                holder.append(copy.deepcopy(holder[where[-1]]))
            else:
                holder[f"{where[-1]}{chooser.choice(('2', ' ', chr(10)))}"] = copy.deepcopy(holder[where[-1]])
        yield f"{kind} {where} {new!r:.60}", json.dumps(changed).encode()


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """``count`` times ``data`` cut, with bytes changed, or with a stretch repeated, as (what was changed, bytes)."""
    chooser = random.Random(seed)
    for _ in range(count):
        at = chooser.randrange(len(data) + 1)
        kind = chooser.choice(("cut", "byte", "repeat"))
        if kind == "cut":
            yield f"cut at {at}", data[:at]
        elif kind == "byte":
            changed = bytearray(data)
            for _ in range(chooser.randrange(1, 4)):
                changed[chooser.randrange(len(data))] = chooser.randrange(256)
            yield f"bytes changed near {at}", bytes(changed)
        else:
            yield f"repeated from {at}", data[:at] + data[max(0, at - 40) : at] + data[at:]


def assert_read_or_refused(read: Callable[[], object], what: str) -> bool:
    """``read`` ends well, or raises a :class:`MgvqError` of one line, not too long. Gives whether it ended well."""
    try:
        read()
    except MgvqError as error:
        text = str(error)
        assert one_line(text), (what, text)
        assert text.isprintable(), (what, text)
        assert len(text) < 1000, (what, len(text))
        return False
    except Exception as error:
        pytest.fail(f"{what}: {type(error).__name__}: {error!s:.300}")
    return True
