"""Take a trained MGVQ image tokenizer to production: ONNX graphs, TensorRT engines, exact tiling, parity checks.

Names load on first use: importing this package loads neither torch nor onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mgvq_export.core.version import __version__ as __version__

if TYPE_CHECKING:
    from mgvq_export.core.bundle import Bundle
    from mgvq_export.core.precision_plan import PrecisionPlan
    from mgvq_export.core.spec import ModelSpec
    from mgvq_export.core.tokens import Tokens
    from mgvq_export.dataset.tokenize import TokenizeOptions, tokenize_dataset
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.export.engines.build import build_engines
    from mgvq_export.export.engines.options import BuildOptions
    from mgvq_export.model.checkpoint import load_checkpoint
    from mgvq_export.parity.verify import verify
    from mgvq_export.runtime.image_files import read_image
    from mgvq_export.runtime.tensorrt.session import TensorRtOptions
    from mgvq_export.runtime.tokenizer import Tokenizer


__all__ = [
    "BuildOptions",
    "Bundle",
    "ModelSpec",
    "PrecisionPlan",
    "TensorRtOptions",
    "TokenizeOptions",
    "Tokenizer",
    "Tokens",
    "build_engines",
    "export_bundle",
    "load_checkpoint",
    "read_image",
    "tokenize_dataset",
    "verify",
]

_HOMES = {
    "BuildOptions": "export.engines.options",
    "Bundle": "core.bundle",
    "ModelSpec": "core.spec",
    "PrecisionPlan": "core.precision_plan",
    "TensorRtOptions": "runtime.tensorrt.session",
    "TokenizeOptions": "dataset.tokenize",
    "Tokenizer": "runtime.tokenizer",
    "Tokens": "core.tokens",
    "build_engines": "export.engines.build",
    "export_bundle": "export.bundles",
    "load_checkpoint": "model.checkpoint",
    "read_image": "runtime.image_files",
    "tokenize_dataset": "dataset.tokenize",
    "verify": "parity.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The names above too, so that ``help()`` and completion show them before their first use."""
    return sorted({*globals(), *__all__})
