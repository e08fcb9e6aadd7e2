"""Figures of exact tiling: equality, tiling overhead, memory, and the errors of blending.

    python -m mgvq_export.benchmarks.tiling exact BUNDLE        codes and pixels against the untiled run, at several sizes
    python -m mgvq_export.benchmarks.tiling tax BUNDLE          tiling overhead predicted and measured, one cut and two
    python -m mgvq_export.benchmarks.tiling memory BUNDLE       predicted against measured peak memory
    python -m mgvq_export.benchmarks.tiling blend BUNDLE IMAGE  blended against exact tiles, for each image
    python -m mgvq_export.benchmarks.tiling limit BUNDLE        the command line under memory limits: wall time and peak memory

Each prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.processes import python_command
from mgvq_export.core.spec import Part, stride
from mgvq_export.core.units import parse_size
from mgvq_export.parity.graphs import pixels_of, tiled_pixels
from mgvq_export.parity.metrics import psnr
from mgvq_export.parity.seams import measure_seams
from mgvq_export.runtime.image_files import read_image, write_image
from mgvq_export.runtime.images import to_uint8
from mgvq_export.runtime.pipeline import HostBackend
from mgvq_export.runtime.tiling.costs import Costs
from mgvq_export.runtime.tiling.memory import forget_peak, peak_bytes
from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan
from mgvq_export.runtime.tokenizer import Tokenizer

EXACT_SIZES = ((512, 768), (509, 771), (640, 520), (1000, 333), (777, 1021))
MEMORY_CASES = ((512, 512), (768, 1024), (1080, 1920), (1440, 2560), (2160, 3840))
CUTS = {
    "encoder": ((Part.ENCODER_TRUNK,), (Part.ENCODER_TRUNK_FINE, Part.ENCODER_TRUNK_COARSE)),
    "decoder": ((Part.DECODER_TRUNK,), (Part.DECODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE)),
}


def texture(height: int, width: int) -> np.ndarray:
    """Waves and noise, uint8 [height, width, 3]: structure at every scale, the same for every run."""
    rng = np.random.default_rng(height * 65536 + width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack([np.sin(x / (11 + 3 * c)) * np.cos(y / (7 + 2 * c)) for c in range(3)], axis=2)
    return np.clip(128 + 80 * waves + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)


def exact(bundle: Bundle, tile: int, sizes: list[tuple[int, int]]) -> None:
    """Tiled against untiled: differing codes, and the largest difference of pixels before and after rounding to 8 bits."""
    print("| image | encoder | codes differ | decoder | pixels max abs | 8-bit pixels max abs |\n|---|---|---|---|---|---|")
    for height, width in sizes:
        image = texture(height, width)
        with Tokenizer.open(bundle, backend="ort-cpu", tiling="off") as tokenizer:
            tokens = tokenizer.encode(image)
            codes = tokens.codes[None].astype(np.int32)
            pixels = pixels_of(tokenizer, codes)
        with Tokenizer.open(bundle, backend="ort-cpu", tiling="exact", tile=tile) as tokenizer:
            plans = tokenizer.encode_plan(height, width), tokenizer.decode_plan(height, width)
            differ = int((tokenizer.encode(image).codes != tokens.codes).sum())
            tiled = tiled_pixels(tokenizer, codes, plans[1].steps[0][1])
        rounded = np.abs(to_uint8(tiled).astype(np.int16) - to_uint8(pixels)).max()
        row = (
            f"{width}x{height}",
            plans[0],
            f"{differ} of {codes.size:,}",
            plans[1],
            f"{np.abs(tiled - pixels).max():.1e}",
            rounded,
        )
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def fixed_plan(bundle: Bundle, parts: tuple[Part, ...], size: tuple[int, int], tile: int | None) -> TrunkPlan:
    """A plan with windows of ``tile`` image pixels in every part; None for one window."""
    spec, steps = bundle.spec, []
    scales = {"trunk": spec.trunk_stride if parts[0] is Part.DECODER_TRUNK else 1}
    for part in parts:
        reach = bundle.reach(part)
        if part in (Part.ENCODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE):
            scale = stride(spec, "inner_features")
        else:
            scale = spec.trunk_stride if part is Part.DECODER_TRUNK_COARSE else scales["trunk"]
        window = None if tile is None else (tile // scale, tile // scale)
        steps.append((part, TilePlan.fit((size[0] // scale, size[1] // scale), reach, window, scale=scale, balance=True)))
    return TrunkPlan(tuple(steps), 0, Costs(spec).overhead(steps))


def tax(bundle: Bundle, size: tuple[int, int], measured: bool) -> None:
    """Work tiled over work untiled, for windows of 512, 1024 and 2048; measured as processor time of one thread.

    Head and quantizer are left out: only the trunk runs in windows.
    """
    height, width = size
    print(f"{bundle.spec.name}, image {width}x{height}\n")
    print("| direction | windows | cut | plan | predicted | measured |\n|---|---|---|---|---|---|")
    with Tokenizer.open(bundle, backend="ort-cpu", threads=1) as tokenizer:
        for direction, cuts in CUTS.items():
            run = _trunk(tokenizer, direction, size)
            untiled = run(fixed_plan(bundle, cuts[0], size, None)) if measured else 1.0
            for tile in (512, 1024, 2048):
                for number, parts in enumerate(cuts, 1):
                    if not all(bundle.has_part(part) for part in parts):
                        continue
                    try:
                        plan = fixed_plan(bundle, parts, size, tile)
                    except InputError as error:
                        print(f"| {direction} | {tile} | {number} | {error} | | |")
                        continue
                    found = f"{run(plan) / untiled:.2f}" if measured else ""
                    print(f"| {direction} | {tile} | {number} | {plan} | {plan.tiling_overhead:.2f} | {found} |", flush=True)


def _trunk(tokenizer: Tokenizer, direction: str, size: tuple[int, int]) -> Callable[[TrunkPlan], float]:
    """Runs the trunk of one direction by a plan and returns its processor time, the least of two runs."""
    spec, pipeline = tokenizer.spec, tokenizer.implementation
    assert isinstance(pipeline, HostBackend)  # opened for the CPU
    image = texture(*size)
    cells = (size[0] // spec.trunk_stride, size[1] // spec.trunk_stride)
    features = np.random.default_rng(0).standard_normal((1, spec.trunk_channels, *cells), np.float32)

    def once(plan: TrunkPlan) -> float:
        start = time.process_time()
        if direction == "encoder":
            pipeline.encode_trunk(image, plan)
        else:
            pipeline.decode_trunk(features, plan)
        return time.process_time() - start

    def least(plan: TrunkPlan) -> float:
        for part, _ in plan.steps:
            pipeline.graphs[part]  # loaded before the clock starts
        return min(once(plan) for _ in range(2))

    return least


def print_peak() -> None:
    """A child's work: :func:`peak` of the arguments BUNDLE HEIGHT WIDTH LIMIT."""
    path, height, width, limit = sys.argv[1:]
    peak(path, int(height), int(width), limit)


