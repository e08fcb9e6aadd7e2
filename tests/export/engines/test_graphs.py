"""The graphs handed to TensorRT, run in ONNX Runtime on the CPU: same numbers as the runtime's own image arithmetic."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mgvq_export.core.errors import BundleError
from mgvq_export.core.spec import Part
from mgvq_export.export.engines.graphs import engine_graph
from mgvq_export.ops.contract import DOMAIN, OP_NAME
from mgvq_export.ops.trt_plugin import NODE_ATTRIBUTES
from mgvq_export.runtime.images import to_float, to_uint8

SIZES = [(32, 48), (64, 32)]
ENCODERS = [Part.ENCODER, Part.ENCODER_TRUNK, Part.ENCODER_TRUNK_FINE]
DECODERS = [Part.DECODER, Part.DECODER_TRUNK, Part.DECODER_TRUNK_FINE]
precisions = pytest.mark.parametrize("precision", ["fp32", "fp16"])


def session(path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # The graph as it is written: optimizations drop pairs of casts, and with them float16's rounding.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def folder(tiny_bundle, tmp_path_factory):
    """A copy of the bundle: the changed graphs find their weights only beside ``weights.bin``."""
    path = tmp_path_factory.mktemp("graphs") / "bundle"
    shutil.copytree(tiny_bundle.path, path)
    return path


def sessions(folder, precision, part):
    """The exported graph and the engine's."""
    path = folder / precision / f"{part}.onnx"
    changed = folder / precision / f"{part}.changed.onnx"
    changed.write_bytes(engine_graph(path).model)
    onnx.checker.check_model(str(changed), full_check=True)
    return session(path), session(changed)


