"""Take a trained MGVQ image tokenizer to production: ONNX graphs, TensorRT engines, exact tiling, parity checks.

Names load on first use: importing this package loads neither torch nor onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgvq_export.bundle import Bundle
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.export.engine_options import BuildOptions
    from mgvq_export.export.engines import build_engines
    from mgvq_export.model.checkpoint import load_checkpoint
    from mgvq_export.parity.verify import verify
    from mgvq_export.precision import PrecisionPlan
    from mgvq_export.runtime.tokenizer import Tokenizer
    from mgvq_export.runtime.trt_session import TensorRtOptions
    from mgvq_export.spec import ModelSpec
    from mgvq_export.tokens import Tokens

__version__ = "0.1.0"

__all__ = [
    "BuildOptions",
    "Bundle",
    "ModelSpec",
    "PrecisionPlan",
    "TensorRtOptions",
    "Tokenizer",
    "Tokens",
    "build_engines",
    "export_bundle",
    "load_checkpoint",
    "verify",
]

_HOMES = {
    "BuildOptions": "export.engine_options",
    "Bundle": "bundle",
    "ModelSpec": "spec",
    "PrecisionPlan": "precision",
    "TensorRtOptions": "runtime.trt_session",
    "Tokenizer": "runtime.tokenizer",
    "Tokens": "tokens",
    "build_engines": "export.engines",
    "export_bundle": "export.bundles",
    "load_checkpoint": "model.checkpoint",
    "verify": "parity.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
