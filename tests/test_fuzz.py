"""Damaged files of every kind that the project reads, from fixed seeds: each is read, or refused in one short line.

2,000 by default; ``make fuzz`` runs 50,000 (``MGVQ_FUZZ`` says how many).
"""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from mgvq_export.bench.record import Results
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.precision_plan import PrecisionPlan
from mgvq_export.core.spec import ModelSpec
from mgvq_export.core.tokens import Tokens
from mgvq_export.evaluation.datasets import Dataset
from mgvq_export.inspection.describe import describe
from mgvq_export.model.checkpoint import load_checkpoint
from mgvq_export.runtime.image_files import read_image
from mgvq_export.tests.support import fuzz
from mgvq_export.tests.support.image_makers import icc_profile, pack_bits, write_tiff

COUNT = int(os.environ.get("MGVQ_FUZZ", "2000"))
SEED = 0 if COUNT == 2000 else COUNT  # another number of them, others

#: Of a thousand, so many of each kind.
SHARES = {
    "images": 350,
    "checkpoints": 75,
    "tokens": 200,
    "manifests": 125,
    "specs": 100,
    "plans": 50,
    "lists": 50,
    "benches": 25,
    "inspected": 25,
}
GRAPHS = 25

Read = Callable[[Path], object]


def pixels() -> np.ndarray:
    y, x = np.mgrid[0:12, 0:17]
    return np.stack([x * 15, y * 20, x * y], -1).astype(np.uint8)


