"""Which engines are loaded, and what is refused before a byte of them reaches TensorRT."""

import gc
import re
import shlex
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mgvq_export import Tokenizer
from mgvq_export.cli import main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError
from mgvq_export.core.json_files import to_json
from mgvq_export.core.manifest import EngineOptions, EngineRecord
from mgvq_export.core.spec import Part
from mgvq_export.export.engines import build as engines
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.ops.trt_machine import Machine
from mgvq_export.runtime.tensorrt import backend as backend_module
from mgvq_export.runtime.tensorrt.engines import EngineLoader, load_engine
from mgvq_export.runtime.tensorrt.records import engine_problems, find_record, usable_engines
from mgvq_export.runtime.tensorrt.session import TensorRtOptions
from mgvq_export.tests.support.manifests import edited_manifest

HERE = Machine("11.4.0.106", "NVIDIA H200", "9.0")
WHOLE = BuildOptions(precision="fp32", shapes=((32, 48),))
HALF = BuildOptions(precision="fp16", shapes=((32, 48),))
TILED = BuildOptions(precision="fp32", shapes=((160, 224),), tile=(112, 112), batch=3, builder_level=5, detailed=True)


@pytest.fixture
def bundle(engine_bundle, tmp_path):
    """A copy, to be changed."""
    shutil.copytree(engine_bundle(WHOLE).path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) > 20
    return text


def engine_path(bundle, part="quantizer"):
    return bundle.path / next(record.file for record in bundle.engines if record.part == part)


def open_engines(bundle, **keywords):
    return Tokenizer.open(bundle, backend="tensorrt", **keywords)


def encode(bundle, **keywords):
    with open_engines(bundle, **keywords) as tokenizer:
        return tokenizer.encode(np.zeros((32, 48, 3), np.uint8))


def asked_for(error, monkeypatch):
    """The options that the build command in an error asks for."""
    seen = []
    (command,) = re.findall(r"mgvq-export (build .*?)(?:, or choose .*)?$", one_line(error))
    with monkeypatch.context() as patch:
        patch.setattr(engines, "build_engines", lambda bundle, options, **_: seen.append(options))
        result = CliRunner().invoke(main, shlex.split(command))
    assert result.exit_code == 0, result.output
    return seen[0]


def change(bundle, precision=None, **values):
    """Change every engine's record, or those of one precision."""
    with edited_manifest(bundle) as manifest:
        for record in manifest["engines"]:
            if precision not in (None, record["precision"]):
                continue
            for key, value in values.items():
                if key in record:
                    record[key] = value
                else:
                    record["options"][key] = value


# ---- versions and GPUs


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, ""),
        ({"tensorrt": "11.3.0.99"}, "built with TensorRT 11.3.0.99, here is 11.4.0.106"),
        ({"tensorrt": "11.3.0.99", "options": EngineOptions(version_compatible=True)}, ""),
        ({"tensorrt": "11.5.0.1", "options": EngineOptions(version_compatible=True)}, "which is older"),
        ({"gpu": "NVIDIA L4", "compute_capability": "8.9"}, r"built on NVIDIA L4 \(8.9\), here is NVIDIA H200 \(9.0\)"),
        ({"gpu": "NVIDIA H100"}, "built on NVIDIA H100"),
        ({"gpu": "NVIDIA L4", "compute_capability": "8.9", "options": EngineOptions(hardware_compatible=True)}, ""),
    ],
)
def test_where_an_engine_runs(record, said):
    here = {"tensorrt": HERE.tensorrt, "gpu": HERE.gpu, "compute_capability": HERE.compute_capability}
    problems = engine_problems(EngineRecord(**here | record), HERE)
    assert len(problems) == bool(said)
    assert not said or re.search(said, problems[0])


def test_hardware_compatible_engines_need_ampere():
    options = EngineOptions(hardware_compatible=True)
    record = EngineRecord(tensorrt="11.4", gpu="A", compute_capability="9.0", options=options)
    (problem,) = engine_problems(record, Machine("11.4", "NVIDIA T4", "7.5"))
    assert "from compute capability 8.0 on, NVIDIA T4 has 7.5" in problem


