"""What a file is, by its first bytes: for errors that name the file that was given in place of the one that was wanted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

HEAD_BYTES = 4096  # enough of a file's beginning for :func:`kind_of`


@dataclass(frozen=True)
class Kind:
    """A kind of file: ``name`` as in "it is a PDF document", ``image`` its Pillow format when it is one of pixels."""

    name: str
    image: str | None = None


def kind_of(head: bytes) -> Kind | None:
    """The kind of the file that begins with ``head``, its first :data:`HEAD_BYTES`; None when it is none of the known ones."""
    for starts, kind in _STARTS:
        if head.startswith(starts):
            return kind
    return next((kind for test, kind in _TESTS if test(head)), None) or _iso_media(head)


def _at(offset: int, *patterns: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(patterns, offset)


def _text(pattern: str) -> Callable[[bytes], bool]:
    compiled = re.compile(pattern.encode(), re.IGNORECASE)
    return lambda head: compiled.match(head.removeprefix(b"\xef\xbb\xbf").lstrip()) is not None


_TIFF = Kind("a TIFF image", "TIFF")
_ZIP = Kind("a zip archive")

# Some are longer forms of others: those come first.
_STARTS: tuple[tuple[bytes | tuple[bytes, ...], Kind], ...] = (
    (b"II*\0\x10\0\0\0CR", Kind("a camera's raw file (CR2)")),
    ((b"IIRO", b"IIRS", b"MMOR"), Kind("a camera's raw file (ORF)")),
    (b"IIU\0", Kind("a camera's raw file (RW2)")),
    (b"FUJIFILMCCD-RAW", Kind("a camera's raw file (RAF)")),
    (b"FOVb", Kind("a camera's raw file (X3F)")),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*"), _TIFF),
    (b"\xff\xd8\xff", Kind("a JPEG image", "JPEG")),
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG image", "PNG")),
    ((b"GIF87a", b"GIF89a"), Kind("a GIF image", "GIF")),
    (b"BM", Kind("a BMP image", "BMP")),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF", b"Pyf", b"PyP"), Kind("a PPM image", "PPM")),
    (b"\0\0\0\x0cJXL \r\n\x87\n", Kind("a JPEG XL image")),
    (b"\xff\x0a", Kind("a JPEG XL image")),
    ((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), Kind("a JPEG 2000 image")),
    (b"8BPS", Kind("a Photoshop document")),
    (b"gimp xcf", Kind("a GIMP document")),
    (b"v/1\x01", Kind("an OpenEXR image")),
    ((b"#?RADIANCE", b"#?RGBE"), Kind("a Radiance HDR image")),
    (b"SIMPLE  =", Kind("a FITS image")),
    (b"qoif", Kind("a QOI image")),
    (b"DDS ", Kind("a DDS texture")),
    (b"\0\0\x01\0", Kind("an icon (ICO)")),
    (b"II\xbc", Kind("a JPEG XR image")),
    ((b"%!PS", b"\xc5\xd0\xd3\xc6"), Kind("a PostScript document")),
    (b"%PDF", Kind("a PDF document")),
    (b"\x1a\x45\xdf\xa3", Kind("a Matroska or WebM video")),
    ((b"PK\3\4", b"PK\5\6"), _ZIP),
    (b"\x1f\x8b", Kind("a gzip archive")),
    (b"BZh", Kind("a bzip2 archive")),
    (b"\xfd7zXZ\0", Kind("an xz archive")),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive")),
    (b"\x28\xb5\x2f\xfd", Kind("a zstd archive")),
    (b"\x93NUMPY", Kind("a NumPy array (.npy)")),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file")),
    (b"GGUF", Kind("a GGUF model")),
    (b"\x7fELF", Kind("a program or library, perhaps a compiled model")),
    (b"version https://git-lfs.github.com/spec/", Kind("a Git LFS pointer, not the file itself; fetch it with: git lfs pull")),
)

_TESTS: tuple[tuple[Callable[[bytes], bool], Kind], ...] = (
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", Kind("a WebP image", "WEBP")),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", Kind("an AVI video")),
    (_at(128, b"DICM"), Kind("a DICOM image")),
    (_at(257, b"ustar"), Kind("a tar archive")),
    (lambda head: _is_safetensors(head), Kind("a safetensors file")),
    (lambda head: _is_onnx(head), Kind("an ONNX graph")),
    (lambda head: head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5", Kind("a Python pickle")),
    (_text(r"(<!doctype html|<html|<head)"), Kind("an HTML page, perhaps a site's error or log-in page")),
    (_text(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!doctype svg[^>]*>\s*)*<svg[\s>]"), Kind("an SVG drawing")),
    (_text(r"<\?xml"), Kind("an XML document")),
)

_BRANDS = {
    Kind("an AVIF image", "AVIF"): (b"avif", b"avis"),
    Kind("a HEIC (HEIF) image", "HEIF"): (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    Kind("a camera's raw file (CR3)"): (b"crx ",),
    Kind("a video"): (b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"3gp4", b"3gp5", b"dash"),
}


def _iso_media(head: bytes) -> Kind | None:
    """By the brands of an ISO media file: the major one, then those it is compatible with."""
    if head[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(head[:4], "big"), 256)
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size, 4))]
    brands.sort(key=lambda brand: brand in (b"mif1", b"msf1"))  # these say only that it holds pictures, others how they are coded
    return next((kind for brand in brands for kind, known in _BRANDS.items() if brand in known), None)


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= 100_000_000 and head[8:9] == b"{" and (head[9:10] in b'"} ' or len(head) == 9)


def _is_onnx(head: bytes) -> bool:
    # A protobuf: field 1 (the IR version) as a small number, then field 2 (the producer's name) or another of the model's.
    return len(head) > 3 and head[0] == 0x08 and 1 <= head[1] <= 20 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
