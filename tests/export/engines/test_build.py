"""Engines without a GPU: the builder driven through its whole life on a recording stand-in for TensorRT."""

import _thread
import errno
import json
import re
import shlex
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from mgvq_export.cli import main
from mgvq_export.core import bundle as bundle_module
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, BundleError, InputError, MgvqError
from mgvq_export.core.files import sha256_file
from mgvq_export.core.json_files import to_json
from mgvq_export.core.manifest import EngineOptions, EngineRecord, TensorEntry
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.core.remedies import build_command
from mgvq_export.core.spec import Part
from mgvq_export.export.bundles import export_bundle
from mgvq_export.export.engines import build as engines
from mgvq_export.export.engines import builder as trt_builder
from mgvq_export.export.engines.cache import BuildCache, find_engine, reuse_reason
from mgvq_export.export.engines.options import TILED_PARTS, UNTILED_PARTS, BuildOptions, Profile, profiles
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.ops import trt_machine
from mgvq_export.ops.trt_machine import Machine
from mgvq_export.tests.support import fake_tensorrt as fake
from mgvq_export.tests.support import stubs
from mgvq_export.tests.support.manifests import edited_manifest

SHAPES = ((64, 96),)
QUANTIZER = BuildOptions(shapes=SHAPES, parts=(Part.QUANTIZER,))
MACHINE = Machine("11.4.0.106", "NVIDIA H200", "9.0")


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def cache(tmp_path):
    return BuildCache(tmp_path / "cache")


@pytest.fixture
def trt(monkeypatch):
    """Makes a Recorder the TensorRT of this process."""
    record = fake.Recorder()
    for module in (trt_builder, trt_machine):
        monkeypatch.setattr(module, "import_tensorrt", lambda target="tensorrt": record.module)
    monkeypatch.setattr(trt_machine, "find_gpu", lambda: (MACHINE.gpu, MACHINE.compute_capability))
    for module in (trt_builder, engines):
        monkeypatch.setattr(module, "register_plugin", lambda *, architecture: record("register", architecture))
    return record


def build(bundle, cache, options=QUANTIZER, **keywords):
    return engines.build_engines(bundle, options, cache=cache, **keywords)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- options and profiles


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({}, "--size"),
        ({"tile": (64, 64)}, "whole image"),
        ({"shapes": SHAPES, "batch": 0}, "batch is 0"),
        ({"shapes": SHAPES, "builder_level": 6}, "builder level is 6"),
        ({"shapes": SHAPES, "parts": ("encodr",)}, "no part 'encodr'; choose encoder, "),
        ({"shapes": ((0, 8),)}, "shape is"),
        ({"shapes": SHAPES, "workspace": 0}, "workspace is 0"),
    ],
)
def test_contradicting_options_are_refused(wrong, match):
    with pytest.raises(InputError, match=match):
        BuildOptions(**wrong)


def test_default_parts():
    assert BuildOptions(shapes=SHAPES).wanted_parts == UNTILED_PARTS
    assert BuildOptions(shapes=SHAPES, tile=(64, 64)).wanted_parts == TILED_PARTS
    assert BuildOptions(tile=(64, 64), parts=("decoder_trunk",)).wanted_parts == (Part.DECODER_TRUNK,)


IMAGE = [TensorEntry("image", "uint8", ("batch", "height", "width", 3))]
FEATURES = [TensorEntry("features", "float16", ("batch", 64, "feature_height", "feature_width"))]
INNER = [TensorEntry("inner_features", "float16", ("batch", 32, "inner_height", "inner_width"))]
CODES = [
    TensorEntry("codes", "int32", ("batch", 4, "latent_height", "latent_width")),
    TensorEntry("groups", "int64", ()),
]


