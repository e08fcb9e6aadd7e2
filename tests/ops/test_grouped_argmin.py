"""Every CPU lowering of GroupedArgmin against the numpy oracle."""

import subprocess
import sys
import threading

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.ops import cases, contract, cpu_kernel, function, ort_kernel, register_ort_kernels


def one_node_model(groups, codes, dim, dtype=np.float32, *, opset=20, with_body=True):
    """A model of one GroupedArgmin node, batch, height and width dynamic."""
    latent = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node(contract.OP_NAME, ["latent", "codebook"], ["codes"], domain=contract.DOMAIN, name="argmin")],
        "argmin",
        [
            helper.make_tensor_value_info("latent", latent, ["B", groups * dim, "h", "w"]),
            helper.make_tensor_value_info("codebook", TensorProto.FLOAT, [groups, codes, dim]),
        ],
        [helper.make_tensor_value_info("codes", TensorProto.INT32, ["B", groups, "h", "w"])],
    )
    body = [function.grouped_argmin_function(groups, codes, dim, opset=opset)] if with_body else []
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(contract.DOMAIN, contract.VERSION)]
    return helper.make_model(graph, functions=body, opset_imports=opsets, ir_version=10)


def session(latent, codebook, *, kernel, with_body=True):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    if kernel:
        register_ort_kernels(options)
    model = one_node_model(*codebook.shape, latent.dtype, with_body=with_body)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_body(latent, codebook):
    return session(latent, codebook, kernel=False).run(None, {"latent": latent, "codebook": codebook})[0]


def run_ort_kernel(latent, codebook):
    latent = latent.astype(np.float32)  # the cast that stands before the node in float16 graphs
    # No function body: the session would not load if the kernel were not the one that runs.
    return session(latent, codebook, kernel=True, with_body=False).run(None, {"latent": latent, "codebook": codebook})[0]


