"""Does a bundle compute what its network computes? One question at a time, each with its own figure and tolerance."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.bundle import Bundle
from mgvq_export.errors import InputError
from mgvq_export.files import PathLike
from mgvq_export.parity import network as torch_network
from mgvq_export.parity.bisect import Bisection, bisect
from mgvq_export.parity.questions import QUESTIONS, ask_network
from mgvq_export.parity.report import ParityReport
from mgvq_export.parity.subject import SAMPLE_SIDE, Images, Subject
from mgvq_export.runtime.images import pad_to_multiple, read_image
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
    progress: Callable[[str, int], None] = lambda question, done: None,
) -> ParityReport:
    """Ask every question, or those named in ``only`` (:data:`QUESTIONS`), of ``bundle`` on ``images`` (three sample photos if none).

    Args:
        backend: as in ``Tokenizer.open``. One other than ``ort-cpu`` is also held against ``ort-cpu``.
        checkpoint: what the bundle was exported from, when it is no longer where it was; questions that need the PyTorch
            network are skipped, with the reason, when there is none.
        progress: called with each question and the number of those done before it.

    Returns:
        The report; :meth:`ParityReport.raise_if_failed` turns a difference into an error.

    Raises:
        InputError: an unknown question, or an image that cannot be read.
        BundleError, BackendError, CheckpointError: as ``Tokenizer.open`` and ``load_checkpoint`` raise them.
    """
    unknown = [name for name in only if name not in QUESTIONS]
    if unknown:
        raise InputError(f"no question {', '.join(unknown)}; choose {', '.join(QUESTIONS)}")
    start = time.perf_counter()
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    paths = [Path(path) for path in images] or sorted(SAMPLES.glob("*.jpg"))
    names = [path.name for path in paths]
    labels = [path.name if names.count(path.name) == 1 else str(path) for path in paths]
    pictures = {
        label: pad_to_multiple(read_image(path), bundle.spec.downsample)[0] for label, path in zip(labels, paths, strict=True)
    }
    asked = [name for name in QUESTIONS if not only or name in only]
    network, why = None, ""
    if {"network", "decoder"} & set(asked) or "fp32" not in bundle.precisions:
        network, why = torch_network.find_network(bundle, None if checkpoint is None else str(checkpoint))
    subject = Subject(bundle, pictures, "", network, why)
    with contextlib.closing(subject):
        with Tokenizer.open(bundle, backend=backend) as tokenizer:
            subject.backend = tokenizer.backend
        report = ParityReport()
        for done, name in enumerate(asked):
            progress(name, done)
            report.extend(QUESTIONS[name](subject))
    report.facts = {
        "bundle": str(bundle.path),
        "model": bundle.spec.name,
        "backend": subject.backend,
        "precisions": list(bundle.precisions),
        "images": {name: list(image.shape[:2]) for name, image in pictures.items()},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return report


def find_origins(bundle: PathLike | Bundle, images: Sequence[PathLike] = (), *, checkpoint: PathLike | None = None) -> Bisection:
    """:func:`mgvq_export.parity.bisect.bisect` on the first image (a sample photo if none), cut to 256 pixels a side."""
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    path = Path(images[0]) if images else min(SAMPLES.glob("*.jpg"))
    image = pad_to_multiple(read_image(path)[:SAMPLE_SIDE, :SAMPLE_SIDE], bundle.spec.downsample)[0]
    return bisect(bundle, image, checkpoint=checkpoint)


def compare_with_network(tokenizer: Tokenizer, network: MGVQ, images: Sequence[np.ndarray] | Images) -> ParityReport:
    """The questions ``network`` and ``decoder`` of :func:`verify` for arrays uint8 [H, W, 3], named or not."""
    if not isinstance(images, Mapping):
        images = {f"image {index}": image for index, image in enumerate(images, 1)}
    padded = {name: pad_to_multiple(image, tokenizer.spec.downsample)[0] for name, image in images.items()}
    subject = Subject(tokenizer.bundle, padded, tokenizer.backend, network)
    subject._tokenizers[tokenizer.precision, tokenizer.backend] = tokenizer
    return ParityReport([*ask_network(subject)], {"model": tokenizer.spec.name, "backend": tokenizer.backend})