def test_an_engine_of_this_very_machine_wins_over_a_compatible_one(bundle):
    own = next(record for record in bundle.engines if record.part == "encoder")
    other = replace(own, gpu="NVIDIA L4", options=replace(own.options, hardware_compatible=True), file="other")

    def put(*records):
        bundle.manifest = replace(bundle.manifest, engines=records)

    for records in ([own, other], [other, own]):
        put(*records)
        assert usable_engines(bundle, "fp32", HERE) == {Part.ENCODER: own}
    put(other)
    assert usable_engines(bundle, "fp32", HERE) == {Part.ENCODER: other}
    with_code = replace(own, options=replace(own.options, version_compatible=True))
    for records in ([with_code, other], [other, with_code]):  # code is not run where another engine does
        put(*records)
        assert usable_engines(bundle, "fp32", HERE) == {Part.ENCODER: other}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tensorrt": "10.16.1.11"},
            "do not run here: of decoder, it was built with TensorRT 10.16.1.11, here is 11.4.0.106; build them",
        ),
        ({"gpu": "NVIDIA L4"}, r"it was built on NVIDIA L4 \(9.0\), here is NVIDIA H200"),
        ({"graph_sha256": "0"}, "built from other graphs than the bundle has now; build them here: mgvq-export build"),
        ({"weights_sha256": "0"}, "built from other graphs"),
        ({"part": "no such part"}, "built from other graphs"),
    ],
)
def test_engines_that_do_not_run_here(bundle, fake, changes, said):
    fake()
    with edited_manifest(bundle) as manifest:
        manifest["engines"].sort(key=lambda record: record["part"] == "decoder")
    change(bundle, **changes)
    with pytest.raises(BackendError, match=said) as error:
        open_engines(bundle)
    one_line(error)


def test_no_engines_at_all(tiny_bundle, fake, engine_bundle):
    fake()
    with pytest.raises(
        BackendError, match=r"has no fp16 TensorRT engines; build them here: mgvq-export build .* --precision fp16"
    ) as error:
        open_engines(tiny_bundle)
    one_line(error)
    with pytest.raises(BackendError, match=r"has no fp16 TensorRT engines \(it has fp32 ones\)"):
        open_engines(engine_bundle(WHOLE), precision="fp16")


def test_a_tensorrt_that_is_too_old(bundle, fake):
    fake(version="10.13.3.9")
    with pytest.raises(BackendError, match=r"10\.13\.3\.9 is too old; wanted 10\.16\.1") as error:
        open_engines(bundle)
    one_line(error)


def test_no_tensorrt(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="TensorRT is not usable .* pip install") as error:
        open_engines(bundle)
    one_line(error)


def test_no_gpu(bundle, fake, monkeypatch):
    from mgvq_export.ops import trt_machine

    find_gpu = trt_machine.find_gpu
    fake()
    monkeypatch.setattr(trt_machine, "find_gpu", find_gpu)
    cudart = pytest.importorskip("cuda.bindings.runtime")
    monkeypatch.setattr(cudart, "cudaGetDevice", lambda: (cudart.cudaError_t.cudaErrorNoDevice, None))
    with pytest.raises(BackendError, match=r"no usable GPU \(cudaErrorNoDevice\).*nvidia-smi") as error:
        open_engines(bundle)
    one_line(error)


def test_tensorrt_that_does_not_start(bundle, fake):
    fake(fail_at=0)
    with pytest.raises(BackendError, match="TensorRT does not start .*nvidia-smi") as error:
        open_engines(bundle)
    one_line(error)


@pytest.mark.parametrize("options", [WHOLE, TILED], ids=["in one piece", "in windows"])
def test_the_remedy_builds_all_of_it_with_the_same_options(engine_bundle, fake, tmp_path, monkeypatch, options):
    fake()
    shutil.copytree(engine_bundle(options).path, tmp_path / "my bundle")
    bundle = Bundle.open(tmp_path / "my bundle")
    change(bundle, gpu="NVIDIA L4")
    with pytest.raises(BackendError, match="built on NVIDIA L4") as error:
        open_engines(bundle)
    assert asked_for(error, monkeypatch) == options


