"""Eight-bit values: scales, rounding, and which nodes can take them.

Symmetric quantization as TensorRT's explicit quantization and ONNX's QuantizeLinear define it: ``q = round(x / scale)``, half to even,
clipped; zero point 0. int8 weights keep to -127..127 so that the range is symmetric. fp8 is E4M3FN (arXiv:2209.05433).
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from mgvq_export.core.errors import InputError
from mgvq_export.core.precision_plan import LARGEST, NodePlan

#: ONNX's type of each 8-bit precision.
ONNX_TYPE: dict[str, int] = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def numpy_type(precision: str) -> np.dtype[np.generic]:
    """The numpy type of ``int8`` or ``fp8`` values."""
    return helper.tensor_dtype_to_np_dtype(ONNX_TYPE[precision])


def stored_scale(scale: float | np.ndarray, precision: str, dtype: np.dtype) -> np.ndarray:
    """``scale`` in a graph's float type, rounded up: never 0, and nothing that fitted before is clipped after.

    float16 has steps of 6e-8 at its lower end, where the scales of small weights lie. Raises :class:`InputError` when the largest value
    that the scale stands for does not fit in that type.
    """
    exact = np.asarray(scale, np.float64)
    largest, limit = exact.max() * LARGEST[precision], np.finfo(dtype).max
    if largest > limit:
        raise InputError(
            f"a scale of {exact.max():g} stands for values up to {largest:g}; {dtype} ends at {limit:g}: choose fp32"
        )
    rounded = exact.astype(dtype)
    return np.where(rounded < exact, np.nextafter(rounded, dtype.type(np.inf)), rounded).astype(dtype)


def weight_scales(weight: np.ndarray, precision: str, dtype: np.dtype, given: tuple[float, ...] = ()) -> np.ndarray:
    """One scale per output channel of ``weight`` [O, ...]: ``given``, or the channel's largest magnitude over that of the type."""
    if given:
        return stored_scale(np.array(given), precision, dtype)
    largest = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1)
    return stored_scale(np.where(largest > 0, largest / LARGEST[precision], 1.0), precision, dtype)


def quantize(values: np.ndarray, scale: np.ndarray, precision: str) -> np.ndarray:
    """``values`` over ``scale`` (of a shape that broadcasts), rounded to the 8-bit type and clipped."""
    scaled = np.clip(values.astype(np.float64) / scale.astype(np.float64), -LARGEST[precision], LARGEST[precision])
    return (np.rint(scaled) if precision == "int8" else scaled).astype(numpy_type(precision))


def check_node(name: str, op: str, plan: NodePlan, *, groups: int, channels: int, activations: tuple[bool, ...]) -> None:
    """Raises :class:`InputError` when the node cannot run as ``plan`` says.

    Args:
        groups, channels: of a convolution: its groups and output channels.
        activations: for every input, whether it is computed by the graph (and not a weight or a constant).
    """
    if not plan.quantized:
        return
    what = f"node {name} ({op}) cannot be {plan.precision}"
    if op == "Conv":
        if groups != 1:
            raise InputError(
                f"{what}: it is a depthwise or grouped convolution, which gains nothing from it; remove it from the plan"
            )
        if set(plan.scales) != {0}:
            raise InputError(f"{what} with the scales of inputs {_listed(plan)}: wanted that of input 0, its activation")
        if plan.weight_scales and len(plan.weight_scales) != channels:
            raise InputError(f"{what} with {len(plan.weight_scales)} weight scales: it has {channels} output channels")
    elif op == "Add" and all(activations):
        if not set(plan.scales) <= {0, 1}:
            raise InputError(f"{what} with the scales of inputs {_listed(plan)}: a sum has the inputs 0 and 1")
        if plan.weight_scales:
            raise InputError(f"{what} with weight scales: a sum has no weights")
    else:
        raise InputError(f"{what}: only convolutions and sums of two activations can; remove it from the plan")


def _listed(plan: NodePlan) -> str:
    return ", ".join(map(str, sorted(plan.scales)))
