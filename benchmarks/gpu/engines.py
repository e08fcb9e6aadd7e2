"""GPU acceptance, TensorRT section: engines built, compared with float32, timed with and without CUDA graphs, and embedded."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mgvq_export
from mgvq_export.benchmarks.gpu.bundle import check_onnxruntime, run_graphs, shared_bundle, waves
from mgvq_export.benchmarks.gpu.network import single_results
from mgvq_export.benchmarks.gpu.report import CannotRun, GpuOptions, Results, Row, Size, goal, pixels
from mgvq_export.benchmarks.gpu.timing import wall_times
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import Part
from mgvq_export.core.tokens import Tokens
from mgvq_export.ops.trt_machine import find_machine
from mgvq_export.parity.metrics import agreement, max_abs, psnr
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.images import to_float
from mgvq_export.runtime.tensorrt.records import usable_engines
from mgvq_export.runtime.tensorrt.session import TensorRtOptions
from mgvq_export.runtime.tokenizer import Tokenizer

PRECISION = "fp16"
WINDOWS = 4  # windows run at once: of 768x768 they have fewer pixels than an untiled 2560x1440, so they fit where that fits
GOALS = {"encode": 50, "decode": 65}  # milliseconds
EXAMPLE = Path(mgvq_export.__file__).with_name("examples") / "embed_trt.py"


def tensorrt_section(options: GpuOptions) -> Iterator[Row]:
    """Build / Compare with float32 / Tiled against untiled / Times / The embedding example."""
    try:
        machine = find_machine()  # before the long steps
    except BackendError as error:
        raise CannotRun(str(error)) from None
    check_onnxruntime("ort-cpu")
    yield Row("TensorRT and GPU", str(machine))
    bundle = shared_bundle(options)
    yield from _build(bundle, options)
    bundle = Bundle.open(bundle.path)
    images = {size: waves(size) for size in options.sizes}
    reference = run_graphs(bundle, "fp32", "ort-cpu", to_float(images[options.small]))
    yield from _against_single(bundle, images[options.small], reference)
    yield from _large_against_single(bundle, images[options.large], options)
    yield from _tiled_against_untiled(bundle, images[options.large], options)
    yield from _times(bundle, images[options.large], options, machine.gpu)
    yield from _example(bundle, images[options.small], options)


def open_tokenizer(bundle: Bundle, *, tile: Size | None = None, cuda_graphs: bool = True) -> Tokenizer:
    """TensorRT, untiled unless ``tile`` is given."""
    tiling = "off" if tile is None else "exact"
    settings = TensorRtOptions(cuda_graphs=cuda_graphs)
    return Tokenizer.open(bundle, backend="tensorrt", precision=PRECISION, tiling=tiling, tile=tile, tensorrt=settings)


def _build(bundle: Bundle, options: GpuOptions) -> Iterator[Row]:
    from mgvq_export.export.engines.build import build_engines
    from mgvq_export.export.engines.options import BuildOptions

    for tile in (None, options.tile):
        start = time.perf_counter()
        batch = 1 if tile is None else WINDOWS
        wanted = BuildOptions(precision=PRECISION, shapes=options.sizes, tile=tile, batch=batch)
        for engine in build_engines(bundle, wanted):
            size = engine.record.bytes / 1e6
            note = {"note": f"{size:.0f} MB, {'kept' if engine.reused else 'built'}"}
            yield Row(f"engine {engine.part}", engine.seconds, "s", facts=note)
        again = all(engine.reused for engine in build_engines(bundle, wanted))
        name = "untiled engines" if tile is None else f"engines for windows of {pixels(tile)}"
        yield Row(f"{name}: used again", "yes" if again else "no", ok=again, facts={"seconds": time.perf_counter() - start})


def _large_against_single(bundle: Bundle, image: np.ndarray, options: GpuOptions) -> Iterator[Row]:
    """The CPU would take minutes, so the reference is the network in PyTorch on the GPU."""
    try:
        reference = single_results(bundle, to_float(image), options)
    except CannotRun as error:
        yield Row(f"engines {PRECISION} {pixels(options.large)} against fp32", "not compared", facts={"note": str(error)})
        return
    for tile in (None, options.tile):
        yield from _against_single(bundle, image, reference, tile)


def _against_single(bundle: Bundle, image: np.ndarray, reference: Results, tile: Size | None = None) -> Iterator[Row]:
    size = image.shape[:2]
    with open_tokenizer(bundle, tile=tile) as tokenizer:
        plan = str(tokenizer.encode_plan(*size))
        tokens = tokenizer.encode(image)
        same = Tokens.from_spec(bundle.spec, reference.codes[0], size, bundle.codebook_sha256)
        decoded = tokenizer.decode(same)
    name = f"engines {PRECISION} {pixels(size)}, {_tiling_label(tile)}, against fp32"
    codes = tokens.codes[None].astype(np.int32)
    row = Row.judged(f"{name}: equal codes", agreement(codes, reference.codes), tolerance("agreement", "fp16"))
    row.facts["plan"] = plan
    yield row
    quality = min(psnr(to_float(decoded), reference.pixels, peak=2.0), 200.0)
    yield Row.judged(f"{name}: same codes decoded", quality, tolerance("psnr", "fp16"))


def _tiling_label(tile: Size | None) -> str:
    return "untiled" if tile is None else f"windows of {pixels(tile)}, up to {WINDOWS} at once"


def _tiled_against_untiled(bundle: Bundle, image: np.ndarray, options: GpuOptions) -> Iterator[Row]:
    with open_tokenizer(bundle) as tokenizer:
        tokens = tokenizer.encode(image)
        decoded = tokenizer.decode(tokens)
    with open_tokenizer(bundle, tile=options.tile) as tokenizer:
        plan = str(tokenizer.encode_plan(*options.large))
        tiled = tokenizer.encode(image)
        tiled_pixels = tokenizer.decode(tokens)
    name = f"tiled against untiled, {pixels(options.large)}"
    # Kernels may differ between the two shapes, and so the last bit: the limits of float16 against float32 apply.
    row = Row.judged(f"{name}: equal codes", agreement(tiled.codes, tokens.codes), tolerance("agreement", "fp16"))
    row.facts["note"] = plan
    yield row
    largest = max_abs(tiled_pixels.astype(np.float32), decoded.astype(np.float32))
    yield Row.judged(f"{name}: pixels, largest difference", largest, tolerance("steps", "fp16"))


def _times(bundle: Bundle, image: np.ndarray, options: GpuOptions, gpu: str) -> Iterator[Row]:
    for tile in (None, options.tile):
        for cuda_graphs in (True, False):
            judged = tile is None and cuda_graphs  # the default run; the others are compared with it
            name = f"{pixels(options.large)}, {_tiling_label(tile)}, {'CUDA graphs' if cuda_graphs else 'no CUDA graphs'}"
            with open_tokenizer(bundle, tile=tile, cuda_graphs=cuda_graphs) as tokenizer:
                tokens = tokenizer.encode(image)
                for verb, action in (("encode", partial(tokenizer.encode, image)), ("decode", partial(tokenizer.decode, tokens))):
                    times = wall_times(action, options.engine_repeats, dry_run=options.dry_run)
                    yield Row.timed(f"{verb} {name}", times, **_goal(verb, options, gpu if judged else ""))


def _goal(verb: str, options: GpuOptions, gpu: str = "") -> dict[str, Any]:
    """The goal for the released network at 2560x1440, copies included; it is a limit on the ``gpu`` it was set for only."""
    if (options.spec.name, options.large) != ("mgvq-f16c32-g8", (1440, 2560)):
        return {}
    return goal(GOALS[verb], gpu)


def _example(bundle: Bundle, image: np.ndarray, options: GpuOptions) -> Iterator[Row]:
    """The program of docs/embedding.md, which does not use this package, gives the tokenizer's codes and pixels."""
    engines = engine_folder(bundle)
    source, target = options.folder / "image.npy", options.folder / "again.npz"
    np.save(source, image)
    command = [sys.executable, "-I", str(EXAMPLE), str(engines), str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        yield Row("embedding example", (done.stderr.strip().splitlines() or ["no reason given"])[-1], ok=False)
        return
    with open_tokenizer(bundle) as tokenizer:
        tokens = tokenizer.encode(image)
        decoded = tokenizer.decode(tokens)
    with np.load(target) as found:
        equal = bool((found["codes"] == tokens.codes).all() and (found["image"] == decoded).all())
    yield Row("embedding example: codes and pixels of the tokenizer", "equal" if equal else "different", ok=equal)


def engine_folder(bundle: Bundle) -> Path:
    """The folder of the engines that run on this machine."""
    return (bundle.path / usable_engines(bundle, PRECISION, find_machine())[Part.ENCODER].file).parent
