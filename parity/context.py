"""The context of a verification: bundle, backend, images, the PyTorch network if there is one, and cached results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.precision_plan import FLOATS
from mgvq_export.parity import graphs
from mgvq_export.parity.network import network_codebook
from mgvq_export.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mgvq_export.model.network import MGVQ

SAMPLE_SIDE = 256  # a multiple of every f

Images = Mapping[str, np.ndarray]


@dataclass
class VerificationContext:
    """Bundle, backend, images and network of a verification, with a cache of results that several checks need.

    Attributes:
        bundle: the bundle.
        images: name -> uint8 [H, W, 3], sides multiples of f.
        backend: backend of all tokenizers; it runs single graphs.
        whole: a backend that runs whole images only (TensorRT engines), compared with the reference; empty for none.
        sizes: name -> height and width before padding, of the images that were padded.
        network: the PyTorch network, or None; ``no_network`` is then the reason.
    """

    bundle: Bundle
    images: Images
    backend: str
    network: MGVQ | None = None
    no_network: str = ""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    whole: str = ""
    _tokenizers: dict[tuple[str, str], Tokenizer] = field(default_factory=dict)
    _latents: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    _codes: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    _pixels: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The precision that others are compared with."""
        return "fp32" if "fp32" in self.bundle.precisions else self.bundle.precisions[0]

    def kinds(self, precision: str) -> tuple[str, str]:
        """The lowest type, ``fp32``, ``fp16``, ``int8`` or ``fp8``, of the encoder's and of the decoder's graphs."""
        return self.bundle.kind(precision, "encoder"), self.bundle.kind(precision, "decoder")

    @property
    def no_float(self) -> str:
        """Why the reference precision cannot be compared with the network (it has 8-bit nodes); empty when it can."""
        if all(kind in FLOATS for kind in self.kinds(self.reference)):
            return ""
        return f"{self.reference} computes with 8 bits; export with --precision fp32 beside it to compare with the network"

    def tokenizer(self, precision: str, backend: str | None = None) -> Tokenizer:
        """The tokenizer of a precision, on the verified backend or on ``backend``."""
        key = (precision, backend or self.backend)
        if key not in self._tokenizers:
            self._tokenizers[key] = Tokenizer.open(self.bundle, backend=key[1], precision=precision, tiling="off")
        return self._tokenizers[key]

    def latent(self, image: str, precision: str, backend: str | None = None) -> np.ndarray:
        """The untiled latent of an image by its name."""
        key = (image, precision, backend or self.backend)
        if key not in self._latents:
            self._latents[key] = graphs.latent_of(self.tokenizer(precision, backend), self.images[image])
        return self._latents[key]

    def codes(self, image: str, precision: str, backend: str | None = None) -> np.ndarray:
        """The codes of an image by its name, int32 [1, G, h, w]."""
        key = (image, precision, backend or self.backend)
        if key not in self._codes:
            self._codes[key] = graphs.codes_of(self.tokenizer(precision, backend), self.latent(image, precision, backend))
        return self._codes[key]

    def pixels(self, image: str, precision: str) -> np.ndarray:
        """The untiled decoding of :meth:`codes`, float32 [1, 3, H, W]."""
        if (image, precision) not in self._pixels:
            self._pixels[image, precision] = graphs.pixels_of(self.tokenizer(precision), self.codes(image, precision))
        return self._pixels[image, precision]

    def whole_tokenizer(self, precision: str) -> Tokenizer:
        """The tokenizer of a precision on the backend :attr:`whole`. Raises :class:`BackendError` when it cannot run that."""
        key = (precision, self.whole)
        if key not in self._tokenizers:
            self._tokenizers[key] = Tokenizer.open(self.bundle, backend=self.whole, precision=precision)
        return self._tokenizers[key]

    def whole_codes(self, image: str, precision: str) -> np.ndarray:
        """:meth:`codes`, by the backend :attr:`whole`."""
        key = (image, precision, self.whole)
        if key not in self._codes:
            self._codes[key] = self.whole_tokenizer(precision).encode(self.images[image]).codes[None].astype(np.int32)
        return self._codes[key]

    def size(self, image: str) -> tuple[int, int]:
        """Height and width of an image by its name, before padding."""
        return self.sizes.get(image) or self.images[image].shape[:2]

    def some_images(self, precision: str) -> list[str]:
        """Names of images for checks that need not see all: all for the reference precision, the first for others."""
        return list(self.images)[: None if precision == self.reference else 1]

    @property
    def sample(self) -> tuple[str, np.ndarray]:
        """Name and pixels of the first image, cropped to 256 pixels a side, for checks that do not depend on the size."""
        name, image = next(iter(self.images.items()))
        return name, np.ascontiguousarray(image[:SAMPLE_SIDE, :SAMPLE_SIDE])

    @cached_property
    def codebook(self) -> np.ndarray:
        """Unit rows float32 [G, K, d], from the dequantizer; from the network when all graphs are float16."""
        if self.reference != "fp32" and self.network is not None:
            return network_codebook(self.network)
        return graphs.codebook_of(self.tokenizer(self.reference))

    def close(self) -> None:
        """Drop all loaded graphs."""
        for tokenizer in self._tokenizers.values():
            tokenizer.close()
