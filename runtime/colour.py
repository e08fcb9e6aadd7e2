"""Colour of image files: what their profile or their coding says, converted to sRGB.

Profiles are judged by what they do to colours, never by their name. Where a file says several things, the first counts:
PNG's cICP or AVIF's and HEIC's nclx (for want of an embedded profile there), the embedded ICC profile, PNG's sRGB, PNG's gAMA and cHRM.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

# (x, y) of white, red, green, blue.
Primaries = tuple[float, ...]
_SRGB: Primaries = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# By their numbers in ITU-T H.273; 2 says that they are not known.
_PRIMARIES: dict[int, Primaries] = {
    1: _SRGB,
    2: _SRGB,
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
# Exponent of decoding, or None for sRGB's curve. Video's curve (1, 6, 14, 15) is shown as sRGB's, as browsers do.
_TRANSFERS: dict[int, float | None] = {1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
_HDR = {16: "PQ", 18: "HLG"}

_PLAIN_GAMMA = 1 / 2.2  # what programs write in gAMA when they mean sRGB
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def file_profile(image: Image.Image, data: bytes) -> bytes | None:
    """The ICC profile to convert ``image``, opened from ``data``, with; None where its pixels count as sRGB.

    Raises :class:`InputError`, without the file's name, for HDR and for codings that cannot be converted.
    """
    embedded: bytes | None = image.info.get("icc_profile")
    if image.format == "PNG":
        coding = next((body for kind, body in _png_chunks(data) if kind == b"cICP" and len(body) == 4), None)
        if coding:
            return _coded(coding[0], coding[1])
        if embedded or "srgb" in image.info:
            return embedded
        return _described(image.info.get("gamma"), image.info.get("chromaticity"))
    if image.format in ("AVIF", "HEIF"):
        at = data.find(b"colrnclx", 0, 1 << 16)
        if at >= 0 and len(data) >= at + 12:
            primaries, transfer = struct.unpack_from(">HH", data, at + 8)
            if transfer in _HDR or not embedded:
                return _coded(primaries, transfer)
    return embedded


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """``image`` (L, RGB or CMYK, 8 bits) as sRGB in mode RGB.

    A profile that changes no colour by more than one step leaves all values as they are. One that is broken or made for another
    kind of pixels is ignored, as viewers do; a gray image may have a profile for RGB.
    """
    from PIL import Image, ImageCms

    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        if {"L": "GRAY"}.get(image.mode, image.mode) != space:
            return image.convert("RGB")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        if image.mode != "CMYK":
            probe = Image.fromarray(_probe(image.mode))
            changed = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - np.asarray(probe.convert("RGB"))
            if np.abs(changed).max() <= 1:
                return image.convert("RGB")
        return ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")


@lru_cache
def _probe(mode: str) -> np.ndarray:
    """Colours to try a profile on: all grays and, for RGB, a grid of nine values a channel."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    if mode == "L":
        return ramp
    values = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(values, values, values), -1).reshape(1, -1, 3)
    return np.concatenate([grid, ramp[..., None].repeat(3, -1)], axis=1)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the chunks before the pixels."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            return
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _coded(primaries: int, transfer: int) -> bytes | None:
    if transfer in _HDR:
        raise InputError(f"its pixels are HDR ({_HDR[transfer]}), which has no fixed place in sRGB; save it as SDR")
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        raise InputError(
            f"its colours are coded in a way that is not known (primaries {primaries}, transfer {transfer}); save it as sRGB"
        )
    return _profile(_PRIMARIES[primaries], _TRANSFERS[transfer])


def _described(gamma: object, chromaticity: object) -> bytes | None:
    """Of PNG's gAMA and cHRM; values that make no sense are ignored."""
    curve = None
    if isinstance(gamma, float) and 0.1 <= gamma <= 10 and abs(gamma - _PLAIN_GAMMA) > 0.005:
        curve = 1 / gamma
    primaries = _SRGB
    if isinstance(chromaticity, tuple) and len(chromaticity) == 8 and all(0 < y < 1 for y in chromaticity[1::2]):
        primaries = chromaticity
    try:
        return _profile(primaries, curve)
    except np.linalg.LinAlgError:  # the primaries lie on a line
        return None


def _profile(primaries: Primaries, gamma: float | None) -> bytes | None:
    """An ICC profile of these primaries and this exponent (None: sRGB's curve); None when that is sRGB itself."""
    if gamma is None and np.abs(np.subtract(primaries, _SRGB)).max() < 0.002:
        return None
    xy = np.reshape(primaries, (4, 2))
    white, *colours = np.column_stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])
    matrix = np.transpose(colours)
    matrix = matrix * np.linalg.solve(matrix, white)
    cones = _BRADFORD @ white
    matrix = np.linalg.solve(_BRADFORD, np.diag(_BRADFORD @ _D50 / cones)) @ _BRADFORD @ matrix

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(min(max(value, -32768), 32767) * 65536)) for value in values)

    curve = (0, gamma) if gamma is not None else (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    para = b"para" + bytes(4) + struct.pack(">HH", int(curve[0]), 0) + fixed(*curve[1:])
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(*_D50)}
    for letter, column in zip(b"rgb", matrix.T, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*column)
        tags[bytes([letter]) + b"TRC"] = para
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    head = (head.ljust(36, b"\0") + b"acsp").ljust(68, b"\0") + fixed(*_D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
