"""What the published models compute: arrays in, arrays out, without anything of Triton's.

A stage takes apart a request's arrays, each with the batch as its first dimension, into items of one image each. What it makes of
several items together is what it makes of each alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import Part
from mgvq_export.core.tokens import Tokens
from mgvq_export.core.units import Size
from mgvq_export.runtime.backend import GraphRunner
from mgvq_export.runtime.image_files import decode_image
from mgvq_export.runtime.images import check_image, pad_to_multiple
from mgvq_export.runtime.ort.sessions import OrtGraphs
from mgvq_export.runtime.tokenizer import Tokenizer

Arrays = Mapping[str, np.ndarray]
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Stage(Protocol):
    """One model's work."""

    def items(self, inputs: Arrays) -> list[Any]:
        """A request's items. Raises :class:`InputError` or :class:`TokensError` on what cannot be run."""

    def run(self, items: Sequence[Any]) -> list[Arrays]:
        """The outputs of each item, without the batch dimension."""

    def warm_up(self) -> None:
        """Load everything and run it once, on the smallest input."""


class ReaderStage:
    """Image files -> pixels."""

    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels

    def items(self, inputs: Arrays) -> list[bytes]:
        """``file``: bytes of image files [B] -> the bytes of each."""
        return [file.tobytes() for file in inputs["file"]]

    def run(self, items: Sequence[bytes]) -> list[Arrays]:
        """``image`` uint8 [H, W, 3] and ``size`` int32 [2] (height, width) of each file. Raises :class:`InputError`."""
        images = [decode_image(data, "the file", max_pixels=self.max_pixels) for data in items]
        return [{"image": image, "size": np.array(image.shape[:2], np.int32)} for image in images]

    def warm_up(self) -> None:
        """Loads Pillow; there is nothing to run."""
        import PIL.Image  # noqa: F401


class EncoderStage:
    """Images -> latents."""

    def __init__(self, tokenizer: Tokenizer, max_pixels: int):
        self.tokenizer, self.max_pixels = tokenizer, max_pixels

    def items(self, inputs: Arrays) -> list[np.ndarray]:
        """``image``: uint8 [B, H, W, 3] -> each padded to multiples of f. Raises :class:`InputError`."""
        images = [check_image(image) for image in inputs["image"]]
        for image in images:
            _check_pixels(image.shape[0], image.shape[1], self.max_pixels)
        return [pad_to_multiple(image, self.tokenizer.spec.downsample)[0] for image in images]

    def run(self, items: Sequence[np.ndarray]) -> list[Arrays]:
        """``latent`` float [G*d, h, w] of each image; images of one size run together."""
        backend = self.tokenizer.implementation
        latents = _by_key(items, [image.shape for image in items], lambda images, _: backend.latent_batch(images))
        return [{"latent": latent} for latent in latents]

    def warm_up(self) -> None:
        """Encode one image of f x f pixels."""
        side = self.tokenizer.spec.downsample
        self.run([np.zeros((side, side, 3), np.uint8)])


class QuantizerStage:
    """Latents -> codes."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        graphs = tokenizer.implementation.graphs
        # Engines run whole images only. The CPU's kernel gives the same codes outside near-ties.
        self._graphs: GraphRunner = OrtGraphs(tokenizer.bundle, tokenizer.precision, "ort-cpu") if graphs is None else graphs

    def items(self, inputs: Arrays) -> list[np.ndarray]:
        """``latent``: float [B, G*d, h, w] -> each. Raises :class:`InputError` when it is empty or not finite."""
        latent = inputs["latent"]
        if latent.size == 0:
            raise InputError(f"latent has shape {list(latent.shape)} and no values; wanted at least 1x1 cells")
        if not np.isfinite(latent).all():
            raise InputError("latent holds NaN or infinite values; wanted finite ones")
        return list(latent)

    def run(self, items: Sequence[np.ndarray]) -> list[Arrays]:
        """``codes`` uint16 [G, h, w] of each latent; latents of one shape run together."""
        found = _by_key(items, [latent.shape for latent in items], self._run_shape)
        return [{"codes": codes} for codes in found]

    def _run_shape(self, latents: list[np.ndarray], _: Hashable) -> list[np.ndarray]:
        (codes,) = self._graphs[Part.QUANTIZER].run({"latent": np.stack(latents)}, ["codes"])
        return list(codes.astype(np.uint16))

    def warm_up(self) -> None:
        """Quantize a latent of 1x1 cells."""
        (dtype,) = self._graphs[Part.QUANTIZER].inputs.values()
        self.run([np.zeros((self.tokenizer.spec.latent_channels, 1, 1), dtype)])


class DecoderStage:
    """Codes -> images."""

    def __init__(self, tokenizer: Tokenizer, max_pixels: int):
        self.tokenizer, self.max_pixels = tokenizer, max_pixels

    def items(self, inputs: Arrays) -> list[tuple[Tokens, int]]:
        """``codes`` int [B, G, h, w], and where given ``size`` [B, 2] and ``groups`` [B, 1] -> tokens and groups to use of each.

        Raises :class:`InputError` or :class:`TokensError`.
        """
        codes = inputs["codes"]
        f = self.tokenizer.spec.downsample
        height, width = codes.shape[2] * f, codes.shape[3] * f
        _check_pixels(height, width, self.max_pixels)
        sizes = inputs.get("size", np.broadcast_to((height, width), (len(codes), 2)))
        groups = inputs.get("groups", np.full((len(codes), 1), self.tokenizer.spec.groups))
        return [
            (self._tokens(one, (int(size[0]), int(size[1]))), self.tokenizer.check_groups(int(used)))
            for one, size, (used,) in zip(codes, sizes, groups, strict=True)
        ]

    def _tokens(self, codes: np.ndarray, size: Size) -> Tokens:
        if codes.size == 0:
            raise InputError(f"codes have shape {list(codes.shape)} and no values; wanted at least 1x1 per group")
        return Tokens.from_spec(self.tokenizer.spec, codes, size, self.tokenizer.bundle.codebook_sha256)

    def run(self, items: Sequence[tuple[Tokens, int]]) -> list[Arrays]:
        """``image`` uint8 [H, W, 3] of each; those that use equally many groups run together."""

        def decode(some: list[tuple[Tokens, int]], groups: int) -> list[np.ndarray]:
            return self.tokenizer.decode_batch([tokens for tokens, _ in some], groups=groups)

        images = _by_key(items, [groups for _, groups in items], decode)
        return [{"image": image} for image in images]

    def warm_up(self) -> None:
        """Decode tokens of 1x1 cells."""
        spec = self.tokenizer.spec
        codes = np.zeros((1, spec.groups, 1, 1), np.uint16)
        self.run(self.items({"codes": codes}))


def _check_pixels(height: int, width: int, most: int) -> None:
    if height * width > most:
        raise InputError(f"the image is {width}x{height}, {height * width} pixels; this server takes at most {most}")


def _by_key(items: Sequence[Item], keys: Sequence[Key], run: Callable[[list[Item], Key], Sequence[Result]]) -> list[Result]:
    """``run(items of one key, key)`` for each key; the results in the order of ``items``."""
    found: dict[int, Result] = {}
    for key in dict.fromkeys(keys):
        places = [place for place, other in enumerate(keys) if other == key]
        for place, result in zip(places, run([items[place] for place in places], key), strict=True):
            found[place] = result
    return [found[place] for place in range(len(items))]
