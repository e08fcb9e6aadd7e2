"""The Triton model repository, read with Triton's own schema (``model_config.proto``), and what is in it run by ONNX Runtime."""

import importlib.util
import json
import shutil

import numpy as np
import pytest

from mgvq_export import Tokenizer
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BundleError, InputError
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.runtime.images import to_float
from mgvq_export.serving.triton import write_repository

WHOLE = BuildOptions(precision="fp32", shapes=((32, 48), (64, 96)))
MODELS = ["mgvq_decode", "mgvq_decoder", "mgvq_dequantizer", "mgvq_encode", "mgvq_encoder", "mgvq_quantizer"]


@pytest.fixture(scope="module")
def parse():
    """config.pbtxt -> Triton's ModelConfig. Unknown fields and wrong types are errors."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("Triton's schema is not installed: pip install tritonclient")
    from google.protobuf import text_format

    # By its path: the package around it wants gRPC.
    path = f"{found.submodule_search_locations[0]}/grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda folder: text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), module.ModelConfig())


@pytest.fixture(scope="module")
def names():
    """TYPE_* -> numpy's name; the numbers are those of model_config.proto."""
    return {2: "uint8", 8: "int32", 9: "int64", 10: "float16", 11: "float32"}


def tensors(values, names):
    return {value.name: (names[value.data_type], list(value.dims)) for value in values}


def test_engines(engine_bundle, parse, names, tmp_path):
    bundle = engine_bundle(WHOLE)
    folders = write_repository(bundle, tmp_path / "models", precision="fp32")
    assert [folder.name for folder in folders] == MODELS
    configs = {folder.name: parse(folder) for folder in folders}
    for name, config in configs.items():
        assert config.name == name and config.max_batch_size == 0
    encoder = configs["mgvq_encoder"]
    assert encoder.platform == "tensorrt_plan"
    assert tensors(encoder.input, names) == {"image": ("uint8", [-1, -1, -1, 3])}
    assert tensors(encoder.output, names) == {"latent": ("float32", [-1, 16, -1, -1]), "non_finite": ("int32", [-1])}
    assert list(encoder.instance_group[0].profile) == ["0", "1"]  # one for every size
    assert configs["mgvq_dequantizer"].backend == "onnxruntime"
    assert tensors(configs["mgvq_dequantizer"].input, names)["groups"] == ("int64", [1])
    for record in bundle.engines:
        if record.part in ("encoder", "quantizer", "decoder"):
            plan = tmp_path / "models" / f"mgvq_{record.part}" / "1" / "model.plan"
            assert plan.read_bytes() == (bundle.path / record.file).read_bytes()


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_ensembles_connect_tensors_of_equal_type(engine_bundle, parse, names, tmp_path, backend):
    folders = write_repository(engine_bundle(WHOLE), tmp_path / "models", precision="fp32", backend=backend)
    configs = {folder.name: parse(folder) for folder in folders}
    for name in ("mgvq_encode", "mgvq_decode"):
        ensemble = configs[name]
        assert ensemble.platform == "ensemble" and len(ensemble.ensemble_scheduling.step) == 2
        known = tensors(ensemble.input, names)
        for step in ensemble.ensemble_scheduling.step:
            member = configs[step.model_name]
            inputs, outputs = tensors(member.input, names), tensors(member.output, names)
            assert set(step.input_map) == set(inputs)
            assert all(known[outside] == inputs[inside] for inside, outside in step.input_map.items())
            assert set(step.output_map) <= set(outputs)
            known |= {outside: outputs[inside] for inside, outside in step.output_map.items()}
        assert tensors(ensemble.output, names).items() <= known.items()
    assert "codes" in tensors(configs["mgvq_encode"].output, names) and "image" in tensors(configs["mgvq_decode"].output, names)


def test_graphs_run_from_the_repository(tiny_bundle, parse, names, tmp_path):
    """As the server would: by following the ensembles."""
    import onnxruntime as ort

    folders = write_repository(tiny_bundle, tmp_path / "models", precision="fp32", backend="onnxruntime")
    configs = {folder.name: parse(folder) for folder in folders}

    def run(ensemble, known):
        for step in configs[ensemble].ensemble_scheduling.step:
            file = tmp_path / "models" / step.model_name / "1" / "model.onnx"
            session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            feeds = {inside: known[outside] for inside, outside in step.input_map.items()}
            found = session.run(list(step.output_map), feeds)
            known |= dict(zip(step.output_map.values(), found, strict=True))
        return known

    image = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    codes = run("mgvq_encode", {"image": to_float(image)})["codes"]
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as tokenizer:
        assert np.array_equal(codes[0], tokenizer.encode(image).codes)
    decoded = run("mgvq_decode", {"codes": codes, "groups": np.array(4, np.int64)})["image"]
    assert decoded.shape == (1, 3, 48, 64)


def test_what_is_missing_is_named_and_nothing_is_left(tiny_bundle, engine_bundle, tmp_path):
    target = tmp_path / "models"
    with pytest.raises(BundleError, match="has no fp32 engine of encoder; build it: mgvq-export build"):
        write_repository(tiny_bundle, target, precision="fp32")
    with pytest.raises(InputError, match="no Triton backend 'onnx'; choose tensorrt, onnxruntime"):
        write_repository(tiny_bundle, target, backend="onnx")
    shutil.copytree(engine_bundle(WHOLE).path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    engine = bundle.path / next(record.file for record in bundle.engines if record.part == "decoder")
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(BundleError, match="build it again"):
        write_repository(bundle, target, precision="fp32")
    assert not target.exists()
    target.mkdir()
    (target / "mine").write_text("")
    with pytest.raises(InputError, match="not empty"):
        write_repository(tiny_bundle, target, precision="fp32", backend="onnxruntime")


def test_shapes_are_those_of_the_manifest(tiny_bundle, parse, names, tmp_path):
    write_repository(tiny_bundle, tmp_path / "models", precision="fp16", backend="onnxruntime")
    manifest = json.loads((tiny_bundle.path / "manifest.json").read_text())
    for part in ("encoder", "quantizer", "decoder"):
        config = parse(tmp_path / "models" / f"mgvq_{part}")
        entry = manifest["precisions"]["fp16"]["graphs"][part]
        for values, side in ((config.input, "inputs"), (config.output, "outputs")):
            wanted = {v["name"]: (v["dtype"], [d if isinstance(d, int) else -1 for d in v["shape"]]) for v in entry[side]}
            assert tensors(values, names) == wanted
