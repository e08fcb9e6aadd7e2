"""Tokens as a value, and its files: round trips, damage, other codebooks."""

import copy
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mgvq_export.core import token_files
from mgvq_export.core.errors import InputError, TokensError
from mgvq_export.core.spec import VARIANTS
from mgvq_export.core.token_files import pack_codes, unpack_codes
from mgvq_export.core.tokens import Tokens

SHA = "0123456789abcdef" * 4


def make(groups=2, height=40, width=17, codes_per_group=2048, downsample=16, **changes) -> Tokens:
    shape = (groups, -(-height // downsample), -(-width // downsample))
    codes = np.random.default_rng(1).integers(0, min(codes_per_group, 65536), shape, dtype=np.uint16)
    values = {
        "codes": codes,
        "image_size": (height, width),
        "model": "tiny",
        "codebook_sha256": SHA,
        "codes_per_group": codes_per_group,
        "downsample": downsample,
    }
    return Tokens(**(values | changes))


def refused(error: pytest.ExceptionInfo, *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# --- the value ---


def test_value():
    tokens = make()
    assert tokens.groups == 2
    assert tokens.grid_size == (3, 2)
    assert tokens.code_bits == 11
    assert repr(tokens) == "Tokens(model='tiny', image 40x17, codes uint16 [2, 3, 2], codebook 0123456789ab)"
    assert tokens == make()
    assert hash(tokens) == hash(make())
    assert tokens != make(model="other")
    assert tokens != "tokens"


def test_codes_are_a_read_only_copy():
    codes = np.zeros((1, 2, 2), np.uint16)
    tokens = make(groups=1, height=32, width=32, codes=codes)
    codes[:] = 7
    assert tokens.codes.max() == 0
    with pytest.raises(ValueError, match="read-only"):
        tokens.codes[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"codes": np.zeros((2, 3, 2), np.int32)}, ["int32", "uint16"]),
        ({"codes": [[[0]]]}, ["list", "uint16"]),
        ({"codes": np.zeros((3, 2), np.uint16)}, ["[3, 2]", "[groups, h, w]"]),
        ({"codes": np.zeros((33, 3, 2), np.uint16)}, ["33", "32"]),
        ({"codes": np.zeros((0, 3, 2), np.uint16)}, ["[0, 3, 2]"]),
        ({"codes": np.zeros((2, 2, 3), np.uint16)}, ["2x3", "3x2", "40x17"]),
        ({"codes": np.full((2, 3, 2), 2048, np.uint16)}, ["2048", "0 to 2047"]),
        ({"image_size": (40, 0)}, ["image width", "0"]),
        ({"image_size": 40}, ["(height, width)"]),
        ({"image_size": (40.0, 17)}, ["40.0"]),
        ({"codes_per_group": 65537, "codes": np.zeros((2, 3, 2), np.uint16)}, ["65537", "65536"]),
        ({"downsample": True}, ["downsample", "True"]),
        ({"model": ""}, ["model"]),
        ({"codebook_sha256": SHA.upper()}, ["64 lower-case"]),
        ({"codebook_sha256": None}, ["None"]),
    ],
)
def test_contradictions_are_refused(changes, parts):
    with pytest.raises(TokensError) as error:
        make(**changes)
    refused(error, *parts)


def test_from_spec(tiny_spec):
    codes = np.full((4, 3, 2), 59, np.int32)
    tokens = Tokens.from_spec(tiny_spec, codes, (40, 17), SHA)
    assert tokens.codes.dtype == np.uint16
    assert (tokens.model, tokens.codes_per_group, tokens.downsample) == ("tiny", 60, 16)
    for bad, part in ((codes + 1, "0 to 59"), (codes - 60, "-1"), (codes[:3], "3 groups"), (codes + 0.0, "whole numbers")):
        with pytest.raises(TokensError) as error:
            Tokens.from_spec(tiny_spec, bad, (40, 17), SHA)
        refused(error, part)


def test_another_codebook_is_refused(tiny_spec):
    tokens = Tokens.from_spec(tiny_spec, np.zeros((4, 3, 2), int), (40, 17), SHA)
    tokens.check_codebook("tiny", SHA)
    tokens.check_model(tiny_spec, SHA)
    with pytest.raises(TokensError) as error:
        tokens.check_codebook("mgvq-f8c32-g4", "f" * 64)
    refused(error, "tiny", "0123456789ab", "mgvq-f8c32-g4", "ffffffffffff", "bundle that encoded")
    with pytest.raises(TokensError) as error:
        tokens.check_model(VARIANTS["mgvq-f16c32-g8"], SHA)
    refused(error, "4 groups", "has 8")


# --- packing ---


