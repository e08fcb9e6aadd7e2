"""Float16 graphs computed with every rounding: overflow and underflow between nodes are seen."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from mgvq_export.calibration.rounding import has_float16, rounded
from mgvq_export.core.spec import Part
from mgvq_export.export.graphs.builder import WeightStore
from mgvq_export.export.graphs.in_memory import load_session
from mgvq_export.export.graphs.parts import build_graph

HALF = TensorProto.FLOAT16


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def model_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", HALF, [4])],
        [helper.make_tensor_value_info("y", HALF, [4])],
        [helper.make_tensor("half", HALF, [], [0.5])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


X = np.array([60000, 1, 1e-4, 2.0005], np.float32)


def test_overflow_between_nodes_is_seen() -> None:
    model = model_of(helper.make_node("Add", ["x", "x"], ["a"]), helper.make_node("Mul", ["a", "half"], ["y"]))
    assert has_float16(model)
    assert run(rounded(model), X).tolist() == [np.inf, *X[1:].astype(np.float16).astype(np.float32)]


def test_underflow_between_nodes_is_seen() -> None:
    model = model_of(helper.make_node("Mul", ["x", "x"], ["a"]), helper.make_node("Sqrt", ["a"], ["y"]))
    found = run(rounded(model), np.array([1e-4, 1e-3, 1, 2], np.float32))
    assert found[0] == 0  # 1e-8 is below float16's smallest number
    np.testing.assert_allclose(found[1:], [1e-3, 1, 2], rtol=0.05)


def test_float32_islands_do_not_round() -> None:
    model = model_of(
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "wide"], ["square"]),
        helper.make_node("Sqrt", ["square"], ["root"]),
        helper.make_node("Cast", ["root"], ["y"], to=HALF),
    )
    np.testing.assert_array_equal(run(rounded(model), X), X.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("part", [Part.ENCODER, Part.DECODER])
def test_whole_graphs_stay_close_to_float32(small_network, part: Part) -> None:
    exact, half = WeightStore(), WeightStore()
    reference = load_session(build_graph(small_network, part, "fp32", exact), exact)
    model = build_graph(small_network, part, "fp16", half)
    session = load_session(rounded(model), half)
    assert not has_float16(build_graph(small_network, part, "fp32", WeightStore()))
    (entry,) = session.get_inputs()
    shape = (1, 3, 32, 32) if part is Part.ENCODER else (1, 16, 8, 8)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    wanted, found = (one.run(None, {entry.name: x})[0] for one in (reference, session))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.astype(np.float16))  # the graph's output is float16
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 1e-2