@pytest.mark.parametrize(
    ("part", "inputs", "options", "wanted"),
    [
        # The tiny network has f = 16 and a trunk stride of 8. Sizes are padded to whole latent cells; equal ones are one profile.
        (Part.ENCODER, IMAGE, {"shapes": ((50, 90), (64, 96), (32, 32)), "batch": 2}, [(2, 64, 96, 3), (2, 32, 32, 3)]),
        (Part.DEQUANTIZER, CODES, {"shapes": ((64, 96),)}, [(1, 4, 4, 6)]),
        (Part.ENCODER_TRUNK, IMAGE, {"tile": (40, 48), "shapes": SHAPES, "batch": 4}, [(4, 40, 48, 3)]),
        (Part.DECODER_TRUNK, FEATURES, {"tile": (40, 48), "shapes": SHAPES, "batch": 4}, [(4, 64, 5, 6)]),
        (Part.DECODER_TRUNK_FINE, INNER, {"tile": (40, 48), "shapes": SHAPES}, [(1, 32, 10, 12)]),
        (Part.ENCODER_HEAD, FEATURES, {"tile": (40, 48), "shapes": SHAPES, "batch": 4}, [(1, 64, 8, 12)]),
        (Part.ENCODER_TRUNK, IMAGE, {"shapes": SHAPES, "batch": 3}, [(3, 64, 96, 3)]),
    ],
)
def test_profiles(tiny_spec, part, inputs, options, wanted):
    if part is Part.DECODER_TRUNK_FINE:
        assert tiny_spec.inner_stage == 2
    found = profiles(tiny_spec, part, inputs, BuildOptions(**options))
    assert found == [{inputs[0].name: Profile((1, *shape[1:]), shape, shape)} for shape in wanted]


def test_a_tile_of_no_whole_cells_names_the_nearest(tiny_spec):
    with pytest.raises(InputError, match="tile width is 50 px; wanted a multiple of 8, such as 48"):
        profiles(tiny_spec, Part.ENCODER_TRUNK, IMAGE, BuildOptions(tile=(40, 50), shapes=SHAPES))


# ---- one build


def test_the_builder_is_asked_in_order(bundle, cache, trt):
    (engine,) = build(bundle, cache)
    register, *rest = trt.names()[1:]  # once before anything is built, once more by the build itself
    assert (register, trt.of("register")) == ("register", [(80,), (80,)])
    assert rest == [
        "create_network",
        "parse",
        "create_builder_config",
        "clear_flag",
        "set",
        "set",
        "add_optimization_profile",
        "create_timing_cache",
        "set_timing_cache",
        "set",
        "build_serialized_network",
    ]
    assert trt.of("create_network") == [(1 << 5 | 1 << 7,)]
    assert trt.of("parse") == [(str(bundle.path / "fp16" / "quantizer.onnx"),)]
    assert trt.of("clear_flag") == [(fake.BuilderFlag.TF32,)]
    assert trt.of("set")[:2] == [
        ("builder_optimization_level", 3),
        ("profiling_verbosity", fake.ProfilingVerbosity.LAYER_NAMES_ONLY),
    ]
    shape = (1, 16, 4, 6)
    assert trt.of("add_optimization_profile") == [({"latent": (shape, shape, shape)},)]
    assert engine.path.read_bytes() == fake.PLAN and not engine.reused and engine.reasons == ()


def test_every_option_reaches_the_builder(bundle, cache, trt):
    options = BuildOptions(
        shapes=((64, 96), (32, 32)),
        parts=(Part.QUANTIZER,),
        batch=3,
        builder_level=5,
        workspace=2**30,
        version_compatible=True,
        hardware_compatible=True,
        detailed=True,
    )
    (engine,) = build(bundle, cache, options)
    assert trt.of("register")[-1] == (80,)
    assert trt.of("set_flag") == [(fake.BuilderFlag.VERSION_COMPATIBLE,)]
    assert trt.of("set_memory_pool_limit") == [(fake.MemoryPoolType.WORKSPACE, 2**30)]
    kept = dict(trt.of("set"))
    assert kept["builder_optimization_level"] == 5
    assert kept["profiling_verbosity"] is fake.ProfilingVerbosity.DETAILED
    assert kept["hardware_compatibility_level"] is fake.HardwareCompatibilityLevel.AMPERE_PLUS
    least, most = (1, 16, 2, 2), (3, 16, 2, 2)
    assert trt.of("add_optimization_profile")[1] == ({"latent": (least, most, most)},)
    assert engine.record.options == options.builder
    assert engine.record.kernel.architecture == 80


