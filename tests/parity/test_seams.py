"""The seam measure: silent on equal images, loud on a shifted window, and blind to noise that has no borders."""

import numpy as np
import pytest

from mgvq_export.core.errors import InputError
from mgvq_export.parity.seams import measure_seams

BORDERS = ([128], [96, 192])


@pytest.fixture
def image(rng):
    return rng.integers(20, 230, (256, 288, 3)).astype(np.uint8)


def test_equal_images_have_no_seams(image):
    seams = measure_seams(image, image, BORDERS)
    assert (seams.border_error, seams.interior_error, seams.border_step, seams.interior_step) == (0, 0, 0, 0)


def test_a_colour_shift_of_one_window_is_a_step_at_its_borders_only(image):
    shifted = image.copy()
    shifted[128:, 192:] += 4
    seams = measure_seams(shifted, image, BORDERS)
    # Of three borders two touch the window: a third of the row border, half of one column border, 4 steps each.
    assert seams.border_step == pytest.approx(4 * (1 / 3 + 0 + 1 / 2) / 3, rel=0.15)
    assert seams.interior_step < 0.3


def test_errors_beside_borders_are_told_from_those_inside(image):
    marked = image.copy()
    marked[:, 94:98] += 10
    seams = measure_seams(marked, image, BORDERS)
    assert seams.border_error > 0.5
    assert seams.interior_error == 0


def test_noise_without_borders_looks_the_same_everywhere(image, rng):
    noisy = (image + rng.integers(-5, 6, image.shape)).astype(np.uint8)
    seams = measure_seams(noisy, image, BORDERS)
    assert seams.border_error == pytest.approx(seams.interior_error, rel=0.1)
    assert seams.border_step == pytest.approx(seams.interior_step, rel=0.6)


def test_what_cannot_be_measured(image):
    with pytest.raises(InputError, match="cannot be compared"):
        measure_seams(image[:-1], image, BORDERS)
    with pytest.raises(InputError, match="no borders"):
        measure_seams(image, image, ([], []))
    with pytest.raises(InputError, match="border 3 lies less than 8 px"):
        measure_seams(image, image, ([3], []))
