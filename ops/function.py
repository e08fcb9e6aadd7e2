"""The ONNX function body of ``mgvq::GroupedArgmin``: standard operators only, for runtimes that do not have the operator.

The scores of all positions at once would take gigabytes. The body walks over chunks of positions whose scores take at most 4 MiB.
All chunks have the same size, a constant: a compiler that plans memory for dynamic shapes then knows the largest. The last chunk is
filled up with zeros.
"""

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from mgvq_export.core.errors import InputError
from mgvq_export.ops.contract import DOMAIN, OP_NAME, codes_shape

#: Scores of one chunk (float32). On the CPU, 2**19 to 2**21 are equally fast; more is slower for small maps, and no faster for large ones.
CHUNK_SCORES = 2**20
#: Positions of one chunk at most: small codebooks would else make chunks that are larger than most maps.
CHUNK_POSITIONS = 256
OPSET = 20


def _constant(name: str, value: object, dtype: type[np.generic] = np.int64) -> NodeProto:
    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(np.array(value, dtype), name))


def _loop_body(groups: int) -> GraphProto:
    """One chunk: positions [G, n, d] times rows [G, d, K] -> codes int32 [G, n]. ``rows_by_channel`` comes from outside."""
    nodes = [
        _constant("still_go_on", True, np.bool_),
        helper.make_node("Gather", ["chunked", "index"], ["chunk"], axis=0),
        helper.make_node("MatMul", ["chunk", "rows_by_channel"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["winners"], axis=2, keepdims=0, select_last_index=0),
        helper.make_node("Cast", ["winners"], ["chunk_codes"], to=TensorProto.INT32),
    ]
    return helper.make_graph(
        nodes,
        "chunk_of_positions",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("still_go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("chunk_codes", TensorProto.INT32, [groups, None]),
        ],
    )


def grouped_argmin_function(groups: int, codes_per_group: int, group_dim: int, *, opset: int = OPSET) -> FunctionProto:
    """The body for G groups of K rows of d channels; batch, height and width are free. ``opset`` is 18 to 20 or later.

    Inputs ``latent`` (float or float16) and ``codebook`` (float), output ``codes``, as in :mod:`mgvq_export.ops.contract`.
    Raises ``InputError`` for sizes the operator does not allow, and for an opset below 18.
    """
    codes_shape((1, groups * group_dim, 1, 1), (groups, codes_per_group, group_dim))
    if opset < 18:
        raise InputError(f"{OP_NAME}: function body asked for opset {opset}; wanted 18 or later")
    node = helper.make_node
    size = min(CHUNK_POSITIONS, max(1, CHUNK_SCORES // (groups * codes_per_group)))  # positions of one chunk
    nodes = [
        _constant("zero", [0]),
        _constant("groups", [groups]),
        _constant("split_channels", [0, groups, group_dim, -1]),
        _constant("positions_by_channel", [-1, groups * group_dim]),
        _constant("positions_by_group", [-1, groups]),
        _constant("chunk_shape", [-1, size, groups, group_dim]),
        _constant("chunk_codes_shape", [-1, groups, size]),
        _constant("go_on_at_first", True, np.bool_),
        _constant("channel_axis", [2]),
        _constant("size", [size]),
        _constant("size_less_one", [size - 1]),
        _constant("any_number", [-1]),
        _constant("largest", np.finfo(np.float32).max, np.float32),
        _constant("half", 0.5, np.float32),
        _constant("code_zero", 0, np.int32),
        # Which sub-vectors hold only finite values. NaN compares as false.
        node("Cast", ["latent"], ["values"], to=TensorProto.FLOAT),
        node("Reshape", ["values", "split_channels"], ["split"]),  # [B, G, d, h*w]
        node("Abs", ["split"], ["magnitude"]),
        node("LessOrEqual", ["magnitude", "largest"], ["finite"]),
        node("Not", ["finite"], ["not_finite"]),
        node("Cast", ["not_finite"], ["not_finite_number"], to=TensorProto.FLOAT),
        # A sum and not a maximum: of the reductions, ONNX Runtime's symbolic shape inference knows only sum, mean and product.
        node("ReduceSum", ["not_finite_number", "channel_axis"], ["not_finite_count"], keepdims=0),
        node("Less", ["not_finite_count", "half"], ["usable"]),  # [B, G, h*w]
        # Positions of the whole batch in chunks; the last one is filled up with zeros.
        node("Transpose", ["split"], ["by_position"], perm=[0, 3, 1, 2]),
        node("Reshape", ["by_position", "positions_by_channel"], ["positions"]),  # [B*h*w, G*d]
        node("Shape", ["positions"], ["count"], start=0, end=1),
        node("Add", ["count", "size_less_one"], ["count_up"]),
        node("Div", ["count_up", "size"], ["chunks"]),
        node("Mul", ["chunks", "size"], ["padded_count"]),
        node("Sub", ["padded_count", "count"], ["missing"]),
        node("Concat", ["zero", "zero", "missing", "zero"], ["pads"], axis=0),
        node("Pad", ["positions", "pads"], ["padded"], mode="constant"),
        node("Reshape", ["padded", "chunk_shape"], ["chunked_positions"]),
        node("Transpose", ["chunked_positions"], ["chunked"], perm=[0, 2, 1, 3]),  # [chunks, G, size, d]
        node("Transpose", ["codebook"], ["rows_by_channel"], perm=[0, 2, 1]),  # [G, d, K]
        node("Squeeze", ["chunks", "zero"], ["trips"]),
        # The condition is given though it is always true: without one, onnx.reference does not run the loop, and TensorRT does not
        # parse a body that reads it. onnx.reference joins the codes of all chunks along the first axis and others along a new one: the
        # reshape makes them equal.
        node("Loop", ["trips", "go_on_at_first"], ["chunk_codes_joined"], body=_loop_body(groups)),
        node("Reshape", ["chunk_codes_joined", "chunk_codes_shape"], ["chunk_codes_all"]),  # [chunks, G, size]
        # Back to the latent's layout.
        node("Transpose", ["chunk_codes_all"], ["codes_by_position"], perm=[0, 2, 1]),
        node("Reshape", ["codes_by_position", "positions_by_group"], ["padded_codes"]),
        node("Slice", ["padded_codes", "zero", "count", "zero"], ["position_codes"]),
        node("Shape", ["latent"], ["batch"], start=0, end=1),
        node("Shape", ["latent"], ["height_width"], start=2),
        node("Concat", ["batch", "any_number", "groups"], ["batch_shape"], axis=0),
        node("Reshape", ["position_codes", "batch_shape"], ["batch_codes"]),  # [B, h*w, G]
        node("Transpose", ["batch_codes"], ["group_codes"], perm=[0, 2, 1]),
        node("Where", ["usable", "group_codes", "code_zero"], ["usable_codes"]),
        node("Concat", ["batch", "groups", "height_width"], ["codes_shape"], axis=0),
        node("Reshape", ["usable_codes", "codes_shape"], ["codes"]),
    ]
    for proto in nodes:
        proto.name = proto.name or proto.output[0]
    function = helper.make_function(
        DOMAIN, OP_NAME, ["latent", "codebook"], ["codes"], nodes, [onnx.helper.make_opsetid("", opset)]
    )
    function.doc_string = "Index of the codebook row with the largest inner product, per position and group; ties: the lowest."
    return function
