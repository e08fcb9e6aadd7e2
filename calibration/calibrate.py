"""From images to a precision plan: ranges, the plan, and its effect measured again on other images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mgvq_export.calibration.crops import Crops, large_enough, list_images
from mgvq_export.calibration.effects import Effects, Graphs, Journal
from mgvq_export.calibration.options import Options
from mgvq_export.calibration.plan_search import Calibration, PlanSearch, Progress
from mgvq_export.calibration.ranges import collect
from mgvq_export.core.bundle import Bundle, package_version
from mgvq_export.core.errors import BundleError, InputError
from mgvq_export.core.files import PathLike, make_folder, sha256_file
from mgvq_export.core.precision_plan import MadeFor
from mgvq_export.core.types import JsonObject
from mgvq_export.core.version import __version__
from mgvq_export.export.graphs.plans import check_plan
from mgvq_export.parity.network import find_network
from mgvq_export.parity.verify import SAMPLES
from mgvq_export.runtime.image_files import read_image

_HELD_OUT_SIDE = 1024  # pixels: held-out images go through the network whole, untiled


def calibrate(
    bundle: PathLike | Bundle,
    images: Sequence[PathLike],
    options: Options,
    *,
    checkpoint: PathLike | None = None,
    held_out: Sequence[PathLike] = (),
    report_dir: PathLike | None = None,
    progress: Progress = lambda step, share: None,
) -> Calibration:
    """The precision plan of ``options`` for the network that ``bundle`` was exported from.

    Collects ranges on all windows; finds nodes that need float32; chooses 8-bit candidates and scales by search; measures the
    whole plan, and removes candidates while it misses the budgets; measures it on the held-out images.

    Args:
        images: files and folders.
        checkpoint: as in ``verify``.
        held_out: files and folders, none of them among ``images``; the packaged sample photos when empty.
        report_dir: folder for the state of an interrupted run, which is continued; nothing is kept when None.

    Raises:
        InputError: images that cannot be used, or budgets that no plan meets; the message has the best plan found.
        BundleError: no network for the bundle.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    progress("reading the images", 0.0)
    listed = list_images(images)
    large = large_enough(listed, options.window_size)
    crops = Crops(tuple(large), options.windows, options.window_size)
    others = held_out_images(held_out, crops, bundle.spec.downsample)
    shown = crops.sample(options.search_windows, bundle.spec.downsample)
    progress("loading the network", 0.0)
    reference = find_network(bundle, None if checkpoint is None else str(checkpoint))
    network = reference.network
    if network is None:
        raise BundleError(f"calibration needs the network that {bundle.path} was exported from: {reference.why}")
    if report_dir is not None:
        make_folder(report_dir)
    folder = None if report_dir is None else Path(report_dir)
    # Not the bundle's own hash: a checkpoint given by hand may be another one with the same codebook.
    weights = f"{reference.checkpoint_sha256} {bundle.manifest.source.weights or ''}"
    key = hashlib.sha256(f"{__version__} {weights} {crops.sha256}".encode()).hexdigest()
    ranges = collect(
        network,
        crops,
        key,
        path=folder and folder / "ranges.json",
        progress=lambda done, total: progress(f"ranges: window {done} of {total}", 0.4 * done / total),
    )
    journal = Journal(folder and folder / "measurements.jsonl")
    graphs = Graphs(network)
    effects = Effects(graphs, shown, f"{key} {len(shown)}", journal)
    elsewhere = Effects(
        graphs,
        [image for _, image, _ in others],
        f"{__version__} {weights} {_HELD_OUT_SIDE} {[digest for *_, digest in others]}",
        journal,
    )
    found = PlanSearch(network, ranges, options, effects, elsewhere, progress).run()
    plan = replace(
        found.plan,
        made_for=MadeFor(bundle.spec.name, reference.checkpoint_sha256, bundle.codebook_sha256),
        budgets=options.budgets,
        measured=_measured(found),
        calibration=_calibration_set(crops, options, len(shown), others),
        tools={"mgvq-export": __version__}
        | {
            name: package_version(name)
            for name in ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy")
            if package_version(name)
        },
    )
    check_plan(plan, network)
    found.plan = plan
    if left_out := len(listed) - len(large):
        some = f"{left_out} image{'s' * (left_out > 1)}"
        found.notes.append(f"left out {some} smaller than a window of {options.window_size}x{options.window_size}")
    return found


def held_out_images(paths: Sequence[PathLike], crops: Crops, multiple: int) -> list[tuple[str, np.ndarray, str]]:
    """Name, pixels and SHA-256 of the held-out images: of large ones the centre; sides cropped to multiples of ``multiple``.

    Raises :class:`InputError` when one of them is among the calibration images, or too small.
    """
    found = []
    for path in list_images(paths or [SAMPLES]):
        digest = sha256_file(path)
        if digest in crops.hashes:
            raise InputError(f"{path} is held out and among the calibration images; leave it out of one of them")
        image = read_image(path)
        height, width = (min(side, _HELD_OUT_SIDE) // multiple * multiple for side in image.shape[:2])
        if not height or not width:
            raise InputError(f"{path} is {image.shape[0]}x{image.shape[1]}, smaller than one token of {multiple}x{multiple}")
        top, left = ((side - kept) // 2 for side, kept in zip(image.shape[:2], (height, width), strict=True))
        found.append((path.name, image[top : top + height, left : left + width].copy(), digest))
    return found


def _measured(found: Calibration) -> JsonObject:
    values: JsonObject = {"calibration": found.effect.to_dict(), "held_out": found.held_out.to_dict()}
    if found.shares:
        values["share_of_convolution_work"] = {side: round(share, 6) for side, share in found.shares.items()}
    return values


def _calibration_set(crops: Crops, options: Options, shown: int, others: Sequence[tuple[str, np.ndarray, str]]) -> JsonObject:
    used = zip(crops.per_image, crops.hashes, strict=True)
    return {
        "sha256": crops.sha256,
        "windows": options.windows,
        "window_size": options.window_size,
        "search_windows": shown,
        "margin": options.margin,
        "images": [{"name": path.name, "sha256": digest, "windows": count} for (path, count), digest in used],
        "held_out": [{"name": name, "sha256": digest} for name, _, digest in others],
    }