@pytest.mark.parametrize("part", ENCODERS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_uint8_in_is_to_float(folder, part, size, rng):
    plain, changed = sessions(folder, "fp32", part)
    images = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    floats = np.concatenate([to_float(image) for image in images])
    assert np.array_equal(changed.run(None, {"image": images})[0], plain.run(None, {"image": floats})[0])


@pytest.mark.parametrize("part", DECODERS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_uint8_out_is_to_uint8(folder, part, size, rng):
    plain, changed = sessions(folder, "fp32", part)
    (value,) = plain.get_inputs()
    stride = {Part.DECODER: 16, Part.DECODER_TRUNK: 8, Part.DECODER_TRUNK_FINE: 4}[part]
    x = (3 * rng.standard_normal((2, value.shape[1], size[0] // stride, size[1] // stride))).astype(np.float32)
    floats = plain.run(None, {value.name: x})[0]
    assert floats.min() < -1 and floats.max() > 1  # the clip has work to do
    pixels, non_finite = changed.run(None, {value.name: x})
    assert non_finite.dtype == np.int32 and non_finite.tolist() == [0, 0]
    assert pixels.dtype == np.uint8 and pixels.shape == (2, *size, 3)
    assert np.array_equal(pixels, np.stack([to_uint8(image) for image in floats]))


# On the CPU ONNX Runtime computes a float16 graph in float32 and rounds at its boundary only, so that float16 graphs are
# compared where a float16 value crosses the boundary: the image steps alone.


def image_steps(folder, part, source, target):
    """A session of the steps between two values of the float16 engine's graph."""
    model = onnx.load_model_from_string(engine_graph(folder / "fp16" / f"{part}.onnx").model)
    model = onnx.shape_inference.infer_shapes(model)
    path = folder / f"{part}.steps.onnx"
    path.write_bytes(onnx.utils.Extractor(model).extract_model([source], [target]).SerializeToString())
    return session(path)


@pytest.mark.parametrize("part", ENCODERS, ids=str)
def test_uint8_into_float16_is_to_float(folder, part):
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)  # every value
    wanted = to_float(image[0], np.empty((1, 3, 16, 16), np.float16))
    (found,) = image_steps(folder, part, "image", "image/typed").run(None, {"image": image})
    assert found.dtype == np.float16 and np.array_equal(found, wanted)


@pytest.mark.parametrize("part", DECODERS, ids=str)
def test_uint8_out_of_float16_is_to_uint8(folder, part):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[~np.isnan(every)]
    x = np.resize(every, (1, 3, 16, 1408))  # all finite values and both infinities, at least once
    (pixels,) = image_steps(folder, part, "image/network", "image").run(None, {"image/network": x})
    assert np.array_equal(pixels[0], to_uint8(x))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_reported_for_its_image(folder, precision, bad):
    _, changed = sessions(folder, precision, Part.DECODER_TRUNK_FINE)
    (value,) = changed.get_inputs()
    x = np.zeros((3, value.shape[1], 2, 2), "float32" if precision == "fp32" else "float16")
    x[1, 0, 1, 1] = bad
    assert changed.run(["non_finite"], {value.name: x})[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_not_finite_is_reported(folder, precision, bad):
    _, changed = sessions(folder, precision, Part.ENCODER_HEAD)
    (value,) = changed.get_inputs()
    x = np.zeros((2, value.shape[1], 2, 2), "float32" if precision == "fp32" else "float16")
    x[0, 0, 1, 1] = bad
    assert changed.run(["non_finite"], {value.name: x})[0].tolist() == [1, 0]


def test_engines_that_give_images_or_the_latent_report(tiny_bundle):
    named = {part: [v.name for v in engine_graph(tiny_bundle.graph_path("fp16", part)).outputs] for part in Part}
    reporting = {part for part, names in named.items() if "non_finite" in names}
    assert reporting == {*DECODERS, Part.ENCODER, Part.ENCODER_HEAD}
    assert named[Part.DECODER] == ["image", "non_finite"] and named[Part.ENCODER_HEAD] == ["latent", "non_finite"]


@precisions
@pytest.mark.parametrize("part", [Part.ENCODER, Part.DECODER, Part.ENCODER_TRUNK_FINE, Part.DECODER_TRUNK_FINE], ids=str)
def test_uint8_stays_at_the_boundary(tiny_bundle, precision, part):
    """TensorRT refuses uint8 inside the network."""
    model = onnx.load_model_from_string(engine_graph(tiny_bundle.graph_path(precision, part)).model)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    inside = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert len(inside) > 10 and TensorProto.UINT8 not in inside.values()
    readers = [node.op_type for node in model.graph.node if "image" in node.input]
    writers = [node.op_type for node in model.graph.node if "image" in node.output]
    assert readers + writers == ["Cast"]


@precisions
def test_the_quantizer_has_the_plugin_and_no_body(tiny_bundle, precision):
    graph = engine_graph(tiny_bundle.graph_path(precision, Part.QUANTIZER))
    model = onnx.load_model_from_string(graph.model)
    (node,) = [node for node in model.graph.node if node.op_type == OP_NAME]
    assert graph.plugins == 1 and len(model.functions) == 0 and node.domain == DOMAIN
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert values == {name: value.encode() if isinstance(value, str) else value for name, value in NODE_ATTRIBUTES.items()}
    assert [value.name for value in graph.outputs] == ["codes", "quantized"]
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} == {
        "int32",
        "float32" if precision == "fp32" else "float16",
    }


@pytest.mark.parametrize("part", [Part.DECODER_HEAD, Part.DEQUANTIZER, Part.DECODER_TRUNK_COARSE], ids=str)
def test_graphs_without_image_or_operator_are_only_read(tiny_bundle, part):
    path = tiny_bundle.graph_path("fp16", part)
    graph = engine_graph(path)
    assert onnx.load_model_from_string(graph.model) == onnx.load(path, load_external_data=False)
    assert graph.plugins == 0


def test_the_same_bytes_every_time(tiny_bundle):
    path = tiny_bundle.graph_path("fp16", Part.ENCODER)
    assert engine_graph(path).sha256 == engine_graph(path).sha256
    assert engine_graph(path).sha256 != engine_graph(tiny_bundle.graph_path("fp32", Part.ENCODER)).sha256


def test_a_file_that_is_no_graph(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\xff\xff not a graph")
    with pytest.raises(BundleError, match="is no ONNX graph") as error:
        engine_graph(tmp_path / "x.onnx")
    assert "\n" not in str(error.value)
