"""Checks that a bundle computes what its network computes; each check has its own figure and tolerance."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike
from mgvq_export.parity.bisect import Bisection, bisect
from mgvq_export.parity.checks import CHECKS, check_network
from mgvq_export.parity.context import SAMPLE_SIDE, Images, VerificationContext
from mgvq_export.parity.network import Reference, find_network
from mgvq_export.parity.report.gather import gather
from mgvq_export.parity.report.write import open_reports
from mgvq_export.parity.results import ParityReport
from mgvq_export.runtime.image_files import read_image
from mgvq_export.runtime.images import pad_to_multiple
from mgvq_export.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mgvq_export.model.network import MGVQ

SAMPLES = Path(__file__).with_name("samples")


def verify(
    bundle: PathLike | Bundle,
    images: Sequence[PathLike] = (),
    *,
    backend: str = "auto",
    checkpoint: PathLike | None = None,
    only: Sequence[str] = (),
    strict: bool = False,
    progress: Callable[[str, int], None] = lambda question, done: None,
    reports: Sequence[PathLike] = (),
) -> ParityReport:
    """Run all checks, or those named in ``only`` (:data:`CHECKS`), on ``bundle`` with ``images`` (three sample photos if none).

    Args:
        backend: as in ``Tokenizer.open``. One other than ``ort-cpu`` is also compared with ``ort-cpu``; TensorRT engines by the
            check ``backend`` alone, as they run whole images only.
        checkpoint: what the bundle was exported from, when it is no longer where it was; checks that need the PyTorch
            network are skipped, with the reason, when there is none.
        only: names of checks. One that cannot be made then fails.
        strict: any check that is skipped fails.
        progress: called with each check, then each section of the reports, and the number of those done before it.
        reports: files to write what was found to, ``.html`` (one page with pictures and charts), ``.md`` or ``.json``; failed
            checks are written too. They take a few runs more.

    Returns:
        The report; :meth:`ParityReport.raise_if_failed` turns a difference into an error.

    Raises:
        InputError: an unknown check, an image that cannot be read, or a report that cannot be written.
        BundleError, BackendError, CheckpointError: as ``Tokenizer.open`` and ``load_checkpoint`` raise them.
    """
    unknown = [name for name in only if name not in CHECKS]
    if unknown:
        raise InputError(f"no check {', '.join(unknown)}; choose {', '.join(CHECKS)}")
    start = time.perf_counter()
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    paths = [Path(path) for path in images] or sorted(SAMPLES.glob("*.jpg"))
    asked = [name for name in CHECKS if not only or name in only]
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(open_reports(reports)) if reports else None
        context = stack.enter_context(contextlib.closing(_make_context(bundle, paths, asked, checkpoint)))
        with Tokenizer.open(bundle, backend=backend) as tokenizer:
            context.backend = tokenizer.backend
            if tokenizer.implementation.graphs is None:  # it runs whole images only: single graphs run on the CPU
                context.backend, context.whole = "ort-cpu", tokenizer.backend
        report = ParityReport(required=tuple(only), strict=strict)
        for done, name in enumerate(asked):
            progress(name, done)
            report.extend(CHECKS[name](context))
        report.facts = {
            "bundle": str(bundle.path),
            "model": bundle.spec.name,
            "backend": context.whole or context.backend,
            "precisions": list(bundle.precisions),
            "images": {name: list(image.shape[:2]) for name, image in context.images.items()},
            "seconds": round(time.perf_counter() - start, 2),
        }
        if write is not None:
            write(gather(context, report, lambda section, done: progress(f"report: {section}", len(asked) + done)))
    return report


def _make_context(
    bundle: Bundle, paths: Sequence[Path], asked: Sequence[str], checkpoint: PathLike | None
) -> VerificationContext:
    """The images read and padded, and the network where a check needs it; the backend is not known yet."""
    names = [path.name for path in paths]
    labels = [path.name if names.count(path.name) == 1 else str(path) for path in paths]
    pictures, sizes = {}, {}
    for label, path in zip(labels, paths, strict=True):
        pictures[label], sizes[label] = pad_to_multiple(read_image(path), bundle.spec.downsample)
    reference = Reference(None)
    if {"network", "decoder"} & set(asked) or "fp32" not in bundle.precisions:
        reference = find_network(bundle, None if checkpoint is None else str(checkpoint))
    return VerificationContext(bundle, pictures, "", reference.network, reference.why, sizes)


def find_origins(bundle: PathLike | Bundle, images: Sequence[PathLike] = (), *, checkpoint: PathLike | None = None) -> Bisection:
    """:func:`mgvq_export.parity.bisect.bisect` on the first image (a sample photo if none), cut to 256 pixels a side."""
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    path = Path(images[0]) if images else min(SAMPLES.glob("*.jpg"))
    image = pad_to_multiple(read_image(path)[:SAMPLE_SIDE, :SAMPLE_SIDE], bundle.spec.downsample)[0]
    return bisect(bundle, image, checkpoint=checkpoint)


def compare_with_network(tokenizer: Tokenizer, network: MGVQ, images: Sequence[np.ndarray] | Images) -> ParityReport:
    """The checks ``network`` and ``decoder`` of :func:`verify` for arrays uint8 [H, W, 3], named or not."""
    if not isinstance(images, Mapping):
        images = {f"image {index}": image for index, image in enumerate(images, 1)}
    padded = {name: pad_to_multiple(image, tokenizer.spec.downsample)[0] for name, image in images.items()}
    context = VerificationContext(tokenizer.bundle, padded, tokenizer.backend, network)
    context._tokenizers[tokenizer.precision, tokenizer.backend] = tokenizer
    return ParityReport([*check_network(context)], {"model": tokenizer.spec.name, "backend": tokenizer.backend})
