"""Peers: other ways to run the same network, measured beside a tokenizer. Each turns uint8 [H, W, 3] into codes and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mgvq_export.bench.processes import Outcome
from mgvq_export.bench.record import EntryFacts
from mgvq_export.bench.timing import Laps
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.spec import Part
from mgvq_export.runtime.backend import ON_HOST
from mgvq_export.runtime.image_files import read_image
from mgvq_export.runtime.images import pad_to_multiple, to_float, to_uint8

if TYPE_CHECKING:
    import torch

#: Inputs by name and the names of outputs -> those outputs.
RunGraph = Callable[[dict[str, np.ndarray], list[str]], list[np.ndarray]]

#: Name -> description.
PEERS = {
    "torch": "the PyTorch network, eager",
    "torch-channels-last": "the PyTorch network, eager, channels last in memory",
    "torch-bf16": "the PyTorch network, eager, in bfloat16",
    "torch-compile": "the PyTorch network through torch.compile",
    "whole-graph": "encoder.onnx and decoder.onnx in one piece, with the runtime's sessions",
    "openvino": "encoder.onnx and decoder.onnx in one piece in OpenVINO, compiled for the size, float32; the quantizer is the runtime's",
    "openvino-bf16": "the same in bfloat16",
    "plain-ort": "encoder.onnx and decoder.onnx in ONNX Runtime as it comes: its own memory arena, no fused kernel",
}

#: Rows and columns of the matrix product: large enough that a larger one is no faster per operation.
CEILING_SIDE = 3072


@dataclass(frozen=True)
class PeerOptions:
    """Options of a peer; arrays and graphs are loaded in its own process."""

    bundle: Path
    image: Path
    precision: str
    backend: str
    threads: int | None = None
    checkpoint: str | None = None


def check_peers(names: Sequence[str]) -> None:
    """Raise :class:`InputError` for a name that is no peer."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise InputError(f"no peer {', '.join(unknown)}; choose {', '.join(PEERS)}")


def build_peer(name: str, options: PeerOptions) -> PeerJob:
    """The job of a peer. Raises :class:`BackendError` when it cannot run, with the reason."""
    if name.startswith("openvino"):
        return PeerJob(_OpenVinoNetwork(options, "bf16" if name == "openvino-bf16" else "f32"), options)
    if name in ("whole-graph", "plain-ort"):
        return PeerJob(_OnnxNetwork(options, plain=name == "plain-ort"), options)
    return PeerJob(_TorchNetwork(name, options), options)


class _Network(Protocol):
    facts: EntryFacts
    warm_up_whole: bool  # whether the warm-up must be of the full size

    def encode(self, image: np.ndarray) -> np.ndarray: ...

    def decode(self, codes: np.ndarray) -> np.ndarray: ...


class PeerJob:
    """One pass: the image to codes, the codes to an image; both with the conversions from and to uint8."""

    def __init__(self, network: _Network, options: PeerOptions):
        self._network = network
        spec = Bundle.open(options.bundle).spec
        self._image, _ = pad_to_multiple(read_image(options.image), spec.downsample)
        self._small = np.zeros((4 * spec.downsample, 4 * spec.downsample, 3), np.uint8)
        self._codes = np.empty(0, np.int32)

    def warm_up(self) -> None:
        """Load, compile and start threads on a small input; not timed."""
        image = self._image if self._network.warm_up_whole else self._small
        self._network.decode(self._network.encode(image))

    def run(self) -> dict[str, float]:
        """One pass: seconds by stage."""
        laps = Laps(time.perf_counter)
        self._codes = self._network.encode(self._image)
        laps.lap("encode")
        self._network.decode(self._codes)
        laps.lap("decode")
        return laps.seconds

    def outcome(self) -> Outcome:
        """Facts about the last pass, as :class:`~mgvq_export.bench.processes.Measured` keeps them."""
        return {"codes": self._codes[0], "facts": self._network.facts}


_PRECISIONS = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


