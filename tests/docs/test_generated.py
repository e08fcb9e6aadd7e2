"""Pages that are written from the sources say what the sources say now."""

import pytest

from mgvq_export.tools import draw_architecture, write_api_docs

MAKE = "it is older than the sources: run make docs"


def test_the_api_page() -> None:
    assert write_api_docs.TARGET.read_text(encoding="utf-8") == write_api_docs.api_docs(), MAKE


def test_the_pictures() -> None:
    assert draw_architecture.TARGET.read_text(encoding="utf-8") == draw_architecture.rooms(), MAKE
    assert draw_architecture.IMAGE_TARGET.read_text(encoding="utf-8") == draw_architecture.image_way(), MAKE


def test_every_room_is_drawn() -> None:
    rooms = {path.parent.name for path in draw_architecture.ROOT.glob("*/__init__.py")} - {"benchmarks", "tests", "tools"}
    assert rooms <= draw_architecture.CAPTIONS.keys()


def test_levels_of_a_cycle_are_refused() -> None:
    with pytest.raises(ValueError, match=r"import each other: \['a', 'b'\]"):
        draw_architecture.levels({"a": {"b"}, "b": {"a"}, "c": set()})


def test_implied_arrows_are_left_out() -> None:
    assert draw_architecture.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
