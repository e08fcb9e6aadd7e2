"""The TensorRT backend through its whole life on a GPU that is none: results, order of calls, memory, failures at every call."""

import gc
import logging
import threading

import numpy as np
import pytest

from mgvq_export import Tokenizer
from mgvq_export.core.errors import BackendError, InputError, MgvqError
from mgvq_export.core.spec import Part
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.runtime.tensorrt import session as trt_session
from mgvq_export.runtime.tensorrt.planner import DECODE, ENCODE
from mgvq_export.runtime.tensorrt.session import TensorRtOptions
from mgvq_export.tests.support import fake_gpu, stubs

SMALL, LARGE = (64, 96), (160, 224)
SIZES = (SMALL, LARGE)
CUT = (Part.ENCODER_TRUNK_FINE, Part.ENCODER_TRUNK_COARSE, Part.DECODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE)


def options(precision: str) -> tuple[BuildOptions, ...]:
    """Engines for whole images, for trunks in windows of 112 x 112 (three at a time), and for trunks cut twice."""
    return (
        BuildOptions(precision=precision, shapes=SIZES),
        BuildOptions(precision=precision, shapes=SIZES, tile=(112, 112), batch=3),
        BuildOptions(precision=precision, tile=(96, 96), batch=4, parts=CUT),
    )


WHOLE, TRUNKS = options("fp32")[:1], options("fp32")[1:2]


@pytest.fixture
def bundle(engine_bundle):
    return engine_bundle(*options("fp32"))


@pytest.fixture(scope="module")
def images():
    """One image per size, not of whole latent cells."""
    rng = np.random.default_rng(5)
    return {size: rng.integers(0, 256, (size[0] - 7, size[1] - 3, 3), dtype=np.uint8) for size in SIZES}


@pytest.fixture(scope="module")
def wanted(tiny_bundle, images):
    """size -> (tokens, pixels) by ONNX Runtime, untiled."""
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32", tiling="off") as tokenizer:
        tokens = {size: tokenizer.encode(image) for size, image in images.items()}
        return {size: (tokens[size], tokenizer.decode(tokens[size])) for size in SIZES}


def open_fp32(bundle, **keywords):
    return Tokenizer.open(bundle, backend="tensorrt", precision="fp32", **keywords)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) > 20
    return text


def check(tokenizer, images, wanted, size, **plans):
    tokens, pixels = wanted[size]
    found = tokenizer.encode(images[size], plan=plans.get("encode"))
    assert np.array_equal(found.codes, tokens.codes) and found.image_size == images[size].shape[:2]
    assert np.array_equal(tokenizer.decode(tokens, plan=plans.get("decode")), pixels)


# ---- results


@pytest.mark.parametrize("built", [WHOLE, TRUNKS[0:1]], ids=["encoder", "trunk and head"])
def test_untiled_equals_onnx_runtime(engine_bundle, fake, images, wanted, built):
    if built == TRUNKS:  # trunks for whole images
        parts = (Part.ENCODER_TRUNK, Part.ENCODER_HEAD, Part.QUANTIZER, Part.DEQUANTIZER, Part.DECODER_HEAD, Part.DECODER_TRUNK)
        built = (BuildOptions(precision="fp32", shapes=SIZES, parts=parts),)
    gpu = fake().gpu
    with open_fp32(engine_bundle(*built), tiling="off") as tokenizer:
        for size in (*SIZES, *SIZES, *SIZES):  # plain, captured, replayed; and memory that grows in between
            check(tokenizer, images, wanted, size)
    assert "cudaGraphLaunch" in gpu.calls and gpu.leaks() == {}


@pytest.mark.parametrize("graphs", [True, False])
def test_tiled_equals_untiled(bundle, fake, images, wanted, graphs):
    gpu = fake().gpu
    with open_fp32(bundle, tiling="exact", tile=112, tensorrt=TensorRtOptions(cuda_graphs=graphs)) as tokenizer:
        plan = tokenizer.encode_plan(*LARGE)
        assert len(plan.steps[0][1].windows) == 6 and plan.steps[0][1].batch == 3
        for _ in range(3):
            check(tokenizer, images, wanted, LARGE)
    assert ("cudaStreamBeginCapture" in gpu.calls) == graphs and gpu.leaks() == {}