def run_reference(latent, codebook):
    model = one_node_model(*codebook.shape, latent.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return ReferenceEvaluator(model).run(None, {"latent": latent, "codebook": codebook})[0]


def run_openvino(latent, codebook):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = onnx.inliner.inline_local_functions(one_node_model(*codebook.shape, latent.dtype))
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    return compiled({"latent": latent, "codebook": codebook})[0]


FACES = {
    "function body in ONNX Runtime": run_body,
    "function body in onnx.reference": run_reference,
    "inlined body in OpenVINO": run_openvino,
    "fused kernel": cpu_kernel.grouped_argmin,
    "fused kernel in ONNX Runtime": run_ort_kernel,
}
#: Equal rows have equal scores everywhere but here: numpy's matrix product sums the last columns in another order than the first.
TIES_BY_ROUNDING = {"function body in onnx.reference"}


def assert_agrees(latent, codebook, codes):
    wanted = contract.grouped_argmin(latent, codebook)
    assert codes.dtype == np.int32 and codes.shape == wanted.shape
    margins = contract.near_tie_margins(latent, codebook, wanted, codes)
    assert (margins < contract.NEAR_TIE).all(), f"{len(margins)} of {codes.size} codes differ, largest margin {margins.max():.1e}"


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", cases.NAMES)
def test_face_agrees_with_oracle(face, name):
    latent, codebook = cases.make(name)
    codes = FACES[face](latent, codebook)
    if face in TIES_BY_ROUNDING:
        codes = first_equal_rows(codebook, codes)
    assert_agrees(latent, codebook, codes)


def first_equal_rows(codebook, codes):
    """``codes`` [B, G, h, w], each replaced by the lowest index of a row of the same values."""
    replaced = np.empty_like(codes)
    for group, rows in enumerate(codebook + 0.0):  # no negative zeros: they are equal to zero, but not in their bytes
        _, first, of_row = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        replaced[:, group] = first[of_row.reshape(-1)][codes[:, group]]
    return replaced


@pytest.mark.parametrize("face", [face for face in FACES if face not in TIES_BY_ROUNDING])
@pytest.mark.parametrize(
    "name", ["duplicated-rows", "neighbouring-duplicates", "all-rows-equal", "mirrored-rows", "zero-vectors"]
)
def test_exact_ties_take_the_lowest_index(face, name):
    latent, codebook = cases.make(name)
    codes = FACES[face](latent, codebook)
    np.testing.assert_array_equal(codes, first_equal_rows(codebook, codes))
    if name == "mirrored-rows":  # exact scores: no rounding to excuse anything
        np.testing.assert_array_equal(codes, contract.grouped_argmin(latent, codebook))


@pytest.mark.parametrize("face", [*FACES, "oracle"])
def test_slices_that_are_not_finite_give_zero_and_leave_their_neighbours_alone(face):
    run = FACES.get(face, contract.grouped_argmin)
    latent, codebook = cases.random_case(np.random.default_rng(1), 4, 61, 4)
    before = run(latent, codebook)
    for bad in (np.nan, np.inf, -np.inf):
        broken = latent.copy()
        broken[0, 5, 2, 3] = bad  # channel 5 is group 1's
        wanted = before.copy()
        wanted[0, 1, 2, 3] = 0
        np.testing.assert_array_equal(run(broken, codebook), wanted)


def test_oracle_equals_float64_search_and_smallest_distance():
    latent, codebook = cases.random_case(np.random.default_rng(2), 3, 50, 6, batch=2)
    vectors = latent.reshape(2, 3, 6, 5, 7).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    distance = ((unit[:, :, None] - codebook[None, :, :, :, None, None].astype(np.float64)) ** 2).sum(axis=3)
    np.testing.assert_array_equal(contract.grouped_argmin(latent, codebook), distance.argmin(axis=2))


@pytest.mark.filterwarnings("ignore:overflow")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fused_kernel_agrees_with_oracle_on_any_input(data):
    groups, dim = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 3, 4, 8]))
    batch, height, width = (data.draw(st.integers(1, 5)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    latent, codebook = cases.random_case(
        rng, groups, data.draw(st.integers(1, 200)), dim, batch=batch, height=height, width=width
    )
    values = data.draw(
        st.lists(st.floats(width=32, min_value=-(2.0**120), max_value=2.0**120) | st.sampled_from([np.nan, np.inf]))
    )
    if data.draw(st.booleans()):
        codebook = codebook[:, rng.integers(0, codebook.shape[1], codebook.shape[1])]  # with duplicates
    for value in values:
        latent.flat[rng.integers(latent.size)] = value
    assert_agrees(latent, codebook, cpu_kernel.grouped_argmin(latent, codebook, threads=data.draw(st.integers(1, 5))))


def test_many_threads_and_pieces_give_the_same_codes():
    latent, codebook = cases.random_case(np.random.default_rng(3), 8, 300, 4, batch=3, height=41, width=43)
    wanted = cpu_kernel.grouped_argmin(latent, codebook, threads=1)
    kernel = session(latent, codebook, kernel=True)
    results = []

    def work(pieces):
        results.append(cpu_kernel.grouped_argmin(latent, codebook, threads=pieces))
        results.append(kernel.run(None, {"latent": latent, "codebook": codebook})[0])

    workers = [threading.Thread(target=work, args=(1 + i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 12
    for codes in results:
        np.testing.assert_array_equal(codes, wanted)


@pytest.mark.parametrize("opset", [18, 19, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_function_body_is_valid_and_runs(opset, dtype):
    model = one_node_model(4, 61, 4, dtype, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    latent, codebook = cases.random_case(np.random.default_rng(4), 4, 61, 4, batch=3)
    runner = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for height in (1, 5):  # one session, several shapes
        part = np.ascontiguousarray(latent[:, :, :height]).astype(dtype)
        assert_agrees(part, codebook, runner.run(None, {"latent": part, "codebook": codebook})[0])


@pytest.mark.parametrize("chunk", [1, 61 * 4 * 2, 61 * 4 * 5, 61 * 4 * 1000])
def test_function_body_chunks_cover_every_position(chunk, monkeypatch):
    monkeypatch.setattr(function, "CHUNK_SCORES", chunk)  # 1, 2, 5 and 256 positions a chunk, for 3 x 35 positions
    latent, codebook = cases.random_case(np.random.default_rng(5), 4, 61, 4, batch=3)
    assert_agrees(latent, codebook, run_body(latent, codebook))


def test_function_body_is_deterministic_and_in_the_contract_domain():
    first, second = (function.grouped_argmin_function(8, 2048, 4).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    body = function.grouped_argmin_function(8, 2048, 4)
    assert (body.domain, body.name) == (contract.DOMAIN, contract.OP_NAME)
    assert {node.domain for node in body.node} == {""}


def test_registered_kernel_is_preferred_over_the_body(monkeypatch):
    calls = []
    real = cpu_kernel.grouped_argmin
    latent, codebook = cases.random_case(np.random.default_rng(6), 4, 61, 4)
    kernel = session(latent, codebook, kernel=True, with_body=True)
    monkeypatch.setattr(ort_kernel._operators[0], "body", lambda *values: calls.append(1) or real(*values))
    kernel.run(None, {"latent": latent, "codebook": codebook})
    assert calls == [1]
    session(latent, codebook, kernel=False).run(None, {"latent": latent, "codebook": codebook})
    assert calls == [1]


def test_registering_twice_is_harmless():
    options = ort.SessionOptions()
    register_ort_kernels(options)
    register_ort_kernels(options)
    register_ort_kernels(ort.SessionOptions())
    model = one_node_model(2, 7, 3, with_body=False)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert len(ort_kernel._operators) == 1


@pytest.mark.parametrize("package", ["onnxruntime_extensions", "numba"])
def test_missing_package_is_one_line_with_a_remedy(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "mgvq_export.ops.cpu_kernel")
    with pytest.raises(BackendError, match="pip install onnxruntime-extensions numba"):
        register_ort_kernels(ort.SessionOptions())


def test_without_a_cache_folder_the_kernel_still_compiles(monkeypatch):
    def no_folder(dim, cache, compile_=cpu_kernel._compile):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_(dim, cache)

    cpu_kernel._kernel.cache_clear()
    monkeypatch.setattr(cpu_kernel, "_compile", no_folder)
    latent, codebook = cases.random_case(np.random.default_rng(7), 2, 9, 2)
    assert_agrees(latent, codebook, cpu_kernel.grouped_argmin(latent, codebook))
    cpu_kernel._kernel.cache_clear()


@pytest.mark.parametrize(
    ("latent", "codebook", "words"),
    [
        ((1, 9, 2, 2), (2, 5, 4), "9 channels"),
        ((1, 8, 2), (2, 5, 4), "wanted"),
        ((1, 8, 0, 2), (2, 5, 4), "none zero"),
        ((1, 33, 1, 1), (33, 5, 1), "33 groups"),
        ((1, 33, 1, 1), (1, 5, 33), "at most"),
    ],
)
@pytest.mark.parametrize("run", [contract.grouped_argmin, cpu_kernel.grouped_argmin])
def test_shapes_that_do_not_fit_are_refused(run, latent, codebook, words):
    with pytest.raises(InputError, match=words):
        run(np.zeros(latent, np.float32), np.zeros(codebook, np.float32))


def test_other_types_are_refused():
    for latent, codebook in ((np.float64, np.float32), (np.float32, np.float16)):
        with pytest.raises(InputError, match="wanted float32"):
            contract.grouped_argmin(np.zeros((1, 2, 1, 1), latent), np.zeros((1, 3, 2), codebook))


def test_margins_tell_near_ties_from_faults():
    codebook = np.array([[[1, 0], [np.cos(1e-7), np.sin(1e-7)], [0, 1], [1, 0]]], np.float32)
    latent = np.array([[[[3.0]], [[0.0]]]], np.float32)
    codes = [np.full((1, 1, 1, 1), i, np.int32) for i in range(4)]
    margin = lambda a, b, z=latent: contract.near_tie_margins(z, codebook, codes[a], codes[b])  # noqa: E731
    assert len(margin(2, 2)) == 0
    assert margin(0, 1)[0] < contract.NEAR_TIE
    assert margin(0, 2)[0] == pytest.approx(1.0)
    assert margin(0, 3)[0] == np.inf  # equal rows: the rule, not rounding, decides
    assert margin(0, 1, 0 * latent)[0] == np.inf
    assert margin(0, 1, np.nan * latent)[0] == np.inf


def test_contract_and_package_load_neither_onnx_nor_numba():
    code = "import sys, mgvq_export.ops.contract; sys.exit(bool({'onnx', 'numba', 'onnxruntime', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_kernel_works_in_a_forked_child():
    code = """
import os, numpy as np
from mgvq_export.ops.cpu_kernel import grouped_argmin
latent, codebook = np.ones((1, 8, 64, 64), np.float32), np.eye(4, dtype=np.float32)[None].repeat(2, 0)
grouped_argmin(latent, codebook, threads=2)
child = os.fork()
if not child:
    grouped_argmin(latent, codebook, threads=2)
    os._exit(7)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=60).returncode == 7