def test_the_remedy_for_one_engine(bundle, fake, monkeypatch):
    fake()
    change(bundle, gpu="NVIDIA L4")
    with pytest.raises(BackendError, match="the engine fp32/encoder cannot run here") as error:
        load_engine(engine_path(bundle, "encoder"))
    assert asked_for(error, monkeypatch) == BuildOptions(precision="fp32", parts=(Part.ENCODER,), shapes=WHOLE.shapes)


def test_the_remedy_for_an_image_no_engine_holds(engine_bundle, fake, monkeypatch):
    fake()
    whole = BuildOptions(precision="fp32", shapes=((32, 48),), batch=2, builder_level=1, hardware_compatible=True)
    for options, tile in ((whole, None), (TILED, (112, 112))):
        with (
            open_engines(engine_bundle(options)) as tokenizer,
            pytest.raises(BackendError, match="no TensorRT engines here encode an image") as error,
        ):
            tokenizer.encode_plan(60, 96)
        assert asked_for(error, monkeypatch) == replace(options, shapes=(*options.shapes, (64, 96)), tile=tile)
    with (
        open_engines(engine_bundle(TILED), tile=(100, 112)) as tokenizer,
        pytest.raises(BackendError, match="in windows of 100x112") as error,
    ):
        tokenizer.encode_plan(160, 224)
    assert asked_for(error, monkeypatch).tile == (104, 112)  # what trunks can be built for


# ---- the kernel inside


def test_engines_with_another_kernel_are_refused(bundle, fake, monkeypatch):
    """Only the quantizer holds it: the other engines still run."""
    fake()
    with edited_manifest(bundle) as manifest:
        (quantizer,) = (record for record in manifest["engines"] if record["kernel"])
        quantizer["kernel"]["source_sha256"] = "0" * 64
    with open_engines(bundle) as tokenizer:
        with pytest.raises(BackendError, match="of quantizer, the quantizer's GPU kernel inside it is not the one") as error:
            tokenizer.encode(np.zeros((32, 48, 3), np.uint8))
        assert tokenizer.decode_plan(32, 48)
    assert asked_for(error, monkeypatch) == BuildOptions(precision="fp32", parts=(Part.QUANTIZER,), shapes=WHOLE.shapes)
    with Tokenizer.open(bundle) as tokenizer:
        assert tokenizer.backend.startswith("ort-")
        assert tokenizer.encode(np.zeros((32, 48, 3), np.uint8))


# ---- bytes


def test_a_changed_byte_never_reaches_tensorrt(bundle, fake):
    gpu = fake().gpu
    path = engine_path(bundle, "encoder")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="has changed since it was written; build it again: mgvq-export build") as error:
        encode(bundle)
    assert "deserialize_cuda_engine" not in gpu.calls and one_line(error)
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"has {len(data) - 1} bytes instead of {len(data)}"):
        encode(bundle)
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        encode(bundle)
    assert gpu.leaks() == {}


def test_a_record_that_leads_out_of_the_bundle(bundle, fake, tmp_path):
    shutil.copy(engine_path(bundle, "encoder"), tmp_path / "encoder.engine")
    change(bundle, file="../encoder.engine")
    fake()
    with pytest.raises(BundleError, match="outside the bundle"):
        encode(bundle)


def test_an_engine_that_is_not_what_the_manifest_says(bundle, fake):
    fake()
    profiles = [profile for record in bundle.engines if record.part == "encoder" for profile in record.profiles]
    change(bundle, profiles=to_json(profiles * 2))
    with pytest.raises(BundleError, match=r"fp32/encoder is not what the manifest says") as error:
        load_engine(engine_path(bundle, "encoder"))
    one_line(error)


def test_what_tensorrt_cannot_load(bundle, fake, tmp_path):
    fake()
    (tmp_path / "x.engine").write_bytes(b"no engine")
    with pytest.raises(BackendError, match=r"cannot load the engine x.engine: Serialization .*; build it again") as error:
        load_engine(tmp_path / "x.engine", trust=True)
    one_line(error)


# ---- trust