def test_a_last_batch_that_is_smaller(engine_bundle, fake, images, wanted):
    fake()
    two = BuildOptions(precision="fp32", shapes=SIZES, tile=(112, 160), batch=2)
    with open_fp32(engine_bundle(two)) as tokenizer:
        plan = tokenizer.encode_plan(*LARGE)
        counts = [len(windows) for windows in plan.steps[0][1].batches()]
        check(tokenizer, images, wanted, LARGE)
    assert counts == [2, 2] or counts[-1] == 1


def test_trunks_cut_twice(bundle, fake, images, wanted):
    gpu = fake().gpu
    with open_fp32(bundle) as tokenizer:
        plans = tokenizer.implementation.plans
        cut = {
            direction.verb: next(plan for plan in plans.candidates(direction, LARGE) if len(plan.steps) == 2)
            for direction in (ENCODE, DECODE)
        }
        assert all(len(windows.windows) > 1 for plan in cut.values() for _, windows in plan.steps)
        for _ in range(3):
            check(tokenizer, images, wanted, LARGE, **cut)
    assert gpu.leaks() == {}


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_windows_are_those_of_the_planner(bundle, fake, tiny_bundle, verb):
    fake()
    with open_fp32(bundle, tile=112) as tokenizer, Tokenizer.open(tiny_bundle, backend="ort-cpu", tile=112) as other:
        plans = [getattr(each, f"{verb}_plan")(*LARGE) for each in (tokenizer, other)]
    for (part, found), (other_part, expected) in zip(plans[0].steps, plans[1].steps, strict=True):
        assert part is other_part and found.windows == expected.windows and len(found.windows) > 4
    assert plans[0].tiling_overhead == plans[1].tiling_overhead


def test_every_plan_gives_the_same(bundle, fake, images, wanted):
    fake()
    with open_fp32(bundle) as tokenizer:
        candidates = [tokenizer.implementation.plans.candidates(direction, LARGE) for direction in (ENCODE, DECODE)]
        assert candidates[0][0].total == 1 and len(candidates[0]) == len(candidates[1]) > 5
        for encode, decode in zip(*candidates, strict=True):
            check(tokenizer, images, wanted, LARGE, encode=encode, decode=decode)


