"""Gathers the data of a report, from the results cached in the :class:`VerificationContext` and from a few more runs.

Photos, maps of codes and pixels take decodings of fewer groups only; windows, times and memory are measured for the report.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from mgvq_export.core.bundle import MANIFEST, package_version
from mgvq_export.core.errors import InputError, MgvqError
from mgvq_export.core.files import sha256_file
from mgvq_export.core.manifest import FileEntry, HashedFile
from mgvq_export.core.spec import group_counts
from mgvq_export.ops.contract import near_tie_margins
from mgvq_export.parity import graphs
from mgvq_export.parity.context import VerificationContext
from mgvq_export.parity.metrics import psnr
from mgvq_export.parity.report.peak_memory import measure_peaks
from mgvq_export.parity.report.report_data import CodeMap, Photo, ReportData, TilingRow, TimeRow
from mgvq_export.parity.results import ParityReport
from mgvq_export.parity.seams import measure_seams
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.images import crop, to_uint8
from mgvq_export.runtime.tiling.windows import TrunkPlan
from mgvq_export.runtime.tokenizer import Tokenizer

PHOTOS = 6  # images shown at most; the checks are of all
_ROUNDS = 5  # timed runs of each row at most
_TIME_BUDGET = 15.0  # seconds after which no further round of timing begins

_PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "onnxruntime-extensions", "numba", "torch", "onnx", "tensorrt")


def gather(
    context: VerificationContext, report: ParityReport, progress: Callable[[str, int], None] = lambda step, done: None
) -> ReportData:
    """The data of a report on ``context``. A section that cannot be made is left out; :attr:`ReportData.missing` has the reason.

    ``progress`` is called with each section and the number of those done before it.
    """
    now = datetime.datetime.now(datetime.timezone.utc).astimezone().isoformat(timespec="seconds")
    data = ReportData(report, context.reference, now)
    data.about, data.files = _about(context), _files(context)
    if len(context.images) > PHOTOS:
        data.missing["photos"] = f"the first {PHOTOS} of {len(context.images)} images are shown"
    steps: dict[str, Callable[[VerificationContext, ReportData], None]] = {
        "photos": _photos,
        "codes": _codes,
        "tiling": _tiling,
        "time": _time,
        "memory": _memory,
    }
    for done, (name, step) in enumerate(steps.items()):
        progress(name, done)
        try:
            step(context, data)
        except MgvqError as error:  # a bundle that fails its checks still gets a report
            data.missing[name] = str(error)
    return data


def _shown(context: VerificationContext) -> list[str]:
    return list(context.images)[:PHOTOS]


def _photos(context: VerificationContext, data: ReportData) -> None:
    reference, tokenizer = context.reference, context.tokenizer(context.reference)
    for name in _shown(context):
        size = context.size(name)
        original = crop(context.images[name], size)
        decoded: dict[int, np.ndarray] = {}
        for count in group_counts(context.bundle.spec.groups):
            whole = count == context.bundle.spec.groups
            codes = _valid_codes(context, name, reference)
            pixels = context.pixels(name, reference) if whole else graphs.pixels_of(tokenizer, codes, count)
            decoded[count] = crop(to_uint8(pixels), size)
        error = np.abs(decoded[max(decoded)].astype(np.int16) - original)
        data.photos.append(
            Photo(
                name,
                size,
                psnr(decoded[max(decoded)], original),
                float(error.mean()),
                int(error.max()),
                np.bincount(error.ravel(), minlength=256).tolist(),
                {count: psnr(image, original) for count, image in decoded.items()},
                original,
                decoded,
            )
        )


def _codes(context: VerificationContext, data: ReportData) -> None:
    """Maps of every further precision against the reference, and of every precision on the backend against the CPU."""
    reference, backend = context.reference, context.backend
    pairs = [(f"{name} against {reference}", name, backend, reference) for name in context.bundle.precisions if name != reference]
    if backend != "ort-cpu":
        pairs += [(f"{name}: {backend} against ort-cpu", name, backend, name) for name in context.bundle.precisions]
    if context.whole:
        title = f"{context.whole} against {reference} on the CPU"
        pairs += [(f"{name}: {title}", name, context.whole, reference) for name in context.bundle.precisions]
    if not pairs:
        raise InputError(
            f"the bundle has {reference} alone and the backend is ort-cpu: there is no other way to compute codes; "
            "export with a second --precision, or choose another --backend"
        )
    for title, found_precision, found_backend, precision in pairs:
        limit = tolerance("codes", context.kinds(found_precision)[0]).limit
        for name in _shown(context):
            try:
                if found_backend == context.whole:
                    found = context.whole_codes(name, found_precision)
                else:
                    found = _valid_codes(context, name, found_precision, found_backend)
            except MgvqError as error:  # such as no engine of this precision or size
                data.missing["codes"] = f"{title}: {error}"
                continue
            wanted = _valid_codes(context, name, precision, "ort-cpu" if precision == found_precision else backend)
            latent = context.latent(name, precision, "ort-cpu" if precision == found_precision else backend)
            margins = np.sort(near_tie_margins(latent, context.codebook, found, wanted))
            data.codes.append(
                CodeMap(
                    title,
                    name,
                    wanted.size,
                    margins.size,
                    int((margins <= limit).sum()),
                    limit,
                    float(np.median(margins)) if margins.size else 0.0,
                    float(margins.max()) if margins.size else 0.0,
                    (found != wanted).sum(axis=(0, 1)),
                    margins,
                )
            )


def _valid_codes(context: VerificationContext, name: str, precision: str, backend: str | None = None) -> np.ndarray:
    """The codes of an image; :class:`InputError` when some are out of range, which cannot be decoded."""
    codes = context.codes(name, precision, backend)
    if codes.min() < 0 or codes.max() >= context.bundle.spec.codes_per_group:
        raise InputError(f"{precision} gives codes out of range for {name}: {codes.min()} to {codes.max()}")
    return codes


def _tiling(context: VerificationContext, data: ReportData) -> None:
    """The first image that is large enough: exact windows and blended tiles of the same size, compared with one window."""
    reference, spec = context.reference, context.bundle.spec
    for name in _shown(context):
        plans = _tiling_plans(context, name)
        if plans:
            break
    else:
        raise InputError("no image is large enough to be cut into windows")
    untiled, whole = _valid_codes(context, name, reference), to_uint8(context.pixels(name, reference))
    backend = context.tokenizer(reference).implementation
    for mode, (encode_plan, decode_plan) in plans.items():
        codes = backend.encode(context.images[name], encode_plan)
        decoded = backend.decode(untiled[0], spec.groups, decode_plan)
        ((_, windows),) = decode_plan.steps
        borders = [sorted({window.kept[axis].start for window in windows.windows} - {0}) for axis in (0, 1)]
        error = np.abs(decoded.astype(np.int16) - whole).max(axis=2).astype(np.uint8)
        data.tiling.append(
            TilingRow(
                mode,
                name,
                str(encode_plan),
                str(decode_plan),
                untiled.size,
                int((codes != untiled[0]).sum()),
                int(error.max()),
                psnr(decoded, whole),
                measure_seams(decoded, whole, (borders[0], borders[1])),
                error,
            )
        )


def _tiling_plans(context: VerificationContext, name: str) -> dict[str, tuple[TrunkPlan, TrunkPlan]]:
    """mode -> plans to encode and decode, with tiles of about half the image's sides; empty when the image is too small."""
    f = context.bundle.spec.downsample
    height, width = context.images[name].shape[:2]
    plans: dict[str, tuple[TrunkPlan, TrunkPlan]] = {}
    for share in (0.5, 0.7):  # the halo may need the larger one
        tile = (math.ceil(share * height / f) * f, math.ceil(share * width / f) * f)
        try:
            for mode in ("exact", "blend"):
                tokenizer = context.tokenizer(context.reference).with_tiling(mode, tile=tile)
                plans[mode] = tokenizer.encode_plan(height, width), tokenizer.decode_plan(height, width)
        except InputError:
            continue
        if all(len(plan.steps) == 1 and plan.total > 1 for pair in plans.values() for plan in pair):
            return plans
    return {}


