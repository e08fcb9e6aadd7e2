"""Specs: the released variants, files, and contradictions that are refused with both numbers."""

import json
from pathlib import Path

import pytest

from mgvq_export.core.errors import SpecError
from mgvq_export.core.spec import VARIANTS, ModelSpec, variant

# name -> f, G, K, d, bits per token: the published table.
PUBLISHED = {
    "mgvq-f8c32-g4": (8, 4, 8192, 8, 52),
    "mgvq-f8c32-g8": (8, 8, 2048, 4, 88),
    "mgvq-f16c32-g4": (16, 4, 8192, 8, 52),
    "mgvq-f16c32-g8": (16, 8, 2048, 4, 88),
    "mgvq-f16c32-g4-mix": (16, 4, 8192, 8, 52),
    "mgvq-f32c32-g8-mix": (32, 8, 2048, 4, 88),
}


def test_released_variants() -> None:
    found = {s.name: (s.downsample, s.groups, s.codes_per_group, s.group_dim, s.bits_per_token) for s in VARIANTS.values()}
    assert found == PUBLISHED
    assert {spec.trunk_stride for spec in VARIANTS.values()} == {8}


def test_round_trip_through_files(tmp_path: Path) -> None:
    spec = variant("mgvq-f16c32-g8")
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    lines = [f"{key}: {json.dumps(value)}" for key, value in spec.to_dict().items()]
    (tmp_path / "spec.yaml").write_text("\n".join(lines))
    assert ModelSpec.from_file(tmp_path / "spec.json") == ModelSpec.from_file(tmp_path / "spec.yaml") == spec


GOOD = variant("mgvq-f16c32-g8").to_dict()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"groups": 7}, "32 latent channels .* 7 groups"),
        ({"groups": 33}, "33 groups; wanted 1 to 32"),
        ({"groups": 0}, "groups is 0"),
        ({"groups": "8"}, "groups is '8'"),
        ({"codebook_size": 16383}, "16383 rows .* 8 groups"),
        ({"codebook_size": 8 * 65537}, "65537 codes per group; wanted at most 65536"),
        ({"encoder_depths": [0, 4]}, "2 encoder_depths for 5 widths"),
        ({"encoder_depths": [1, 4, 8, 2, 2]}, "stage 0 is 1, the decoder's 0"),
        ({"encoder_depths": [0, 4, 0, 2, 2]}, r"encoder_depths\[2\] is 0"),
        ({"widths": [128, 256, 512, 500, 1024]}, "width 500 of evit stage 3"),
        ({"widths": [128, 256, 512, 512, 4096]}, "width 512 and 4096"),
        ({"blocks": ["res", "res", "evit", "res", "evit"]}, "stage 3 is res after an evit"),
        ({"blocks": ["res", "res", "vit", "evit", "evit"]}, "choose res or evit"),
        ({"latent_channels": 48, "groups": 8}, "1024 is no multiple of latent_channels 48"),
        ({"widths": 3}, "widths is 3"),
        ({"surprise": 1}, r"unknown keys \[surprise\]"),
    ],
)
def test_contradictions(change: dict, match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        ModelSpec.from_dict(GOOD | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.yaml", "a: [1"), ("a.json", "[]"), ("a.json", "{}")])
def test_unreadable_files(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_file(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_unknown_variant_lists_the_known() -> None:
    with pytest.raises(SpecError, match="no model 'mgvq-f16'; choose mgvq-f8c32-g4, .*mgvq-f32c32-g8-mix"):
        variant("mgvq-f16")
