"""NVIDIA's real parser and builder take every graph of the packaged model, in every precision, as the program hands them over."""

import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.spec import Part
from mgvq_export.export.engines.build import build_engines
from mgvq_export.export.engines.cache import BuildCache
from mgvq_export.export.engines.graphs import engine_graph
from mgvq_export.export.engines.options import BuildOptions

PRECISIONS = ("fp32", "fp16", "int8", "fp8")
SIZES = ((96, 64), (256, 320))

TYPES = {"float32": "DataType.FLOAT", "float16": "DataType.HALF", "int32": "DataType.INT32", "int64": "DataType.INT64"}
TYPES |= {"uint8": "DataType.UINT8"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_builds(precision: str, demo: Bundle, tmp_path: Path) -> None:
    shutil.copytree(demo.path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    parts = tuple(bundle.spec.parts)
    assert len(parts) == 12
    shapes = SIZES if precision == "fp16" else SIZES[:1]
    options = BuildOptions(precision=precision, parts=parts, shapes=shapes, batch=2, target="rtx")
    engines = build_engines(bundle, options, cache=BuildCache(tmp_path / "cache"))
    assert [engine.part for engine in engines] == list(parts)
    for engine in engines:
        record = engine.record
        assert (record.target, record.gpu, record.compute_capabilities, record.reproducible) == ("rtx", "", (), True)
        assert record.kernel is None and record.activation_bytes is not None
        assert record.file == f"engines/rtx-{record.tensorrt}/{precision}/{engine.part}.engine"
        assert engine.path.stat().st_size == record.bytes > 10_000
        (first, *others) = (next(iter(profile.values())) for profile in record.profiles)
        assert len(others) == len(shapes) - 1 and first not in others
        assert first.min[0] == 1 and first.opt == first.max and first.max[0] == 2
    kept = build_engines(Bundle.open(bundle.path), options, cache=BuildCache(tmp_path / "cache"))
    assert all(engine.reused for engine in kept)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parsed_networks_are_the_graphs(precision: str, demo: Bundle, in_child) -> None:
    found = in_child("parsed", demo.path, precision)
    for part in demo.spec.parts:
        graph, network = engine_graph(demo.graph_path(precision, part), "rtx"), found[str(part)]
        for end, values in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            wanted = {v.name: [TYPES[v.dtype], [dim if isinstance(dim, int) else -1 for dim in v.shape]] for v in values}
            assert network[end] == wanted, part
        operators = Counter(node.op_type for node in onnx.load_model_from_string(graph.model).graph.node)
        layers = network["layers"]
        assert layers.get("CONVOLUTION", 0) == operators["Conv"], part
        assert layers.get("QUANTIZE", 0) == operators["QuantizeLinear"], part
        assert layers.get("DEQUANTIZE", 0) == operators["DequantizeLinear"], part
        assert not any("PLUGIN" in kind for kind in layers)
        if precision in ("int8", "fp8") and part in (Part.ENCODER, Part.DECODER):
            assert operators["QuantizeLinear"] > 5


def test_two_builds_give_the_same_bytes(demo: Bundle, tmp_path: Path) -> None:
    hashes = []
    for name in ("first", "second"):
        shutil.copytree(demo.path, tmp_path / name)
        options = BuildOptions(shapes=SIZES, target="rtx")
        engines = build_engines(Bundle.open(tmp_path / name), options, cache=BuildCache(tmp_path / "cache"))
        hashes.append([engine.record.sha256 for engine in engines])
    assert hashes[0] == hashes[1]


def test_an_engine_of_a_large_image_holds_no_constant_of_its_size(demo: Bundle, tmp_path: Path) -> None:
    sizes = {}
    for shape in ((256, 256), (1440, 2560)):
        shutil.copytree(demo.path, tmp_path / str(shape[0]))
        bundle = Bundle.open(tmp_path / str(shape[0]))
        options = BuildOptions(parts=(Part.ENCODER, Part.DECODER), shapes=(shape,), target="rtx")
        sizes[shape] = [engine.record.bytes for engine in build_engines(bundle, options, cache=BuildCache(tmp_path / "cache"))]
    for small, large in zip(*sizes.values(), strict=True):
        assert large - small < 1_000_000  # a half-precision channel of 2560x1440 has 7.4 MB


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16"])
@pytest.mark.parametrize("codebook", [(8, 2048, 4), (4, 8192, 8), (8, 512, 4)])
def test_the_quantizers_memory_is_bounded(codebook: tuple[int, int, int], kind: str, in_child) -> None:
    assert in_child("quantizer_memory", *codebook, kind) < 150e6


def test_a_half_precision_latent_reaches_the_operator_uncast(demo: Bundle) -> None:
    for target in ("rtx", "tensorrt"):
        model = onnx.load_model_from_string(engine_graph(demo.graph_path("fp16", Part.QUANTIZER), target).model)
        (node,) = (node for node in model.graph.node if node.op_type == "GroupedArgmin")
        assert node.input[0] == "latent" and model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        assert bool(model.functions) == (target == "rtx")
