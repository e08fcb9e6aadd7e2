"""What ``publish`` writes and refuses: read with Triton's own schema (``model_config.proto``), and both targets' files by the server's parser."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mgvq_export.cli import main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError
from mgvq_export.core.files import sha256_file
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.serving.config import ModelConfig, TensorConfig
from mgvq_export.serving.options import PublishOptions
from mgvq_export.serving.publish import publish
from mgvq_export.tests.support import triton_server
from mgvq_export.tests.support.checks import assert_refused

WHOLE = BuildOptions(precision="fp32", shapes=((32, 48), (64, 96)), batch=2)
ENGINES = PublishOptions(target="triton-tensorrt", precision="fp32", max_batch=8, max_queue=5, sizes=((64, 96),))
PARTS = ["mgvq_decoder", "mgvq_encoder", "mgvq_quantizer"]

#: TYPE_* -> numpy's name; the numbers are those of model_config.proto.
NAMES = {2: "uint8", 3: "uint16", 8: "int32", 9: "int64", 10: "float16", 11: "float32"}

Parse = Callable[[Path], Any]


@pytest.fixture(scope="module")
def parse() -> Parse:
    """A model's folder -> Triton's ModelConfig. Unknown fields and wrong types are errors."""
    text_format = pytest.importorskip("google.protobuf.text_format", reason="Triton's schema needs protobuf")
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("Triton's schema is not installed: pip install tritonclient")
    # By its path: the package around it wants gRPC.
    path = f"{found.submodule_search_locations[0]}/grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda folder: text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), module.ModelConfig())


def tensors(values: Any) -> dict[str, tuple[str, list[int]]]:
    return {value.name: (NAMES[value.data_type], list(value.dims)) for value in values}


def configs(folder: Path, parse: Parse) -> dict[str, Any]:
    return {entry.name: parse(entry) for entry in sorted(folder.iterdir())}


def test_python_models(repository, parse, tiny_bundle):
    found = configs(repository, parse)
    assert list(found) == ["mgvq_decode", *PARTS[:1], "mgvq_encode", "mgvq_encode_file", PARTS[1], "mgvq_image_reader", PARTS[2]]
    encoder = found["mgvq_encoder"]
    assert tensors(encoder.input) == {"image": ("uint8", [-1, -1, 3])}
    assert tensors(encoder.output) == {"latent": ("float32", [16, -1, -1])}
    for name in PARTS:
        assert found[name].backend == "python" and found[name].max_batch_size == 4
        assert found[name].dynamic_batching.default_queue_policy.max_queue_size == 32
        assert found[name].dynamic_batching.max_queue_delay_microseconds > 0  # with 0 the batcher sleeps while requests wait
        assert found[name].instance_group[0].count == 1
        assert [warm_up.name for warm_up in found[name].model_warmup] == ["96x64"]
        assert all(value.allow_ragged_batch for value in found[name].input)
    (warm_up,) = encoder.model_warmup
    assert list(warm_up.inputs["image"].dims) == [64, 96, 3] and warm_up.inputs["image"].random_data
    (warm_up,) = found["mgvq_decoder"].model_warmup
    assert list(warm_up.inputs["codes"].dims) == [4, 4, 6] and warm_up.inputs["codes"].zero_data
    assert [value.name for value in found["mgvq_decode"].input if value.optional] == ["groups", "size"]
    for config in found.values():
        made_of = {key: value.string_value for key, value in config.parameters.items()}
        assert made_of["codebook_sha256"] == tiny_bundle.codebook_sha256
        assert (made_of["model"], made_of["precision"], made_of["codes_per_group"]) == ("tiny", "fp32", "60")


def test_one_copy_of_the_weights_which_is_no_link(repository, tiny_bundle):
    weights = [path for path in repository.rglob("*") if path.name == "weights.bin"]
    assert [path.relative_to(repository).as_posix() for path in weights] == ["mgvq_encoder/1/bundle/fp32/weights.bin"]
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in repository.rglob("*") if path.is_file())
    copied = Bundle.open(weights[0].parent.parent)
    assert copied.precisions == ("fp32",) and not copied.engines  # what is served, and no more
    copied.check_all()
    assert sha256_file(weights[0]) == sha256_file(tiny_bundle.path / "fp32" / "weights.bin")


def test_options_reach_the_configuration(tiny_bundle, parse, tmp_path):
    options = PublishOptions(
        precision="fp16", max_batch=3, instances=2, threads=5, max_queue=7, max_pixels=4096, memory_limit="2GiB", version=12
    )
    publish(tiny_bundle, tmp_path / "models", options)
    decoder = parse(tmp_path / "models" / "mgvq_decoder")
    assert decoder.max_batch_size == 3 and decoder.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert decoder.instance_group[0].count == 2 and not decoder.model_warmup
    said = {key: value.string_value for key, value in decoder.parameters.items()}
    assert (said["threads"], said["max_pixels"], said["memory_limit"], said["device"]) == ("5", "4096", "2GiB", "cpu")
    assert (tmp_path / "models/mgvq_decoder/12/model.py").is_file() and (tmp_path / "models/mgvq_encode/12").is_dir()
    assert (tmp_path / "models/mgvq_encoder/12/bundle/fp16/weights.bin").is_file()
    assert tensors(parse(tmp_path / "models" / "mgvq_encoder").output)["latent"][0] == "float16"


def test_gpu_models_take_the_engines_along(engine_bundle, parse, tmp_path):
    publish(engine_bundle(WHOLE), tmp_path / "models", PublishOptions(precision="fp32", device="gpu", backend="tensorrt"))
    found = configs(tmp_path / "models", parse)
    assert {name: found[name].instance_group[0].kind for name in (*PARTS, "mgvq_image_reader")} == {
        **dict.fromkeys(PARTS, 1),  # KIND_GPU
        "mgvq_image_reader": 2,  # KIND_CPU
    }
    copied = Bundle.open(tmp_path / "models/mgvq_encoder/1/bundle")
    assert len(copied.engines) == len(engine_bundle(WHOLE).engines)
    copied.check_all()


def test_engines(engine_bundle, parse, tmp_path):
    bundle = engine_bundle(WHOLE)
    publish(bundle, tmp_path / "models", ENGINES)
    found = configs(tmp_path / "models", parse)
    assert list(found) == sorted([*PARTS, "mgvq_dequantizer", "mgvq_encode", "mgvq_decode"])
    encoder = found["mgvq_encoder"]
    assert encoder.platform == "tensorrt_plan" and encoder.max_batch_size == 2  # what the engine holds, below what was asked for
    assert encoder.dynamic_batching.default_queue_policy.max_queue_size == 5
    assert tensors(encoder.input) == {"image": ("uint8", [-1, -1, 3])}
    assert tensors(encoder.output) == {"latent": ("float32", [16, -1, -1]), "non_finite": ("int32", [1])}
    assert [len(value.reshape.shape) if value.HasField("reshape") else None for value in encoder.output] == [None, 0]
    assert list(encoder.instance_group[0].profile) == ["0", "1"]  # one for every size
    assert list(encoder.model_warmup[0].inputs["image"].dims) == [64, 96, 3]
    assert found["mgvq_dequantizer"].backend == "onnxruntime"
    assert tensors(found["mgvq_dequantizer"].input)["groups"] == ("int64", [1])
    for record in bundle.engines:
        plan = tmp_path / "models" / f"mgvq_{record.part}" / "1" / "model.plan"
        if f"mgvq_{record.part}" in PARTS:
            assert plan.read_bytes() == (bundle.path / record.file).read_bytes() and plan.stat().st_nlink == 1


@pytest.mark.parametrize("target", ["triton-python", "triton-tensorrt"])
def test_ensembles_connect_tensors_of_equal_type(engine_bundle, parse, tmp_path, target):
    publish(engine_bundle(WHOLE), tmp_path / "models", PublishOptions(target=target, precision="fp32"))
    found = configs(tmp_path / "models", parse)
    for ensemble in (config for config in found.values() if config.platform == "ensemble"):
        known = tensors(ensemble.input)
        for step in ensemble.ensemble_scheduling.step:
            member = found[step.model_name]
            # An ensemble of models of both kinds has whole shapes, a model with a largest batch leaves the batch out.
            added = [-1] if member.max_batch_size and not ensemble.max_batch_size else []
            whole = lambda value: (NAMES[value.data_type], added + _dims(value))  # noqa: E731, B023
            inputs = {value.name: whole(value) for value in member.input}
            outputs = {value.name: whole(value) for value in member.output}
            assert set(step.input_map) == set(inputs)
            assert all(known[outside] == inputs[inside] for inside, outside in step.input_map.items())
            assert set(step.output_map) == set(outputs)
            known |= {outside: outputs[inside] for inside, outside in step.output_map.items()}
        assert tensors(ensemble.output).items() <= known.items()
    assert "codes" in tensors(found["mgvq_encode"].output) and "image" in tensors(found["mgvq_decode"].output)


def _dims(value: Any) -> list[int]:
    return list(value.reshape.shape if value.HasField("reshape") else value.dims)


@pytest.mark.triton
def test_the_servers_own_parser_reads_the_engines_configuration(engine_bundle, tmp_path):
    """The wheel has no TensorRT: each model gets as far as the missing backend, which is after its configuration was read and checked."""
    triton_server.require_server()
    publish(engine_bundle(WHOLE), tmp_path / "models", ENGINES)
    options = ("--model-control-mode=explicit", "--load-model=*", "--exit-on-error=false", "--disable-auto-complete-config")
    with triton_server.running(tmp_path / "models", tmp_path / "server", options, live=True) as server:
        index = json.loads(server.post("v2/repository/index", "{}")[1])
    reasons = {model["name"]: model.get("reason", "") for model in index}
    assert len(reasons) == 6
    for model in PARTS:
        assert "unable to find backend library for backend 'tensorrt'" in reasons[model]
    assert "unable to find backend library for backend 'onnxruntime'" in reasons["mgvq_dequantizer"]
    for ensemble, member in (("mgvq_encode", "mgvq_(encoder|quantizer)"), ("mgvq_decode", "mgvq_de(coder|quantizer)")):
        assert re.search(f"ensemble '{ensemble}' depends on '{member}' which has no loaded version", server.log)


def test_force_replaces_and_an_existing_repository_is_refused(tiny_bundle, tmp_path):
    target = tmp_path / "models"
    target.mkdir()
    (target / "mine").write_text("")
    with pytest.raises(InputError, match="not empty"):
        publish(tiny_bundle, target, PublishOptions(precision="fp32"))
    assert [path.name for path in target.iterdir()] == ["mine"]
    publish(tiny_bundle, target, PublishOptions(precision="fp32"), replace=True)
    assert not (target / "mine").exists() and (target / "mgvq_encode/config.pbtxt").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "triton"}, "no target 'triton'; choose triton-python, triton-tensorrt"),
        ({"device": "tpu"}, "no device 'tpu'; choose cpu, gpu"),
        ({"max_batch": 0}, "max batch is 0; wanted a whole number from 1 to 1024"),
        ({"instances": 0}, "instances is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"max_queue": 0}, "max queue is 0"),
        ({"max_pixels": 0}, "max pixels is 0"),
        ({"version": 0}, "version is 0"),
        ({"sizes": ((4096, 16384),)}, "size is 16384x4096; wanted at least 1x1 and at most 40000000 pixels"),
        ({"memory_limit": "much"}, "memory limit is 'much'; wanted a size"),
        ({"target": "triton-tensorrt", "device": "cpu"}, "engines, which need a GPU"),
        ({"target": "triton-tensorrt", "threads": 2}, "threads is for --target triton-python"),
        ({"target": "triton-tensorrt", "backend": "ort-cpu"}, "runs engines, not ort-cpu"),
    ],
)
def test_contradictions_are_refused(options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        PublishOptions(**options)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"precision": "int8"}, BundleError, "has no int8 graphs; it has fp32, fp16"),
        ({"backend": "onnx"}, BackendError, "no backend 'onnx'; choose auto, "),
        ({"backend": "tensorrt"}, BackendError, "tensorrt needs a GPU; give --device gpu"),
        ({"backend": "ort-cpu", "device": "gpu"}, BackendError, "ort-cpu runs on the CPU; give --device cpu"),
        ({"backend": "tensorrt", "device": "gpu"}, BundleError, "has no fp32 engines; build them: mgvq-export build"),
        ({"target": "triton-tensorrt"}, BundleError, "has no fp16 engine of encoder; build it: mgvq-export build"),
    ],
)
def test_what_the_bundle_lacks_is_named_and_nothing_is_left(tiny_bundle, tmp_path, options, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        publish(tiny_bundle, tmp_path / "models", PublishOptions(**options))
    assert not list(tmp_path.iterdir())


def test_sizes_that_no_engine_holds(engine_bundle, tmp_path):
    options = PublishOptions(target="triton-tensorrt", precision="fp32", sizes=((64, 96), (96, 64)))
    with pytest.raises(InputError, match="no engine of encoder holds images of 64x96; it holds 48x32, 96x64: choose one"):
        publish(engine_bundle(WHOLE), tmp_path / "models", options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["triton-python", "triton-tensorrt"])
def test_a_changed_file_of_the_bundle_is_refused(engine_bundle, tmp_path, target):
    shutil.copytree(engine_bundle(WHOLE).path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    changed = bundle.path / ("fp32/weights.bin" if target == "triton-python" else bundle.engines[0].file)
    changed.write_bytes(changed.read_bytes()[:-1])
    with pytest.raises(BundleError, match="bytes instead of"):
        publish(bundle, tmp_path / "models", PublishOptions(target=target, precision="fp32"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_text_of_a_configuration_is_escaped(parse, tmp_path):
    hostile = 'a"} \\ backend: "x\n\tü'
    model = ModelConfig("m", 'backend: "python"', (TensorConfig("i", "uint8", (1,)),), (), parameters={"key": hostile})
    (tmp_path / "config.pbtxt").write_text(model.text, encoding="ascii")
    assert parse(tmp_path).parameters["key"].string_value == hostile


def test_the_verb(tiny_bundle, tmp_path):
    words = ["publish", str(tiny_bundle.path), "-o", str(tmp_path / "models"), "--size", "96x64", "--max-batch", "2"]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    (facts,) = json.loads(result.stdout)
    assert facts["target"] == "triton-python" and "mgvq_encode_file" in facts["models"]
    assert facts["bytes"] == sum(path.stat().st_size for path in (tmp_path / "models").rglob("*") if path.is_file())
    assert "dims: [ 64, 96, 3 ]" in (tmp_path / "models/mgvq_encoder/config.pbtxt").read_text()
    assert_refused(CliRunner().invoke(main, words), "it exists and is not empty")
    assert CliRunner().invoke(main, [*words, "--force"]).exit_code == 0
    assert_refused(CliRunner().invoke(main, ["publish", str(tmp_path), "-o", str(tmp_path / "x")]), "is not a bundle")
    assert_refused(CliRunner().invoke(main, [*words[:4], "--target", "triton"]), "choose triton-python, triton-tensorrt")
    assert_refused(CliRunner().invoke(main, [*words[:4], "--instances", "0"]), "wanted a whole number from 1 to 256")
