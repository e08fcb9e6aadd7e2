"""Plans under a memory limit, and that running them gives the untiled run's codes and pixels."""

import dataclasses
import itertools

import numpy as np
import pytest

from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import VARIANTS, Part
from mgvq_export.core.units import format_bytes, parse_bytes
from mgvq_export.runtime.ort.backend import COST_MODELS
from mgvq_export.runtime.tiling.costs import CostModel, Costs, Speed
from mgvq_export.runtime.tiling.planner import Planner
from mgvq_export.runtime.tiling.request import Tiling
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.tests.support.checks import RELEASED_REACH

F16 = VARIANTS["mgvq-f16c32-g8"]
SIZE = (1440, 2560)
GIB = 2**30


def planner(limit=None, **options):
    return Planner(F16, RELEASED_REACH, base_bytes=GIB, limit=limit, **options)


def directions(one):
    return one.encode, one.decode


@pytest.mark.parametrize("direction", [0, 1])
def test_one_window_when_it_fits(direction):
    plan = directions(planner(16 * GIB))[direction](SIZE)
    assert (plan.mode, plan.total, plan.tiling_overhead) == ("off", 1, 1.0)
    assert str(plan) == "one window of 2560x1440"


@pytest.mark.parametrize("direction", [0, 1])
def test_plans_stay_under_every_limit_and_cost_no_less_with_a_smaller_one(direction):
    taxes = []
    for limit in (3.4, 3.5, 3.7, 4, 5, 8):
        try:
            plan = directions(planner(int(limit * GIB)))[direction](SIZE)
        except InputError:
            continue
        assert plan.peak_bytes <= limit * GIB
        taxes.append(plan.tiling_overhead)
    assert len(taxes) >= 4
    assert all(small >= large * 0.97 for small, large in itertools.pairwise(taxes))