def _time(context: VerificationContext, data: ReportData) -> None:
    """Encoding and decoding the first image in memory, in every precision, in turns, after a round to warm up."""
    name = next(iter(context.images))
    size = context.size(name)
    image = np.ascontiguousarray(crop(context.images[name], size))
    ways: list[tuple[str, Callable[[str], Tokenizer], str]] = [
        (precision, context.tokenizer, precision) for precision in context.bundle.precisions
    ]
    if context.whole:
        ways += [(f"{name}, {context.whole}", context.whole_tokenizer, name) for name in context.bundle.precisions]
    runs: list[tuple[TimeRow, Callable[[], object]]] = []
    for label, find, precision in ways:
        try:
            tokenizer = find(precision)
            plans = tokenizer.encode_plan(*size), tokenizer.decode_plan(*size)
            tokens = tokenizer.encode(image, plan=plans[0])
            tokenizer.decode(tokens, plan=plans[1])
        except MgvqError as error:  # such as no engine of this precision or size
            data.missing["time"] = f"{label}: {error}"
            continue
        runs.append((TimeRow(label, "encode", size, []), partial(tokenizer.encode, image, plan=plans[0])))
        runs.append((TimeRow(label, "decode", size, []), partial(tokenizer.decode, tokens, plan=plans[1])))
    begin = time.perf_counter()
    for _ in range(_ROUNDS):
        for row, run in runs:
            start = time.perf_counter()
            run()
            row.seconds.append(time.perf_counter() - start)
        if time.perf_counter() - begin > _TIME_BUDGET:
            break
    data.time = [row for row, _ in runs]


