"""What NVIDIA's builder says and does when it cannot build, and what the program makes of it: one line with the reason."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mgvq_export.cli import main
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.core.spec import Part
from mgvq_export.export.engines import build as build_module
from mgvq_export.export.engines.build import build_engines
from mgvq_export.export.engines.cache import BuildCache
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.ops.trt_machine import Machine, rtx_capabilities
from mgvq_export.runtime.tensorrt.records import engine_problems, missing_reason


def options(**keywords) -> BuildOptions:
    return BuildOptions(**{"parts": (Part.DECODER,), "shapes": ((96, 64),), "target": "rtx"} | keywords)


@pytest.fixture
def bundle(demo: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(demo.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache")


def assert_nothing_was_written(bundle: Bundle) -> None:
    assert not (bundle.path / "engines").exists() and Bundle.open(bundle.path).engines == ()


def test_nothing_is_logged_as_an_error_in_a_good_build(demo: Bundle, in_child) -> None:
    """No timing cache is made, which would ask for a GPU, and no flag set that the library does not have."""
    assert in_child("errors_of_a_good_build", demo.path) == []


def test_all_names_that_builder_and_session_use_exist(in_child) -> None:
    found = in_child("missing_names")
    assert found["missing"] == [
        "tensorrt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS"
    ]  # for plugins, of which it has none
    for name in (
        "ICudaEngine.create_runtime_config",
        "IRuntimeConfig.cuda_graph_strategy",
        "IRuntimeConfig.set_runtime_cache",
        "IRuntimeCache.serialize",
        "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
        "DynamicShapesKernelSpecializationStrategy.EAGER",
    ):
        assert f"tensorrt.{name}" in found["contexts"]


def test_a_factory_that_gives_nothing_is_one_line(demo: Bundle, in_child) -> None:
    error = in_child("refused_network", demo.path)["error"]
    assert error.startswith("fp16/decoder: TensorRT for RTX does not start: ") and "no reason given" not in error


def test_the_error_of_the_phase_is_quoted_and_not_an_earlier_one(demo: Bundle, in_child) -> None:
    error = in_child("stale_error_then_small_workspace", demo.path)["error"]
    assert "no tactics to implement the operation within workspace limit" in error and "cudaError" not in error
    assert error.endswith("; try a smaller --size, --tile or --batch, or another --workspace") and "\n" not in error


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("damaged", r"cannot parse the graph: .*Failed to parse the ONNX model\.; export the bundle again with this release"),
        ("unknown operator", r"cannot parse the graph: node decoder\.\S+ \(Foo\): .*Plugin not found.*; export the bundle again"),
        ("no weights", r"cannot parse the graph: .*Failed to open file: elsewhere/weights\.bin; export the bundle again"),
        ("channels", r"cannot build the engine: .*Dimension mismatch for tensor quantized and profile 0.*; try a smaller --size"),
        ("order", r"refuses the optimisation profile quantized \[2, 32, 4, 6\] to \[1, 32, 4, 6\]; choose another --size"),
        ("types", r"made image DataType.UINT8; wanted float32: export the bundle again"),
    ],
)
def test_what_cannot_be_built_is_one_line_with_the_librarys_reason(what: str, message: str, demo: Bundle, in_child) -> None:
    error = in_child("changed", demo.path, what)["error"]
    assert re.match(f"fp16/decoder: TensorRT for RTX {message}", error), error
    assert "\n" not in error and len(error) < 700


def test_a_workspace_that_is_too_small_writes_nothing(bundle: Bundle, cache: BuildCache) -> None:
    with pytest.raises(BackendError, match="within workspace limit"):
        build_engines(bundle, options(workspace=1024), cache=cache)
    assert_nothing_was_written(bundle)


def test_progress_is_really_reported(demo: Bundle, in_child) -> None:
    seen = in_child("progress", demo.path)
    assert len(seen) > 3 and all(phase and 0 <= share <= 1 for phase, share in seen)
    assert seen[0][1] == 0.0 and seen[-1][1] == 1.0


def test_a_build_stops_when_it_is_told(demo: Bundle, in_child) -> None:
    found = in_child("cancelled", demo.path)
    assert found["steps"] == 5 and any("ancel" in text for text in found["said"]), found


def test_an_interrupted_build_leaves_what_is_finished(bundle: Bundle, cache: BuildCache) -> None:
    def interrupt(step: build_module.BuildProgress) -> None:
        if step.part is Part.DECODER and step.phase:
            raise KeyboardInterrupt

    wanted = options(parts=(Part.DEQUANTIZER, Part.DECODER))
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, wanted, cache=cache, progress=interrupt)
    (record,) = Bundle.open(bundle.path).engines
    assert record.part == "dequantizer"
    assert [path.name for path in (bundle.path / record.file).parent.iterdir()] == ["dequantizer.engine"]
    first, second = build_engines(Bundle.open(bundle.path), wanted, cache=cache)
    assert first.reused and not second.reused


def test_a_size_that_ends_the_library_does_not_end_the_program(bundle: Bundle, cache: BuildCache) -> None:
    with pytest.raises(BackendError, match="TensorRT for RTX cannot build the engine: .*; try a smaller --size") as error:
        build_engines(bundle, options(shapes=((64000, 64000),)), cache=cache)
    assert "\n" not in str(error.value)
    assert_nothing_was_written(bundle)


# ---- which GPUs


def test_engines_for_some_gpus_only(bundle: Bundle, cache: BuildCache) -> None:
    (engine,) = build_engines(bundle, options(compute_capabilities=("120", "8.6", "86")), cache=cache)
    assert engine.record.compute_capabilities == ("8.6", "12.0")
    (changed,) = build_engines(Bundle.open(bundle.path), options(), cache=cache)
    assert changed.reasons == ("the GPUs to build for is all now and was 8.6, 12.0 when the engine was built",)


def test_gpus_it_does_not_build_for(bundle: Bundle, cache: BuildCache) -> None:
    with pytest.raises(
        InputError, match=r"builds for no GPU of compute capability 9\.0; choose 7\.5, 8\.0, .* --target tensorrt"
    ):
        build_engines(bundle, options(compute_capabilities=("9.0",)), cache=cache)
    with pytest.raises(BackendError, match=r"Turing.*; leave compute capability 7\.5 out of --compute-capability"):
        build_engines(bundle, options(precision="fp32", compute_capabilities=("7.5",)), cache=cache)
    assert_nothing_was_written(bundle)


def test_where_an_engine_runs(bundle: Bundle, cache: BuildCache) -> None:
    (engine,) = build_engines(bundle, options(compute_capabilities=("8.6",)), cache=cache)
    record = engine.record
    version = record.tensorrt
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(rtx_capabilities())

    def problems(capability: str, version: str = version, target: str = "rtx") -> list[str]:
        return engine_problems(record, Machine(version, "NVIDIA H100", capability, target))

    assert problems("8.6") == []
    assert problems("8.9") == ["it was built for GPUs of compute capability 8.6, NVIDIA H100 has 8.9"]
    assert problems("9.0") == [
        "TensorRT for RTX does not support this GPU, NVIDIA H100 has 9.0: use TensorRT, building with --target tensorrt"
    ]
    assert problems("8.6", "1.8.0.1") == [f"it was built with TensorRT for RTX {version}, here is 1.8.0.1"]
    assert problems("8.6", "11.4.0.106", "tensorrt") == ["it is an engine for TensorRT for RTX, not for TensorRT"]
    reason = missing_reason(Bundle.open(bundle.path), "fp16", Machine("11.4.0.106", "NVIDIA H100", "9.0"))
    assert "has no fp16 TensorRT engines (it has TensorRT for RTX ones)" in reason


def test_loading_without_a_driver_names_the_driver(bundle: Bundle, cache: BuildCache, in_child) -> None:
    (engine,) = build_engines(bundle, options(), cache=cache)
    error = in_child("load_without_driver", engine.path)["error"]
    assert "cannot load the engine fp16/decoder" in error and "driver version is insufficient" in error, error
    assert error.endswith("; install or update NVIDIA's driver, and check that nvidia-smi lists a GPU")


# ---- the command


def test_the_command(bundle: Bundle, program) -> None:
    done = program(
        "build", bundle.path, "--target", "rtx", "--size", "64x96", "--part", "dequantizer", "--compute-capability", "86"
    )
    assert done.returncode == 0, done.stderr
    (record,) = Bundle.open(bundle.path).engines
    assert record.compute_capabilities == ("8.6",) and str(record.file) in done.stdout
    shown = program("inspect", bundle.path / record.file)
    assert shown.returncode == 0, shown.stderr
    for text in (f"TensorRT for RTX {record.tensorrt}", "those of compute capability 8.6", "reproducible", "activation memory"):
        assert text in " ".join(shown.stdout.split()), shown.stdout
    again = program(
        "build", bundle.path, "--target", "rtx", "--size", "64x96", "--part", "dequantizer", "--compute-capability", "8.6"
    )
    assert again.stdout.endswith("kept\n")


def test_doctor_knows_it(program) -> None:
    shown = " ".join(program("doctor").stdout.split())
    assert "build (TensorRT for RTX)" in shown and "build BUNDLE --target rtx --size WxH" in shown


def test_each_library_says_where_the_other_is(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, missing, message in (
        ("tensorrt", "tensorrt", "TensorRT for RTX is installed, for GeForce and RTX GPUs: --target rtx builds its engines"),
        ("rtx", "tensorrt_rtx", "TensorRT for RTX is not usable (.*): pip install 'mgvq-export\\[rtx\\]'"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            done = CliRunner().invoke(main, ["build", str(bundle.path), "--target", target, "--size", "64x96"])
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and re.search(message, done.stderr), done.stderr
    assert_nothing_was_written(bundle)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--version-compatible",), "has no version-compatible engines"),
        (("--hardware-compatible",), "run on all GPUs it supports"),
        (("--compute-capability", "new"), "wanted a number such as 8.6 or 86"),
        (("--compute-capability", "9.0"), "builds for no GPU of compute capability 9.0"),
    ],
)
def test_what_the_target_does_not_take(words: tuple[str, ...], message: str, bundle: Bundle, program) -> None:
    done = program("build", bundle.path, "--target", "rtx", "--size", "64x96", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert_nothing_was_written(bundle)
