"""Evaluates image by image: reads, reconstructs, measures, records. Memory does not grow with the number of images.

Three steps overlap: one thread reads and crops the next images, the tokenizer runs in the caller's thread, and other threads
measure. With a GPU, the tokenizer does not wait for image files and SSIM; a busy CPU gains little.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.files import PathLike, unreadable
from mgvq_export.core.token_files import pack_codes
from mgvq_export.core.types import JsonObject
from mgvq_export.evaluation.columns import record_problem
from mgvq_export.evaluation.datasets import Dataset, Item
from mgvq_export.evaluation.figures import mean_squared_error, ssim
from mgvq_export.evaluation.journal import Journal
from mgvq_export.evaluation.perceptual import InceptionFeatures, Lpips, missing_package
from mgvq_export.evaluation.protocol import VERSION, Protocol, resize_and_crop
from mgvq_export.evaluation.results import Results, RunIdentity
from mgvq_export.evaluation.summary import summarise
from mgvq_export.runtime.image_files import MAX_PIXELS, decode_image
from mgvq_export.runtime.tiling.windows import TrunkPlan
from mgvq_export.runtime.tokenizer import Tokenizer

#: Called with (name of an image, images done).
Progress = Callable[[str, int], None]

_READ_AHEAD = 2  # images
_MEASURERS = max(1, min(4, (os.cpu_count() or 2) // 2))  # threads, each with one image


@dataclass(frozen=True)
class Source:
    """An image ready to be encoded; ``pixels`` is None when the journal has it already."""

    sha256: str
    size: tuple[int, int]  # (width, height) of the file
    pixels: np.ndarray | None


def evaluate(
    tokenizer: Tokenizer,
    dataset: Dataset,
    output: PathLike,
    protocol: Protocol,
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = lambda name, done: None,
) -> Results:
    """Reconstruct every image of ``dataset``, measure, and keep the figures in the folder ``output``.

    Loads the metrics' networks; reads, reconstructs, measures and records each image that is not in the folder's journal; sums
    up. A run that was stopped continues and ends with the same figures. Images that cannot be read are listed
    in the results and left out.

    Raises:
        InputError: the folder holds another run or lies inside the dataset, or no image could be read.
        BackendError: the package or weights of a metric named by the user (``protocol.asked``) are missing.
    """
    _check_output(dataset, output)
    meters, unavailable = load_meters(protocol)
    identity = run_identity(tokenizer, protocol, meters)
    found: list[tuple[Item, str]] = []
    bad: list[tuple[Item, str]] = []
    check = partial(record_problem, spec=tokenizer.spec, protocol=protocol, metrics=identity["metrics"])
    with Journal(output, identity, check) as journal, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged files that it then refuses
        reading = _read_ahead(_Reader(protocol.size, max_pixels, journal), dataset.items)
        with ThreadPoolExecutor(_MEASURERS) as measuring, contextlib.closing(reading):
            run = _Run(tokenizer, protocol, meters, journal, measuring)
            for index, (item, future) in enumerate(reading):
                progress(item.name, index)
                try:
                    source = future.result()
                except InputError as error:
                    bad.append((item, str(error)))
                    continue
                found.append((item, source.sha256))
                if source.pixels is not None:
                    run.add(source, source.pixels)
            run.finish()
        if not found:
            raise InputError(f"none of the {len(bad)} images of {dataset.path} can be used; the first: {bad[0][1]}")
        return summarise(tokenizer, dataset, protocol, journal, identity, found=found, bad=bad, unavailable=unavailable)


def load_meters(protocol: Protocol) -> tuple[dict[str, Callable], dict[str, str]]:
    """The functions that measure the metrics besides psnr, and for those that are unavailable the reason.

    Raises :class:`BackendError` for a metric the user named.
    """
    makers: dict[str, Callable[[], Callable]] = {"ssim": lambda: ssim, "lpips": Lpips, "rfid": InceptionFeatures}
    meters: dict[str, Callable] = {}
    unavailable: dict[str, str] = {}
    for metric in protocol.metrics[1:]:
        try:
            if package := missing_package(metric):
                raise BackendError(f"{metric} needs {package}: pip install 'mgvq-export[eval]'")
            meters[metric] = makers[metric]()
        except BackendError as error:
            if metric in protocol.asked:
                raise
            unavailable[metric] = str(error)
    return meters, unavailable


def run_identity(tokenizer: Tokenizer, protocol: Protocol, meters: dict[str, Callable]) -> RunIdentity:
    """Everything that affects the figures of one image. Runs with different identities cannot share a journal."""
    bundle, tiling, precision = tokenizer.bundle, tokenizer.tiling, tokenizer.precision
    return {
        "protocol": VERSION,
        "model": tokenizer.spec.name,
        "precision": precision,
        "backend": tokenizer.backend,
        "tiling": [tiling.mode, tiling.tile],
        "size": "x".join(map(str, protocol.size)),
        "groups": protocol.groups,
        "metrics": ["psnr", *meters],
        "codebook_sha256": bundle.codebook_sha256,
        "graphs_sha256": bundle.run_sha256(precision, engines=tokenizer.backend == "tensorrt"),
    }


class _Reader:
    """Reads and crops one image; runs in its own thread."""

    def __init__(self, size: tuple[int, int], max_pixels: int, known: Journal):
        self.size, self.max_pixels, self.known = size, max_pixels, known

    def __call__(self, item: Item) -> Source:
        try:
            data = item.path.read_bytes()
        except OSError as error:
            raise unreadable(item.path, error) from error
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 in self.known:
            return Source(sha256, (0, 0), None)
        image = decode_image(data, item.path, max_pixels=self.max_pixels, as_stored=True)
        return Source(sha256, (image.shape[1], image.shape[0]), resize_and_crop(image, self.size))


def _read_ahead(read: Callable[[Item], Source], items: tuple[Item, ...]) -> Generator[tuple[Item, Future[Source]], None, None]:
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Item, Future[Source]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > _READ_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:  # stopped early: what has not begun is cancelled
            pool.shutdown(cancel_futures=True)


class _Run:
    """Reconstructs images, measures them while the next are reconstructed, and records them in order."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        protocol: Protocol,
        meters: dict[str, Callable],
        journal: Journal,
        measuring: ThreadPoolExecutor,
    ):
        self.tokenizer, self.protocol, self.meters, self.journal = tokenizer, protocol, meters, journal
        self.measuring = measuring
        self.plans: list[TrunkPlan] = []
        self.under_way: deque[Future[tuple[str, JsonObject, bytes]]] = deque()

    def add(self, source: Source, pixels: np.ndarray) -> None:
        """Reconstruct one image with every number of groups, and queue it for measuring."""
        start = time.perf_counter()
        height, width = pixels.shape[:2]
        # One plan each for all images, which have one size: the figures cannot change with the memory free at the moment.
        if not self.plans:
            self.plans.append(self.tokenizer.encode_plan(height, width))
        tokens = self.tokenizer.encode(pixels, plan=self.plans[0])
        if len(self.plans) == 1:
            self.plans.append(self.tokenizer.decode_plan(height, width))
        decoded = {n: self.tokenizer.decode(tokens, groups=n, plan=self.plans[1]) for n in self.protocol.groups}
        values: JsonObject = {
            "source_size": source.size,
            "plan": [str(plan) for plan in self.plans],
            "seconds": round(time.perf_counter() - start, 4),
        }
        codes = pack_codes(tokens.codes, self.tokenizer.spec.code_bits).tobytes()
        self.under_way.append(self.measuring.submit(self._measure, source.sha256, pixels, decoded, values, codes))
        self.finish(leave=_MEASURERS)

    def finish(self, leave: int = 0) -> None:
        """Record the images that have been measured; wait until at most ``leave`` are still being measured."""
        while len(self.under_way) > leave or (self.under_way and self.under_way[0].done()):
            self.journal.append(*self.under_way.popleft().result())

    def _measure(
        self, sha256: str, pixels: np.ndarray, decoded: dict[int, np.ndarray], values: JsonObject, codes: bytes
    ) -> tuple[str, JsonObject, bytes]:
        values["mse"] = [mean_squared_error(image, pixels) for image in decoded.values()]
        if "ssim" in self.meters:
            values["ssim"] = [self.meters["ssim"](image, pixels) for image in decoded.values()]
        best = decoded[self.protocol.groups[-1]]
        if "lpips" in self.meters:
            values["lpips"] = self.meters["lpips"](best, pixels)
        if "rfid" in self.meters:
            features = [self.meters["rfid"](pixels), self.meters["rfid"](best)]
            codes += np.stack(features).astype("<f4").tobytes()
        return sha256, values, codes


def _check_output(dataset: Dataset, output: PathLike) -> None:
    if dataset.path.is_dir() and Path(output).resolve().is_relative_to(dataset.path.resolve()):
        raise InputError(
            f"the output folder {output} lies inside the dataset, whose images it would join; choose another with -o"
        )