def test_all_default_engines_and_their_records(bundle, cache, trt):
    built = build(bundle, cache, BuildOptions(shapes=SHAPES))
    assert [engine.part for engine in built] == list(UNTILED_PARTS)
    again = Bundle.open(bundle.path)
    again.check_all()
    assert again.engines == tuple(engine.record for engine in built)
    by_part = {record.part: record for record in again.engines}
    encoder = by_part["encoder"]
    assert encoder.file == "engines/nvidia-h200-trt11.4.0.106/fp16/encoder.engine"
    assert encoder.sha256 == sha256_file(bundle.path / encoder.file) and encoder.bytes == len(fake.PLAN)
    assert encoder.inputs == (TensorEntry("image", "uint8", ("batch", "height", "width", 3)),)
    assert encoder.graph_sha256 == bundle.graph("fp16", Part.ENCODER).sha256 and encoder.kernel is None
    assert to_json(by_part["quantizer"].kernel).keys() == {"source_sha256", "nvrtc", "architecture"}
    assert [name for name in files(bundle.path) if "/.mgvq" in name or name.startswith(".mgvq")] == []


def test_engines_of_a_precision_plan(tiny_checkpoint_file, tmp_path, cache, trt):
    def export(scale):
        nodes = {"decoder.stages.1.op_list.1.main.conv1.conv": NodePlan("int8", {0: scale})}
        plans = [PrecisionPlan("int8", "fp16", nodes)]
        return export_bundle(
            load_checkpoint(tiny_checkpoint_file), tmp_path / "planned", precisions=(), plans=plans, replace=True
        )

    options = BuildOptions(precision="int8", shapes=SHAPES, parts=(Part.DECODER,))
    (engine,) = build(export(0.01), cache, options)
    assert engine.record.file == "engines/nvidia-h200-trt11.4.0.106/int8/decoder.engine"
    assert trt.of("parse") == [(str(tmp_path / "planned" / "int8" / "decoder.onnx"),)]  # where TensorRT finds the 8-bit weights
    assert engine.record.inputs[0].dtype == "float16"
    (changed,) = build(export(0.02), cache, options)
    assert changed.record.graph_sha256 != engine.record.graph_sha256 and not changed.reused


def test_progress_tells_phase_share_and_estimate(bundle, cache, trt):
    steps = []
    build(bundle, cache, progress=steps.append)
    assert [(step.phase, step.share) for step in steps] == [
        ("", 0.0),
        ("Building engine", 0.0),
        ("Building engine", 0.5),
        ("Building engine", 1.0),
    ]
    assert {step.estimate_seconds for step in steps} == {None} and steps[0].share_of_engine == 0
    record = bundle.engines[0]
    cache.keep_time(record, 40)
    shutil.rmtree(bundle.path / "engines")
    steps.clear()
    build(bundle, cache, progress=steps.append)
    assert steps[0].estimate_seconds == 40 and str(steps[2]).startswith("quantizer: Building engine 50%, ")
    assert str(steps[2]).endswith(" of about 40 s")


def test_the_timing_cache_is_kept_across_builds_and_begun_anew_when_stale(bundle, cache, trt):
    build(bundle, cache)
    shutil.rmtree(bundle.path / "engines")
    trt.calls.clear()
    build(bundle, cache)
    assert trt.of("set_timing_cache") == [(fake.TIMINGS, False)]
    shutil.rmtree(bundle.path / "engines")
    trt.calls.clear()
    trt.stale_timings = True
    build(bundle, cache)
    assert trt.of("set_timing_cache") == [(fake.TIMINGS, False), (b"", False)]


def test_timings_of_another_kernel_gpu_or_version_are_not_used(cache):
    cache.keep_timings(MACHINE, "a" * 64, b"x")
    assert cache.timings(MACHINE, "a" * 64) == b"x"
    assert cache.timings(MACHINE, "b" * 64) == b""
    assert cache.timings(Machine("11.5.0", MACHINE.gpu, "9.0"), "a" * 64) == b""
    assert cache.timings(Machine(MACHINE.tensorrt, "NVIDIA L4", "8.9"), "a" * 64) == b""


def test_a_cache_folder_that_cannot_be_used_does_not_matter(bundle, tmp_path, trt):
    (tmp_path / "file").write_text("")
    build(bundle, BuildCache(tmp_path / "file" / "cache"))
    (tmp_path / "times").mkdir()
    (tmp_path / "times" / "build-times.json").write_text("{damaged")
    assert BuildCache(tmp_path / "times").estimate(bundle.engines[0]) is None


# ---- failures


