"""TilePlan: full cover, exactly once, halo kept or at the image's edge, one shape; and equality with an untiled run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import ReceptiveField
from mgvq_export.runtime.tiling.windows import TilePlan, smallest_window

ENCODER = ReceptiveField(8, 1, 87, 87)  # the released variants
DECODER = ReceptiveField(1, 8, 15, 15)


@st.composite
def plans(draw, balance=None):
    stride_in, stride_out = draw(st.sampled_from([(8, 1), (4, 1), (2, 1), (1, 1), (1, 2), (1, 8), (2, 4), (3, 5)]))
    reach = ReceptiveField(stride_in, stride_out, draw(st.integers(0, 40)), draw(st.integers(0, 40)))
    size = tuple(stride_in * draw(st.integers(1, 90)) for _ in range(2))
    tile = tuple(smallest_window(reach) + stride_in * draw(st.integers(0, 60)) for _ in range(2))
    batch = draw(st.integers(1, 5))
    return TilePlan.fit(size, reach, tile, batch=batch, balance=draw(st.booleans()) if balance is None else balance), tile


@given(plans())
def test_kept_regions_cover_the_output_exactly_once(drawn):
    plan, _ = drawn
    hits = np.zeros(plan.output_size, np.int32)
    for window in plan.windows:
        hits[window.kept] += 1
    assert (hits == 1).all()


@given(plans())
def test_windows_have_one_shape_and_lie_inside_the_map_on_whole_cells(drawn):
    plan, tile = drawn
    for window in plan.windows:
        for axis in range(2):
            source = window.source[axis]
            assert source.start >= 0 and source.stop <= plan.size[axis]
            assert source.stop - source.start == plan.window[axis] <= min(tile[axis], plan.size[axis])
            assert source.start % plan.reach.stride_in == 0


@given(plans())
def test_kept_lies_a_halo_inside_the_window_or_at_the_edge_of_the_map(drawn):
    plan, _ = drawn
    reach = plan.reach
    for window in plan.windows:
        for axis in range(2):
            source, kept = window.source[axis], window.kept[axis]
            first = kept.start // reach.stride_out * reach.stride_in
            end = kept.stop // reach.stride_out * reach.stride_in
            assert source.start == 0 or first - reach.before >= source.start
            assert source.stop == plan.size[axis] or end + reach.after <= source.stop


@given(plans())
def test_crop_is_kept_seen_from_the_window(drawn):
    plan, _ = drawn
    reach = plan.reach
    for window in plan.windows:
        for axis in range(2):
            offset = window.source[axis].start // reach.stride_in * reach.stride_out
            kept, crop = window.kept[axis], window.crop[axis]
            assert (crop.start + offset, crop.stop + offset) == (kept.start, kept.stop)
            assert 0 <= crop.start < crop.stop <= plan.output_window[axis]


@given(plans())
def test_batches_hold_every_window_once_in_order(drawn):
    plan, _ = drawn
    batches = list(plan.batches())
    assert tuple(window for batch in batches for window in batch) == plan.windows
    assert all(len(batch) == plan.batch for batch in batches[:-1])
    assert len(plan.windows) == plan.grid[0] * plan.grid[1]


@given(plans(balance=False))
def test_balancing_needs_no_more_windows_and_no_more_work(drawn):
    plan, tile = drawn
    balanced = TilePlan.fit(plan.size, plan.reach, tile, balance=True)
    assert balanced.grid == plan.grid
    assert balanced.tiling_overhead <= plan.tiling_overhead
    for axis in range(2):  # one cell less would not do
        smaller = balanced.window[axis] - plan.reach.stride_in
        if balanced.grid[axis] > 1 and smaller >= smallest_window(plan.reach):
            window = list(balanced.window)
            window[axis] = smaller
            assert TilePlan.fit(plan.size, plan.reach, tuple(window)).grid[axis] > balanced.grid[axis]


def test_released_encoder_plan():
    plan = TilePlan.fit((1440, 2560), ENCODER, (1024, 1024))
    assert str(plan) == "windows 6 of 1024x1024, halo 88, tiling overhead 1.71"
    assert plan.grid == (2, 3)
    assert plan.output_size == (180, 320)
    first, last = plan.windows[0], plan.windows[-1]
    assert first.source == (slice(0, 1024), slice(0, 1024))
    assert first.kept == first.crop == (slice(0, 117), slice(0, 117))
    assert last.source == (slice(416, 1440), slice(1536, 2560))
    assert (
        str(TilePlan.fit((1440, 2560), ENCODER, (1024, 1024), balance=True))
        == "windows 6 of 976x808, halo 88, tiling overhead 1.28"
    )


def test_decoder_messages_speak_of_image_pixels():
    plan = TilePlan.fit((180, 320), DECODER, (128, 128), scale=8, batch=2)
    assert str(plan) == "windows 6 of 1024x1024, batch 2, halo 120, tiling overhead 1.71"
    with pytest.raises(InputError, match="tile height is 240 px, but the halo takes 120 on either side; wanted at least 248"):
        TilePlan.fit((180, 320), DECODER, (30, 64), scale=8)


def test_map_smaller_than_the_tile_is_one_window():
    plan = TilePlan.fit((64, 2000), ENCODER, (1024, 1024))
    assert plan.window == (64, 1024)
    assert plan.grid == (1, 3)
    assert str(TilePlan.fit((64, 80), ENCODER, (1024, 1024))) == "one window of 80x64"
    assert TilePlan.fit((64, 80), ENCODER).mode == "off"


@pytest.mark.parametrize(
    ("size", "tile", "message"),
    [
        ((1440, 2560), (176, 512), "tile height is 176 px, but the halo takes 88 on either side; wanted at least 184"),
        ((1440, 160), (512, 96), "tile width is 96 px, but the halo takes 88 on either side; wanted at least 160"),
        ((1440, 2560), (512, 515), "tile width is 515 px; wanted a multiple of 8, such as 512"),
        ((1440, 2560), (512, 60), "tile width is 60 px; wanted a multiple of 8, such as 184"),
        ((1440, 2560), (512, -8), "tile width is -8 px; wanted a multiple of 8, such as 184"),
        ((64, 64), (512, 515), "tile width is 515 px; wanted a multiple of 8, such as 512"),
        ((4, 64), (512, 512), "height is 4 px, less than one cell; wanted at least 8"),
        ((64, 61), (512, 512), "width is 61 px; wanted a multiple of 8, such as 64"),
    ],
)
def test_bad_sizes_name_the_nearest_value_that_works(size, tile, message):
    with pytest.raises(InputError) as error:
        TilePlan.fit(size, ENCODER, tile)
    assert str(error.value) == message


def test_bad_modes():
    with pytest.raises(InputError, match="choose off, exact, blend"):
        TilePlan((64, 64), (64, 64), ENCODER, mode="fast")
    with pytest.raises(InputError, match="tiling is off, but the window 512x512 is not the image 1024x1024"):
        TilePlan((1024, 1024), (512, 512), ENCODER, mode="off")
    with pytest.raises(InputError, match="batch is 0"):
        TilePlan((64, 64), (64, 64), ENCODER, batch=0)


def smooth(x):
    """3x3 convolution with zero padding and a bias, so that padding zeros is not what lies beyond an inner edge."""
    padded = np.pad(x, 1)
    rows, columns = x.shape
    terms = [padded[i : i + rows, j : j + columns] * weight for (i, j), weight in np.ndenumerate(KERNEL)]
    return np.maximum(sum(terms) + 0.25, 0)


KERNEL = np.random.default_rng(7).normal(size=(3, 3))


def down(x):
    """Encoder-like: two convolutions, halve, one convolution. ReceptiveField 2 + 1 * 2 = 4 input pixels."""
    y = smooth(smooth(x))
    return smooth(y[0::2, 0::2] + 2 * y[1::2, 0::2] - y[0::2, 1::2] + 0.5 * y[1::2, 1::2])


def up(x):
    """Decoder-like: one convolution, double, three convolutions: 1 + ceil(3 / 2) = 3 cells, the last of them half."""
    return smooth(smooth(smooth(np.kron(smooth(x), np.array([[1.0, 2.0], [3.0, -1.0]])))))


NETWORKS = {"down": (down, ReceptiveField(2, 1, 4, 4)), "up": (up, ReceptiveField(1, 2, 3, 3))}


def run(plan, network, x):
    output = np.full(plan.output_size, np.nan)
    for window in plan.windows:
        output[window.kept] = network(x[window.source])[window.crop]
    return output


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("size", [(2, 40), (34, 34), (36, 50), (38, 22)])
def test_tiled_run_equals_the_untiled_one_bit_for_bit(name, size, balance, rng):
    network, reach = NETWORKS[name]
    x = rng.normal(size=size)
    for side in range(smallest_window(reach), 24, reach.stride_in):
        plan = TilePlan.fit(size, reach, (side, side + 2 * reach.stride_in), balance=balance)
        assert np.array_equal(run(plan, network, x), network(x)), plan


@pytest.mark.parametrize("name", NETWORKS)
def test_one_pixel_less_of_reach_is_not_enough(name, rng):
    network, reach = NETWORKS[name]
    short = ReceptiveField(reach.stride_in, reach.stride_out, reach.before - reach.stride_in, reach.after - reach.stride_in)
    x = rng.normal(size=(40, 40))
    plan = TilePlan.fit((40, 40), short, (14, 14))
    assert not np.allclose(run(plan, network, x), network(x))
