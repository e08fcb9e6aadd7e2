"""``mgvq-export eval``: finds the images, opens the tokenizer, evaluates, writes results and plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike
from mgvq_export.evaluation.datasets import Dataset
from mgvq_export.evaluation.evaluate import evaluate
from mgvq_export.evaluation.plots import write_plots
from mgvq_export.evaluation.protocol import Protocol
from mgvq_export.evaluation.published import BENCHMARKS
from mgvq_export.evaluation.results import Results
from mgvq_export.runtime.image_files import MAX_PIXELS
from mgvq_export.runtime.tokenizer import OpenOptions, Tokenizer

#: Makes a context whose value is called with (name of an image, images done).
Watch = Callable[[str, int], AbstractContextManager[Callable[[str, float], None]]]


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate on and how; every field as the command line takes it.

    Attributes:
        run: arguments of :meth:`Tokenizer.open`.
        size: ``WIDTHxHEIGHT``; when None, that of the declared benchmark, else 256x256.
        groups: ``1,2,4``; metrics: names; None and empty for all.
        limit, seed, root, declared: see :meth:`Dataset.find`.
    """

    run: OpenOptions = field(default_factory=OpenOptions)
    size: str | None = None
    groups: str | None = None
    metrics: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    root: PathLike | None = None
    declared: str | None = None
    max_pixels: int | None = None

    @property
    def crop(self) -> str:
        """The size asked for, or the default."""
        if self.size is None and self.declared is not None:
            return "x".join(map(str, BENCHMARKS[self.declared].size))
        return self.size or "256x256"


def run_evaluation(
    bundle: PathLike, dataset: PathLike, output: PathLike, options: EvaluationOptions, *, watch: Watch
) -> tuple[Results, list[Path]]:
    """Evaluate ``bundle`` on ``dataset`` and write ``output``: results.json, images.csv and, with matplotlib, three plots.

    Returns the results and the files written. Raises as :meth:`Dataset.find`, :meth:`Protocol.parse`,
    :meth:`Tokenizer.open` and :func:`evaluate`.
    """
    if options.declared is not None and options.declared not in BENCHMARKS:
        raise InputError(f"no benchmark {options.declared!r}; choose {', '.join(BENCHMARKS)}, or leave --dataset out")
    opened = Bundle.open(bundle)
    protocol = Protocol.parse(opened.spec, options.crop, options.groups, options.metrics)
    images = Dataset.find(dataset, root=options.root, limit=options.limit, seed=options.seed, declared=options.declared)
    with Tokenizer.open(opened, **options.run) as tokenizer, watch("eval", len(images.items)) as update:
        results = evaluate(tokenizer, images, output, protocol, max_pixels=options.max_pixels or MAX_PIXELS, progress=update)
    files = results.write(output)
    if importlib.util.find_spec("matplotlib") is None:
        results.notes.append("without plots: they need matplotlib: pip install 'mgvq-export[eval]'")
    else:
        files += write_plots(results, output)
    return results, files
