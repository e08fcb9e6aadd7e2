"""Draws docs/rooms.svg, from the imports in the sources, and docs/image.svg: python -m mgvq_export.tools.draw_architecture (tests compare)."""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET, IMAGE_TARGET = ROOT / "docs" / "rooms.svg", ROOT / "docs" / "image.svg"

#: What each room is for, in a few words.
CAPTIONS = {
    "core": "values and their files",
    "ops": "GroupedArgmin",
    "model": "PyTorch network, checkpoints",
    "runtime": "tokenizer, backends, tiling",
    "export": "ONNX graphs, engines",
    "parity": "verify, tolerances, report",
    "evaluation": "quality on data sets",
    "bench": "latency and memory",
    "calibration": "ranges, precision plans",
    "inspection": "inspect, doctor",
    "dataset": "tokenizing data sets",
    "serving": "Triton repositories",
    "commands": "one module a verb",
}
#: The way of an image, there and back: what is done, and on what.
ENCODING = (
    ("image", "uint8 [H, W, 3]"),
    ("pad, cut", "windows with a halo"),
    ("encoder trunk", "each window"),
    ("stitch", "features [C, H/8, W/8]"),
    ("encoder head", "the whole map"),
    ("quantizer", "latent [32, h, w]"),
    ("tokens", "codes [G, h, w]"),
)
DECODING = (
    ("image", "uint8 [H, W, 3]"),
    ("stitch, crop", "pixels of the windows"),
    ("decoder trunk", "each window"),
    ("cut", "windows with a halo"),
    ("decoder head", "the whole map"),
    ("dequantizer", "G groups, or the first"),
    ("tokens", "codes [G, h, w]"),
)
WIDTH, HEIGHT, GAP, STEP = 190, 52, 18, 104


def imports() -> dict[str, set[str]]:
    """For each room the rooms that its modules import when they are loaded, or, for the verbs, when they run."""
    return {room: _imported(room) for room in CAPTIONS if (ROOT / room).is_dir()}


def _imported(room: str) -> set[str]:
    found = set()
    for path in (ROOT / room).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if room == "commands" else tree.body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mgvq_export."):
                found.add(str(node.module).split(".")[1])
    return (found & set(CAPTIONS)) - {room}


def levels(edges: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by the longest way down from them: level 0 imports none. Raises :class:`ValueError` on a cycle."""
    level: dict[str, int] = {}
    while len(level) < len(edges):
        ready = [room for room in edges if room not in level and edges[room] <= level.keys()]
        if not ready:
            raise ValueError(f"rooms import each other: {sorted(edges.keys() - level.keys())}")
        level |= {room: 1 + max((level[below] for below in edges[room]), default=-1) for room in ready}
    return [[room for room in edges if level[room] == number] for number in range(max(level.values()) + 1)]


def direct(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """``edges`` without those that a longer way down implies."""

    def below(room: str) -> set[str]:
        return edges[room].union(*(below(other) for other in edges[room]))

    return {room: wanted - set().union(*(below(other) for other in wanted)) for room, wanted in edges.items()}


def rooms() -> str:
    """The picture of the rooms: a box a room, an arrow from each room to those it imports."""
    edges = imports()
    rows = levels(edges)
    width = max(len(row) for row in rows) * (WIDTH + GAP) + GAP
    height = len(rows) * STEP - (STEP - HEIGHT) + 2 * GAP
    at = {}
    for number, row in enumerate(reversed(rows)):
        left = (width - len(row) * (WIDTH + GAP) + GAP) / 2
        at |= {room: (left + index * (WIDTH + GAP), GAP + number * STEP) for index, room in enumerate(row)}
    arrows = [
        _arrow(at[room][0] + WIDTH / 2, at[room][1] + HEIGHT, at[other][0] + WIDTH / 2, at[other][1])
        for room, wanted in direct(edges).items()
        for other in sorted(wanted)
    ]
    boxes = [_box(*at[room], WIDTH, room, CAPTIONS[room]) for room in at]
    return _picture("The rooms of mgvq_export; an arrow points to what a room imports", width, height, [*arrows, *boxes])


def image_way() -> str:
    """The picture of an image's way: encoding from left to right, decoding back."""
    side, gap = 152, 26
    width, height = len(ENCODING) * (side + gap) + gap, 2 * STEP + 2 * GAP
    shapes = []
    for row, (title, boxes) in enumerate((("encode", ENCODING), ("decode", DECODING))):
        top = GAP + 26 + row * STEP
        shapes.append(f'<text x="{gap}" y="{top - 9}" font-size="13" text-anchor="start" fill="#44526b">{title}</text>')
        for index, (name, caption) in enumerate(boxes):
            left = gap + index * (side + gap)
            shapes.append(_box(left, top, side, name, caption))
            if index:
                ends = (left - gap, left) if row == 0 else (left, left - gap)
                shapes.append(_arrow(ends[0], top + HEIGHT / 2, ends[1], top + HEIGHT / 2))
    return _picture("The way of an image through mgvq_export", width, height, shapes)


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:.0f} {y:.0f}L{to_x:.0f} {to_y:.0f}" stroke="#7a869a" stroke-width="1.4" fill="none" marker-end="url(#arrow)"/>'


def _box(x: float, y: float, width: int, name: str, caption: str) -> str:
    middle = x + width / 2
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width}" height="{HEIGHT}" rx="6" fill="#eef3fb" stroke="#3b5b92"/>'
        f'<text x="{middle:.0f}" y="{y + 22:.0f}" font-size="15" font-weight="600" fill="#1d2b45">{escape(name)}</text>'
        f'<text x="{middle:.0f}" y="{y + 40:.0f}" font-size="12" fill="#44526b">{escape(caption)}</text>'
    )


def _picture(title: str, width: int, height: int, shapes: list[str]) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" text-anchor="middle">',
        f"<title>{title}</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#7a869a"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *shapes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for target, picture in ((TARGET, rooms()), (IMAGE_TARGET, image_way())):
        target.write_text(picture, encoding="utf-8")
        print(target)