@settings(max_examples=200, deadline=None)
@given(data=st.data(), bits=st.integers(1, 16), shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)))
def test_packing_round_trip(data, bits, shape):
    count = int(np.prod(shape))
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    codes = np.array(values, np.uint16).reshape(shape)
    packed = pack_codes(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-count * bits // 8),)
    # The definition: code i takes bits i * bits to (i + 1) * bits - 1 of one long little-endian number.
    number = sum(value << (i * bits) for i, value in enumerate(values))
    assert packed.tobytes() == number.to_bytes(len(packed), "little")
    unpacked = unpack_codes(packed, bits, shape)
    assert unpacked.dtype == np.uint16
    np.testing.assert_array_equal(unpacked, codes)


# --- files ---


@pytest.mark.parametrize("codes_per_group", [1, 2, 60, 2048, 8192, 65536])
@pytest.mark.parametrize(("name", "packed"), [("a.safetensors", False), ("a.SafeTensors", True), ("a.npz", False)])
def test_round_trip(tmp_path, name, packed, codes_per_group):
    tokens = make(codes_per_group=codes_per_group, model="modèle")
    tokens.save(tmp_path / name, packed=packed)
    loaded = Tokens.load(tmp_path / name)
    assert loaded == tokens
    assert loaded.codes.dtype == np.uint16
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "packed"), [("a.safetensors", False), ("a.safetensors", True), ("a.npz", False)])
def test_same_tokens_same_bytes(tmp_path, name, packed):
    make().save(tmp_path / name, packed=packed)
    first = (tmp_path / name).read_bytes()
    script = (
        "import sys, numpy as np; from mgvq_export.core.tokens import Tokens\n"
        "Tokens.load(sys.argv[1]).save(sys.argv[2], packed=sys.argv[3] == 'True')\n"
    )
    again = tmp_path / f"again.{name.rsplit('.', 1)[1]}"
    subprocess.run([sys.executable, "-c", script, tmp_path / name, again, str(packed)], check=True, cwd=tmp_path)
    assert again.read_bytes() == first


def test_other_programs_can_read_the_files(tmp_path):
    tokens = make()
    tokens.save(tmp_path / "a.safetensors")
    tokens.save(tmp_path / "a.npz")
    tokens.save(tmp_path / "a.npy")
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["codes"], tokens.codes)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), tokens.codes)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["codes"], tokens.codes)
        assert json.loads(str(archive["metadata"]))["model"] == "tiny"


def test_packed_is_smaller(tmp_path):
    tokens = make(groups=8, height=512, width=512)
    tokens.save(tmp_path / "a.safetensors")
    tokens.save(tmp_path / "b.safetensors", packed=True)
    saved = (tmp_path / "a.safetensors").stat().st_size - (tmp_path / "b.safetensors").stat().st_size
    assert abs(saved - tokens.codes.size * 5 / 8) < 64


def test_refused_names(tmp_path):
    tokens = make()
    tokens.save(tmp_path / "a.npy")
    for action, part in (
        (lambda: tokens.save(tmp_path / "a.bin"), ".safetensors, .npz, .npy"),
        (lambda: Tokens.load(tmp_path / "a.pt"), ".safetensors, .npz, .npy"),
        (lambda: tokens.save(tmp_path / "a.npz", packed=True), ".safetensors"),
        (lambda: Tokens.load(tmp_path / "a.npy"), "bare codes"),
        (lambda: Tokens.load(tmp_path / "none.safetensors"), "no such file"),
        (lambda: Tokens.load(tmp_path / "none.npz"), "no such file"),
        (lambda: tokens.save(tmp_path / "none" / "a.npz"), "create it first"),
    ):
        with pytest.raises(InputError) as error:
            action()
        refused(error, part)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="folder"):
        Tokens.load(tmp_path / "folder.safetensors")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npy", "folder.safetensors"]


def flips(data: bytes):
    for index in range(len(data)):
        for bit in range(8):
            yield data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]


@pytest.mark.parametrize("packed", [False, True])
def test_every_truncation_and_every_bit_flip(tmp_path, packed):
    path = tmp_path / "a.safetensors"
    make().save(path, packed=packed)
    good = path.read_bytes()
    tried = 0
    for bad in (*(good[:length] for length in range(len(good))), *flips(good), good + b"\0"):
        path.write_bytes(bad)
        with pytest.raises(TokensError) as error:
            Tokens.load(path)
        refused(error, "a.safetensors")
        tried += 1
    assert tried == 9 * len(good) + 1


