"""Files that come from elsewhere, damaged from fixed seeds: each is read, or refused in one line; nothing breaks, hangs or floods a terminal."""

import json
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.core.budgets import Budgets
from mgvq_export.core.bundle import MANIFEST, Bundle
from mgvq_export.core.precision_plan import MadeFor, NodePlan, PrecisionPlan
from mgvq_export.core.spec import VARIANTS, ModelSpec
from mgvq_export.core.tokens import Tokens
from mgvq_export.tests.support.fuzz import assert_read_or_refused, damaged, mutations

NODES = {"decoder.a": NodePlan("int8", {0: 0.02}, (0.1, 0.2), "why"), "encoder.b": NodePlan("fp32")}
PLAN = PrecisionPlan("int8", "fp16", NODES, MadeFor("demo", "0" * 64, "1" * 64), Budgets(0.9, 38.0), {"psnr": 40.0})


def read_bundle(path: Path) -> None:
    """What every command does with a manifest before it trusts a file."""
    bundle = Bundle.open(path.parent)
    bundle.check_all()


READERS = {
    "plan.json": (PLAN.to_dict(), PrecisionPlan.load),
    "spec.json": (VARIANTS["mgvq-f16c32-g8"].to_dict(), ModelSpec.from_file),
    "spec.yaml": (VARIANTS["mgvq-f8c32-g4"].to_dict(), ModelSpec.from_file),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("how", ["values", "bytes"])
def test_plans_and_specs(name: str, how: str, tmp_path: Path) -> None:
    document, read = READERS[name]
    path = tmp_path / name
    damages = mutations(document, 200) if how == "values" else damaged(json.dumps(document).encode(), 100)
    refused = 0
    for what, data in damages:
        path.write_bytes(data)
        refused += not assert_read_or_refused(lambda: read(path), what)
    assert refused > 20


def test_manifests(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for entry in tiny_bundle.path.iterdir():
        if entry.is_dir():
            (tmp_path / entry.name).symlink_to(entry)
    manifest = (tiny_bundle.path / MANIFEST).read_bytes()
    path, refused = tmp_path / MANIFEST, 0
    for what, data in (*mutations(json.loads(manifest), 300), *damaged(manifest, 60)):
        path.write_bytes(data)
        refused += not assert_read_or_refused(lambda: read_bundle(path), what)
    assert refused > 100


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_token_files(suffix: str, tmp_path: Path) -> None:
    codes = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    path = tmp_path / f"a{suffix}"
    Tokens(codes, (33, 50), "demo", "0" * 64, 100, 16).save(path)
    good, refused = path.read_bytes(), 0
    for what, data in damaged(good, 250):
        path.write_bytes(data)
        refused += not assert_read_or_refused(lambda: Tokens.load(path), what)
    assert refused > 100


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep.yaml", "[" * 5000),
        ("bomb.yaml", "a: &a [x]\n" + "\n".join(f"{c}: &{c} [{', '.join(40 * ['*' + chr(ord(c) - 1)])}]" for c in "bcdefg")),
        ("blocks.json", json.dumps(VARIANTS["mgvq-f8c32-g4"].to_dict() | {"encoder_depths": [0, 10**9, 8, 2]})),
        ("stages.json", json.dumps(VARIANTS["mgvq-f8c32-g4"].to_dict() | {"widths": [128] * 40_000})),
        ("wide.json", json.dumps(VARIANTS["mgvq-f8c32-g4"].to_dict() | {"widths": [128, 256, 512, 2**40]})),
    ],
)  # fmt: skip
def test_specs_that_would_take_for_ever(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert not assert_read_or_refused(lambda: ModelSpec.from_file(tmp_path / name), name)
