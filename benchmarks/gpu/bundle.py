"""GPU acceptance: the bundle with synthetic weights that the sections about ONNX Runtime and TensorRT share, and their comparisons."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mgvq_export.benchmarks.gpu.report import CannotRun, GpuOptions, Results, Row, Size, pixels
from mgvq_export.benchmarks.gpu.timing import wall_times
from mgvq_export.core.bundle import MANIFEST, Bundle
from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import Part
from mgvq_export.ops.contract import near_tie_margins
from mgvq_export.parity.metrics import agreement, max_abs, psnr, relative_l2
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.images import to_uint8
from mgvq_export.runtime.ort.sessions import OrtSession
from mgvq_export.runtime.tokenizer import Tokenizer

#: y = x, float32 [1], as ONNX: enough to see whether a provider and its libraries load.
_IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def check_onnxruntime(backend: str) -> None:
    """Raises :class:`CannotRun` when ONNX Runtime, or its provider for ``backend``, does not load."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.onnx"
        path.write_bytes(_IDENTITY)
        try:
            OrtSession(path, backend)
        except ImportError as error:
            raise CannotRun(f"ONNX Runtime does not load ({error}): pip install onnxruntime-gpu") from None
        except BackendError as error:
            raise CannotRun(str(error)) from None


def shared_bundle(options: GpuOptions) -> Bundle:
    """The bundle of ``options.spec``, fp32 and fp16, in ``options.folder``; made when it is not there yet.

    Raises :class:`CannotRun` when torch or onnx, which exporting needs, is missing.
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
        raise CannotRun(f"exporting the bundle needs {error.name}: pip install 'mgvq-export[export]'") from None
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / f"{options.spec.name}.safetensors"
    save_file(synthetic_state_dict(options.spec), checkpoint, {SPEC_KEY: json.dumps(options.spec.to_dict())})
    return export_bundle(load_checkpoint(checkpoint), path, precisions=("fp32", "fp16"))


def waves(size: Size) -> np.ndarray:
    """Waves and noise as uint8 [H, W, 3]."""
    from mgvq_export.model.synthetic import synthetic_image

    return to_uint8(synthetic_image(*size))


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

    backend = "ort-cpu" if options.dry_run else "ort-cuda"
    check_onnxruntime(backend)  # before the long steps
    bundle = shared_bundle(options)
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
            times = wall_times(action, options.repeats, dry_run=options.dry_run)
            yield Row.timed(f"{backend} fp16: {verb} {pixels(options.large)}", times)


def _codebook(bundle: Bundle) -> np.ndarray:
    """Unit rows, float32 [G, K, d]."""
    from mgvq_export.model.checkpoint import load_checkpoint
    from mgvq_export.parity.network import network_codebook

    return network_codebook(load_checkpoint(bundle.manifest.source.name).network())