def image_seeds(folder: Path) -> Iterator[bytes]:
    image, alpha = Image.fromarray(pixels()), Image.fromarray(np.dstack([pixels(), pixels()[..., 0]]))
    profile = icc_profile(1.8)
    forms: list[tuple[Image.Image, str, dict]] = [
        (image, "PNG", {"icc_profile": profile}), (alpha, "PNG", {}), (image.quantize(8), "PNG", {"transparency": 1}), (image, "JPEG", {"icc_profile": profile}),
        (image.convert("CMYK"), "JPEG", {}), (image, "WEBP", {"lossless": True}), (image, "BMP", {}), (image.quantize(8), "GIF", {}), (image, "PPM", {}),
        (image, "TIFF", {}), (alpha, "TIFF", {"compression": "tiff_lzw"}), (image, "TIFF", {"compression": "jpeg"}), (image.convert("1"), "TIFF", {"compression": "group4"}),
    ]  # fmt: skip
    if features.check("avif"):
        forms.append((image, "AVIF", {}))
    for form, name, options in forms:
        file = io.BytesIO()
        form.save(file, name, **options)
        yield file.getvalue()
    wide = pixels().astype(np.uint16) * 257
    for order in "<>":
        write_tiff(folder / "seed.tif", np.split(wide, 3, -1), colour=2, bits=16, order=order)
        yield (folder / "seed.tif").read_bytes()
    write_tiff(folder / "seed.tif", [pixels()[..., :1] // 16], colour=1, bits=4, packed=[pack_bits(pixels()[..., 0] // 16, 4)])
    yield (folder / "seed.tif").read_bytes()
    (folder / "seed.tif").unlink()


def checkpoint_seeds(weights: dict[str, torch.Tensor], spec: ModelSpec) -> Iterator[bytes]:
    # Without the values, whose changed bits are other weights and no damage: what is left are names, shapes and the containers.
    small = {name: torch.zeros(1).expand(tensor.shape) if tensor.numel() > 4096 else tensor for name, tensor in weights.items()}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        file = io.BytesIO()
        torch.save({"model": small, "epoch": 3}, file, **options)
        yield file.getvalue()


def bytes_of(
    seeds: list[bytes], count: int, suffix: str, read: Read, head: int | None = None
) -> Iterator[tuple[str, str, bytes, Read]]:
    """``count`` damaged ones of ``seeds``, evenly; only in their first ``head`` bytes."""
    for index, seed in enumerate(seeds):
        front, rest = (seed, b"") if head is None else (seed[:head], seed[head:])
        for what, data in fuzz.damaged(front, -(-count // len(seeds)), SEED + index):
            yield f"seed {index}, {what}", suffix, data + rest, read


def documents_of(document: object, count: int, suffix: str, read: Read) -> Iterator[tuple[str, str, bytes, Read]]:
    for what, data in fuzz.mutations(document, count - count // 4, SEED):
        yield what, suffix, data, read
    for what, data in fuzz.damaged(json.dumps(document).encode(), count // 4, SEED):
        yield what, suffix, data, read


@pytest.fixture
def cases(tiny_bundle, tiny_checkpoint_file: Path, tiny_spec: ModelSpec, tmp_path: Path) -> Callable[[str, int], Iterator]:
    """kind, count -> (what was changed, suffix of the file, its bytes, what reads it)."""

    def images(count: int) -> Iterator:
        yield from bytes_of(list(image_seeds(tmp_path)), count, ".png", lambda path: read_image(path, max_pixels=10**6))

    def checkpoints(count: int) -> Iterator:
        from mgvq_export.tests.support.reference import synthetic_state_dict

        weights = synthetic_state_dict(tiny_spec)
        yield from bytes_of(list(checkpoint_seeds(weights, tiny_spec)), count // 3 * 2, ".pt", load_checkpoint)
        whole = tiny_checkpoint_file.read_bytes()
        yield from bytes_of(
            [whole], count - count // 3 * 2, ".safetensors", load_checkpoint, 8 + int.from_bytes(whole[:8], "little")
        )

    def tokens(count: int) -> Iterator:
        codes = np.arange(24, dtype=np.uint16).reshape(4, 2, 3)
        one = Tokens(codes, (30, 40), "tiny", "a" * 64, 60, 16)
        for suffix, packed in ((".safetensors", False), (".safetensors", True), (".npz", False)):
            one.save(tmp_path / f"seed{suffix}", packed)
            yield from bytes_of([(tmp_path / f"seed{suffix}").read_bytes()], count // 3, suffix, Tokens.load)
            (tmp_path / f"seed{suffix}").unlink()

    def manifests(count: int) -> Iterator:
        shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
        document = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())

        def read(path: Path) -> None:
            path.replace(tmp_path / "bundle" / "manifest.json")
            bundle = Bundle.open(tmp_path / "bundle")
            for precision in bundle.precisions:
                bundle.base(precision)
            describe(str(tmp_path / "bundle"))

        yield from documents_of(document, count, ".json", read)

    def specs(count: int) -> Iterator:
        import yaml

        document = tiny_spec.to_dict()
        yield from documents_of(document, count // 2, ".json", ModelSpec.from_file)
        yield from bytes_of(
            [yaml.safe_dump(document).encode(), b"a: &a [1]\nb: [*a, *a]\n"], count // 2, ".yaml", ModelSpec.from_file
        )

    def plans(count: int) -> Iterator:
        document = {"version": 1, "name": "a", "precision": "fp16", "nodes": {"encoder.stem": "fp32"}, "islands": []}
        yield from documents_of(document, count, ".json", PrecisionPlan.load)

    def lists(count: int) -> Iterator:
        Image.fromarray(pixels()).save(tmp_path / "a.png")
        yield from documents_of([{"path": "a.png"}, "a.png"], count, ".json", Dataset.find)

    def benches(count: int) -> Iterator:
        document = Results("tokenizer", [], {"repeat": 1}).to_dict()
        yield from documents_of(document, count, ".json", Results.load)

    def inspected(count: int) -> Iterator:
        graph = (tiny_bundle.path / "fp32" / "quantizer.onnx").read_bytes()
        yield from bytes_of([graph], count, ".onnx", lambda path: describe(str(path)))

    kinds = (images, checkpoints, tokens, manifests, specs, plans, lists, benches, inspected)
    return lambda kind, count: {maker.__name__: maker for maker in kinds}[kind](count)


@pytest.mark.filterwarnings("ignore")  # Pillow and PyTorch warn of what is then read or refused
@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.timeout(0 if COUNT > 2000 else 600)
def test_damaged(kind: str, cases: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran, read = 0, 0
    for what, suffix, data, reader in cases(kind, COUNT * SHARES[kind] // 1000):
        path = Path(f"case{suffix}")
        path.write_bytes(data)
        read += fuzz.assert_read_or_refused(lambda path=path, reader=reader: reader(path), f"{kind}: {what}")
        ran += 1
    assert ran >= COUNT * SHARES[kind] // 1000 - 3
    assert read < ran, "nothing was refused: the damage does not reach the reader"


def test_damaged_graphs_with_mended_hashes(tiny_bundle, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    command = [sys.executable, "-m", "mgvq_export.tests.support.fuzz_graphs", str(tmp_path / "bundle")]
    command += [str(COUNT * GRAPHS // 1000), str(random.Random(SEED).randrange(10**6))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"ended with {done.returncode} at {lines[-1:]}: {done.stderr[-300:]}"
    assert [line for line in lines if line.startswith("VIOLATION")] == []
    assert sum(line.startswith("case ") for line in lines) == COUNT * GRAPHS // 1000


def test_what_the_fuzz_would_notice(tmp_path: Path) -> None:
    def breaks() -> None:
        raise KeyError("x")

    with pytest.raises(pytest.fail.Exception, match="KeyError"):
        fuzz.assert_read_or_refused(breaks, "a case")
