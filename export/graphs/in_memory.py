"""Graphs in ONNX Runtime without a file: for measuring many plans of one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from mgvq_export.export.graphs.builder import WeightStore
from mgvq_export.ops.ort_session import load_graph, session_options

if TYPE_CHECKING:
    import onnxruntime


def load_session(
    model: onnx.ModelProto, weights: WeightStore, *, outputs: Sequence[str] = (), threads: int | None = None
) -> onnxruntime.InferenceSession:
    """``model``, of :func:`~mgvq_export.export.graphs.parts.build_graph`, ready to run on the CPU; its weights are taken from ``weights``.

    Args:
        outputs: further values of the graph to give, by name, after its own outputs; the graph is not optimized across them.
        threads: threads of one operator; all cores when None.
    """
    if outputs:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = session_options(threads=threads)
    arrays = dict(weights.offsets.values())
    external = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    values = [_value(arrays[_offset(tensor)], tensor) for tensor in external]
    options.add_external_initializers([tensor.name for tensor in external], values)
    return load_graph(model.SerializeToString(), options)


def _offset(tensor: TensorProto) -> int:
    return next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")


def _value(array: np.ndarray, tensor: TensorProto) -> onnxruntime.OrtValue:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.reshape(tuple(tensor.dims)), tensor.data_type)
