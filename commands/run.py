"""What encode, decode and reconstruct share: a run over many files."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import tokenizer_options
from mgvq_export.commands.output import Lines, progress_bar
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import make_folder


class Run:
    """The tokenizer, the file names and the progress bar of a run over ``inputs``."""

    def __init__(self, bundle: Path, inputs: Sequence[Path], output: Path, suffix: str, as_json: bool, options: dict[str, Any]):
        from mgvq_export.runtime.tokenizer import Tokenizer

        self.output, self.suffix = output, suffix
        by_name: dict[Path, Path] = {}
        for path in inputs:
            if not path.is_file():
                raise InputError(f"cannot read {path}: {'it is a folder' if path.is_dir() else 'no such file'}; give files")
            other = by_name.setdefault(self.target(path), path)
            if other is not path:
                raise InputError(f"{other} and {path} would both be written to {self.target(path)}; rename one or run them apart")
        self.lines = Lines(as_json)
        self._stack = contextlib.ExitStack()
        chosen = tokenizer_options(options)
        self.tokenizer = self._stack.enter_context(Tokenizer.open(bundle, **chosen))
        self._update = self._stack.enter_context(progress_bar("", len(inputs)))
        click.get_current_context().call_on_close(self._stack.close)

    def target(self, path: Path) -> Path:
        """The file that ``path`` is written to."""
        return self.output / f"{path.stem}{self.suffix}"

    def read(self, path: Path, max_pixels: int | None) -> Any:
        """The image at ``path``, uint8 [H, W, 3]."""
        from mgvq_export.runtime.image_files import MAX_PIXELS, read_image

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged files that it then refuses: one line is enough
            return read_image(path, max_pixels=max_pixels or MAX_PIXELS)

    def windows(self, index: int, path: Path) -> Callable[[int, int], None]:
        """The progress callback of one input."""
        make_folder(self.output)  # late: bad input leaves no empty folder behind
        self._update(path.name, index)
        return lambda done, total: self._update(f"{path.name} {done}/{total}", index + done / total)

    def close(self) -> None:
        """End the bar, and print the facts as JSON where that was asked for."""
        self._stack.close()
        self.lines.close()
