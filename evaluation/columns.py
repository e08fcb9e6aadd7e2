"""The figures of every image, read from the journal of an evaluation: errors, code counts, features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mgvq_export.core.spec import ModelSpec
from mgvq_export.core.token_files import unpack_codes
from mgvq_export.evaluation.figures import frechet_distance, moments, psnr_of
from mgvq_export.evaluation.journal import Journal, Record
from mgvq_export.evaluation.perceptual import FEATURES
from mgvq_export.evaluation.protocol import Protocol

_BLOCK = 256  # images whose features are held at once


@dataclass(frozen=True)
class Columns:
    """The journal's values, a row per image: float64 [images, counts of groups] or [images]; empty where not measured."""

    mse: np.ndarray
    ssim: np.ndarray
    lpips: np.ndarray
    seconds: np.ndarray
    sizes: np.ndarray  # width, height of the files
    plans: Counter[str]

    @classmethod
    def read(cls, journal: Journal, hashes: Sequence[str], protocol: Protocol, metrics: Collection[str]) -> Columns:
        """The records of the images ``hashes`` (SHA-256 of their files), with the ``metrics`` that were measured."""
        n, counts = len(hashes), len(protocol.groups)
        columns = cls(
            np.empty((n, counts)),
            np.empty((n if "ssim" in metrics else 0, counts)),
            np.empty(n if "lpips" in metrics else 0),
            np.empty(n),
            np.empty((n, 2), np.int64),
            Counter(),
        )
        for index, sha256 in enumerate(hashes):
            record = journal[sha256]
            columns.mse[index], columns.sizes[index] = record.mse, record.source_size
            columns.seconds[index] = record.seconds
            if record.ssim is not None and "ssim" in metrics:
                columns.ssim[index] = record.ssim
            if record.lpips is not None and "lpips" in metrics:
                columns.lpips[index] = record.lpips
            columns.plans[f"encoder {record.plan[0]}; decoder {record.plan[1]}"] += 1
        return columns

    @property
    def psnr(self) -> np.ndarray:
        """dB, of each image."""
        return np.array([[psnr_of(mse) for mse in row] for row in self.mse])


def record_problem(record: Record, spec: ModelSpec, protocol: Protocol, metrics: Collection[str]) -> str:
    """Why a journal's record cannot be one of this run: figures missing or too many, too few bytes. Empty when it can be."""
    groups = len(protocol.groups)
    if len(record.mse) != groups or ("ssim" in metrics and len(record.ssim or ()) != groups):
        return f"mse and ssim must have {groups} figures"
    if "lpips" in metrics and record.lpips is None:
        return "it lacks the key lpips"
    if not all(text.isprintable() for text in record.plan):
        return "plan holds control characters"
    wanted = _packed_bytes(spec, protocol.size) + ("rfid" in metrics) * 2 * 4 * FEATURES
    return "" if record.data[1] == wanted else f"data: {record.data[1]:,} bytes; wanted {wanted:,}"


def _packed_bytes(spec: ModelSpec, size: tuple[int, int]) -> int:
    """Bytes of the packed codes of one image."""
    return -(-spec.groups * tokens_per_image(spec, size) * spec.code_bits // 8)


def count_codes(journal: Journal, hashes: Sequence[str], spec: ModelSpec, size: tuple[int, int]) -> np.ndarray:
    """How often each code was used: int64 [G, K]."""
    counts = np.zeros((spec.groups, spec.codes_per_group), np.int64)
    shape = spec.groups, tokens_per_image(spec, size)
    packed_bytes = _packed_bytes(spec, size)
    for sha256 in hashes:
        packed = np.frombuffer(journal.data(sha256)[:packed_bytes], np.uint8)
        for group, codes in enumerate(unpack_codes(packed, spec.code_bits, shape)):
            counts[group] += np.bincount(codes, minlength=spec.codes_per_group)
    return counts


def tokens_per_image(spec: ModelSpec, size: tuple[int, int]) -> int:
    """Positions of the code map."""
    return -(-size[0] // spec.downsample) * -(-size[1] // spec.downsample)


def rfid(journal: Journal, hashes: Sequence[str]) -> float:
    """Frechet distance between the features of the images ``hashes`` and of their reconstructions."""

    def features(which: int) -> Callable[[], Iterator[np.ndarray]]:
        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, len(hashes), _BLOCK):
                both = [_features(journal.data(sha256)) for sha256 in hashes[start : start + _BLOCK]]
                yield np.stack([pair[which] for pair in both])

        return blocks

    return frechet_distance(moments(features(0)), moments(features(1)))


def _features(data: bytes) -> np.ndarray:
    """float32 [2, D]: of the original and the reconstruction; the last bytes of a record."""
    return np.frombuffer(data[-2 * 4 * FEATURES :], "<f4").reshape(2, FEATURES)
