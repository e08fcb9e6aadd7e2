"""The paper's figures stand beside ours only where checkpoint and protocol are the same."""

from dataclasses import replace

import pytest

from mgvq_export.core.manifest import Manifest, SourceEntry
from mgvq_export.core.spec import VARIANTS
from mgvq_export.evaluation.published import BENCHMARKS, Run, compare
from mgvq_export.tests.support.checks import one_line

MANIFEST = Manifest(
    spec=VARIANTS["mgvq-f16c32-g8"],
    source=SourceEntry("mgvq-f16c32-g8", "0" * 64, "abc"),
    codebook_sha256="0" * 64,
    reach={},
    precisions={},
)
RUN = Run(size=(256, 256), groups=8, tiling="auto", evaluated=50_000)


def test_the_same_checkpoint_and_protocol() -> None:
    assert compare(MANIFEST, "imagenet-val", RUN).figures == {"rfid": 0.49, "psnr": 24.70, "ssim": 0.787}
    by_address = replace(MANIFEST, source=SourceEntry("hf://mkjia/MGVQ/mgvq_f16c32_g8.pt@abc", "0", "abc"))
    assert compare(by_address, "imagenet-val", RUN).figures
    uhd = replace(MANIFEST, spec=VARIANTS["mgvq-f16c32-g4"], source=SourceEntry("mgvq-f16c32-g4", "0", "abc"))
    run = Run(size=(2560, 1440), groups=4, tiling="exact", evaluated=2_293)
    assert compare(uhd, "uhdbench", run).figures == {"rfid": 1.59, "psnr": 28.27}


@pytest.mark.parametrize(
    ("manifest", "declared", "run", "match"),
    [
        ({}, None, {}, "not declared"),
        ({}, "uhdbench", {}, "no figure of mgvq-f16c32-g8 on uhdbench"),
        ({"spec": {"name": "demo"}}, "imagenet-val", {}, "no figure of demo"),
        ({"spec": {"latent_channels": 64}}, "imagenet-val", {}, "other sizes"),
        ({"source": {"name": "mine.pt", "revision": None}}, "imagenet-val", {}, "not exported from the released checkpoint"),
        ({"source": {"name": "mgvq-f16c32-g8", "revision": None}}, "imagenet-val", {}, "not exported from the released"),
        ({"source": {"name": "hf://me/MGVQ/mgvq_f16c32_g8.pt"}}, "imagenet-val", {}, "not exported from the released"),
        ({"source": {"name": "mgvq-f16c32-g4"}}, "imagenet-val", {}, "not exported from the released"),
        ({}, "imagenet-val", {"size": (512, 512)}, "the paper's crop is 256x256"),
        ({}, "imagenet-val", {"groups": 4}, "all 8 groups"),
        ({}, "imagenet-val", {"tiling": "blend"}, "blended"),
        ({}, "imagenet-val", {"evaluated": 49_999}, "49999 of the 50000 images"),
    ],
)
def test_any_difference_is_the_reason(manifest: dict, declared: str | None, run: dict, match: str) -> None:
    changed = replace(MANIFEST, **{key: replace(getattr(MANIFEST, key), **entries) for key, entries in manifest.items()})
    found = compare(changed, declared, replace(RUN, **run))
    assert not found.figures
    assert match in found.reason
    assert one_line(found.reason)


def test_the_table_names_released_variants() -> None:
    assert {model for benchmark in BENCHMARKS.values() for model in benchmark.figures} <= set(VARIANTS)
