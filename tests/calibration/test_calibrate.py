"""From images to a plan that export takes: deterministic, resumable, measured on other images, one clear line for bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from mgvq_export.calibration.calibrate import calibrate
from mgvq_export.calibration.candidates import skip_choices
from mgvq_export.calibration.effects import Effect, Effects, Graphs, Journal
from mgvq_export.calibration.options import Options
from mgvq_export.calibration.plan_search import versus
from mgvq_export.calibration.plots import write_plots
from mgvq_export.calibration.report import Outcome
from mgvq_export.calibration.search import Point, Search, pareto
from mgvq_export.calibration.tables import tables
from mgvq_export.cli import main
from mgvq_export.core.budgets import Budgets
from mgvq_export.core.errors import BundleError, CheckFailed, InputError
from mgvq_export.core.files import sha256_file
from mgvq_export.core.manifest import SourceEntry
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.export.bundles import export_bundle
from mgvq_export.export.graphs.plans import plan_nodes
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.tests.support.checks import one_line

LOOSE = Budgets(min_code_agreement=0.5, min_psnr=30, max_psnr_drop=1)
QUICK = {"windows": 4, "window_size": 32, "search_windows": 2}


def options(**values) -> Options:
    return Options(**{"precision": "int8", "budgets": LOOSE, "base": "fp32", **QUICK, **values})


@pytest.fixture(scope="session")
def int8(small_bundle, photos, held_out_photo, tmp_path_factory):
    """An int8 plan of the small network, and the folder with its state."""
    folder = tmp_path_factory.mktemp("report")
    return calibrate(small_bundle, photos, options(base="fp16"), held_out=[held_out_photo], report_dir=folder), folder


def test_the_plan_holds_and_says_how_it_was_made(int8, small_bundle, photos, held_out_photo) -> None:
    found, _ = int8
    plan = found.plan
    assert found.effect.holds(LOOSE) and found.held_out.holds(LOOSE)
    assert found.shares["decoder"] > 0.5
    quantized = {name: node for name, node in plan.nodes.items() if node.quantized}
    assert quantized and all(name.startswith("decoder.") for name in quantized)
    known = plan_nodes(load_checkpoint(small_bundle.manifest.source.name).network())
    convs = [node for node in known.values() if node.op == "Conv" and node.side == "decoder" and node.quantizable]
    assert convs[0].name not in quantized and convs[-1].name not in quantized
    assert all(known[name].op in ("Conv", "Add") and node.reason.startswith("scale by") for name, node in quantized.items())
    # Nodes that read one value share its scale, so that one pair of Quantize and Dequantize serves all.
    scales: dict[str, set[float]] = {}
    for name, node in quantized.items():
        for position, scale in node.scales.items():
            scales.setdefault(known[name].inputs[position], set()).add(scale)
    assert all(len(one) == 1 for one in scales.values())
    assert plan.made_for.codebook_sha256 == small_bundle.codebook_sha256
    assert [image["name"] for image in plan.calibration["images"]] == [path.name for path in photos]
    assert plan.calibration["held_out"][0]["name"] == held_out_photo.name
    assert plan.measured["held_out"]["psnr"] == found.held_out.psnr
    json.dumps(plan.to_dict(), allow_nan=False)


def test_export_takes_the_plan(int8, small_checkpoint: Path, tmp_path: Path) -> None:
    plan_file = tmp_path / "plan.json"
    int8[0].plan.save(plan_file)
    bundle = export_bundle(load_checkpoint(small_checkpoint), tmp_path / "bundle", plans=[PrecisionPlan.load(plan_file)])
    assert bundle.precisions == ("fp32", "int8")


def test_an_interrupted_search_ends_with_the_same_bytes(int8, small_bundle, photos, held_out_photo, tmp_path: Path) -> None:
    def stop(step: str, share: float) -> None:
        if "3 in int8" in step:
            raise KeyboardInterrupt

    arguments = (small_bundle, photos, options(base="fp16"))
    with pytest.raises(KeyboardInterrupt):
        calibrate(*arguments, held_out=[held_out_photo], report_dir=tmp_path, progress=stop)
    journal = tmp_path / "measurements.jsonl"
    before = journal.read_text().splitlines()
    with journal.open("a") as file:
        file.write('{"key": "cut o')  # as if the machine had stopped while writing
    again = calibrate(*arguments, held_out=[held_out_photo], report_dir=tmp_path)
    assert again.plan.to_bytes() == int8[0].plan.to_bytes()
    assert len(before) > 3
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines() if line.endswith("}")]
    assert len(keys) == len(set(keys))  # nothing was measured twice


def test_journal_keeps_infinite_figures(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    effects = {"a": Effect(1.0, np.inf, 0.0, 0.0, 0.0), "b": Effect(0.0, -np.inf, np.inf, np.inf, np.inf, False)}
    for key, effect in effects.items():
        Journal(path).add(key, effect)
    assert {key: Journal(path).get(key) for key in effects} == effects
    assert Journal(path).get("c") is None


def test_effects_are_those_of_the_network(small_network, held_out_photo) -> None:
    """A plan that changes one weight scale moves the picture by what float64 arithmetic on the quantized weights says."""
    image = np.asarray(Image.open(held_out_photo))[:32, :48]
    effects = Effects(Graphs(small_network), [image], "key")
    assert effects.measure(PrecisionPlan("none", "fp32", {})) == Effect(1.0, np.inf, 0.0, 0.0, 0.0)
    name = "decoder.stages.1.op_list.1.main.conv1.conv"
    fine, coarse = (effects.measure(PrecisionPlan("one", "fp32", {name: NodePlan("int8", {0: scale})})) for scale in (0.1, 1.0))
    assert fine.agreement == coarse.agreement == 1.0  # the encoder is untouched
    assert fine.psnr > coarse.psnr + 6 and coarse.error > 4 * fine.error > 0
    half = effects.measure(PrecisionPlan("half", "fp16", {}))
    assert 0.9 < half.agreement <= 1 and half.psnr > 50


def test_fp8_and_the_encoder(small_bundle, photos, held_out_photo, tmp_path: Path) -> None:
    found = calibrate(
        small_bundle, photos, options(precision="fp8", parts=("encoder",), search_windows=1), held_out=[held_out_photo]
    )
    assert {(name.split(".")[0], node.precision) for name, node in found.plan.nodes.items()} == {("encoder", "fp8")}
    assert 0.5 < found.effect.agreement < 1
    assert found.effect.psnr == np.inf  # the decoder is untouched
    assert set(found.searches) == {"encoder"}  # its sums come after norms, which no 8-bit convolution is joined with
    assert found.compared == "encoder" and "% of codes equal" in found.notes[-1]
    titles = [table.title for table in tables(found)]
    assert "encoder, work in 8 bits" in titles
    write_plots(found, tmp_path)
    assert (tmp_path / "curve-encoder.png").stat().st_size > 10_000


def test_a_margin_is_left_for_other_images(small_bundle, photos, held_out_photo) -> None:
    """The search stops short of the budget, the plan keeps the budget."""
    quick = {"windows": 2, "search_windows": 1, "base": "fp32"}
    free = calibrate(small_bundle, photos, options(budgets=Budgets(min_psnr=1), **quick), held_out=[held_out_photo])
    budgets = Budgets(min_psnr=free.effect.psnr + 1)  # a little more than everything in 8 bits reaches
    tight, wide = (
        calibrate(small_bundle, photos, options(budgets=budgets, margin=margin, **quick), held_out=[held_out_photo])
        for margin in (0.0, 0.5)
    )
    assert tight.effect.holds(budgets) and wide.effect.holds(budgets.tightened(0.5))
    assert tight.shares["decoder"] >= wide.shares["decoder"] and tight.plan.nodes != wide.plan.nodes
    assert tight.plan.budgets == wide.plan.budgets == budgets
    assert wide.plan.calibration["margin"] == 0.5


def test_skips_are_quantized_only_beside_a_quantized_convolution(small_network) -> None:
    known = plan_nodes(small_network)
    sums = {choice.candidate.name: choice for choice in skip_choices(known, "decoder", set(known))}
    assert sums and all(known[name].op == "Add" for name in sums)
    name = next(iter(sums))
    (position,) = sums[name].nodes.values()
    main = known[name].inputs[1 - position]
    assert [choice.candidate.name for choice in skip_choices(known, "decoder", {main})] == [name]
    assert skip_choices(known, "decoder", set()) == []


def test_another_checkpoint_is_calibrated_anew(
    small_bundle, small_spec, small_checkpoint, photos, held_out_photo, tmp_path
) -> None:
    """The state of a run belongs to the weights, also where the codebook and so the bundle would do."""
    tensors = dict(load_checkpoint(small_checkpoint).tensors)
    name = "decoder.stages.1.op_list.1.main.conv1.conv.weight"
    tensors[name] = tensors[name] * 3
    tuned = tmp_path / "tuned.safetensors"
    save_file(tensors, tuned, {"mgvq_spec": json.dumps(small_spec.to_dict())})
    quick = options(windows=2, search_windows=1)
    first, second = (
        calibrate(small_bundle, photos, quick, checkpoint=one, held_out=[held_out_photo], report_dir=tmp_path / "report")
        for one in (None, tuned)
    )
    assert first.effect != second.effect
    assert first.plan.made_for.checkpoint_sha256 == small_bundle.manifest.source.sha256
    assert second.plan.made_for.checkpoint_sha256 == sha256_file(tuned)


def test_images_that_cannot_be_used_leave_nothing(small_bundle, photos, held_out_photo, tmp_path) -> None:
    with pytest.raises(InputError, match="smaller than a window"):
        calibrate(small_bundle, photos, options(window_size=512), held_out=[held_out_photo], report_dir=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_progress_never_goes_back(small_bundle, photos, held_out_photo) -> None:
    seen: list[float] = []
    calibrate(
        small_bundle,
        photos,
        options(windows=2, search_windows=1),
        held_out=[held_out_photo],
        progress=lambda step, share: seen.append(share),
    )
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] > 0.5


def test_fp16(small_bundle, photos, held_out_photo) -> None:
    found = calibrate(small_bundle, photos, options(precision="fp16"), held_out=[held_out_photo])
    assert found.plan.base == "fp16" and all(node.precision == "fp32" for node in found.plan.nodes.values())
    assert found.effect.agreement > 0.95 and 50 < found.effect.psnr < np.inf


def test_a_value_that_is_always_zero_is_left_alone(small_spec, small_checkpoint, photos, held_out_photo, tmp_path: Path) -> None:
    tensors = dict(load_checkpoint(small_checkpoint).tensors)
    for leaf in ("weight", "bias"):  # ReLU of a negative constant
        name = f"decoder.stages.1.op_list.1.main.conv1.conv.{leaf}"
        tensors[name] = torch.zeros_like(tensors[name]) - float(leaf == "bias")
    save_file(tensors, tmp_path / "zero.safetensors", {"mgvq_spec": json.dumps(small_spec.to_dict())})
    bundle = export_bundle(load_checkpoint(tmp_path / "zero.safetensors"), tmp_path / "zero")
    found = calibrate(bundle, photos, options(windows=2, search_windows=1), held_out=[held_out_photo])
    assert "decoder.stages.1.op_list.1.main.conv2.conv" not in found.plan.nodes
    assert any("main.conv1.act is left alone: all values are zero" in note for note in found.notes)


def test_bad_input_is_one_line(small_bundle, photos, held_out_photo, tmp_path: Path) -> None:
    def line(match: str, *arguments, error: type[Exception] = InputError, **more) -> None:
        with pytest.raises(error, match=match) as raised:
            calibrate(small_bundle, *arguments, **more)
        assert one_line(str(raised.value))

    line("no images to calibrate on", [], options())
    line("is held out and among the calibration images", photos, options(), held_out=photos[:1])
    line("other.png is 50x70, smaller than a window", [held_out_photo], options(window_size=64))
    line("no convolution of the decoder can run in int8 within the budgets; the best, .* gives .* wanted at least 151.2.*--margin 0", photos,
         options(budgets=Budgets(min_psnr=150), windows=2, search_windows=1), held_out=[held_out_photo])  # fmt: skip
    (tmp_path / "file").write_text("in the way")
    line("cannot make the folder", photos, options(), held_out=[held_out_photo], report_dir=tmp_path / "file")
    for values, match in (
        ({"precision": "int4"}, "choose fp16, int8, fp8"),
        ({"parts": ("quantizer",)}, "choose decoder, encoder"),
        ({"margin": 1.0}, "margin is 1.0; wanted a share"),
        ({"name": "fp16"}, "fp16"),
    ):
        with pytest.raises(InputError, match=match):
            options(**values)


def test_a_bundle_without_its_checkpoint(small_bundle, photos, held_out_photo) -> None:
    import copy

    lost = copy.copy(small_bundle)
    lost.manifest = replace(small_bundle.manifest, source=SourceEntry("/nowhere/x.pt", "0"))
    with pytest.raises(BundleError, match="calibration needs the network .* give it with --checkpoint") as raised:
        calibrate(lost, photos, options(), held_out=[held_out_photo])
    assert one_line(str(raised.value))


def test_versus_says_who_wins() -> None:
    def point(share: float, psnr: float) -> Point:
        return Point((), share, Effect(1.0, psnr, 0.0, 0.0, 1e-5))

    found = Search([], [point(0, 90), point(0.5, 60), point(0.9, 50)], None)
    assert "the search beats it: 90.0% at 50.00 dB" in versus(found, 0.8, point(0, 48).effect)
    assert "does not beat it: 50.0%" in versus(found, 0.8, point(0, 55).effect)
    assert "does not beat it" in versus(found, 0.9, point(0, 50).effect)
    assert "give 50.00, 2.00 more" in versus(found, 0.9, point(0, 48).effect)

    def codes(share: float, agreement: float) -> Point:
        return Point((), share, Effect(agreement, np.inf, 0.0, 0.0, 0.0))

    encoder = Search([], [codes(0, 1), codes(0.5, 0.9), codes(0.9, 0.7)], None)
    assert "does not beat it: 50.0%" in versus(encoder, 0.9, codes(0, 0.8).effect, "encoder")
    assert [one.share for one in pareto(encoder.curve, "encoder")] == [0, 0.5, 0.9]


def test_missed_budgets_on_held_out_images_are_a_failed_check() -> None:
    Outcome([], [], {}, []).raise_if_failed()
    with pytest.raises(
        CheckFailed, match="on the held-out images the plan misses its budgets: 37 dB; ask for a larger --margin"
    ) as raised:
        Outcome([], [], {}, [], ["37 dB"]).raise_if_failed()
    assert one_line(str(raised.value))
    effect = Effect(1.0, 50.0, 0.1, 0.3, 1e-5)  # 0.1 dB on average, 0.3 dB at worst
    assert effect.holds(Budgets(max_psnr_drop=0.2))
    assert effect.misses(Budgets(max_psnr_drop=0.2), worst=True) == ["0.300 dB lost against the photos, wanted at most 0.2"]


def test_command_line(small_bundle, photos, held_out_photo, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    arguments = ["calibrate", str(small_bundle.path), str(photos[0].parent), "-o", str(plan), "--held-out", str(held_out_photo)]
    arguments += ["--windows", "2", "--window-size", "32", "--search-windows", "1", "--base", "fp32", "--min-psnr", "30"]
    result = CliRunner().invoke(main, [*arguments, "--max-psnr-drop", "1"])
    assert result.exit_code == 0, result.output
    assert PrecisionPlan.load(plan).budgets == Budgets(0.985, 30, 1)
    report = tmp_path / "plan-report"
    assert {path.name for path in report.iterdir()} == {
        "ranges.json", "measurements.jsonl", "report.json", "ranges-encoder.png", "ranges-decoder.png", "curve-decoder.png"
    }  # fmt: skip
    assert "of the decoder's convolution work in int8" in result.output and "held-out images" in result.output
    # Again, from the journal, as JSON
    again = CliRunner().invoke(main, [*arguments, "--max-psnr-drop", "1", "--json"])
    assert json.loads(again.stdout)["held_out"] == json.loads((report / "report.json").read_text())["held_out"]
    # What cannot be had
    wrong = CliRunner().invoke(main, [*arguments, "--max-psnr-drop", "-1"])
    assert wrong.exit_code == 2 and one_line(wrong.stderr)
    assert CliRunner().invoke(main, ["calibrate", str(small_bundle.path), "-o", str(plan)]).exit_code == 2
    folder = CliRunner().invoke(main, ["calibrate", str(small_bundle.path), str(photos[0]), "-o", str(tmp_path)])
    assert folder.exit_code == 2 and "it is a folder" in folder.stderr
