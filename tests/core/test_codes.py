"""Codes from elsewhere become tokens, and the reader in docs/token-file.md reads what the program writes."""

import re
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.codes import read_codes
from mgvq_export.core.errors import InputError, TokensError
from mgvq_export.core.tokens import Tokens

DOCS = Path(__file__).parents[2] / "docs" / "token-file.md"


def codes_of(bundle: Bundle) -> np.ndarray:
    spec = bundle.spec
    return np.random.default_rng(0).integers(0, spec.codes_per_group, (spec.groups, 5, 7))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_both_layouts_and_any_integers(tiny_bundle: Bundle, dtype: type) -> None:
    codes = codes_of(tiny_bundle).astype(dtype)
    tokens = Tokens.from_codes(tiny_bundle, codes)
    assert tokens.image_size == (80, 112)
    np.testing.assert_array_equal(tokens.codes, codes)
    turned = Tokens.from_codes(tiny_bundle.path, np.moveaxis(codes, 0, 2), (75, 101), layout="hwg")
    np.testing.assert_array_equal(turned.codes, codes)
    assert turned.image_size == (75, 101)


def test_what_cannot_be_codes(tiny_bundle: Bundle) -> None:
    codes = codes_of(tiny_bundle)
    with pytest.raises(TokensError, match="codes have 5 groups; tiny has 4: choose the layout hwg"):
        Tokens.from_codes(tiny_bundle, np.moveaxis(codes, 0, 2))
    with pytest.raises(TokensError, match="an image of 200x101"):
        Tokens.from_codes(tiny_bundle, codes, (200, 101))
    with pytest.raises(TokensError, match="wanted whole numbers"):
        Tokens.from_codes(tiny_bundle, codes.astype(float))
    with pytest.raises(TokensError, match="three dimensions"):
        Tokens.from_codes(tiny_bundle, codes[0])
    with pytest.raises(TokensError, match="codes run from"):
        Tokens.from_codes(tiny_bundle, codes + 1000)
    with pytest.raises(InputError, match="layout is 'whg'"):
        Tokens.from_codes(tiny_bundle, codes, layout="whg")  # type: ignore[arg-type]


def test_files_of_codes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    codes = codes_of(tiny_bundle)
    np.save(tmp_path / "a.npy", np.asfortranarray(codes))
    np.savez(tmp_path / "b.npz", codes)
    np.savez_compressed(tmp_path / "c.npz", codes=codes, other=codes[0])
    for name in ("a.npy", "b.npz", "c.npz"):
        np.testing.assert_array_equal(read_codes(tmp_path / name), codes)


def test_files_that_hold_none(tmp_path: Path) -> None:
    np.save(tmp_path / "float.npy", np.zeros((2, 2)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros(2, int), b=np.zeros(2, int))
    np.save(tmp_path / "cut.npy", np.zeros((1000, 1000), int))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:500])
    (tmp_path / "text.npy").write_text("no array")
    for name in ("float.npy", "objects.npy", "two.npz", "cut.npy", "text.npy"):
        with pytest.raises(TokensError, match=name):
            read_codes(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_codes(tmp_path / "none.npy")


@pytest.mark.parametrize("packed", [False, True])
def test_the_documented_reader(packed: bool, tiny_bundle: Bundle, tmp_path: Path) -> None:
    source = re.search(r"```python\n(import hashlib.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert source is not None
    body = source[1].split("def read_tokens", 1)[1].strip().splitlines()
    assert len(body) <= 20
    assert "mgvq_export" not in source[1]
    names: dict = {}
    exec(source[1], names)
    tokens = Tokens.from_codes(tiny_bundle, codes_of(tiny_bundle), (75, 101))
    tokens.save(tmp_path / "a.safetensors", packed=packed)
    found = names["read_tokens"](tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found, tokens.codes)
    assert found.dtype == np.uint16
