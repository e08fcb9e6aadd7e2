"""The tolerance table, and how results are held against it."""

import json
import math

import numpy as np
import pytest

from mgvq_export.core.errors import CheckFailed, InputError
from mgvq_export.parity.compare import CodeDifferences, Worst
from mgvq_export.parity.results import FAILED, PASSED, SKIPPED, CheckResult, ParityReport
from mgvq_export.parity.tolerances import TABLE, TOLERANCES, Tolerance, tolerance


def test_every_row_has_a_name_of_its_own_and_a_reason() -> None:
    assert len(TOLERANCES) == len(TABLE)
    assert all(len(row.reason) > 30 and math.isfinite(row.limit) for row in TABLE)


def test_a_limit_is_reached_from_the_right_side() -> None:
    error, quality = tolerance("latent", "fp32"), tolerance("psnr", "fp16")
    assert error.holds(error.limit) and error.holds(0) and not error.holds(error.limit * 1.001)
    assert quality.holds(quality.limit) and quality.holds(math.inf) and not quality.holds(49.99)
    assert not error.holds(math.nan) and not quality.holds(math.nan)
    assert (str(error), str(quality)) == ("<= 1e-05", ">= 50 dB")


def test_float16_is_never_held_to_less_error_than_float32() -> None:
    for kind in ("latent", "codes", "pixels", "codebook"):
        assert tolerance(kind, "fp16").limit > tolerance(kind, "fp32").limit


def test_unknown_rows_are_refused_with_a_list() -> None:
    with pytest.raises(InputError, match="no tolerance 'taste'; the table has latent/fp32, "):
        tolerance("taste")


@pytest.mark.parametrize("at_least", [False, True])
def test_the_worst_of_several_images(at_least: bool) -> None:
    worst = Worst("name", "question?", Tolerance("t", 2.0, "", "a reason", at_least))
    assert worst.result().status == SKIPPED
    for image, value in (("a", 2.0), ("b", 1.0), ("c", 3.0)):
        worst.add(image, value)
    assert (worst.value, worst.where) == ((1.0, "b") if at_least else (3.0, "c"))
    assert worst.result().status == FAILED
    worst.add("d", math.nan)
    worst.add("e", 2.0)
    assert math.isnan(worst.value) and worst.where == "d" and worst.result().status == FAILED


def codes_with(latent: np.ndarray, codes: list[int], reference: list[int], limit: float = 1e-4) -> CodeDifferences:
    codebook = np.array([[[1, 0], [0, 1], [-1, 0], [1, 0]]], np.float32)  # rows 0 and 3 are equal
    found = CodeDifferences("name", "question?", Tolerance("t", limit, "", "a reason"))
    shape = (1, 1, 1, len(codes))
    found.add("photo", latent[None, :, None, :], codebook, np.array(codes).reshape(shape), np.array(reference).reshape(shape))
    return found


def test_near_ties_pass_and_are_counted_with_their_margin() -> None:
    latent = np.array([[1.0, 1.0], [1.00001, 1.0]], np.float32)  # two positions; the first is 1e-5 / sqrt 2 from a tie
    found = codes_with(latent, [0, 1], [1, 1])
    result = found.result()
    assert result.status == PASSED and found.agreement == 0.5
    assert result.detail == "1 of 2 codes differ, all near-ties, largest margin 7e-06 (photo)"
    assert result.value == pytest.approx(1e-5 / math.sqrt(2), rel=0.02)


def test_a_real_difference_fails_and_says_where() -> None:
    latent = np.array([[1.0, 1.0], [1.00001, 0.0]], np.float32)
    result = codes_with(latent, [0, 2], [1, 0]).result()
    assert result.status == FAILED and result.value == 2.0
    assert "2 of 2 codes differ, 1 of them real" in result.detail
    assert result.detail.endswith("first: photo, group 1, row 0, column 1: 2 instead of 0")


def test_equal_rows_and_zero_slices_are_decided_by_the_rule_alone() -> None:
    latent = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    assert codes_with(latent, [3, 0], [0, 0]).result().status == FAILED
    assert codes_with(latent, [0, 1], [0, 0]).result().status == FAILED


def test_codes_that_do_not_exist_fail() -> None:
    latent = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    for codes in ([0, 4], [-1, 1]):
        result = codes_with(latent, codes, [0, 1]).result()
        assert result.status == FAILED and "1 are no valid codes" in result.detail
    shares = codes_with(latent, [0, 4], [0, 1]).agreement_result(tolerance("agreement", "fp16"))
    assert shares.status == FAILED


def test_a_report_names_what_failed_and_is_strict_json() -> None:
    good = CheckResult.judged("a", "Is it?", math.inf, tolerance("psnr", "fp16"))
    bad = CheckResult.judged("b", "Is it?", math.nan, tolerance("latent", "fp32"))
    report = ParityReport([good, CheckResult.skipped("c", "Is it?", "no torch")])
    report.raise_if_failed()
    report.extend([bad])
    with pytest.raises(CheckFailed, match=r"^1 of 3 checks failed: b is nan, wanted <= 1e-05$"):
        report.raise_if_failed()
    assert report.summary() == "1 passed, 1 FAILED, 1 skipped"
    facts = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [check["value"] for check in facts["checks"]] == ["inf", None, "nan"] and facts["passed"] is False
    columns, rows = report.table().columns, report.table().rows
    assert all(len(row) == len(columns) for row in rows)
