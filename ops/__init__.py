"""``mgvq::GroupedArgmin`` and all its faces.

``contract`` (numpy only) says what the operator computes; ``function`` is its ONNX function body, ``cpu_kernel`` the fused
kernel for CPUs, ``ort_kernel`` that kernel's registration with ONNX Runtime, ``grouped_argmin.cu`` the kernel for NVIDIA GPUs;
``cases`` are the inputs on which all must agree.
Importing this package loads none of onnx, numba, onnxruntime.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgvq_export.ops.ort_kernel import register_ort_kernels

__all__ = ["register_ort_kernels"]


def __getattr__(name: str) -> Any:
    if name == "register_ort_kernels":
        from mgvq_export.ops.ort_kernel import register_ort_kernels

        return register_ort_kernels
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
