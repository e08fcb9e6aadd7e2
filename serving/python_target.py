"""The ``triton-python`` target: models that run the bundle with this package, so images of any size and any of its backends.

Four models, run by Triton's Python backend (:mod:`mgvq_export.serving.models`), and three ensembles over them::

    mgvq_encode        image -> mgvq_encoder -> mgvq_quantizer -> codes
    mgvq_encode_file   file -> mgvq_image_reader -> mgvq_encoder -> mgvq_quantizer -> codes, size
    mgvq_decode        codes, groups, size -> mgvq_decoder -> image
"""

from __future__ import annotations

from dataclasses import dataclass

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError
from mgvq_export.core.remedies import build_pattern
from mgvq_export.core.spec import Part
from mgvq_export.core.units import Size
from mgvq_export.core.version import __version__
from mgvq_export.runtime.backend import AUTO, BACKENDS, CHOICES
from mgvq_export.serving.bundle_copy import bundle_files
from mgvq_export.serving.config import ModelConfig, Step, TensorConfig, WarmUp
from mgvq_export.serving.opening import BUNDLE_FOLDER, GPU_BACKENDS
from mgvq_export.serving.options import PublishOptions
from mgvq_export.serving.target import Model, labels, size_name

_CODE = '''"""Run by Triton's Python backend. What it does is in mgvq_export.serving.models; its settings are in config.pbtxt."""

try:
    from mgvq_export.serving.models import {stage} as TritonPythonModel
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{{error}}; in the Python of Triton's stub: pip install 'mgvq-export=={version}'") from None

__all__ = ["TritonPythonModel"]
'''

_IMAGE = TensorConfig("image", "uint8", (-1, -1, 3))
_FILE = TensorConfig("file", "uint8", (-1,))
_SIZE = TensorConfig("size", "int32", (2,))
_OPTIONAL_SIZE = TensorConfig("size", "int32", (2,), optional=True)
_OPTIONAL_GROUPS = TensorConfig("groups", "int32", (1,), optional=True)

_READ = Step("mgvq_image_reader", {"file": "file"}, {"image": "image", "size": "size"})
_ENCODE = Step("mgvq_encoder", {"image": "image"}, {"latent": "latent"})
_QUANTIZE = Step("mgvq_quantizer", {"latent": "latent"}, {"codes": "codes"})
_DECODE = Step("mgvq_decoder", {"codes": "codes", "groups": "groups", "size": "size"}, {"image": "image"})

#: Backends that run engines -> the library that the engines' records name.
_ENGINES_OF = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}

Tensors = tuple[TensorConfig, ...]


def plan_models(bundle: Bundle, options: PublishOptions) -> list[Model]:
    """The models to write.

    Raises:
        BundleError: the bundle lacks the precision or the backend's engines, or a file of it has changed.
        BackendError: no backend of that name, or none for the device.
    """
    precision = options.precision or ("fp32" if "fp32" in bundle.precisions else bundle.precisions[0])
    makers = {name: entry.precisions[precision] for name, entry in BACKENDS.items() if precision in entry.precisions}
    graphs = next(iter(makers.values()), precision)  # of a precision that a backend makes at run time, those that it makes it of
    bundle.entry(graphs)  # names the precisions it has when this one is missing
    if makers and options.backend not in (AUTO, *makers):
        raise BackendError(f"precision {precision} does not run on {options.backend}; choose --backend {' or '.join(makers)}")
    _check_backend(bundle, graphs, options)
    codes = TensorConfig("codes", "uint16", (bundle.spec.groups, -1, -1))
    latent = _latent(bundle, graphs)
    shared = {
        f"{options.version}/{BUNDLE_FOLDER}/{name}": source
        for name, source in bundle_files(bundle, graphs, engines=options.on_gpu).items()
    }
    write = _Writer(options, labels(bundle, precision) | _settings(options))
    warm = _WarmUps(options.sizes, bundle.spec.downsample)
    decoded = (codes, _OPTIONAL_GROUPS, _OPTIONAL_SIZE)
    encoder = write.model("mgvq_encoder", "Encoder", (_IMAGE,), (latent,), warm.images())
    return [
        write.model("mgvq_image_reader", "ImageReader", (_FILE,), (_IMAGE, _SIZE)),
        Model(encoder.config, {**encoder.files, **shared}),
        write.model("mgvq_quantizer", "Quantizer", (latent,), (codes,), warm.grids(latent)),
        write.model("mgvq_decoder", "Decoder", decoded, (_IMAGE,), warm.grids(codes)),
        write.ensemble("mgvq_encode", (_IMAGE,), (codes,), (_ENCODE, _QUANTIZE)),
        write.ensemble("mgvq_encode_file", (_FILE,), (codes, _SIZE), (_READ, _ENCODE, _QUANTIZE)),
        write.ensemble("mgvq_decode", decoded, (_IMAGE,), (_DECODE,)),
    ]