class _TorchNetwork:
    def __init__(self, name: str, options: PeerOptions):
        import torch

        from mgvq_export.parity.network import find_network

        reference = find_network(Bundle.open(options.bundle), options.checkpoint)
        if reference.network is None:
            raise BackendError(reference.why)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._device = "cuda" if on_cuda(options.backend) else "cpu"
        # On a CPU the float16 graphs are computed in float32 too.
        self._dtype = torch.float16 if options.precision == "fp16" and self._device == "cuda" else torch.float32
        if name == "torch-bf16":
            self._dtype = torch.bfloat16
        self._layout = torch.channels_last if name == "torch-channels-last" else torch.contiguous_format
        self.facts: EntryFacts = {"device": self._device, "precision": _PRECISIONS[str(self._dtype)]}
        network = reference.network.requires_grad_(False).to(self._device, self._dtype)
        network = network.to(memory_format=self._layout)  # type: ignore[call-overload]  # torch's types have it for tensors only
        self.warm_up_whole = name == "torch-compile"  # it compiles for one size
        self._encode, self._decode = network.encode, network.decode
        if name == "torch-compile":
            self._encode, self._decode = torch.compile(network.encode), torch.compile(network.decode)

    def encode(self, image: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            values: torch.Tensor = torch.from_numpy(to_float(image))
            return self._encode(values.to(self._device, self._dtype, memory_format=self._layout)).cpu().numpy()

    def decode(self, codes: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return to_uint8(self._decode(torch.from_numpy(codes).to(self._device)).float().cpu().numpy())


class _OnnxNetwork:
    warm_up_whole = False

    def __init__(self, options: PeerOptions, plain: bool):
        bundle = Bundle.open(options.bundle)
        self.facts: EntryFacts = {"precision": options.precision}
        self._groups = np.array(bundle.spec.groups, np.int64)
        self._sessions: dict[Part, RunGraph] = {}
        for part in (Part.ENCODER, Part.QUANTIZER, Part.DEQUANTIZER, Part.DECODER):
            path = bundle.graph_path(options.precision, part)
            self._sessions[part] = _plain_session(path, options) if plain else _our_session(path, options)

    def encode(self, image: np.ndarray) -> np.ndarray:
        (latent,) = self._sessions[Part.ENCODER]({"image": to_float(image)}, ["latent"])
        return self._sessions[Part.QUANTIZER]({"latent": latent}, ["codes"])[0]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        (quantized,) = self._sessions[Part.DEQUANTIZER]({"codes": codes, "groups": self._groups}, ["quantized"])
        return to_uint8(self._sessions[Part.DECODER]({"quantized": quantized}, ["image"])[0])


class _OpenVinoNetwork:
    warm_up_whole = True  # it compiles for one size

    def __init__(self, options: PeerOptions, precision: str):
        import openvino

        from mgvq_export.core.processors import usable_cpus
        from mgvq_export.runtime.openvino.backend import check_installed
        from mgvq_export.runtime.openvino.sessions import OpenVinoGraphs

        check_installed()
        bundle = Bundle.open(options.bundle)
        threads = options.threads or usable_cpus()
        self.facts: EntryFacts = {"precision": "bf16" if precision == "bf16" else options.precision}
        self._groups = np.array(bundle.spec.groups, np.int64)
        self._tables = OpenVinoGraphs(bundle, options.precision, precision=options.precision, threads=threads)
        self._core, self._compiled = openvino.Core(), dict[tuple[Part, tuple[int, ...]], openvino.CompiledModel]()
        self._settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        self._paths = {part: bundle.graph_path(options.precision, part) for part in (Part.ENCODER, Part.DECODER)}

    def _run(self, part: Part, values: np.ndarray) -> np.ndarray:
        key = (part, values.shape)
        if key not in self._compiled:
            model = self._core.read_model(self._paths[part])
            model.reshape(list(values.shape))
            self._compiled[key] = self._core.compile_model(model, "CPU", self._settings)
        dtype = self._compiled[key].inputs[0].element_type.to_dtype()
        return self._compiled[key]([values.astype(dtype, copy=False)])[0]

    def encode(self, image: np.ndarray) -> np.ndarray:
        return self._tables[Part.QUANTIZER].run({"latent": self._run(Part.ENCODER, to_float(image))}, ["codes"])[0]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        (quantized,) = self._tables[Part.DEQUANTIZER].run({"codes": codes, "groups": self._groups})
        return to_uint8(self._run(Part.DECODER, quantized))


def _our_session(path: Path, options: PeerOptions) -> RunGraph:
    from mgvq_export.runtime.ort.sessions import OrtSession

    session = OrtSession(path, _ort_backend(options.backend), threads=options.threads)
    return lambda feeds, outputs: session.run(feeds, outputs)


def _plain_session(path: Path, options: PeerOptions) -> RunGraph:
    import onnxruntime as ort

    from mgvq_export.runtime.ort.sessions import PROVIDERS

    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    if options.threads is not None:
        session_options.intra_op_num_threads = options.threads
    provider = PROVIDERS[_ort_backend(options.backend)]
    session = ort.InferenceSession(str(path), session_options, providers=[provider])
    half = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}

    def run(feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        return session.run(outputs, {name: array.astype(np.float16) if name in half else array for name, array in feeds.items()})

    return run


def _ort_backend(backend: str) -> str:
    return "ort-cpu" if backend in ON_HOST else "ort-cuda"  # for any other GPU backend, ONNX Runtime's


def on_cuda(backend: str) -> bool:
    """Whether a peer of ``backend`` runs on the GPU: the backend does, and torch can."""
    if backend in ON_HOST:
        return False
    import torch

    return torch.cuda.is_available()


class CeilingJob:
    """The ceiling of the machine: one square matrix product, with numpy on the CPU, with torch on a GPU."""

    def __init__(self, backend: str, precision: str, side: int):
        self._side = side
        values = np.random.default_rng(0).standard_normal((2, side, side), dtype=np.float32)
        self._what = f"numpy float32 {side}"
        left, right = values
        self._multiply = lambda: left @ right
        if backend not in ON_HOST:
            self._on_gpu(values, precision)

    def _on_gpu(self, values: np.ndarray, precision: str) -> None:
        import torch

        if not torch.cuda.is_available():
            raise BackendError("torch sees no GPU; without it the ceiling of this backend cannot be measured")
        left, right = torch.from_numpy(values).to("cuda", torch.float16 if precision == "fp16" else torch.float32)
        self._what = f"torch {left.dtype} {self._side} on {torch.cuda.get_device_name()}"

        def multiply() -> None:
            torch.matmul(left, right)
            torch.cuda.synchronize()

        self._multiply = multiply

    def warm_up(self) -> None:
        """Load, compile and start threads on a small input; not timed."""
        self._multiply()

    def run(self) -> dict[str, float]:
        """One pass: seconds by stage."""
        laps = Laps(time.perf_counter)
        self._multiply()
        laps.lap("matmul")
        return laps.seconds

    def outcome(self) -> Outcome:
        """Facts about the last pass, as :class:`~mgvq_export.bench.processes.Measured` keeps them."""
        return {"facts": {"what": self._what, "flop": {"matmul": 2 * self._side**3}}}