@pytest.mark.parametrize("direction", [0, 1])
def test_the_limit_named_in_the_refusal_suffices_and_less_does_not(direction):
    with pytest.raises(
        InputError, match=r"memory limit of 1.50GiB is too small for an image of 2560x1440; with the smallest"
    ) as error:
        directions(planner(int(1.5 * GIB)))[direction](SIZE)
    least = parse_bytes(str(error.value).split()[-1])
    assert directions(planner(least))[direction](SIZE).peak_bytes <= least
    with pytest.raises(InputError):
        directions(planner(least - GIB // 50))[direction](SIZE)


def test_untiled_that_does_not_fit_is_refused():
    with pytest.raises(
        InputError, match=r"memory limit of 3.50GiB is too small for an image of 2560x1440; untiled it needs 4\.\d\dGiB"
    ):
        planner(int(3.5 * GIB), tiling="off").encode(SIZE)


def test_a_second_cut_is_chosen_when_it_saves_work():
    one_cut = {part: reach for part, reach in RELEASED_REACH.items() if not str(part).endswith(("fine", "coarse"))}
    plans = []
    for share in (6.9, 7.0, 7.2):
        limit = int(share * GIB)
        with_cut = planner(limit).decode((2160, 3840))
        without = dataclasses.replace(planner(limit), reaches=one_cut).decode((2160, 3840))
        assert with_cut.tiling_overhead <= without.tiling_overhead * 1.02  # copying the map between the halves is counted as well
        plans.append(with_cut)
    assert any(len(plan.steps) == 2 for plan in plans)
    text = next(str(plan) for plan in plans if len(plan.steps) == 2)
    assert text.startswith("coarse: ") and "; fine: " in text and "tiling overhead over both" in text


def test_the_second_cut_is_left_when_copying_costs_more_than_it_saves():
    limit = int(7.0 * GIB)
    plans = {}
    for name, speed in {"fast": Speed(5e10, 1e12, 0), "slow": Speed(5e10, 1e6, 0)}.items():
        plans[name] = planner(limit, model=CostModel(speed=speed)).decode((2160, 3840))
    assert len(plans["fast"].steps) == 2 and len(plans["slow"].steps) == 1
    assert plans["slow"].tiling_overhead > plans["fast"].tiling_overhead


def test_costly_runs_make_fewer_and_larger_windows():
    def plan_with(run):
        return planner(int(3.6 * GIB), model=CostModel(speed=Speed(5e10, 2e9, run))).encode(SIZE)

    cheap, costly = plan_with(0), plan_with(1e4)
    assert cheap.total > costly.total > 1
    assert cheap.tiling_overhead <= costly.tiling_overhead


def test_windows_run_together_on_a_gpu_only():
    sizes = {"tiling": "exact", "tile": (512, 512)}
    models = {"ort-cpu": COST_MODELS["ort-cpu", 4], "ort-cuda": COST_MODELS["ort-cuda", 4]}
    plan = {backend: planner(model=model, **sizes).encode(SIZE) for backend, model in models.items()}
    (on_cpu,), (on_gpu,) = ([step for _, step in plan[backend].steps] for backend in ("ort-cpu", "ort-cuda"))
    assert on_cpu.batch == 1 and on_cpu.window == on_gpu.window
    assert [len(batch) for batch in on_gpu.batches()] == [8, 8, 8, 8]
    assert str(plan["ort-cuda"]) == "windows 32 of 512x512, batch 8, halo 88, tiling overhead 2.28"


def test_work_of_the_parts_adds_up_to_that_of_the_trunk():
    costs = Costs(F16)
    for side in ("ENCODER", "DECODER"):
        whole, fine, coarse = (costs.work(Part[f"{side}_TRUNK{suffix}"]) for suffix in ("", "_FINE", "_COARSE"))
        assert whole == pytest.approx(fine + coarse)
    # The published work of a 256x256 image is 516 and 683 GFLOP (two per multiplication), 93 to 96 % of it in the trunk.
    assert 2 * costs.work(Part.ENCODER_TRUNK) * 256**2 == pytest.approx(0.945 * 516e9, rel=0.03)
    assert 2 * costs.work(Part.DECODER_TRUNK) * 256**2 == pytest.approx(0.945 * 683e9, rel=0.03)


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        ((512, 500), "tile width is 500 px; wanted a multiple of 8, such as 496"),
        ((176, 512), "tile height is 176 px, but the halo takes 88 on either side; wanted at least 184"),
    ],
)
def test_bad_tiles_name_the_nearest_that_works(tile, message):
    with pytest.raises(InputError) as error:
        planner(tile=tile).encode(SIZE)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "bad", [{"mode": "fast"}, {"mode": "off", "tile": 512}, {"tile": (1, 2, 3)}, {"tile": -8}, {"memory_limit": "much"}]
)
def test_bad_choices(bad):
    with pytest.raises(InputError):
        Tiling.parse(**bad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("6GiB", 6 * GIB), ("1.5G", GIB * 3 // 2), ("800MB", 800_000_000), ("512B", 512), (77, 77), ("4gib", 4 * GIB)],
)
def test_sizes(text, expected):
    assert parse_bytes(text) == expected


def test_format_rounds_up_when_asked():
    assert format_bytes(4 * GIB) == "4.00GiB"
    assert parse_bytes(format_bytes(4 * GIB + 1, up=True)) > 4 * GIB


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_spec):
    torch = pytest.importorskip("torch")
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.model.checkpoint import Checkpoint
    from mgvq_export.model.network import MGVQ

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("tiling")
    return export_bundle(Checkpoint(tiny_spec, MGVQ(tiny_spec).state_dict(), "tiny", folder, "0"), folder / "bundle")


def texture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def untiled(bundle):
    with Tokenizer.open(bundle, backend="ort-cpu", tiling="off", threads=2) as tokenizer:
        yield tokenizer