def test_engines_outside_a_bundle_need_trust(bundle, fake, tmp_path):
    gpu = fake().gpu
    loose = tmp_path / "loose.engine"
    shutil.copy(engine_path(bundle), loose)
    with pytest.raises(InputError, match="lies in no bundle.*pass trust") as error:
        load_engine(loose)
    assert one_line(error) and "deserialize_cuda_engine" not in gpu.calls
    engine = load_engine(loose, trust=True)
    assert engine.record is None and engine.name == "loose.engine"
    with pytest.raises(InputError, match="no such file"):
        load_engine(tmp_path / "missing.engine", trust=True)


def test_engines_in_a_bundle_are_compared_with_their_record(bundle, fake):
    fake()
    path = engine_path(bundle)
    found, record = find_record(path)
    assert found.path == bundle.path.resolve() and record.part == "quantizer"
    engine = load_engine(path)
    assert engine.record == record and engine.name == "fp32/quantizer"
    assert engine.inputs == {"latent": np.float32} and engine.outputs == {"codes": np.int32, "quantized": np.float32}
    path.write_bytes(path.read_bytes() + b"?")
    for trust in (False, True):  # trust is about files nobody vouches for, not about files somebody changed
        with pytest.raises(BundleError, match="build it again"):
            load_engine(path, trust=trust)
    stray = path.with_name("stray.engine")
    stray.write_bytes(b"put there by somebody else")
    assert find_record(stray) is None
    with pytest.raises(InputError, match="lies in no bundle"):
        load_engine(stray)


def test_host_code_stays_off_unless_it_is_asked_for(bundle, fake, monkeypatch):
    change(bundle, version_compatible=True)
    gpu = fake().gpu
    with pytest.raises(
        BackendError, match="runs code of its own on the host; if you trust .* give .* --allow-host-code"
    ) as error:
        open_engines(bundle)
    assert asked_for(error, monkeypatch) == WHOLE
    with pytest.raises(BackendError, match="fp32/encoder is not loaded: .* give .* --allow-host-code") as error:
        load_engine(engine_path(bundle, "encoder"))
    assert asked_for(error, monkeypatch) == BuildOptions(precision="fp32", parts=(Part.ENCODER,), shapes=WHOLE.shapes)
    assert "deserialize_cuda_engine" not in gpu.calls
    encode(bundle, tensorrt=TensorRtOptions(allow_host_code=True))
    encode(bundle, tensorrt=TensorRtOptions(cuda_graphs=False), allow_host_code=True)
    assert not EngineLoader(HERE).runtime.engine_host_code_allowed
    assert EngineLoader(HERE, allow_host_code=True).runtime.engine_host_code_allowed


def test_inputs_in_host_memory_are_refused(bundle, fake, monkeypatch):
    from mgvq_export.tests.support import fake_gpu

    fake()
    monkeypatch.setattr(fake_gpu.Engine, "get_tensor_location", lambda self, name: fake_gpu.TensorLocation.HOST)
    with pytest.raises(BackendError, match="wants latent in host memory") as error:
        load_engine(engine_path(bundle))
    one_line(error)


# ---- which backend and precision


def test_auto_takes_engines_that_run_here(bundle, engine_bundle, fake):
    fake()
    with Tokenizer.open(bundle) as tokenizer:
        assert (tokenizer.backend, tokenizer.precision) == ("tensorrt", "fp32")
    both = engine_bundle(WHOLE, HALF)
    with Tokenizer.open(both) as tokenizer:
        assert (tokenizer.backend, tokenizer.precision) == ("tensorrt", "fp16")
    with Tokenizer.open(both, precision="fp32") as tokenizer:
        assert (tokenizer.backend, tokenizer.precision) == ("tensorrt", "fp32")


def test_engines_that_need_host_code_are_passed_over(engine_bundle, fake, tmp_path):
    fake()
    shutil.copytree(engine_bundle(WHOLE, HALF).path, tmp_path / "both")
    bundle = Bundle.open(tmp_path / "both")
    change(bundle, precision="fp16", version_compatible=True)
    for backend in ("auto", "tensorrt"):
        with Tokenizer.open(bundle, backend=backend) as tokenizer:
            assert (tokenizer.backend, tokenizer.precision) == ("tensorrt", "fp32")
        with Tokenizer.open(bundle, backend=backend, allow_host_code=True) as tokenizer:
            assert (tokenizer.backend, tokenizer.precision) == ("tensorrt", "fp16")
    with Tokenizer.open(bundle, precision="fp16") as tokenizer:
        assert (tokenizer.backend, tokenizer.precision) == ("ort-cpu", "fp16")
    with pytest.raises(BackendError, match="the fp16 TensorRT engines .* --allow-host-code"):
        Tokenizer.open(bundle, backend="tensorrt", precision="fp16")


