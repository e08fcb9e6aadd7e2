"""Take a trained MGVQ image tokenizer to production: ONNX graphs, TensorRT engines, exact tiling, parity checks.

Names load on first use: importing this package loads neither torch nor onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgvq_export.bundle import Bundle
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.runtime.tokenizer import Tokenizer
    from mgvq_export.spec import ModelSpec
    from mgvq_export.tokens import Tokens

__version__ = "0.1.0"

__all__ = ["Bundle", "ModelSpec", "Tokenizer", "Tokens", "export_bundle"]

_HOMES = {
    "Bundle": "bundle",
    "ModelSpec": "spec",
    "Tokenizer": "runtime.tokenizer",
    "Tokens": "tokens",
    "export_bundle": "export.bundles",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
