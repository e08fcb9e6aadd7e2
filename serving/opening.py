"""How a published model opens the bundle it was published with: its settings, and the backend of its device."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgvq_export.core.errors import BackendError, BundleError
from mgvq_export.core.version import __version__
from mgvq_export.runtime.backend import BACKENDS
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.serving.target import FORMAT

#: The shared bundle: a folder of this name beside ``model.py`` of this model.
BUNDLE_MODEL, BUNDLE_FOLDER = "mgvq_encoder", "bundle"

GPU_BACKENDS = ("ort-cuda", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Settings:
    """What ``config.pbtxt`` says to a model.

    Attributes:
        bundle: the shared bundle's folder.
        precision, backend, device, threads, max_pixels, memory_limit: as in :class:`~mgvq_export.serving.options.PublishOptions`.
    """

    bundle: Path
    precision: str
    backend: str
    device: str
    threads: int | None
    max_pixels: int
    memory_limit: str | None

    @classmethod
    def read(cls, model_folder: str, version: str, parameters: Mapping[str, str]) -> Settings:
        """The settings of a version of the model in ``model_folder``. Raises :class:`BundleError` when another release wrote them."""
        if parameters.get("format") != FORMAT:
            raise BundleError(
                f"{model_folder} was published by mgvq-export {parameters.get('mgvq_export')}; here is {__version__}, which does not "
                "read it: publish the bundle again with this release"
            )
        return cls(
            bundle=Path(model_folder).parent / BUNDLE_MODEL / version / BUNDLE_FOLDER,
            precision=parameters["precision"],
            backend=parameters["backend"],
            device=parameters["device"],
            threads=int(parameters["threads"]) if parameters["threads"] else None,
            max_pixels=int(parameters["max_pixels"]),
            memory_limit=parameters["memory_limit"] or None,
        )

    def open(self) -> Tokenizer:
        """The tokenizer. Raises :class:`BackendError` when no backend of the device runs here, :class:`BundleError` on a damaged bundle."""
        names = [self.backend]
        if (self.backend, self.device) == ("auto", "cpu"):  # the table goes from the one that runs everywhere to the fastest
            names = [name for name in reversed(BACKENDS) if name not in GPU_BACKENDS]
        tokenizer = self._open_first(names)
        if self.device == "gpu" and tokenizer.backend not in GPU_BACKENDS:
            tokenizer.close()
            raise BackendError(
                f"the models were published for a GPU and only {tokenizer.backend} runs here; run mgvq-export doctor in the server's Python, "
                "or publish with --device cpu"
            )
        return tokenizer

    def _open_first(self, names: Sequence[str]) -> Tokenizer:
        """A tokenizer of the first backend that runs here. Raises the last one's :class:`BackendError`."""
        *others, last = names
        for name in others:
            with contextlib.suppress(BackendError):
                return self._open_named(name)
        return self._open_named(last)

    def _open_named(self, backend: str) -> Tokenizer:
        return Tokenizer.open(
            self.bundle, backend=backend, precision=self.precision, threads=self.threads, memory_limit=self.memory_limit
        )
