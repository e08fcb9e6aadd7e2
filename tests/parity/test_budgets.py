"""Precisions made by a plan are held to the plan's own budgets, and to the table where it states none."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mgvq_export.core.budgets import Budgets
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.export.bundles import export_bundle
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.parity.results import FAILED, PASSED, REPORTED, SKIPPED, ParityReport
from mgvq_export.parity.tolerances import TABLE, budget, tolerance
from mgvq_export.parity.verify import SAMPLES, find_origins, verify
from mgvq_export.tests.support.manifests import edited_manifest

pytest.importorskip("onnxruntime")

ENCODER_CONV = "encoder.stages.1.op_list.0.main.conv1.conv"
DECODER_CONV = "decoder.stages.1.op_list.1.main.conv1.conv"
COARSE = NodePlan("int8", {0: 0.5})  # a scale so large that it can be seen


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    asked = Budgets(min_code_agreement=1.0, min_psnr=5.0, max_psnr_drop=-90.0)
    plans = [
        PrecisionPlan("decoder", "fp32", {DECODER_CONV: COARSE}),
        PrecisionPlan("encoder", "fp32", {ENCODER_CONV: COARSE}),
        PrecisionPlan("asked", "fp32", {ENCODER_CONV: COARSE, DECODER_CONV: COARSE}, budgets=asked),
    ]
    path = tmp_path_factory.mktemp("budgets") / "bundle"
    return export_bundle(load_checkpoint(tiny_checkpoint_file), path, plans=plans)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corner of a photo: enough, and fast."""
    from mgvq_export.runtime.image_files import read_image, write_image

    path = tmp_path_factory.mktemp("pictures") / "corner.png"
    write_image(path, read_image(min(SAMPLES.glob("*.jpg")))[:128, :160])
    return path


@pytest.fixture(scope="module")
def report(bundle: Bundle, picture: Path) -> ParityReport:
    return verify(bundle, [picture], only=["precision", "graphs", "tiling"])


def test_a_plans_budgets_are_its_limits(report: ParityReport) -> None:
    checks = {check.name.removeprefix("precision/"): check for check in report.checks}
    for row, limit, status in (("codes", 1.0, FAILED), ("pixels", 5.0, PASSED), ("drop", -90.0, FAILED)):
        check = checks[f"asked/{row}"]
        assert check.status == status and check.tolerance is not None
        assert check.tolerance.limit == limit and check.tolerance.reason == "the budget of the precision plan"
    assert {check.name for check in report.failed} == {"precision/asked/codes", "precision/asked/drop"}


def test_without_budgets_the_table_judges(report: ParityReport) -> None:
    checks = {check.name.removeprefix("precision/"): check for check in report.checks}
    assert checks["decoder/pixels"].tolerance == tolerance("psnr", "int8")
    assert checks["decoder/drop"].tolerance == tolerance("drop")
    assert checks["decoder/latent"].tolerance == tolerance("latent", "fp16") and checks["decoder/latent"].value == 0
    assert checks["decoder/codes"].value == 1.0  # its encoder is that of fp32
    assert checks["encoder/codes"].status == REPORTED and (checks["encoder/codes"].value or 0) < 1
    assert "encoder/latent" not in checks
    assert checks["encoder/pixels"].tolerance == tolerance("psnr", "fp16")  # and its decoder


def test_two_runs_of_8_bit_graphs_may_flip_values(report: ParityReport) -> None:
    checks = {check.name: check for check in report.checks}
    assert checks["tiling/decoder/pixels"].tolerance == tolerance("pixels", "int8")
    assert checks["tiling/decoder/image"].tolerance == tolerance("steps", "int8")
    assert checks["tiling/decoder/latent"].tolerance == tolerance("latent", "fp32")
    assert checks["graphs/encoder/encoder"].tolerance == tolerance("latent", "int8")
    assert checks["graphs/encoder/decoder"].tolerance == tolerance("latent", "fp32")


def test_8_bit_graphs_alone_are_not_held_against_the_network(bundle: Bundle, picture: Path, tmp_path: Path) -> None:
    alone = Bundle.open(shutil.copytree(bundle.path, tmp_path / "alone"))
    with edited_manifest(alone) as manifest:
        manifest["precisions"] = {"asked": manifest["precisions"]["asked"]}
    checks = {check.name: check for check in verify(alone, [picture], only=["network", "decoder"]).checks}
    assert checks.pop("decoder/groups").status == PASSED
    assert {check.status for check in checks.values()} == {SKIPPED}
    assert all("asked computes with 8 bits; export with --precision fp32" in check.detail for check in checks.values())


def test_the_bisection_knows_which_side_is_quantized(bundle: Bundle, picture: Path, tmp_path: Path) -> None:
    two = Bundle.open(shutil.copytree(bundle.path, tmp_path / "two"))
    kept = {name: two.manifest.precisions[name] for name in ("fp32", "decoder")}
    two.manifest = replace(two.manifest, precisions=kept)
    found = find_origins(two, [picture])
    (line,) = (line for line in found.summary if line.startswith("decoder against fp32"))
    assert line.endswith(f"limit {tolerance('latent', 'fp32').limit:g} and {tolerance('latent', 'int8').limit:g}")
    assert all(origin.node.startswith("decoder.") for origin in found.origins)


def test_budgets_replace_limits_only() -> None:
    row = tolerance("psnr", "int8")
    assert budget(row, None) is row
    assert budget(row, 41.0) == replace(row, limit=41.0, reason="the budget of the precision plan")
    assert len({row.name for row in TABLE}) == len(TABLE)
