"""Batches: any mix of sizes, in the order given, with the codes and pixels of single calls."""

from __future__ import annotations

import numpy as np
import pytest

from mgvq_export import Tokenizer, Tokens
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError, TokensError
from mgvq_export.core.spec import Part

SIZES = [(48, 80), (33, 65), (16, 16), (48, 80), (1, 1), (47, 66), (96, 32), (16, 16), (48, 79)]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


class Recorder:
    """Counts the runs of every graph by the batch they were given."""

    def __init__(self, graphs):
        self._graphs, self.batches = graphs, []

    def __getitem__(self, part):
        session, batches = self._graphs[part], self.batches

        class Recorded:
            inputs = session.inputs

            @staticmethod
            def run(feeds, outputs=None):
                batches.append((part, len(next(iter(feeds.values())))))
                return session.run(feeds, outputs)

        return Recorded()

    def rest(self, part):
        self._graphs.rest(part)

    def drop(self, part):
        self._graphs.drop(part)

    def close(self):
        self._graphs.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_batches_equal_single_calls(tiny_bundle: Bundle, images: list[np.ndarray], precision: str) -> None:
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision=precision, threads=2) as tokenizer:
        told: list[tuple[int, int]] = []
        tokens = tokenizer.encode_batch(images, progress=lambda done, total: told.append((done, total)))
        assert tokens == [tokenizer.encode(image) for image in images]
        assert [one.image_size for one in tokens] == SIZES
        assert told[-1] == (len(images), len(images)) and told == sorted(told)
        for groups in (None, 1):
            decoded = tokenizer.decode_batch(tokens, groups=groups)
            for image, one in zip(decoded, tokens, strict=True):
                # ONNX Runtime sums a batch's means in another order, which can fall on the edge between two 8-bit values.
                assert np.abs(image.astype(int) - tokenizer.decode(one, groups=groups)).max() <= 1
        assert tokenizer.encode_batch([]) == [] and tokenizer.decode_batch([]) == []


def test_small_images_run_together_and_under_a_limit_fewer(tiny_bundle: Bundle) -> None:
    same = [np.full((64, 64, 3), value, np.uint8) for value in range(6)]
    recorders: list[Recorder] = []

    def record(graphs):
        recorders.append(Recorder(graphs))
        return recorders[-1]

    with Tokenizer.open(tiny_bundle, backend="ort-cpu", instrument=record) as tokenizer:
        tokens = tokenizer.encode_batch(same)
        assert recorders[0].batches == [(part, 6) for part in (Part.ENCODER_TRUNK, Part.ENCODER_HEAD, Part.QUANTIZER)]
        recorders[0].batches.clear()
        tokenizer.decode_batch(tokens)
        assert recorders[0].batches == [(part, 6) for part in (Part.DEQUANTIZER, Part.DECODER_HEAD, Part.DECODER_TRUNK)]
        recorders[0].batches.clear()
        # A limit that two of them just keep
        from mgvq_export.runtime.tiling.memory import resident_bytes

        plan = tokenizer.encode_plan(64, 64)
        each = plan.peak_bytes - resident_bytes()
        limited = tokenizer.with_tiling(memory_limit=int((resident_bytes() + 2.5 * each) * 1.05))
        if limited.encode_plan(64, 64).together < 6:  # the resident memory of this process moves by more than a small image takes
            assert limited.encode_batch(same) == tokens


def test_how_many_run_together_follows_the_limit(tiny_bundle: Bundle) -> None:
    from mgvq_export.core.spec import VARIANTS
    from mgvq_export.runtime.tiling.planner import Planner
    from mgvq_export.tests.support.checks import RELEASED_REACH

    def together(limit: int | None, side: int = 256) -> int:
        return Planner(VARIANTS["mgvq-f16c32-g8"], RELEASED_REACH, 2**30, limit).encode((side, side)).together

    assert together(None) == 16 and together(None, 2048) == 1 and together(None, 32) == 1024
    one = Planner(VARIANTS["mgvq-f16c32-g8"], RELEASED_REACH, 2**30).encode((256, 256)).peak_bytes - 2**30
    for count in (1, 3, 7):
        assert together(int((2**30 + (count + 0.5) * one) * 1.05)) == count


def test_tiled_batches_are_exact(tiny_bundle: Bundle) -> None:
    rng = np.random.default_rng(6)
    images = [rng.integers(0, 256, (176, 304, 3), np.uint8) for _ in range(2)]
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", tiling="exact", tile=128, threads=2) as tiled:
        tokens = tiled.encode_batch(images)
        assert tokens == [tiled.encode(image) for image in images]
        whole = tiled.with_tiling("off")
        assert [whole.encode(image) for image in images] == tokens
        assert all(
            np.abs(a.astype(int) - whole.decode(b)).max() <= 1 for a, b in zip(tiled.decode_batch(tokens), tokens, strict=True)
        )


def test_refusals_name_the_place_and_run_nothing(tiny_bundle: Bundle, images: list[np.ndarray]) -> None:
    with Tokenizer.open(tiny_bundle, backend="ort-cpu") as tokenizer:
        with pytest.raises(InputError, match="image 1 is float32"):
            tokenizer.encode_batch([images[0], images[0].astype(np.float32)], progress=lambda *_: pytest.fail("it ran"))
        good = tokenizer.encode(images[0])
        with pytest.raises(InputError, match=r"tokens 1 is uint16 \[4, 3, 5\]; wanted Tokens"):
            tokenizer.decode_batch([good, good.codes], progress=lambda *_: pytest.fail("it ran"))
        other = Tokens(good.codes, good.image_size, good.model, "0" * 64, good.codes_per_group, good.downsample)
        with pytest.raises(TokensError, match="codebook"):
            tokenizer.decode_batch([good, other], progress=lambda *_: pytest.fail("it ran"))
        with pytest.raises(InputError, match="choose 1 to 4"):
            tokenizer.decode_batch([good], groups=5)