def _memory(context: VerificationContext, data: ReportData) -> None:
    height, width = next(iter(context.images.values())).shape[:2]
    for tiled in (False, True):
        data.memory += measure_peaks(context.bundle, context.reference, (height, width), tiled=tiled, backend=context.backend)


def _about(context: VerificationContext) -> dict[str, dict[str, str]]:
    from mgvq_export.core.version import __version__

    manifest, spec = context.bundle.manifest, context.bundle.spec
    source = manifest.source
    return {
        "Model": {
            "name": spec.name,
            "pixels per token": f"{spec.downsample} x {spec.downsample}",
            "groups": str(spec.groups),
            "codes per group": str(spec.codes_per_group),
            "bits per token": str(spec.bits_per_token),
            "exported from": source.name,
            "its SHA-256": source.sha256,
            "codebook SHA-256": context.bundle.codebook_sha256,
        },
        "Bundle": {
            "path": str(context.bundle.path),
            "precisions": ", ".join(context.bundle.precisions),
            "manifest SHA-256": sha256_file(context.bundle.path / MANIFEST),
            **{f"exported with {name}": str(version) for name, version in manifest.tools.items()},
        },
        "Packages": {
            "mgvq-export": __version__,
            **{name: found for name in _PACKAGES if (found := package_version(name)) is not None},
        },
        "Machine": _machine(),
    }


def _machine() -> dict[str, str]:
    import psutil

    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = models[0] if models else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor or platform.machine(),
        "cores that may be used": str(cores),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": platform.platform(),
        "Python": platform.python_version(),
    }


def _files(context: VerificationContext) -> list[FileEntry]:
    entries: list[HashedFile] = []
    for precision in context.bundle.manifest.precisions.values():
        entries += [precision.weights, *precision.graphs.values()]
    return [FileEntry(entry.file, entry.bytes, entry.sha256) for entry in (*entries, *context.bundle.engines)]
