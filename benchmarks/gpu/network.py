"""GPU acceptance, network sections: the PyTorch network in float16 against float32, and how fast PyTorch runs it. No TensorRT needed.

Weights are synthetic and images are waves and noise: sizes and arithmetic are the released network's, so times are too; parity figures
are about rounding alone.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mgvq_export.benchmarks.gpu.report import CannotRun, GpuOptions, Results, Row, Size, pixels
from mgvq_export.benchmarks.gpu.timing import device_times, wall_times
from mgvq_export.core.bundle import Bundle
from mgvq_export.parity.metrics import agreement, psnr, relative_l2
from mgvq_export.parity.network import find_network
from mgvq_export.parity.tolerances import tolerance

if TYPE_CHECKING:
    from torch import Tensor

    from mgvq_export.model.network import MGVQ


def network_section(options: GpuOptions) -> Iterator[Row]:
    """float32 on the device against the CPU, then float16 against float32: latents, codes, and pixels from the same codes."""
    torch = import_torch(options)
    from mgvq_export.model.synthetic import synthetic_image, synthetic_network

    network = synthetic_network(options.spec)
    with torch.inference_mode(), _precision(tf32=False):
        image = torch.from_numpy(synthetic_image(*options.check))
        latent = network.latent(image)
        codes = network.quantize.encode(latent)
        pixels_cpu = network.decode(codes)
        network = network.to(options.device)
        found = network.latent(image.to(options.device))
        name = f"fp32 {pixels(options.check)}, {options.device} against CPU"
        yield Row.judged(f"{name}: latent rel. L2", relative_l2(_array(found), _array(latent)), tolerance("latent", "fp32"))
        decoded = network.decode(codes.to(options.device))
        largest = float((decoded.cpu() - pixels_cpu).abs().max())
        yield Row.judged(f"{name}: same codes decoded, max abs", largest, tolerance("pixels", "fp32"))

        half = _half(network)
        for size in options.sizes:
            yield from _half_against_single(network, half, synthetic_image(*size), size, options)


def _half_against_single(network: MGVQ, half: MGVQ, image: np.ndarray, size: Size, options: GpuOptions) -> Iterator[Row]:
    import torch

    # One after the other, results to the host at once: the two together may not fit.
    reference = _results(network, torch.from_numpy(image).to(options.device))
    _free(options)
    low = torch.from_numpy(image).to(options.device).half().contiguous(memory_format=torch.channels_last)
    found = _results(half, low, reference.codes)
    name = f"fp16 {pixels(size)} against fp32"
    yield Row.judged(f"{name}: latent rel. L2", relative_l2(found.latent, reference.latent), tolerance("latent", "fp16"))
    yield Row.judged(f"{name}: equal codes", agreement(found.codes, reference.codes), tolerance("agreement", "fp16"))
    # Values span 2, and an infinite PSNR (equal images) is no JSON number.
    quality = min(psnr(found.pixels, reference.pixels, peak=2.0), 200.0)
    yield Row.judged(f"{name}: same codes decoded", quality, tolerance("psnr", "fp16"))
    _free(options)


def _results(network: MGVQ, image: Tensor, codes: np.ndarray | None = None) -> Results:
    """Image [1, 3, H, W] through ``network``, both on one device; ``codes`` to decode, the image's own when None."""
    import torch

    latent = network.latent(image)
    found = network.quantize.encode(latent)
    on_host = _array(latent)
    del latent
    given = found if codes is None else torch.from_numpy(codes).to(image.device)
    return Results(on_host, _array(found), _array(network.decode(given).clamp(-1, 1)))


def single_results(bundle: Bundle, image: np.ndarray, options: GpuOptions) -> Results:
    """Image float32 [1, 3, H, W] through the network of ``bundle`` in float32 on the device, TF32 off.

    Raises :class:`CannotRun` without PyTorch or a GPU for it, without the weights, with too little memory.
    """
    torch = import_torch(options)
    reference = find_network(bundle)
    network, reason = reference.network, reference.why
    if network is None:
        raise CannotRun(reason)
    found = None
    try:
        with torch.inference_mode(), _precision(tf32=False):
            found = _results(network.to(options.device), torch.from_numpy(image).to(options.device))
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
    del network
    _free(options)  # outside of the handler, where the error no longer keeps the arrays alive
    if found is None:
        raise CannotRun(f"PyTorch in float32: {reason}")
    return found


