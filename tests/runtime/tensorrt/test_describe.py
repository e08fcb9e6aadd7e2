"""``inspect`` of a TensorRT engine: from the manifest where nothing can be loaded, from the engine itself where it can."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from mgvq_export.cli import main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.inspection.describe import describe
from mgvq_export.runtime.tensorrt.describe import is_plugin, parse_layers
from mgvq_export.tests.support import fake_gpu
from mgvq_export.tests.support.manifests import edited_manifest

WHOLE = BuildOptions(precision="fp32", shapes=((32, 48), (64, 96)))
DETAILED = json.dumps(
    {
        "Layers": [
            {"Name": "quantize/argmin", "LayerType": "PluginV3", "Inputs": []},
            {"Name": "quantize/lookup/rows", "LayerType": "Gather"},
        ],
        "I/O Tensors": [],
    }
)


@pytest.fixture
def bundle(engine_bundle, tmp_path):
    shutil.copytree(engine_bundle(WHOLE).path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def path(bundle):
    return bundle.path / next(record.file for record in bundle.engines if record.part == "quantizer")


@pytest.fixture
def no_tensorrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.fixture
def inspectable(fake, monkeypatch):
    """TensorRT and a GPU whose engines also answer the inspector."""
    here = fake()
    here.trt.LayerInformationFormat = SimpleNamespace(JSON="json")
    inspector = SimpleNamespace(get_engine_information=lambda kind: DETAILED)
    extra = {
        "get_tensor_shape": lambda self, name: fake_gpu.shape_of((self.inputs | self.outputs)[name]),
        "get_tensor_profile_shape": lambda self, name, index: list(self.profiles[index][name]),
        "create_engine_inspector": lambda self: inspector,
        "device_memory_size_v2": property(lambda self: 12_000_000),
    }
    for name, value in extra.items():
        monkeypatch.setattr(fake_gpu.Engine, name, value, raising=False)
    return here


def test_an_engine_of_a_bundle_needs_no_tensorrt(path, no_tensorrt):
    facts = describe(str(path))
    values = facts.values
    assert (values["part"], values["precision"], values["TensorRT"]) == ("quantizer", "fp32", "11.4.0.106")
    assert values["GPU"] == "NVIDIA H200 (9.0)" and values["file"].startswith("as it was built")
    assert "TensorRT is not usable" in values["runs here"] and values["layers"].startswith("not listed")
    tables = {table.title: table.rows for table in facts.tables}
    assert ["output", "codes", "int32", "['batch', 4, 'latent_height', 'latent_width']"] in tables["Inputs and outputs"]
    assert tables["Profiles"][1] == ["1", "latent", "[1, 16, 4, 6]", "[1, 16, 4, 6]", "[1, 16, 4, 6]"]


def test_a_changed_byte_is_noticed_before_anything_else(path, fake):
    here = fake()
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="has changed since it was written; build it again"):
        describe(str(path))
    assert "deserialize_cuda_engine" not in here.gpu.calls


def test_layers_where_the_engine_can_be_loaded(path, inspectable):
    facts = describe(str(path))
    assert facts.values["runs here"] == "yes"
    assert facts.values["plugin layers"] == 1 and facts.values["layers"] == 2 and facts.values["scratch memory"] == "12.0 MB"
    tables = {table.title: table.rows for table in facts.tables}
    assert tables["Layers"][0] == ["0", "quantize/argmin", "PluginV3"]
    assert tables["Inputs and outputs"][0] == ["input", "latent", "float32", "[-1, 16, -1, -1]"]
    assert tables["Profiles"][0][1:3] == ["latent", "[1, 16, 2, 3]"]


def test_an_engine_for_another_gpu_is_described_but_not_loaded(bundle, path, inspectable):
    with edited_manifest(bundle) as manifest:
        for record in manifest["engines"]:
            record["gpu"] = "NVIDIA L4"
    values = describe(str(path)).values
    assert (
        values["runs here"].startswith("no: it was built on NVIDIA L4") and "deserialize_cuda_engine" not in inspectable.gpu.calls
    )


def test_outside_a_bundle_only_when_trusted(path, tmp_path, inspectable):
    alone = tmp_path / "alone.engine"
    shutil.copy(path, alone)
    with pytest.raises(InputError, match="add --trust if you built it yourself"):
        describe(str(alone))
    assert "deserialize_cuda_engine" not in inspectable.gpu.calls
    values = describe(str(alone), trust=True).values
    assert values["file"].startswith("outside a bundle") and values["plugin layers"] == 1 and "part" not in values


def test_outside_a_bundle_without_tensorrt(path, tmp_path, no_tensorrt):
    alone = tmp_path / "alone.engine"
    shutil.copy(path, alone)
    with pytest.raises(BackendError, match="TensorRT is not usable"):
        describe(str(alone), trust=True)
    with pytest.raises(InputError, match="no such file"):
        describe(str(tmp_path / "absent.engine"))


def test_the_command(path, tmp_path, no_tensorrt):
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 0 and "quantizer" in result.output and "latent" in result.output
    as_json = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert json.loads(as_json.output)["record"]["part"] == "quantizer"
    shutil.copy(path, tmp_path / "alone.engine")
    refused = CliRunner().invoke(main, ["inspect", str(tmp_path / "alone.engine")])
    assert refused.exit_code == 2 and "--trust" in refused.output and len(refused.output.strip().splitlines()) == 1


@pytest.fixture
def with_code(bundle):
    """Engines that run code of their own on the host."""
    with edited_manifest(bundle) as manifest:
        for record in manifest["engines"]:
            record["options"]["version_compatible"] = True


def test_host_code_only_when_it_is_allowed(bundle, path, tmp_path, with_code, inspectable):
    values = describe(str(path)).values
    assert "--allow-host-code" in values["runs here"] and values["layers"].startswith("not listed")
    assert "deserialize_cuda_engine" not in inspectable.gpu.calls
    allowed = CliRunner().invoke(main, ["inspect", str(path), "--allow-host-code", "--json"])
    assert json.loads(allowed.stdout)["runs_here"] == "yes" and json.loads(allowed.stdout)["layers"] == 2
    shutil.copy(path, tmp_path / "alone.engine")
    seen = []
    runtime = inspectable.trt.Runtime

    def watched(logger):
        seen.append(runtime(logger))
        return seen[-1]

    inspectable.trt.Runtime = watched
    assert describe(str(tmp_path / "alone.engine"), trust=True, allow_host_code=True).values["layers"] == 2
    assert seen[-1].engine_host_code_allowed
    with pytest.raises(InputError, match="--trust"):
        describe(str(tmp_path / "alone.engine"), allow_host_code=True)


def test_allowed_host_code_changes_nothing_else(bundle, path, with_code, inspectable, monkeypatch):
    monkeypatch.setattr(fake_gpu.Engine, "get_tensor_location", lambda self, name: fake_gpu.TensorLocation.HOST)
    values = describe(str(path), allow_host_code=True).values
    assert "in host memory" in values["runs here"] and values["layers"].startswith("not listed")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert describe(str(path), allow_host_code=True).values["runs here"].startswith("unknown: ")


@pytest.mark.parametrize(
    ("text", "layers", "plugins"),
    [
        (DETAILED, 2, 1),
        ('{"Layers": ["conv + relu", "quantize/argmin", "Reformat"]}', 3, 1),  # built without details
        ('{"Layers": [{"Name": "conv", "LayerType": "CaskConvolution"}], "Bindings": ["image"]}', 1, 0),  # TensorRT 10
        ("{}", 0, 0),
        ("not JSON", 0, 0),
    ],
)
def test_what_the_inspector_writes(text, layers, plugins):
    found = parse_layers(text)
    assert len(found) == layers and sum(is_plugin(layer) for layer in found) == plugins