def test_float16(engine_bundle, fake, images, tiny_bundle):
    fake()
    with (
        Tokenizer.open(engine_bundle(*options("fp16")), tile=112) as tokenizer,
        Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp16") as other,
    ):
        assert (tokenizer.backend, tokenizer.precision) == ("tensorrt", "fp16")
        plan = tokenizer.encode_plan(*LARGE)
        found, expected = tokenizer.encode(images[LARGE]), other.encode(images[LARGE], plan=plan)
        assert (found.codes == expected.codes).mean() >= 0.985
        pixels = [each.decode(expected, plan=tokenizer.decode_plan(*LARGE)).astype(int) for each in (tokenizer, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_latent(bundle, fake, images, tiny_bundle):
    fake()
    image = np.ascontiguousarray(images[LARGE][:144, :208])
    image = np.pad(image, ((0, 16), (0, 16), (0, 0)), mode="edge")
    with open_fp32(bundle, tile=112) as tokenizer, Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as other:
        for _ in range(3):
            found = tokenizer.implementation.latent(image, tokenizer.encode_plan(*LARGE))
            expected = other.implementation.latent(image, other.encode_plan(*LARGE))
            assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5
        assert np.array_equal(tokenizer.encode(image).codes, other.encode(image).codes)


def test_groups(bundle, fake, images, wanted, tiny_bundle):
    fake()
    with open_fp32(bundle) as tokenizer, Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32") as other:
        for groups in (1, 3, 4, 2, 1):
            tokens, _ = wanted[SMALL]
            assert np.array_equal(tokenizer.decode(tokens, groups=groups), other.decode(tokens, groups=groups))


def test_results_are_the_callers_own(bundle, fake):
    fake()
    image = np.zeros((*SMALL, 3), np.uint8)
    with open_fp32(bundle) as tokenizer:
        pipeline = tokenizer.implementation
        plans = pipeline.plan_encode(SMALL), pipeline.plan_decode(SMALL)
        codes = pipeline.encode(image, plans[0])
        pixels = pipeline.decode(codes, 4, plans[1])
        kept = codes.copy(), pixels.copy()
        assert (pipeline.decode(pipeline.encode(255 - image, plans[0]), 4, plans[1]) != pixels).any()
    assert np.array_equal(codes, kept[0]) and np.array_equal(pixels, kept[1])


# ---- calls


def calls_of(gpu, action) -> list[str]:
    before = len(gpu.calls)
    action()
    return gpu.calls[before:]


def test_a_step_runs_plainly_then_is_captured_then_replayed(bundle, fake, images):
    gpu = fake(computes=False).gpu
    with open_fp32(bundle, tiling="off") as tokenizer:
        plan = tokenizer.encode_plan(*LARGE)
        first, second, third = (
            calls_of(gpu, lambda: tokenizer.implementation.encode(np.zeros((*LARGE, 3), np.uint8), plan)) for _ in range(3)
        )
    assert first.count("execute_async_v3") == 2 and "cudaStreamBeginCapture" not in first
    assert second.count("cudaStreamBeginCapture") == second.count("cudaGraphInstantiate") == second.count("cudaGraphLaunch") == 2
    assert third == [
        "cudaSetDevice",
        "cudaMemcpyAsync",  # the image
        "cudaGraphLaunch",  # encoder
        "cudaMemcpyAsync",  # its flag
        "cudaGraphLaunch",  # quantizer
        "cudaMemcpyAsync",  # the codes
        "cudaMemcpyAsync",  # the flags
        "cudaStreamSynchronize",
        "cudaStreamSynchronize",
    ]


def test_between_image_and_codes_nothing_leaves_the_device(bundle, fake, images, monkeypatch):
    gpu = fake(computes=False).gpu
    kinds = []
    copy = gpu.cudart.cudaMemcpyAsync
    monkeypatch.setattr(
        gpu.cudart, "cudaMemcpyAsync", lambda *a: (kinds.append(a[3].name.removeprefix("cudaMemcpy")), copy(*a))[1]
    )
    with open_fp32(bundle, tile=112) as tokenizer:
        tokenizer.encode(images[LARGE])
        waits = calls_of(gpu, lambda: tokenizer.encode(images[LARGE])).count("cudaStreamSynchronize")
        seen: list[int] = []
        listened = calls_of(gpu, lambda: tokenizer.encode(images[LARGE], progress=lambda done, total: seen.append(done)))
    # Only somebody who watches the windows makes the GPU wait between them; else once for the codes, and once at the end.
    assert waits <= 2 and len(seen) > 1 and listened.count("cudaStreamSynchronize") == waits + len(seen) - 1
    kinds = kinds[: len(kinds) // 3]
    assert [kind for kind in kinds if kind != "DeviceToDevice"] == ["HostToDevice", "DeviceToHost", "DeviceToHost"]


def test_memory_is_allocated_once_and_grows(bundle, fake, images):
    gpu = fake(computes=False).gpu
    with open_fp32(bundle) as tokenizer:
        for size in (SMALL, LARGE):
            tokenizer.encode(images[size])
        again = calls_of(gpu, lambda: [tokenizer.encode(images[size]) for size in (SMALL, LARGE, SMALL)])
    assert not {"cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "create_execution_context"} & set(again)


def test_steps_are_evicted(bundle, fake, images, wanted, monkeypatch):
    monkeypatch.setattr(trt_session, "MOST_STEPS", 4)
    gpu = fake().gpu
    with open_fp32(bundle) as tokenizer:
        for size in (SMALL, SMALL, LARGE, LARGE, SMALL, LARGE):
            check(tokenizer, images, wanted, size)
            assert gpu.contexts <= 4 and len(gpu.executables) <= 4
    assert gpu.calls.count("create_execution_context") > 4 and gpu.leaks() == {}


def test_an_engine_that_cannot_be_captured_runs_plainly_and_says_so_once(bundle, fake, images, wanted, caplog):
    gpu = fake().gpu
    gpu.not_capturable = True
    with open_fp32(bundle, tiling="off") as tokenizer, caplog.at_level(logging.WARNING):
        for _ in range(4):
            check(tokenizer, images, wanted, SMALL)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4 and all("runs without a CUDA graph" in line and "\n" not in line for line in lines)
    assert "cudaGraphLaunch" not in gpu.calls and gpu.leaks() == {}


def test_the_callers_stream_is_used_and_kept(bundle, fake, images, wanted):
    gpu = fake().gpu
    stream = gpu.handle(gpu.streams)
    with open_fp32(bundle, tensorrt=TensorRtOptions(stream=stream)) as tokenizer:
        check(tokenizer, images, wanted, SMALL)
    assert gpu.streams == {stream} and "cudaStreamCreateWithFlags" not in gpu.calls
    for default in (0, 1, 2):
        with pytest.raises(InputError, match="default stream") as error:
            open_fp32(bundle, tensorrt=TensorRtOptions(stream=default))
        one_line(error)


def test_progress_counts_windows_and_may_stop(bundle, fake, images, wanted):
    gpu = fake().gpu
    seen = []

    def stop(done, total):
        raise KeyboardInterrupt

    with open_fp32(bundle, tile=112) as tokenizer:
        tokenizer.encode(images[LARGE], progress=lambda done, total: seen.append((done, total)))
        assert seen == [(3, 6), (6, 6)]
        with pytest.raises(KeyboardInterrupt):
            tokenizer.decode(wanted[LARGE][0], progress=stop)
        assert gpu.queue == []  # nothing runs any more
        check(tokenizer, images, wanted, LARGE)


def test_threads_wait_for_one_another(bundle, fake, images, wanted):
    fake()
    results = {}
    with open_fp32(bundle) as tokenizer:

        def work(index):
            size = SIZES[index % 2]
            results[index] = np.array_equal(tokenizer.encode(images[size]).codes, wanted[size][0].codes)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == dict.fromkeys(range(6), True)


# ---- failures


def life(bundle, images):
    """All there is: opening, planning, encoding and decoding in windows (plainly, captured, replayed), another size, closing."""
    codes = np.zeros((4, LARGE[0] // 16, LARGE[1] // 16), np.uint16)
    with open_fp32(bundle, tile=112) as tokenizer:
        for _ in range(3):
            tokenizer.encode(images[LARGE])
        for _ in range(2):
            tokenizer.implementation.decode(codes, 4, tokenizer.decode_plan(*LARGE))
    with open_fp32(bundle, tiling="off") as tokenizer:
        for size in (SMALL, LARGE):
            tokenizer.encode(images[size])


CAPTURE_CALLS = {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy", "execute_async_v3"}


def calls_to_fail(names: list[str], every: int) -> list[int]:
    """Positions of every ``every``-th call, and of the first and last call of each name."""
    ends = {names.index(name) for name in names} | {len(names) - 1 - names[::-1].index(name) for name in names}
    return sorted(ends.union(range(0, len(names), every)))


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_failure_at_any_call_is_one_line_and_leaks_nothing(bundle, fake, images, caplog, request, every):
    gpu = fake(computes=False).gpu
    life(bundle, images)
    names = gpu.calls
    assert gpu.leaks() == {} and len(names) > 300 and len(set(names)) > 25
    gc.collect()
    gc.freeze()  # collecting is then about what the runs leave behind, and fast
    request.addfinalizer(gc.unfreeze)
    passed = set()
    for index in calls_to_fail(names, every):
        name = names[index]
        caplog.clear()
        gpu = fake(computes=False, fail_at=index).gpu
        try:
            life(bundle, images)
        except MgvqError as error:
            assert "\n" not in str(error) and len(str(error)) > 30, (index, name, error)
            del error
        else:
            passed.add(name)
            assert name != "execute_async_v3" or gpu.failed_in_capture
            lines = [record.getMessage() for record in caplog.records]
            assert name == "cudaGraphDestroy" or (len(lines) == 1 and "\n" not in lines[0]), (index, name, lines)
        gc.collect()
        assert gpu.calls[index] == name and gpu.leaks() == {}, (index, name)
        assert gpu.queue == [] and gpu.captured is None, (index, name)
    # Without a CUDA graph, or with smaller windows, an image can still be had; nothing else is passed over.
    assert passed <= {*CAPTURE_CALLS, "cudaMalloc"} and "cudaMalloc" in passed


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "execute_async_v3"])
def test_after_an_error_that_ends_everything_the_first_one_is_told(bundle, fake, images, call):
    gpu = fake(computes=False).gpu
    with (
        pytest.raises(BackendError, match=call) as error,
        open_fp32(bundle, tensorrt=TensorRtOptions(cuda_graphs=False)) as tokenizer,
    ):
        tokenizer.encode(images[SMALL])
        # The next calls are cudaSetDevice, cudaMemcpyAsync and execute_async_v3.
        gpu.sticky, gpu.fail_at = True, len(gpu.calls) + {"cudaMemcpyAsync": 1, "execute_async_v3": 2}[call]
        tokenizer.encode(images[SMALL])
    one_line(error)


def test_host_memory_that_cannot_be_locked(bundle, fake, images):
    gpu = fake(computes=False).gpu
    with open_fp32(bundle, tensorrt=TensorRtOptions(cuda_graphs=False)) as tokenizer:
        tokenizer.encode(images[SMALL])
    first = gpu.calls.index("cudaHostAlloc")
    gpu = fake(computes=False, fail_at=first).gpu
    with open_fp32(bundle) as tokenizer, pytest.raises(BackendError, match="cannot page-lock .* of host memory") as error:
        tokenizer.encode(images[SMALL])
    assert one_line(error) and gpu.leaks() == {}


def test_an_error_that_is_only_recorded_is_an_error(bundle, fake, images):
    gpu = fake(computes=False).gpu
    with open_fp32(bundle) as tokenizer:
        gpu.silent_error = "numbers went wrong"
        with pytest.raises(BackendError, match="numbers went wrong of more than one line") as error:
            tokenizer.encode(images[SMALL])
        one_line(error)
        assert gpu.queue == []  # what was queued before is waited for
        tokenizer.encode(images[SMALL])


@pytest.mark.parametrize("tile", [None, 112])
def test_values_that_are_not_finite_are_an_error(bundle, fake, images, wanted, tile):
    gpu = fake().gpu
    with open_fp32(bundle, tile=tile) as tokenizer:
        gpu.non_finite = True
        for action, what in (
            (lambda: tokenizer.encode(images[LARGE]), "latent"),
            (lambda: tokenizer.decode(wanted[LARGE][0]), "decoded"),
        ):
            with pytest.raises(BackendError, match=f"{what}.*not finite.*try fp32") as error:
                action()
            one_line(error)
        gpu.non_finite = False
        check(tokenizer, images, wanted, LARGE)


def test_one_window_of_many_that_is_not_finite(bundle, fake, images, wanted, monkeypatch):
    gpu = fake().gpu
    run, runs = fake_gpu.run, []

    def first_is_broken(engine, *arguments):
        runs.append("image" in engine.outputs)
        gpu.non_finite = runs.count(True) == 1 and runs[-1]
        run(engine, *arguments)

    monkeypatch.setattr(fake_gpu, "run", first_is_broken)
    with open_fp32(bundle, tile=112) as tokenizer, pytest.raises(BackendError, match="not finite"):
        tokenizer.decode(wanted[LARGE][0])
    assert runs.count(True) == 3  # the first of three batches was broken, and its flags were not lost


# ---- memory


def test_too_little_memory_for_the_whole_image_means_windows(bundle, fake, images, wanted):
    whole, windows = peaks(bundle, fake)
    assert windows < whole
    gpu = fake(memory=int((whole + windows) / 2 / 0.95)).gpu
    with open_fp32(bundle) as tokenizer:
        assert tokenizer.encode_plan(*LARGE).total > 1 and tokenizer.encode_plan(*SMALL).total == 1
        check(tokenizer, images, wanted, LARGE)
    assert gpu.leaks() == {}


def peaks(bundle, fake) -> tuple[int, int]:
    """Bytes on the GPU, without the engines, that the plan for the whole large image takes, and the least of all plans."""
    fake()
    with open_fp32(bundle) as tokenizer:
        found = []
        for plan in tokenizer.implementation.plans.candidates(ENCODE, LARGE):
            sizes, steps = tokenizer.implementation.stages.sizes(tokenizer.implementation.stages.make(ENCODE, LARGE, plan))
            found.append(sum(tokenizer.implementation.session.with_scratch(sizes, steps).values()))
    return found[0], min(found)


def test_the_limit_is_kept(bundle, fake, images):
    fake(computes=False)
    with open_fp32(bundle, memory_limit="1GiB") as tokenizer:
        plan = tokenizer.encode_plan(*LARGE)
        assert plan.total == 1 and 0 < plan.peak_bytes < 2**30
    with (
        open_fp32(bundle, memory_limit="1000B") as tokenizer,
        pytest.raises(InputError, match=r"too small.*needs.*--tile") as error,
    ):
        tokenizer.encode(images[LARGE])
    one_line(error)


def test_memory_that_others_took_meanwhile_means_a_smaller_plan_and_one_loud_line(bundle, fake, images, wanted, caplog):
    gpu = fake().gpu
    whole, windows = peaks(bundle, fake)
    gpu = fake().gpu
    with open_fp32(bundle) as tokenizer:
        plan = tokenizer.encode_plan(*LARGE)
        assert plan.total == 1
        gpu.memory = int((whole + windows) / 2)
        for _ in range(2):  # the smaller plan is kept: one warning in all
            found = tokenizer.encode(images[LARGE])
            assert np.array_equal(found.codes, wanted[LARGE][0].codes)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "out of memory" in line and "instead of one window of 224x160" in line and "\n" not in line
    assert gpu.leaks() == {}


def test_engines_that_do_not_fit_are_given_back(bundle, fake, images, wanted):
    whole, windows = peaks(bundle, fake)
    fake(memory=int((whole + windows) / 2 / 0.95))
    with open_fp32(bundle) as tokenizer:
        assert np.array_equal(tokenizer.encode(images[LARGE]).codes, wanted[LARGE][0].codes)
        loaded = set(tokenizer.implementation.session._engines)
    assert Part.ENCODER not in loaded and {Part.ENCODER_TRUNK, Part.ENCODER_HEAD, Part.QUANTIZER} <= loaded


def test_a_limit_that_holds_one_direction_at_a_time(bundle, fake, images, wanted, caplog):
    fake()
    with open_fp32(bundle, tile=112) as tokenizer:
        alone = []
        for plan in (tokenizer.encode_plan, tokenizer.decode_plan):
            alone.append(plan(*LARGE).peak_bytes)
            tokenizer.implementation._release()
    gpu = fake().gpu
    with open_fp32(bundle, tile=112, memory_limit=int(max(alone) * 1.05)) as tokenizer:
        for _ in range(2):
            check(tokenizer, images, wanted, LARGE)
            assert sum(buffer.size for buffer in tokenizer.implementation.session._buffers.values()) <= max(alone) * 1.05
    assert gpu.leaks() == {}
    (line,) = [record.getMessage() for record in caplog.records]  # once, not at every change
    assert line.startswith("GPU memory does not hold an image of height x width 160x224 beside what came before")


def test_no_plan_is_small_enough(bundle, fake, images):
    gpu = fake(computes=False, memory=2000).gpu
    with open_fp32(bundle) as tokenizer:
        with pytest.raises(BackendError, match=r"too little free GPU memory.*160x224.*needs.*close other programs") as error:
            tokenizer.encode(images[LARGE])
        one_line(error)
        gpu.memory = 1 << 30
        plan = tokenizer.encode_plan(*LARGE)
        gpu.memory = 2000
        with pytest.raises(BackendError, match="too little free GPU memory.*close other programs.*--tile") as error:
            tokenizer.encode(images[LARGE], plan=plan)
        one_line(error)
        gpu.memory = 1 << 30
        tokenizer.encode(images[LARGE])  # it is as good as new
    assert gpu.leaks() == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_a_result_is_right(bundle, fake, images, wanted, seed, monkeypatch):
    """Sizes, directions, memory taken by others and failing calls in random order: what is returned equals ONNX Runtime's."""
    monkeypatch.setattr(trt_session, "MOST_STEPS", 7)
    whole, windows = peaks(bundle, fake)
    rng = np.random.default_rng(seed)
    gpu = fake().gpu
    right = failed = 0
    with open_fp32(bundle) as tokenizer:
        for _ in range(120):
            size = SIZES[rng.integers(2)]
            gpu.memory = int(rng.choice([1 << 30, whole * 1.2, (whole + windows) / 2, windows * 0.8]))
            gpu.fail_at = len(gpu.calls) + int(rng.integers(1, 20)) if rng.random() < 0.5 else None
            tokens, pixels = wanted[size]
            try:
                if rng.random() < 0.5:
                    assert np.array_equal(tokenizer.encode(images[size]).codes, tokens.codes)
                else:
                    assert np.array_equal(tokenizer.decode(tokens), pixels)
                right += 1
            except MgvqError as error:
                assert "\n" not in str(error)
                failed += 1
            assert gpu.queue == [] and gpu.captured is None
        gpu.fail_at = None
    assert right > 40 and failed > 20 and gpu.leaks() == {}


# ---- what is refused


def test_a_size_that_no_engine_holds(engine_bundle, fake):
    fake()
    with open_fp32(engine_bundle(*TRUNKS)) as tokenizer:
        with pytest.raises(BackendError) as error:
            tokenizer.encode(np.zeros((100, 100, 3), np.uint8))
        assert "encode an image of height x width 112x112; they hold images of 64x96, 160x224 and windows of 112x112" in one_line(
            error
        )
        assert "--precision fp32 --size 96x64 --size 224x160 --size 112x112 --tile 112x112, or choose another" in str(error.value)
        with pytest.raises(BackendError, match="decode an image of height x width 112x112"):
            tokenizer.implementation.plan_decode((112, 112))
    with open_fp32(engine_bundle(*TRUNKS), tiling="off") as tokenizer, pytest.raises(BackendError, match="160x224 in one piece"):
        tokenizer.encode_plan(*LARGE)
    with (
        open_fp32(engine_bundle(*TRUNKS), tile=96) as tokenizer,
        pytest.raises(BackendError, match="in windows of 96x96.*--tile 96x96"),
    ):
        tokenizer.encode_plan(*LARGE)


def test_other_refusals(bundle, fake, images):
    fake(computes=False)
    with open_fp32(bundle, tiling="blend") as tokenizer, pytest.raises(InputError, match="does not run on TensorRT"):
        tokenizer.encode(images[SMALL])
    with open_fp32(bundle) as tokenizer:
        with pytest.raises(BackendError, match="whole images"):
            tokenizer.graphs  # noqa: B018
        plan = tokenizer.encode_plan(*LARGE)
    with pytest.raises(BackendError, match="is closed") as error:
        tokenizer.encode(images[LARGE], plan=plan)
    one_line(error)
    tokenizer.close()  # again


def test_a_plan_of_other_engines(engine_bundle, bundle, fake, images):
    fake(computes=False)
    with open_fp32(bundle, tile=112) as tokenizer:
        plan = tokenizer.encode_plan(*LARGE)
    other = BuildOptions(precision="fp32", shapes=SIZES, tile=(112, 160), batch=2)
    with open_fp32(engine_bundle(other)) as tokenizer, pytest.raises(BackendError, match="does not hold 3 x image") as error:
        tokenizer.encode(images[LARGE], plan=plan)
    one_line(error)


# ---- TensorRT's real bindings

HOOKS = """
import tensorrt as trt
from mgvq_export.runtime.tensorrt.errors import ErrorLog, error_recorder
recorder = error_recorder(trt)
assert isinstance(recorder, trt.IErrorRecorder)
for name in ("num_errors", "get_error_code", "get_error_desc", "has_overflowed", "clear", "report_error"):
    assert callable(getattr(trt.IErrorRecorder, name)) and name in type(recorder).__dict__
assert recorder.report_error(trt.ErrorCodeTRT.FAILED_EXECUTION, "first") is False
recorder.report_error(trt.ErrorCodeTRT.FAILED_ALLOCATION, "second")
assert recorder.num_errors() == 2 and recorder.get_error_desc(1) == "second" and not recorder.has_overflowed()
assert recorder.get_error_code(1) == trt.ErrorCodeTRT.FAILED_ALLOCATION
recorder.clear()
assert recorder.num_errors() == 0 and not ErrorLog(trt)
print("good")
"""


@pytest.mark.parametrize("version", stubs.BINDINGS)
def test_the_error_recorder_is_what_the_bindings_take(version):
    assert stubs.run_snippet(version, HOOKS).splitlines()[-1] == "good"