@dataclass(frozen=True)
class Baseline:
    """One way to run the network in PyTorch."""

    name: str
    half: bool = False
    tf32: bool = False
    compiled: bool = False

    @property
    def arithmetic(self) -> tuple[bool, bool]:
        """What decides the GPU's peak: half, TF32."""
        return self.half, self.tf32


BASELINES = (
    Baseline("torch eager fp32, TF32 off"),
    Baseline("torch eager fp32, TF32 on", tf32=True),
    Baseline("torch eager fp16, channels last", half=True),
    Baseline("torch.compile fp16, channels last", half=True, compiled=True),
)


def peers_section(options: GpuOptions) -> Iterator[Row]:
    """The time of PyTorch for one image, numpy to numpy as engines are timed, and the share of the GPU's peak that it reaches."""
    torch = import_torch(options)
    from mgvq_export.model.synthetic import synthetic_image, synthetic_network

    peaks = {baseline.arithmetic: 0.0 for baseline in BASELINES}
    for half, tf32 in peaks:
        peaks[half, tf32] = rate = _ceiling(options, half=half, tf32=tf32)
        kind = "fp16" if half else f"fp32, TF32 {'on' if tf32 else 'off'}"
        yield Row(f"matrix product of {options.ceiling} squared, {kind}", rate / 1e12, "TFLOP/s")
    work = count_work(options.spec, options.large)
    for verb, flop in work.items():
        yield Row(f"{verb} {pixels(options.large)}: work", flop / 1e12, "TFLOP")
    image = np.round((synthetic_image(*options.large)[0].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    network = synthetic_network(options.spec)
    for baseline in BASELINES:
        try:
            with torch.inference_mode(), _precision(tf32=baseline.tf32):
                yield from _baseline_rows(baseline, network, image, work, peaks[baseline.arithmetic], options)
        except torch.cuda.OutOfMemoryError as error:
            yield Row(f"{baseline.name}", "out of memory", facts={"note": str(error).splitlines()[0]})
        _free(options)


def _baseline_rows(
    baseline: Baseline, network: MGVQ, image: np.ndarray, work: dict[str, int], peak: float, options: GpuOptions
) -> Iterator[Row]:
    import torch

    placed = (_half(network) if baseline.half else copy.deepcopy(network)).to(options.device)
    runner = _Runner(placed, baseline, options)
    if not options.dry_run:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    codes = runner.encode(image)
    actions = {
        "encode": (lambda: runner.encode(image), runner.queue_encode),
        "decode": (lambda: runner.decode(codes), runner.queue_decode),
    }
    for verb, (whole, queued) in actions.items():
        times = wall_times(whole, options.repeats, dry_run=options.dry_run)
        on_device = float(np.median(device_times(queued, options)))
        share = work[verb] / (on_device / 1e3) / peak
        note = f"{on_device:.4g} ms on the device, {share:.0%} of the matrix product's rate"
        facts: dict[str, Any] = {"device_ms": on_device, "share_of_ceiling": float(share), "note": note}
        yield Row.timed(f"{baseline.name}: {verb} {pixels(options.large)}", times, **facts)
    if not options.dry_run:
        yield Row(f"{baseline.name}: peak memory of PyTorch", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    if baseline.compiled:
        yield Row(f"{baseline.name}: compilation and all runs", time.perf_counter() - start, "s")


class _Runner:
    """A network on the device, for images of ``options.large``: numpy in and out through pinned memory, as engines are run."""

    def __init__(self, network: MGVQ, baseline: Baseline, options: GpuOptions):
        import torch

        self._network, self._options = network, options
        self._dtype = torch.float16 if baseline.half else torch.float32
        self._format = torch.channels_last if baseline.half else torch.contiguous_format
        self._latent: Callable[[Tensor], Tensor] = network.latent
        self._reconstruct: Callable[[Tensor], Tensor] = network.reconstruct
        if baseline.compiled:
            self._latent = torch.compile(self._latent, backend=options.compiler, dynamic=False)
            self._reconstruct = torch.compile(self._reconstruct, backend=options.compiler, dynamic=False)
        height, width = (side // network.spec.downsample for side in options.large)
        self._codes = _pinned(torch.zeros((1, network.spec.groups, height, width), dtype=torch.int32), options)
        self._pixels = _pinned(torch.zeros((*options.large, 3), dtype=torch.uint8), options)

    def encode(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> codes int32 [1, G, h, w]."""
        return self._run(image, self._pixels, self.queue_encode, self._codes)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int32 [1, G, h, w] -> uint8 [H, W, 3]."""
        return self._run(codes, self._codes, self.queue_decode, self._pixels)

    def _run(self, given: np.ndarray, source: Tensor, queue: Callable[[], None], target: Tensor) -> np.ndarray:
        import torch

        source.copy_(torch.from_numpy(given))
        queue()
        if not self._options.dry_run:
            torch.cuda.synchronize()
        return target.numpy().copy()

    def queue_encode(self) -> None:
        """From pinned pixels to pinned codes, without waiting for them."""
        pixels = self._pixels.to(self._options.device, non_blocking=True)[None].permute(0, 3, 1, 2).float()
        image = ((pixels / 255 - 0.5) * 2).to(self._dtype).contiguous(memory_format=self._format)
        self._codes.copy_(self._network.quantize.encode(self._latent(image)), non_blocking=True)

    def queue_decode(self) -> None:
        """From pinned codes to pinned pixels, without waiting for them."""
        quantized = self._network.quantize.decode(self._codes.to(self._options.device, non_blocking=True))
        image = self._reconstruct(quantized.contiguous(memory_format=self._format))[0].float()
        pixels = (image * 127.5 + 127.5).clamp(0, 255).round().to(dtype=self._pixels.dtype)
        self._pixels.copy_(pixels.permute(1, 2, 0), non_blocking=True)


def count_work(spec: Any, size: Size) -> dict[str, int]:
    """Floating-point operations of encoding and decoding one image of ``size``: convolutions and matrix products, 2 per multiply-add."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mgvq_export.model.network import MGVQ

    f = spec.downsample
    with torch.device("meta"), torch.inference_mode():
        network = MGVQ(spec)
        inputs = torch.empty((1, 3, *size)), torch.empty((1, spec.latent_channels, size[0] // f, size[1] // f))
        counted = {}
        for verb, part, value in zip(("encode", "decode"), (network.latent, network.reconstruct), inputs, strict=True):
            with FlopCounterMode(display=False) as counter:
                part(value)
            counted[verb] = int(counter.get_total_flops())
    return counted


def _ceiling(options: GpuOptions, *, half: bool, tf32: bool) -> float:
    """Operations per second of a large square matrix product on random values: the measured peak of the GPU, not that of its data sheet."""
    import torch

    dtype = torch.float16 if half and not options.dry_run else torch.float32
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((options.ceiling, options.ceiling), generator=generator).to(options.device, dtype) for _ in range(2))
    with torch.inference_mode(), _precision(tf32=tf32):
        times = device_times(lambda: a @ b, options)
    return 2 * options.ceiling**3 / (float(np.median(times)) / 1e3)


@contextlib.contextmanager
def _precision(*, tf32: bool) -> Iterator[None]:
    """TF32 in convolutions and matrix products on or off, and cuDNN trying its algorithms, inside the body."""
    import torch

    flags = (
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_tf32"),
        (torch.backends.cudnn, "benchmark"),
    )
    before = [getattr(owner, name) for owner, name in flags]
    try:
        for (owner, name), value in zip(flags, (tf32, tf32, True), strict=True):
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in zip(flags, before, strict=True):
            setattr(owner, name, value)


def import_torch(options: GpuOptions) -> Any:
    """PyTorch. Raises :class:`CannotRun` when it is missing, or finds no GPU where one is wanted."""
    try:
        import torch
    except ImportError as error:
        raise CannotRun(f"needs PyTorch ({error}): pip install torch") from None
    if not options.dry_run and not torch.cuda.is_available():
        raise CannotRun(f"PyTorch {torch.__version__} finds no GPU; install the build for this machine's CUDA from pytorch.org")
    return torch


def _half(network: MGVQ) -> MGVQ:
    """A float16 copy, channels last in memory."""
    import torch

    copied: Any = copy.deepcopy(network).half()
    return copied.to(memory_format=torch.channels_last)


def _pinned(tensor: Tensor, options: GpuOptions) -> Tensor:
    return tensor if options.dry_run else tensor.pin_memory()


def _array(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def _free(options: GpuOptions) -> None:
    gc.collect()
    if not options.dry_run:
        import torch

        torch.cuda.empty_cache()
