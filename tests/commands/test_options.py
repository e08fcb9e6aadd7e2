"""Choices are those of the rooms; sizes are width first; wrong words are one line."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

import mgvq_export
from mgvq_export.cli import VERBS, main
from mgvq_export.commands import eval as eval_verb
from mgvq_export.commands import options, verify
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.tests.support.checks import assert_refused


def refused(match: str, *arguments: object) -> None:
    assert_refused(CliRunner().invoke(main, [str(argument) for argument in arguments]), match)


def test_choices_are_those_of_the_rooms() -> None:
    from mgvq_export.core.spec import Part
    from mgvq_export.evaluation.protocol import METRICS
    from mgvq_export.evaluation.published import BENCHMARKS
    from mgvq_export.parity.checks import CHECKS
    from mgvq_export.runtime.backend import CHOICES

    assert options.BACKENDS == CHOICES
    assert tuple(map(str, Part)) == options.PARTS
    assert tuple(CHECKS) == verify.CHECKS
    assert tuple(METRICS) == eval_verb.METRICS
    assert tuple(BENCHMARKS) == eval_verb.BENCHMARKS


def size(text: str, kind: click.ParamType) -> object:
    return kind.convert(text, click.Option(["--size"]), None)


def test_sizes_are_width_first() -> None:
    assert size("2560x1440", options.SizeType()) == (1440, 2560)
    assert size(" 2560X1440 ", options.SizeType()) == (1440, 2560)
    assert size("768x512", options.TileType()) == (512, 768)
    assert size("512", options.TileType()) == (512, 512)


@pytest.mark.parametrize("text", ["", "64", "64x", "64x64x3", "-1x4", "0x8", "axb"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="wanted WIDTHxHEIGHT"):
        size(text, options.SizeType())


def test_shape_is_refused_because_its_order_was_another() -> None:
    refused(
        "--shape is gone: sizes are width first; for --shape 1440x2560 give --size 2560x1440",
        "build",
        "b",
        "--shape",
        "1440x2560",
    )


def test_usage_errors_are_one_line(tiny_bundle: Bundle) -> None:
    limited = ("encode", tiny_bundle.path, "a.png", "-o", "x", "--memory-limit", "3")
    refused("no command 'encod'; did you mean encode?", "encod")
    refused("no command 'xyz'; choose models, export, ", "xyz")
    refused("no bundle 'compar'; did you mean bench compare?", "bench", "compar", "a.json", "b.json")
    refused("memory limit is '3', which is so many bytes; give it with a unit, such as 3GiB", *limited)
    refused(
        "No such option '--pakced'. (Did you mean one of: '--backend', '--packed'?); see mgvq-export encode --help",
        "encode",
        "--pakced",
    )
    refused("Missing argument 'BUNDLE'; see mgvq-export encode --help", "encode")
    refused(
        "--backend is 'gpu'; choose auto, ort-cpu, openvino, ort-cuda, tensorrt",
        "encode",
        "b",
        "a.png",
        "-o",
        "x",
        "--backend",
        "gpu",
    )
    refused("--only is 'netwrk'; choose network, precision", "verify", "b", "--only", "netwrk")


def test_choices_are_in_the_help_and_in_completion() -> None:
    assert "[auto|ort-cpu|openvino|ort-cuda|tensorrt-rtx|tensorrt]" in CliRunner().invoke(main, ["encode", "--help"]).output
    found = BashComplete(main, {}, "mgvq-export", "_X").get_completions(["encode", "--tiling"], "")
    assert [item.value for item in found] == list(options.TILINGS)
    found = BashComplete(main, {}, "mgvq-export", "_X").get_completions([], "")
    assert [item.value for item in found] == list(VERBS)


def test_a_verb_is_imported_when_it_runs() -> None:
    code = """
import sys
from mgvq_export.cli import main
try:
    main(["models", "--help"])
except SystemExit:
    pass
print(sorted(name for name in sys.modules if name.startswith("mgvq_export.commands.")), file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mgvq_export.commands.models" in run.stderr
    assert "mgvq_export.commands.encode" not in run.stderr


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mgvq_export", "--version"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert run.stdout == f"mgvq-export, version {mgvq_export.__version__}\n"


def test_the_front_door_is_listed() -> None:
    assert {"Tokenizer", "Tokens", "read_image", "verify"} <= set(dir(mgvq_export))
    assert all(getattr(mgvq_export, name) is not None for name in mgvq_export.__all__)
