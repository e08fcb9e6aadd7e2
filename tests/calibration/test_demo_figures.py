"""What calibration reaches on a network that was trained for real: the packaged demo model on photos it never saw."""

from pathlib import Path

import pytest

from mgvq_export.calibration.calibrate import calibrate
from mgvq_export.calibration.options import Options
from mgvq_export.calibration.plan_search import Calibration
from mgvq_export.core.budgets import DEFAULT_BUDGETS
from mgvq_export.core.bundle import Bundle
from mgvq_export.export.bundles import export_bundle
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.model.demo import TRAINING_PHOTOS, photo_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle(load_checkpoint("demo"), tmp_path_factory.mktemp("bundles") / "demo")


def calibrated(bundle: Bundle, precision: str, folder: Path) -> Calibration:
    """A plan from windows of the training photos, measured on the packaged sample photos."""
    photos = [photo_path(photo) for photo in TRAINING_PHOTOS]
    options = Options(precision, DEFAULT_BUDGETS[precision], windows=16, search_windows=4)
    return calibrate(bundle, photos, options, report_dir=folder)


def test_int8_takes_most_of_the_decoder(bundle: Bundle, tmp_path: Path) -> None:
    found = calibrated(bundle, "int8", tmp_path)
    assert found.shares["decoder"] >= 0.85
    assert found.held_out.psnr >= 38
    assert found.held_out.worst_drop <= 0.15


def test_fp16_changes_next_to_nothing(bundle: Bundle, tmp_path: Path) -> None:
    found = calibrated(bundle, "fp16", tmp_path)
    assert found.held_out.agreement >= 0.99
    assert found.held_out.worst_drop <= 0.01