@pytest.mark.parametrize(
    ("failure", "match"),
    [
        ("start", r"TensorRT does not start: factory function returned nullptr; check the driver"),
        ("parse", r"node encoder.stages.1/conv \(Conv\): weights of no type \(and 1 more\)"),
        ("inlined", r"0 plugin layers of 1 GroupedArgmin nodes"),
        ("types", r"TensorRT made latent DataType.int64; wanted float16"),
        ("profile", r"refuses the optimisation profile latent \[1, 16, 4, 6\]"),
        ("build", r"cannot build the engine: no reason given; free GPU memory"),
        ("out of memory", r"cannot build the engine: out of memory: 8 GiB; free GPU memory"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(bundle, cache, trt, failure, match):
    before = files(bundle.path), (bundle.path / "manifest.json").read_bytes()
    trt.failure = failure
    with pytest.raises(BackendError, match=match) as error:
        build(bundle, cache)
    assert one_line(error).startswith("fp16/quantizer: ")
    assert (files(bundle.path), (bundle.path / "manifest.json").read_bytes()) == before


def test_an_error_of_an_earlier_build_is_not_told_again(bundle, cache, trt):
    for failure, reason in (("out of memory", "out of memory: 8 GiB"), ("build", "no reason given")):
        trt.failure = failure
        with pytest.raises(BackendError, match=reason):
            build(bundle, cache)


@pytest.mark.parametrize("after_seconds", [0, 0.3])
def test_ctrl_c_cancels_and_leaves_nothing(bundle, cache, trt, after_seconds):
    before = files(bundle.path)
    seen = []

    def interrupted(monitor):
        monitor.phase_start("Building engine", None, 10**9)
        time.sleep(after_seconds)
        _thread.interrupt_main()
        for step in range(1500):
            seen.append(step)
            if not monitor.step_complete("Building engine", step):
                time.sleep(0.2)  # TensorRT takes a while to stop
                seen.append("stopped")
                return False
            time.sleep(0.01)
        return True

    trt.during_build = interrupted
    with pytest.raises(KeyboardInterrupt):
        build(bundle, cache)
    assert seen[-1] == "stopped"  # TensorRT was told to stop, and had stopped before the caller went on
    assert files(bundle.path) == before and Bundle.open(bundle.path).engines == ()


def test_a_failing_progress_callback_cancels_and_is_raised(bundle, cache, trt):
    def broken(step):
        if step.phase:
            raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError):
        build(bundle, cache, progress=broken)
    assert Bundle.open(bundle.path).engines == () and not (bundle.path / "engines").exists()


def test_engines_finished_before_a_failure_stay(bundle, cache, trt):
    options = BuildOptions(shapes=SHAPES, parts=(Part.ENCODER, Part.QUANTIZER))
    trt.failure = "inlined"  # hurts the quantizer only
    with pytest.raises(BackendError):
        build(bundle, cache, options)
    assert [record.part for record in Bundle.open(bundle.path).engines] == ["encoder"]
    trt.failure = ""
    assert [engine.reused for engine in build(Bundle.open(bundle.path), cache, options)] == [True, False]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (BuildOptions(precision="int4", shapes=SHAPES), "no int4 graphs"),
        (BuildOptions(tile=(40, 50), shapes=SHAPES), "multiple of 8"),
    ],
)
def test_what_can_be_refused_is_refused_before_building(bundle, cache, trt, options, match):
    with pytest.raises(MgvqError, match=match) as error:
        build(bundle, cache, options)
    assert one_line(error) and trt.calls == []


def test_an_old_tensorrt_is_refused(bundle, cache, trt):
    trt.module.__version__ = "10.13.3.9"
    with pytest.raises(BackendError, match=r"10\.13\.3\.9 is too old; wanted 10\.16\.1 or newer"):
        build(bundle, cache)


# ---- reuse


