"""The fused CPU kernel as a custom operator of ONNX Runtime, through onnxruntime-extensions' Python operators."""

import threading
from typing import TYPE_CHECKING

from mgvq_export.core.errors import BackendError
from mgvq_export.core.types import Untyped
from mgvq_export.ops.contract import DOMAIN, OP_NAME

if TYPE_CHECKING:
    import onnxruntime

_MARK = f"{DOMAIN}.kernels_registered"
_lock = threading.Lock()
_operators: list[Untyped] = []  # what onnxruntime-extensions knows of us; its table is one per process, and a name may enter once


def _library_path() -> str:
    """Declare the operator once per process; the path of the library that ONNX Runtime then finds it in."""
    try:
        import onnxruntime_extensions as extensions
        from onnxruntime_extensions import PyCustomOpDef

        from mgvq_export.ops.cpu_kernel import grouped_argmin
    except ImportError as error:
        raise BackendError(
            f"the fused {OP_NAME} kernel did not load ({error}); run: pip install onnxruntime-extensions numba. "
            "Without it the graph still runs, several times slower, on its own function body"
        ) from error
    with _lock:
        if not _operators:
            # float32 only: these Python operators end the process when handed float16. Float16 graphs cast first.
            declare = extensions.onnx_op(
                op_type=f"{DOMAIN}::{OP_NAME}",
                inputs=[PyCustomOpDef.dt_float, PyCustomOpDef.dt_float],
                outputs=[PyCustomOpDef.dt_int32],
            )
            _operators.append(declare(grouped_argmin))
    return str(extensions.get_library_path())


def register_ort_kernels(session_options: "onnxruntime.SessionOptions") -> None:
    """Make sessions created with ``session_options`` run ``mgvq::GroupedArgmin`` with the fused kernel, on the CPU.

    The latent must be float32 at the node (a float16 graph casts first): a session over a node with a float16 latent does not
    load. Call it before creating the session; calling it again, with the same or other options, from any thread, is fine.
    Raises :class:`BackendError` when onnxruntime-extensions or numba is missing.
    """
    path = _library_path()
    with _lock:
        try:
            session_options.get_session_config_entry(_MARK)
        except RuntimeError:  # no such entry: these options are new; ONNX Runtime refuses a second registration
            session_options.register_custom_ops_library(path)
            session_options.add_session_config_entry(_MARK, "1")