@dataclass(frozen=True)
class _Writer:
    """What all models of a repository have in common."""

    options: PublishOptions
    parameters: dict[str, str]

    def model(self, name: str, stage: str, inputs: Tensors, outputs: Tensors, warm_ups: tuple[WarmUp, ...] = ()) -> Model:
        kind = "KIND_GPU gpus: [ 0 ]" if self.options.on_gpu and stage != "ImageReader" else "KIND_CPU"
        config = ModelConfig(
            name,
            'backend: "python"',
            inputs,
            outputs,
            max_batch=self.options.max_batch,
            max_queue=self.options.max_queue,
            mixed_sizes=True,
            instances=f"count: {self.options.instances} kind: {kind}",
            warm_ups=warm_ups,
            parameters=self.parameters,
        )
        code = _CODE.format(stage=stage, version=__version__)
        return Model(config, {f"{self.options.version}/model.py": code.encode()})

    def ensemble(self, name: str, inputs: Tensors, outputs: Tensors, steps: tuple[Step, ...]) -> Model:
        most = self.options.max_batch
        platform = 'platform: "ensemble"'
        return Model(ModelConfig(name, platform, inputs, outputs, max_batch=most, parameters=self.parameters, steps=steps))


@dataclass(frozen=True)
class _WarmUps:
    """Requests of the declared sizes."""

    sizes: tuple[Size, ...]
    downsample: int

    def images(self) -> tuple[WarmUp, ...]:
        return tuple(WarmUp(size_name(size), {"image": ("uint8", (*size, 3))}, "random_data") for size in self.sizes)

    def grids(self, value: TensorConfig) -> tuple[WarmUp, ...]:
        """Zeros: random bytes may be NaN as floats, and too large as codes."""
        found = []
        for size in self.sizes:
            height, width = (-(-side // self.downsample) for side in size)
            found.append(WarmUp(size_name(size), {value.name: (value.dtype, (value.dims[0], height, width))}, "zero_data"))
        return tuple(found)


def _settings(options: PublishOptions) -> dict[str, str]:
    """What the models read at their start; an empty string for what the runtime chooses."""
    return {
        "backend": options.backend,
        "device": "gpu" if options.on_gpu else "cpu",
        "threads": str(options.threads or ""),
        "max_pixels": str(options.max_pixels),
        "memory_limit": options.memory_limit or "",
    }


def _latent(bundle: Bundle, precision: str) -> TensorConfig:
    """The latent, which goes from the encoder to the quantizer, in the graphs' float type."""
    (value,) = bundle.graph(precision, Part.ENCODER).outputs
    return TensorConfig(value.name, value.dtype, (bundle.spec.latent_channels, -1, -1))


def _check_backend(bundle: Bundle, precision: str, options: PublishOptions) -> None:
    if options.backend not in CHOICES:
        raise BackendError(f"no backend {options.backend!r}; choose {', '.join(CHOICES)}")
    if options.backend in GPU_BACKENDS and not options.on_gpu:
        raise BackendError(f"{options.backend} needs a GPU; give --device gpu, or choose another backend")
    if options.backend not in (*GPU_BACKENDS, AUTO) and options.on_gpu:
        raise BackendError(f"{options.backend} runs on the CPU; give --device cpu, or choose another backend")
    library = _ENGINES_OF.get(options.backend)
    if library and not any((record.target, record.precision) == (library, precision) for record in bundle.engines):
        raise BundleError(f"{bundle.path} has no {precision} engines; build them: {build_pattern(bundle.path, precision)}")