def test_an_equal_build_is_reused(bundle, cache, trt):
    build(bundle, cache)
    trt.calls.clear()
    (engine,) = build(Bundle.open(bundle.path), cache)
    assert engine.reused and engine.record == bundle.engines[0] and "parse" not in trt.names()


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("graph_sha256",), "0", "the exported graph has changed since the engine was built"),
        (("weights_sha256",), "0", "the exported weights have changed since the engine was built"),
        (("engine_graph_sha256",), "0", "the graph handed to TensorRT has changed since the engine was built"),
        (("kernel", "source_sha256"), "0", "the quantizer's GPU kernel has changed since the engine was built"),
        (("kernel", "nvrtc"), "12.6", r"NVRTC is \S+ now and was 12.6 when the engine was built"),
        (("kernel", "architecture"), 75, "the kernel's architecture is 80 now and was 75 when"),
        (("tensorrt",), "10.16.1", "TensorRT is 11.4.0.106 now and was 10.16.1 when"),
        (("gpu",), "NVIDIA L4", "the GPU is NVIDIA H200 now and was NVIDIA L4 when"),
        (("compute_capability",), "8.9", "the compute capability is 9.0 now and was 8.9 when"),
        (("profiles",), [], "the sizes or batches asked for .* have changed since"),
        (("options", "builder_level"), 5, "the builder level is 3 now and was 5 when"),
        (("options", "workspace_bytes"), 7, "the workspace limit is not set now and was 7 when"),
        (("options", "version_compatible"), True, "version compatibility is off now and was on when"),
        (("options", "hardware_compatible"), True, "hardware compatibility is off now and was on when"),
        (("options", "detailed"), True, "detailed profiling is off now and was on when"),
    ],
)
def test_every_difference_rebuilds_and_is_said(bundle, cache, trt, keys, value, said):
    build(bundle, cache)
    with edited_manifest(bundle) as manifest:
        record = manifest["engines"][0]
        for key in keys[:-1]:
            record = record[key]
        assert record[keys[-1]] != value
        record[keys[-1]] = value
    (engine,) = build(Bundle.open(bundle.path), cache)
    assert not engine.reused and len(engine.reasons) == 1
    assert re.match(said, engine.reasons[0])
    assert len(Bundle.open(bundle.path).engines) == 1  # the new one took its place


def test_a_record_that_is_not_the_engine_of_this_machine_stays(bundle, cache, trt):
    build(bundle, cache)
    old = bundle.engines[0]
    trt.module.__version__ = "11.5.0.1"
    (engine,) = build(Bundle.open(bundle.path), cache)
    assert engine.reasons == ("TensorRT is 11.5.0.1 now and was 11.4.0.106 when the engine was built",)
    assert Bundle.open(bundle.path).engines == (old, engine.record)


def test_a_changed_or_missing_file_is_built_again(bundle, cache, trt):
    (first,) = build(bundle, cache)
    first.path.write_bytes(fake.PLAN[:-1] + b"?")
    assert build(bundle, cache)[0].reasons == ("the engine's file has changed since it was written",)
    first.path.unlink()
    assert build(bundle, cache)[0].reasons == ("the engine's file is missing",)
    assert first.path.read_bytes() == fake.PLAN


def test_a_changed_engine_is_built_again_not_exported(bundle, cache, trt):
    (engine,) = build(bundle, cache)
    engine.path.write_bytes(b"")
    with pytest.raises(BundleError, match="build it again") as error:
        Bundle.open(bundle.path).check_all()
    assert one_line(error)


def test_a_record_from_another_release_never_passes_by_accident(bundle):
    with edited_manifest(bundle) as manifest:
        manifest["engines"] = [{"part": "quantizer", "precision": "fp16"}]
    wanted = EngineRecord(part="quantizer", precision="fp16", file="x", gpu="NVIDIA H200", graph_sha256="0")
    record, reasons = find_engine(bundle, wanted)
    assert record is None
    assert reasons == reuse_reason(bundle.engines[0], wanted)
    assert "the GPU is NVIDIA H200 now and was not set when the engine was built" in reasons


def test_another_build_of_the_same_bundle_loses_nothing(bundle, cache, trt):
    other = Bundle.open(bundle.path)
    build(bundle, cache, BuildOptions(shapes=SHAPES, parts=(Part.ENCODER,)))
    build(other, cache)
    assert [record.part for record in Bundle.open(bundle.path).engines] == ["encoder", "quantizer"]


def test_builds_at_the_same_time_lose_no_record(bundle, monkeypatch):
    """Both read the manifest before either writes it, unless one waits for the other."""
    both_have_read = threading.Barrier(2, timeout=0.5)
    read = bundle_module.read_json

    def slow(*arguments):
        values = read(*arguments)
        with suppress(threading.BrokenBarrierError):
            both_have_read.wait()
        return values

    bundles = [Bundle.open(bundle.path) for _ in range(2)]
    monkeypatch.setattr(bundle_module, "read_json", slow)
    threads = [
        threading.Thread(target=engines._add_record, args=(each, EngineRecord(file=f"engines/{index}")))
        for index, each in enumerate(bundles)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.file for record in Bundle.open(bundle.path).engines) == ["engines/0", "engines/1"]
    assert sorted(path.name for path in bundle.path.iterdir() if path.is_file()) == ["manifest.json"]