def peak(path: str, height: int, width: int, limit: str) -> None:
    """Encode and decode once under ``limit``; print predicted and measured peak memory, in MiB."""
    image = texture(height, width)
    tokens = None
    for direction in ("encode", "decode"):
        with Tokenizer.open(path, backend="ort-cpu", memory_limit=limit) as tokenizer:
            plan = tokenizer.encode_plan(height, width) if direction == "encode" else tokenizer.decode_plan(height, width)
            forget_peak()
            start = time.perf_counter()
            if direction == "encode":
                tokens = tokenizer.encode(image)
            else:
                assert tokens is not None
                tokenizer.decode(tokens)
            elapsed = time.perf_counter() - start
        high = peak_bytes() / 2**20
        predicted = plan.peak_bytes / 2**20
        error = 100 * (predicted / high - 1)
        print(
            f"| {width}x{height} | {limit} | {direction} | {plan} | {predicted:.0f} | {high:.0f} | {error:+.1f} % | {elapsed:.1f} |",
            flush=True,
        )


def memory(bundle: Bundle, cases: list[tuple[int, int]], limits: list[str]) -> None:
    """Predicted and measured peak memory (Linux), every case in a process of its own."""
    print(
        "| image | limit | direction | plan | predicted MiB | measured MiB | error | seconds |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for height, width in cases:
        for limit in limits:
            arguments = (str(bundle.path), str(height), str(width), limit)
            command = python_command("mgvq_export.benchmarks.tiling", *arguments, function="print_peak")
            done = subprocess.run(command, text=True, capture_output=True, check=False)
            lines = done.stderr.strip().splitlines()
            print(done.stdout.strip() or f"| {width}x{height} | {limit} | | {lines[-1] if lines else ''} | | | | |", flush=True)


def blend(bundle: Bundle, paths: list[str], tile: int) -> None:
    """Share of codes that blending changes, the PSNR it loses, and the errors at its seams."""
    print("| image | mode | plan | codes changed | PSNR dB | seams |\n|---|---|---|---|---|---|")
    for path in paths:
        image = read_image(path)
        results = {}
        for mode in ("off", "exact", "blend"):
            with Tokenizer.open(bundle, backend="ort-cpu", tiling=mode, tile=None if mode == "off" else tile) as tokenizer:
                tokens = tokenizer.encode(image)
                results[mode] = tokens.codes, tokenizer.decode(tokens), tokenizer.decode_plan(*image.shape[:2])
        codes, pixels, _ = results["off"]
        for mode, (found, decoded, plan) in results.items():
            ((_, windows),) = plan.steps
            rows = sorted({window.kept[0].start for window in windows.windows} - {0})
            columns = sorted({window.kept[1].start for window in windows.windows} - {0})
            seams = str(measure_seams(decoded, pixels, (rows, columns))) if rows or columns else ""
            name = f"{Path(path).name}, {image.shape[1]}x{image.shape[0]}"
            print(
                f"| {name} | {mode} | {plan} | {np.mean(found != codes):.2%} | {psnr(decoded, image):.2f} | {seams} |", flush=True
            )


def limit(bundle: Bundle, sizes: list[tuple[int, int]], limits: list[str], rounds: int) -> None:
    """Whole runs of the command line, tiled under each limit and untiled, in turns: wall time and peak memory (Linux)."""
    print("| image | verb | tiling | limit | plan | seconds | peak MiB |\n|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for height, width in sizes:
            write_image(folder / "image.png", texture(height, width))
            for verb, source in (("encode", "image.png"), ("decode", "image.safetensors")):
                for options in (["--tiling", "off"], *(["--memory-limit", one] for one in limits)) * rounds:
                    command = python_command("mgvq_export.cli", verb, str(bundle.path), str(folder / source))
                    start = time.perf_counter()
                    done = subprocess.Popen(
                        [*command, "-o", str(folder), "--backend", "ort-cpu", *options], stdout=subprocess.PIPE, text=True
                    )
                    assert done.stdout is not None
                    line = done.stdout.read().strip()
                    _, status, usage = os.wait4(done.pid, 0)
                    seconds = time.perf_counter() - start
                    plan = line.rpartition("  ")[2] if status == 0 else "failed"
                    row = (f"{width}x{height}", verb, *(["off", ""] if "off" in options else ["auto", options[1]]))
                    print(f"| {' | '.join(row)} | {plan} | {seconds:.1f} | {usage.ru_maxrss / 1024:.0f} |", flush=True)


def main() -> None:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description="Figures of exact tiling.")
    parser.add_argument("figure", choices=("exact", "tax", "memory", "blend", "limit"))
    parser.add_argument("bundle")
    parser.add_argument("images", nargs="*")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--size", type=parse_size, action="append", help="WIDTHxHEIGHT; may be repeated")
    parser.add_argument("--limit", action="append", help="memory limits, e.g. 1GiB; may be repeated")
    parser.add_argument("--rounds", type=int, default=2, help="turns of the figure limit")
    parser.add_argument("--predict-only", action="store_true", help="do not measure the tiling overhead")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    if options.figure == "exact":
        exact(bundle, options.tile, options.size or list(EXACT_SIZES))
    elif options.figure == "tax":
        tax(bundle, (options.size or [(2048, 2048)])[0], not options.predict_only)
    elif options.figure == "memory":
        memory(bundle, options.size or list(MEMORY_CASES), options.limit or ["1GiB", "2GiB"])
    elif options.figure == "limit":
        limit(bundle, options.size or [(1440, 2560)], options.limit or ["4GiB"], options.rounds)
    else:
        blend(bundle, options.images, options.tile)


if __name__ == "__main__":
    main()