def test_damaged_npz_is_an_error_or_the_same_tokens(tmp_path):
    """A zip archive has bytes that mean nothing (times, attributes): a flip there may pass, but never changes the tokens."""
    path = tmp_path / "a.npz"
    tokens = make()
    tokens.save(path)
    good = path.read_bytes()
    for length in range(0, len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(TokensError):
            Tokens.load(path)
    passed = 0
    for bad in flips(good):
        path.write_bytes(bad)
        try:
            assert Tokens.load(path) == tokens
            passed += 1
        except TokensError as error:
            assert "\n" not in str(error)
    assert passed < len(good)


def resave(path, tensors=None, **changes):
    """The file with some metadata changed and the checksum made right again, as a forger or another version would write it."""
    stored = load_file(path) if tensors is None else tensors
    header = path.read_bytes()
    metadata = json.loads(header[8 : 8 + struct.unpack("<Q", header[:8])[0]])["__metadata__"]
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    metadata["checksum"] = token_files._checksum(metadata, next(iter(stored.values())))
    save_file(stored, path, metadata)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"version": "2"}, "upgrade mgvq-export"),
        ({"version": "0"}, "version is '0'"),
        ({"version": None}, "version is None"),
        ({"format": "other"}, "is no token file"),
        ({"encoding": "zip"}, "encoding is 'zip'"),
        ({"height": "-1"}, "height is '-1'"),
        ({"height": "041"}, "height is '041'"),
        ({"height": "9" * 5000}, "height"),
        ({"width": "33"}, "[2, 3, 3]"),
        ({"groups": "3"}, "[3, 3, 2]"),
        ({"height": "999999999", "width": "999999999"}, "its metadata needs"),
        ({"codes_per_group": "5"}, "0 to 4"),
        ({"model": ""}, "model"),
        ({"codebook_sha256": "f"}, "64 lower-case"),
        ({"extra": "1"}, "extra"),
        ({"model": None}, "metadata has"),
    ],
)
def test_well_formed_nonsense(tmp_path, changes, part):
    path = tmp_path / "a.safetensors"
    make().save(path)
    resave(path, **changes)
    with pytest.raises(TokensError) as error:
        Tokens.load(path)
    refused(error, part)


@pytest.mark.parametrize(
    "tensors",
    [
        {"codes": np.zeros((2, 3, 2), np.int32)},
        {"codes": np.zeros((2, 2, 3), np.uint16)},
        {"other": np.zeros((2, 3, 2), np.uint16)},
        {"codes": np.full((2, 3, 2), 2048, np.uint16)},
        {"codes": np.zeros((2, 3, 2), np.uint16), "more": np.zeros(1, np.uint16)},
        {"codes_packed": np.zeros(17, np.uint8)},
    ],
)
def test_wrong_tensors(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    make().save(path)
    resave(path, tensors)
    with pytest.raises(TokensError):
        Tokens.load(path)


def test_safetensors_of_something_else(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(TokensError, match="is no token file"):
        Tokens.load(path)


PROBE = """
import resource, sys
from safetensors.numpy import save
import mgvq_export.core.tokens as t
from mgvq_export.core.errors import TokensError
base = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + 200 * 2**20,) * 2)
try: t.Tokens.load(sys.argv[1])
except TokensError as error: print('refused', error)
"""


def probe(path):
    return subprocess.run([sys.executable, "-c", PROBE, path], capture_output=True, text=True, cwd=path.parent, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_huge_claims_allocate_nothing(tmp_path):
    """In a process that may take 200 MB more at most, a file claiming gigabytes is refused as damaged, not out of memory."""
    path = tmp_path / "a.safetensors"
    make().save(path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    metadata = header["__metadata__"] | {"height": "1600000", "width": "1600000"}
    shape = [2, 100000, 100000]
    text = json.dumps(
        {"__metadata__": metadata, "codes": {"dtype": "U16", "shape": shape, "data_offsets": [0, 4 * 10**10]}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    run = probe(path)
    assert run.stdout.startswith("refused"), run.stderr
    path.write_bytes(struct.pack("<Q", 2**40) + bytes(24))
    run = probe(path)
    assert run.stdout.startswith("refused"), run.stderr

    npz = tmp_path / "a.npz"
    claim = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {tuple(shape)}, }}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile(npz, "w") as archive:
        described = np.array(json.dumps(metadata))
        with archive.open("metadata.npy", "w") as file:
            np.save(file, described)
        archive.writestr("codes.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(claim)) + claim + bytes(24))
    run = probe(npz)
    assert run.stdout.startswith("refused"), run.stderr
    with zipfile.ZipFile(npz, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("metadata.npy", "codes.npy"):
            archive.writestr(name, bytes(300 * 2**20))
    run = probe(npz)
    assert run.stdout.startswith("refused"), run.stderr


def test_npz_with_a_pickle_does_not_run_it(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "a.npz"
    np.savez(path, codes=np.zeros((1, 1, 1), np.uint16), metadata=np.array(Payload(), dtype=object))
    with pytest.raises(TokensError):
        Tokens.load(path)
    assert not (tmp_path / "ran").exists()


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    make().save(path)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="disk is full"):
        make(model="other").save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_import_is_light():
    script = "import mgvq_export.core.tokens, sys; print([m for m in ('safetensors', 'torch', 'PIL') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "again",
    [lambda tokens: pickle.loads(pickle.dumps(tokens)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_copies_are_read_only_and_equal(again, tmp_path: Path) -> None:
    tokens = make()
    found = again(tokens)
    assert found == tokens and not found.codes.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found.codes[0, 0, 0] = 1
    found.save(tmp_path / "a.safetensors")
    assert Tokens.load(tmp_path / "a.safetensors") == tokens


def test_a_pickle_with_wrong_codes_is_refused() -> None:
    tokens = make()
    build, fields = tokens.__reduce__()
    with pytest.raises(TokensError, match="largest code"):
        build(np.full_like(fields[0], tokens.codes_per_group), *fields[1:])