def test_without_locks_builds_still_record(bundle, cache, trt, monkeypatch):
    def unsupported(descriptor):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(engines, "lock_descriptor", unsupported)
    build(bundle, cache)
    assert len(Bundle.open(bundle.path).engines) == 1


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert BuildCache.default().folder == tmp_path / "mgvq-export" / "tensorrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in BuildCache.default().folder.parents


# ---- the command


def run(*arguments):
    return CliRunner().invoke(main, ["build", *map(str, arguments)])


def parsed(command: str, monkeypatch) -> BuildOptions:
    """What a printed command asks the builder for."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(engines, "build_engines", lambda bundle, options, **_: seen.append(options))
        program, verb, *arguments = shlex.split(command)
        assert (program, verb) == ("mgvq-export", "build")
        result = run(*arguments)
    assert result.exit_code == 0, result.output
    return seen[0]


SEVERAL = ((64, 96), (32, 48))


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(precision="fp32", shapes=SEVERAL, parts=(Part.ENCODER,)),
        BuildOptions(shapes=SEVERAL, parts=(Part.QUANTIZER,), batch=3, builder_level=5, workspace=2**30 + 1),
        BuildOptions(shapes=SHAPES, parts=(Part.DEQUANTIZER,), version_compatible=True, hardware_compatible=True, detailed=True),
        BuildOptions(shapes=SHAPES, parts=(Part.DECODER_HEAD,), builder_level=0),
        BuildOptions(shapes=SEVERAL, parts=(Part.ENCODER_TRUNK,), batch=2),
        BuildOptions(tile=(40, 48), parts=(Part.ENCODER_TRUNK,), batch=4),
        BuildOptions(tile=(40, 48), parts=(Part.DECODER_TRUNK,)),
        BuildOptions(tile=(40, 48), parts=(Part.DECODER_TRUNK_FINE,), batch=2),
    ],
    ids=lambda options: str(options.parts[0]),
)
def test_the_command_that_builds_an_engine_again(bundle, cache, trt, monkeypatch, options):
    (engine,) = build(bundle, cache, options)
    engine.path.write_bytes(b"")
    with pytest.raises(BundleError, match="instead of 12; build it again: mgvq-export build") as error:
        Bundle.open(bundle.path).check_all()
    command = one_line(error).split("build it again: ")[1]
    assert parsed(command, monkeypatch) == options
    engine.path.unlink()
    with pytest.raises(BundleError, match="cannot be read; the bundle is incomplete: build it again") as error:
        bundle.read_file(engine.record)
    assert one_line(error).endswith(command)


def test_the_command_quotes_and_takes_records_it_cannot_read(bundle, monkeypatch, tmp_path):
    moved = Bundle.open(shutil.move(bundle.path, tmp_path / "my bundle"))
    whole = {"part": "encoder", "precision": "fp32", "profiles": ({"image": Profile((1, 8, 8, 3), (1, 8, 8, 3), (1, 8, 8, 3))},)}
    records = [{}, {"precision": "fp32"}, {**whole, "part": "no such part"}, {**whole, "profiles": ()}, whole]
    for record in records:
        command = build_command(moved.path, moved.spec, EngineRecord(**record))
        assert shlex.split(command)[2:3] == [str(moved.path)] and command.endswith("--size WxH")
        assert ("--precision fp32" in command) == bool(record)
    known = EngineRecord(**whole, options=EngineOptions(builder_level=3))
    assert build_command(moved.path, moved.spec, known).endswith("--part encoder --precision fp32 --size 8x8")


def test_a_line_per_engine_as_it_is_finished(bundle, trt, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = (bundle.path, "--size", "96x64", "--part", "encoder", "--part", "quantizer")
    trt.failure = "inlined"  # hurts the quantizer only
    failed = run(*arguments)
    assert failed.exit_code == 2 and failed.stderr.count("\n") == 1
    assert re.fullmatch(r".*/encoder\.engine  12 B  \d+\.\d\d s\n", failed.stdout)
    as_json = run(*arguments, "--json")
    assert as_json.exit_code == 2 and as_json.stdout == ""
    trt.failure = ""
    assert [fact["reused"] for fact in json.loads(run(*arguments, "--json").stdout)] == [True, False]


def test_finished_is_called_after_each_engine(bundle, cache, trt):
    seen = []

    def finished(engine):
        recorded = {record.part for record in Bundle.open(bundle.path).engines}
        seen.append((str(engine.part), engine.reused, recorded))

    build(bundle, cache)
    options = BuildOptions(shapes=SHAPES, parts=(Part.QUANTIZER, Part.ENCODER))
    build(bundle, cache, options, finished=finished)
    assert seen == [("quantizer", True, {"quantizer"}), ("encoder", False, {"quantizer", "encoder"})]


@pytest.mark.parametrize("size", ["foo", "0", ""])
def test_a_workspace_that_is_no_size(bundle, size):
    result = run(bundle.path, "--size", "96x64", "--workspace", size)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"workspace is {size!r}; wanted the largest scratch memory" in result.stderr


def test_the_command_builds_and_keeps(bundle, trt, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = run(bundle.path, "--size", "96x64", "--part", "quantizer", "--workspace", "4GiB")
    assert first.exit_code == 0, first.output
    assert "quantizer.engine  12 B" in first.stdout
    assert trt.of("set_memory_pool_limit") == [(fake.MemoryPoolType.WORKSPACE, 4 * 2**30)]
    assert run(bundle.path, "--size", "96x64", "--part", "quantizer", "--workspace", "4GiB").stdout.endswith("kept\n")
    changed = run(bundle.path, "--size", "96x64", "--part", "quantizer", "--json")
    (facts,) = json.loads(changed.stdout)
    assert facts["reused"] is False and facts["part"] == "quantizer" and "workspace limit" in facts["reasons"][0]
    assert any((tmp_path / "cache" / "mgvq-export" / "tensorrt").iterdir())


def test_without_tensorrt_the_command_says_so_and_writes_nothing(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    before = files(bundle.path)
    result = run(bundle.path, "--size", "96x64")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "pip install 'mgvq-export[tensorrt]'" in result.stderr
    assert files(bundle.path) == before


def test_without_a_gpu_the_command_says_so_and_writes_nothing(bundle, trt, monkeypatch):
    def no_gpu():
        raise RuntimeError("libcuda.so not found\nmore")

    monkeypatch.undo()
    monkeypatch.setattr(trt_machine, "import_tensorrt", lambda target="tensorrt": trt.module)
    runtime = pytest.importorskip("cuda.bindings.runtime")
    monkeypatch.setattr(runtime, "cudaGetDevice", no_gpu)
    before = files(bundle.path)
    result = run(bundle.path, "--size", "96x64")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "no usable GPU (libcuda.so not found)" in result.stderr and "nvidia-smi" in result.stderr
    assert files(bundle.path) == before


# ---- TensorRT's real bindings

HOOKS = """
import tensorrt as trt
from mgvq_export.export.engines import builder as trt_builder
from mgvq_export.ops.trt_machine import process_logger
seen = []
monitor = trt_builder._monitor(trt, lambda phase, share: seen.append((phase, share)))
assert isinstance(monitor, trt.IProgressMonitor)
monitor.phase_start("Build", None, 4)
assert monitor.step_complete("Build", 0) is True
monitor.cancelled = True
assert monitor.step_complete("Build", 1) is False
monitor.phase_finish("Build")
assert seen == [("Build", 0.0), ("Build", 0.25)], seen
for name in ("phase_start", "step_complete", "phase_finish"):
    assert callable(getattr(trt.IProgressMonitor, name))
messages = process_logger(trt)
assert isinstance(messages, trt.ILogger) and callable(trt.ILogger.log)
messages.log(trt.ILogger.Severity.INFO, "no")
messages.log(trt.ILogger.Severity.INTERNAL_ERROR, "yes")
assert messages.errors == ["yes"]
assert process_logger(trt) is messages
print("good")
"""


@pytest.mark.parametrize("version", stubs.BINDINGS)
def test_logger_and_monitor_are_what_the_bindings_take(version):
    assert stubs.run_snippet(version, HOOKS).splitlines()[-1] == "good"
