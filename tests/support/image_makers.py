"""TIFF files and ICC profiles written by hand: libraries do not write the odd ones."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SHORT, LONG = 3, 4


def write_tiff(
    path: Path,
    planes: Sequence[np.ndarray],
    *,
    colour: int,
    bits: int,
    order: str = "<",
    deflate: bool = False,
    predictor: bool = False,
    packed: Sequence[bytes] | None = None,
    extra: dict[int, tuple[int, list[int]]] | None = None,
) -> None:
    """One page of one strip per plane; ``planes`` are [H, W, samples], several for separate planes.

    ``packed``: the strips' bytes, where they are not those of ``planes``. ``extra``: more tags, {tag: (type, values)}.
    """
    height, width = planes[0].shape[:2]
    samples = sum(plane.shape[2] for plane in planes)
    if packed is None:
        values = [np.diff(plane, axis=1, prepend=plane.dtype.type(0)) if predictor else plane for plane in planes]
        packed = [value.astype(value.dtype.newbyteorder(order)).tobytes() for value in values]
    strips = [zlib.compress(strip) if deflate else strip for strip in packed]
    tags = {256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [bits] * samples), 259: (SHORT, [8 if deflate else 1])}
    tags |= {262: (SHORT, [colour]), 277: (SHORT, [samples]), 278: (LONG, [height]), 284: (SHORT, [2 if len(planes) > 1 else 1])}
    tags |= {279: (LONG, [len(strip) for strip in strips]), 273: (LONG, [0] * len(strips))} | (extra or {})
    if predictor:
        tags[317] = (SHORT, [2])

    def packs(kind: int, values: list[int]) -> bytes:
        return struct.pack(order + {SHORT: "H", LONG: "I"}[kind] * len(values), *values)

    start = 8 + 2 + 12 * len(tags) + 4 + sum(size for tag in tags.values() if (size := len(packs(*tag))) > 4)
    tags[273] = (LONG, [start + sum(map(len, strips[:index])) for index in range(len(strips))])
    entries, outside, at = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        raw = packs(kind, values)
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "I", at + len(outside))
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + place
        outside += raw if len(raw) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + outside + b"".join(strips))


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """[H, W] of values below 2**bits -> rows of bits, each row filled up to whole bytes."""
    row_bits = (values[..., None].astype(np.uint32) >> np.arange(bits)[::-1]) & 1
    return np.packbits(row_bits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def icc_profile(gamma: float, *, name: str = "a profile", space: bytes = b"RGB ") -> bytes:
    """sRGB's primaries (or gray) with one exponent, ICC version 2."""

    def fixed(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    described = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79)
    tags = [(b"desc", described), (b"wtpt", fixed(0.9642, 1, 0.8249)), (b"cprt", b"text" + bytes(4) + b"CC0\0")]
    if space == b"GRAY":
        tags += [(b"kTRC", curve)]
    else:
        tags += [(b"rXYZ", fixed(0.436, 0.2225, 0.0139)), (b"gXYZ", fixed(0.3851, 0.7169, 0.0971))]
        tags += [(b"bXYZ", fixed(0.1431, 0.0606, 0.7141)), *((letter + b"TRC", curve) for letter in (b"r", b"g", b"b"))]
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, content in tags:
        content += bytes(-len(content) % 4)
        table += key + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
