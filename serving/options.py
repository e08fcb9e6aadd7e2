"""What is asked of a model repository, in one object that is carried whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.units import Size, parse_bytes

Target = Literal["triton-python", "triton-tensorrt"]
Device = Literal["cpu", "gpu"]

TARGETS: tuple[Target, ...] = get_args(Target)
DEVICES: tuple[Device, ...] = get_args(Device)

#: Larger images are refused by a published model unless it is published with a higher limit: 40 megapixels hold 8K video (33).
SERVED_PIXELS = 40_000_000


@dataclass(frozen=True)
class PublishOptions:
    """How a bundle is published. Contradictions raise :class:`InputError`.

    Attributes:
        target: ``triton-python``: models that run the bundle with this package, any size; ``triton-tensorrt``: the bundle's engines
            as ``model.plan`` files, the sizes they hold.
        precision: of the bundle's; when None, ``fp16`` for ``triton-tensorrt``, else ``fp32`` if the bundle has it, else its first.
        device: ``cpu`` or ``gpu``; when None, what the target runs on by default: ``triton-tensorrt`` on the GPU, the other on the CPU.
        backend: of ``Tokenizer.open``, for ``triton-python``; ``auto``: the fastest on ``device`` where the server runs.
        max_batch: images that are run together at most.
        instances: processes (with engines: execution contexts) of each model that runs a network.
        threads: CPU threads of one instance; all cores when None.
        max_queue: requests that may wait for one model; further ones are rejected.
        sizes: (height, width) of images to warm up with before the server is ready; with engines, sizes they must hold.
        max_pixels: larger images are refused.
        memory_limit: of each instance, such as ``4GiB``; as ``Tokenizer.open`` has it.
        version: the version number under which Triton serves the models.
    """

    target: Target = "triton-python"
    precision: str | None = None
    device: Device | None = None
    backend: str = "auto"
    max_batch: int = 8
    instances: int = 1
    threads: int | None = None
    max_queue: int = 64
    sizes: tuple[Size, ...] = ()
    max_pixels: int = SERVED_PIXELS
    memory_limit: str | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"no target {shown(self.target)}; choose {', '.join(TARGETS)}")
        if self.device is not None and self.device not in DEVICES:
            raise InputError(f"no device {shown(self.device)}; choose {', '.join(DEVICES)}")
        for name, most in (("max_batch", 1024), ("instances", 256), ("max_queue", 1_000_000), ("version", 2**31 - 1)):
            self._check(name, getattr(self, name), most)
        self._check("max_pixels", self.max_pixels, 2**40)
        if self.threads is not None:
            self._check("threads", self.threads, 4096)
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit)
        for height, width in self.sizes:
            if height < 1 or width < 1 or height * width > self.max_pixels:
                raise InputError(
                    f"size is {width}x{height}; wanted at least 1x1 and at most {self.max_pixels} pixels: raise --max-pixels"
                )
        if self.target == "triton-tensorrt":
            self._refuse_for_engines()

    def _check(self, name: str, value: int, most: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise InputError(f"{name.replace('_', ' ')} is {shown(value)}; wanted a whole number from 1 to {most}")

    def _refuse_for_engines(self) -> None:
        if self.device == "cpu":
            raise InputError(
                "triton-tensorrt runs engines, which need a GPU; leave --device out, or choose --target triton-python"
            )
        for name, value in (("threads", self.threads), ("memory limit", self.memory_limit)):
            if value is not None:
                raise InputError(f"{name} is for --target triton-python; engines take their own: leave it out")
        if self.backend not in ("auto", "tensorrt"):
            raise InputError(f"triton-tensorrt runs engines, not {self.backend}; choose --target triton-python")

    @property
    def on_gpu(self) -> bool:
        """Whether the models run on a GPU."""
        return self.device == "gpu" or self.target == "triton-tensorrt"
