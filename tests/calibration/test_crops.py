"""Crops of calibration images: the same ones every time, evenly shared, and one clear line for what cannot be used."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgvq_export.calibration.crops import Crops, large_enough, list_images, places
from mgvq_export.core.errors import InputError
from mgvq_export.tests.support.checks import one_line


def test_every_window_is_a_part_of_its_image(photos: tuple[Path, ...]) -> None:
    crops = list(Crops(photos, 7, 32).read())
    assert [window.shape for window in crops] == [(32, 32, 3)] * 7
    owners = [path for path, count in Crops(photos, 7, 32).per_image for _ in range(count)]
    assert [owners.count(path) for path in photos] == [3, 2, 2]
    for window, path in zip(crops, owners, strict=True):
        image = np.asarray(Image.open(path))
        cuts = np.lib.stride_tricks.sliding_window_view(image, (32, 32, 3)).reshape(-1, 32, 32, 3)
        assert (cuts == window).all(axis=(1, 2, 3)).any()


def test_windows_depend_on_pixels_and_not_on_names(photos: tuple[Path, ...], tmp_path: Path) -> None:
    copy = shutil.copy(photos[0], tmp_path / "another name.png")
    one, other = Crops(photos[:1], 5, 16), Crops((Path(copy),), 5, 16)
    assert one.sha256 == other.sha256
    np.testing.assert_array_equal(list(one.read()), list(other.read()))
    assert Crops(photos[1:2], 5, 16).sha256 != one.sha256 != Crops(photos[:1], 6, 16).sha256


def test_reading_can_start_at_any_window(photos: tuple[Path, ...]) -> None:
    crops = Crops(photos, 7, 32)
    everything = list(crops.read())
    for first in range(8):
        np.testing.assert_array_equal(list(crops.read(first)), everything[first:])
    assert [len(batch) for batch in crops.batches(3)] == [3, 3, 1]


def test_more_images_than_windows_takes_them_evenly(photos: tuple[Path, ...]) -> None:
    many = Crops(photos * 4, 3, 16)
    assert [path.name for path, _ in many.per_image] == ["0.png", "1.png", "2.png"]
    assert len(list(many.read())) == 3


def test_places_cover_the_image() -> None:
    found = places("0123456789abcdef" * 4, 64, 100, 200)
    rows, columns = np.array(found).T
    assert rows.min() >= 0 and rows.max() < 100 and columns.min() >= 0 and columns.max() < 200
    counts, *_ = np.histogram2d(rows, columns, bins=(4, 4), range=((0, 100), (0, 200)))
    assert counts.min() >= 2  # 4 in each of 16 cells on average


def test_folders_are_listed_by_name(photos: tuple[Path, ...], tmp_path: Path) -> None:
    (photos[0].parent / "notes.txt").write_text("no image")
    assert list_images([photos[0].parent]) == list(photos)
    assert list_images([photos[2], photos[0].parent]) == [photos[2], *photos]


def test_bad_input_is_one_line(photos: tuple[Path, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images to calibrate on: none given") as error:
        list_images([])
    assert one_line(str(error.value))
    with pytest.raises(InputError, match="hold none"):
        list_images([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        list_images([tmp_path / "missing"])
    with pytest.raises(
        InputError, match="48x33, smaller than a window of 40x40; leave it out, or give a smaller --window-size"
    ) as error:
        list(Crops(photos, 3, 40).read())
    assert one_line(str(error.value))
    with pytest.raises(InputError, match="window count is 0"):
        Crops(photos, 0, 32)


def test_a_sample_is_spread_over_all_windows(photos, tmp_path: Path) -> None:
    crops = Crops(photos, 15, 32)
    every = list(crops.read())
    taken = crops.sample(8, 4)
    assert len(taken) == 8
    for index, window in enumerate(taken):
        np.testing.assert_array_equal(window, every[index * 15 // 8])
    assert len(Crops(photos, 2, 32).sample(16, 4)) == 2


def test_windows_that_cannot_be_used_are_found_out_about_in_the_sample(photos, tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(black)
    with pytest.raises(InputError, match="every window is of one flat colour") as error:
        Crops((black,), 3, 32).sample(1, 4)
    assert one_line(str(error.value))
    Crops((black, *photos), 4, 32).sample(1, 4)  # one such image among others is no matter
    with pytest.raises(InputError, match="window size is 30; the model needs a multiple of 4: 28 will do"):
        Crops(photos, 2, 30).sample(1, 4)
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(small)
    with pytest.raises(InputError, match="smaller than a window"):
        Crops((*photos, small), 8, 32).sample(1, 4)  # though no window of it is taken


def test_images_smaller_than_a_window_are_left_out(photos: tuple[Path, ...], tmp_path: Path) -> None:
    small, broken = tmp_path / "small.png", tmp_path / "broken.png"
    Image.fromarray(np.zeros((100, 20, 3), np.uint8)).save(small)
    broken.write_text("no image")
    assert large_enough([small, *photos, broken], 32) == [*photos, broken]
    assert large_enough([small], 32) == [small]
    with pytest.raises(InputError, match="all 2 images are smaller than a window of 32x32"):
        large_enough([small, small], 32)