@pytest.mark.parametrize("size", [(16, 16), (176, 304), (129, 347), (400, 97), (211, 213)])
@pytest.mark.parametrize("tile", [128, (136, 184)])
def test_exact_tiling_gives_the_untiled_codes_and_pixels(bundle, untiled, size, tile):
    image = texture(*size)
    tokens = untiled.encode(image)
    with Tokenizer.open(bundle, backend="ort-cpu", tiling="exact", tile=tile, threads=2) as tiled:
        assert np.array_equal(tiled.encode(image).codes, tokens.codes)
        assert np.array_equal(tiled.decode(tokens), untiled.decode(tokens))


def two_step(bundle, size, tile):
    """A plan with the second cut, whatever it costs."""
    from mgvq_export.runtime.tiling.windows import TilePlan, TrunkPlan

    f = bundle.spec.downsample
    height, width = (-(-side // f) * f for side in size)

    def step(part, scale):
        fit = TilePlan.fit((height // scale, width // scale), bundle.reach(part), (tile // scale, tile // scale), scale=scale)
        return part, fit

    inner, outer = 2**bundle.spec.inner_stage, bundle.spec.trunk_stride
    encode = TrunkPlan((step(Part.ENCODER_TRUNK_FINE, 1), step(Part.ENCODER_TRUNK_COARSE, inner)))
    return encode, TrunkPlan((step(Part.DECODER_TRUNK_COARSE, outer), step(Part.DECODER_TRUNK_FINE, inner)))


@pytest.mark.parametrize("size", [(176, 304), (400, 96)])
def test_the_second_cut_gives_the_untiled_codes_and_pixels(bundle, untiled, size):
    image = texture(*size)
    tokens = untiled.encode(image)
    encode, decode = two_step(bundle, size, 128)
    assert encode.total > 2 and decode.total > 2
    seen = []
    codes = untiled.implementation.encode(image, encode, lambda done, total: seen.append((done, total)))
    assert np.array_equal(codes, tokens.codes)
    assert seen == [(done, encode.total) for done in range(1, encode.total + 1)]
    pixels = untiled.implementation.decode(tokens.codes, 4, decode)
    assert np.array_equal(pixels, untiled.decode(tokens))


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_codes_do_not_depend_on_the_batch_or_the_order(bundle, untiled, batch):
    image, other = texture(176, 304), texture(304, 176, 1)
    with Tokenizer.open(bundle, backend="ort-cpu", tiling="exact", tile=128, threads=2) as tiled:
        alone = tiled.encode(image).codes
        tiled.encode(other)
        assert np.array_equal(tiled.encode(image).codes, alone)
        plan = tiled.encode_plan(176, 304)
        ((part, windows),) = plan.steps
        batched = dataclasses.replace(plan, steps=((part, dataclasses.replace(windows, batch=batch)),))
        assert np.array_equal(tiled.implementation.encode(image, batched), alone)


def test_blend_runs_and_is_not_exact(bundle, untiled):
    image = texture(176, 304)
    tokens = untiled.encode(image)
    with Tokenizer.open(bundle, backend="ort-cpu", tiling="blend", tile=128, threads=2) as blended:
        assert blended.encode_plan(176, 304).mode == "blend"
        assert (blended.encode(image).codes != tokens.codes).any()
        difference = blended.decode(tokens).astype(int) - untiled.decode(tokens)
        assert difference.any()
        assert np.abs(difference).max() < 128


def test_a_limit_below_the_minimum_is_refused_before_anything_runs(bundle):
    with (
        Tokenizer.open(bundle, backend="ort-cpu", memory_limit="1MiB") as tokenizer,
        pytest.raises(InputError, match="too small"),
    ):
        tokenizer.encode(texture(64, 64), progress=lambda done, total: pytest.fail("it ran"))


def test_cancelling_between_windows_leaves_the_tokenizer_usable(bundle, untiled):
    image = texture(176, 304)

    def cancel(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with Tokenizer.open(bundle, backend="ort-cpu", tiling="exact", tile=128, threads=2) as tiled:
        with pytest.raises(KeyboardInterrupt):
            tiled.encode(image, progress=cancel)
        assert np.array_equal(tiled.encode(image).codes, untiled.encode(image).codes)
