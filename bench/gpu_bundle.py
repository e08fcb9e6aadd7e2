"""GPU acceptance: the bundle with synthetic weights that the sections about ONNX Runtime and TensorRT share, and what they compare."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mgvq_export.bench.gpu_report import GpuOptions, Row, Size, pixels
from mgvq_export.bundle import MANIFEST, Bundle
from mgvq_export.errors import BackendError
from mgvq_export.ops.contract import near_tie_margins
from mgvq_export.parity.metrics import agreement, max_abs, psnr, relative_l2
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.images import to_uint8
from mgvq_export.runtime.ort import OrtSession
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.spec import Part

_WARM_UP = 3


def shared_bundle(options: GpuOptions) -> Bundle:
    """The bundle of ``options.spec``, fp32 and fp16, in ``options.folder``; made when it is not there yet.

    Raises :class:`BackendError` when torch or onnx, which exporting needs, is missing.
    """
    path = options.folder / options.spec.name
    if (path / MANIFEST).is_file():
        return Bundle.open(path)
    try:
        from safetensors.torch import save_file

        from mgvq_export.export.bundles import export_bundle
        from mgvq_export.model.checkpoint import load_checkpoint
        from mgvq_export.model.demo import SPEC_KEY
        from mgvq_export.model.synthetic import synthetic_state_dict
    except ImportError as error:
        raise BackendError(f"exporting the bundle needs {error.name}: pip install 'mgvq-export[export]'") from None
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / f"{options.spec.name}.safetensors"
    save_file(synthetic_state_dict(options.spec), checkpoint, {SPEC_KEY: json.dumps(options.spec.to_dict())})
    return export_bundle(load_checkpoint(checkpoint), path, precisions=("fp32", "fp16"))


def waves(size: Size) -> np.ndarray:
    """Waves and noise as uint8 [H, W, 3]."""
    from mgvq_export.model.synthetic import synthetic_image

    return to_uint8(synthetic_image(*size))


def wall_times(action: Callable[[], object], options: GpuOptions) -> list[float]:
    """Milliseconds of wall-clock time of each of ``options.repeats`` calls that wait for their result, after a warm-up."""
    for _ in range(_WARM_UP if options.device == "cuda" else 1):
        action()
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return times


@dataclass(frozen=True)
class Results:
    """What one way of running the whole graphs gave: latent, codes of that latent, and pixels in [-1, 1] of the codes asked for."""

    latent: np.ndarray
    codes: np.ndarray
    pixels: np.ndarray


def run_graphs(bundle: Bundle, precision: str, backend: str, image: np.ndarray, codes: np.ndarray | None = None) -> Results:
    """Image float32 [1, 3, H, W] through ONNX Runtime; ``codes`` int32 [1, G, h, w] to decode, the image's own when None."""

    def run(part: Part, **feeds: np.ndarray) -> list[np.ndarray]:
        return OrtSession(bundle.graph_path(precision, part), backend).run(feeds)

    (latent,) = run(Part.ENCODER, image=image)
    found = run(Part.QUANTIZER, latent=latent)[0]
    groups = np.array(bundle.spec.groups, np.int64)
    (quantized,) = run(Part.DEQUANTIZER, codes=found if codes is None else codes, groups=groups)
    (decoded,) = run(Part.DECODER, quantized=quantized)
    return Results(latent.astype(np.float32), found, np.clip(decoded.astype(np.float32), -1, 1))


def onnxruntime_section(options: GpuOptions) -> Iterator[Row]:
    """ONNX Runtime's CUDA provider: the bundle's graphs against the CPU's float32, and the tokenizer's times."""
    from mgvq_export.model.synthetic import synthetic_image

    backend = "ort-cuda" if options.device == "cuda" else "ort-cpu"
    bundle = shared_bundle(options)
    OrtSession(bundle.graph_path("fp32", Part.DEQUANTIZER), backend)  # before anything takes long: do its libraries load?
    image = synthetic_image(*options.small)
    reference = run_graphs(bundle, "fp32", "ort-cpu", image)
    codebook = _codebook(bundle)
    found = run_graphs(bundle, "fp32", backend, image, reference.codes)
    name = f"{backend} fp32 {pixels(options.small)} against ort-cpu"
    yield Row.judged(f"{name}: latent rel. L2", relative_l2(found.latent, reference.latent), tolerance("latent", "fp32"))
    margins = near_tie_margins(reference.latent, codebook, found.codes, reference.codes)
    largest = float(margins.max(initial=0.0))
    yield Row.judged(f"{name}: largest margin of {margins.size} differing codes", largest, tolerance("codes", "fp32"))
    yield Row.judged(f"{name}: same codes decoded", max_abs(found.pixels, reference.pixels), tolerance("pixels", "fp32"))
    found = run_graphs(bundle, "fp16", backend, image, reference.codes)
    name = f"{backend} fp16 {pixels(options.small)} against fp32"
    yield Row.judged(f"{name}: latent rel. L2", relative_l2(found.latent, reference.latent), tolerance("latent", "fp16"))
    yield Row.judged(f"{name}: equal codes", agreement(found.codes, reference.codes), tolerance("agreement", "fp16"))
    quality = min(psnr(found.pixels, reference.pixels, peak=2.0), 200.0)
    yield Row.judged(f"{name}: same codes decoded", quality, tolerance("psnr", "fp16"))
    image8 = waves(options.large)
    with Tokenizer.open(bundle, backend=backend, precision="fp16", tiling="off") as tokenizer:
        tokens = tokenizer.encode(image8)
        for verb, action in (("encode", lambda: tokenizer.encode(image8)), ("decode", lambda: tokenizer.decode(tokens))):
            yield Row.timed(f"{backend} fp16: {verb} {pixels(options.large)}", wall_times(action, options))


def _codebook(bundle: Bundle) -> np.ndarray:
    """Unit rows, float32 [G, K, d]."""
    from mgvq_export.model.checkpoint import load_checkpoint
    from mgvq_export.parity.network import codebook

    return codebook(load_checkpoint(bundle.manifest["source"]["name"]).network())