@pytest.mark.parametrize("why", ["another GPU", "another precision", "no TensorRT", "blend", "host code"])
def test_auto_takes_onnx_runtime_otherwise(bundle, fake, monkeypatch, why):
    fake()
    options = {"another precision": {"precision": "fp16"}, "blend": {"tiling": "blend"}}.get(why, {})
    if why == "another GPU":
        change(bundle, gpu="NVIDIA L4")
    if why == "host code":
        change(bundle, version_compatible=True)
    if why == "no TensorRT":

        def missing(target):
            raise BackendError("TensorRT is not usable")

        monkeypatch.setattr(backend_module, "find_machine", missing)
    with Tokenizer.open(bundle, **options) as tokenizer:
        assert tokenizer.backend in ("ort-cpu", "ort-cuda")
        assert tokenizer.precision == options.get("precision", "fp32")


def test_a_bundle_without_engines_does_not_look_for_tensorrt(tiny_bundle, monkeypatch):
    monkeypatch.setattr(backend_module, "find_machine", lambda target: pytest.fail("looked for TensorRT"))
    with Tokenizer.open(tiny_bundle) as tokenizer:
        assert tokenizer.backend.startswith("ort-")


@pytest.mark.parametrize("verb", ["encode", "reconstruct"])
def test_the_command_line_allows_host_code(bundle, fake, tmp_path, verb):
    change(bundle, version_compatible=True)
    gpu = fake().gpu
    Image.new("RGB", (48, 32)).save(tmp_path / "photo.png")
    arguments = [verb, str(bundle.path), str(tmp_path / "photo.png"), "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(main, [*arguments, "--backend", "tensorrt"])
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "--allow-host-code" in refused.stderr
    assert "deserialize_cuda_engine" not in gpu.calls
    allowed = CliRunner().invoke(main, [*arguments, "--allow-host-code"])
    assert allowed.exit_code == 0 and "execute_async_v3" in gpu.calls, allowed.output


def test_a_forgotten_tokenizer_gives_everything_back(bundle, fake):
    gpu = fake().gpu
    tokenizer = open_engines(bundle)
    tokenizer.encode(np.zeros((32, 48, 3), np.uint8))
    assert {"device", "pinned", "streams", "contexts"} <= set(gpu.leaks())
    tokenizer.close()
    tokenizer = open_engines(bundle)
    tokenizer.encode(np.zeros((32, 48, 3), np.uint8))
    pipeline = tokenizer.implementation
    del tokenizer
    gc.collect()
    assert gpu.leaks() != {}, "whoever keeps the pipeline may go on"
    gpu.fail_at = len(gpu.calls)  # nobody hears of it
    del pipeline
    gc.collect()
    assert gpu.leaks() == {}


def test_the_command_line_encodes_and_decodes(bundle, fake, tmp_path, monkeypatch):
    gpu = fake().gpu
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    encoded = CliRunner().invoke(
        main, ["encode", str(bundle.path), str(tmp_path / "photo.png"), "-o", str(out), "--backend", "tensorrt"]
    )
    assert encoded.exit_code == 0, encoded.output
    tokens = next(out.glob("photo.*"))
    decoded = CliRunner().invoke(main, ["decode", str(bundle.path), str(tokens), "-o", str(out), "--backend", "tensorrt"])
    assert decoded.exit_code == 0, decoded.output
    with Image.open(next(out.glob("*.png"))) as image:
        assert image.size == (41, 30)
    assert "execute_async_v3" in gpu.calls and gpu.leaks() == {}
    large = tmp_path / "large.png"
    Image.new("RGB", (300, 200)).save(large)
    refused = CliRunner().invoke(main, ["encode", str(bundle.path), str(large), "-o", str(out), "--backend", "tensorrt"])
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "--size 304x208" in refused.stderr
