"""A whole evaluation on the tiny network: every figure recomputed, runs that are stopped, samples that grow, bad images."""

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.evaluation.datasets import Dataset
from mgvq_export.evaluation.evaluate import evaluate
from mgvq_export.evaluation.journal import DATA, LINES
from mgvq_export.evaluation.plots import write_plots
from mgvq_export.evaluation.protocol import Protocol, resize_and_crop
from mgvq_export.evaluation.results import Results
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.tests.support.checks import one_line

SIZE, GROUPS = (48, 40), (1, 2, 4)
PROTOCOL = Protocol(SIZE, GROUPS, ("psnr", "ssim"), ("ssim",))


def make_photos(folder: Path, count: int, side: int = 60) -> Path:
    """Images with structure, of several sizes and formats, in class folders."""
    rng = np.random.default_rng(3)
    for number in range(count):
        y, x = np.mgrid[0 : side + number, 0 : side + 20 - number].astype(np.float32)
        waves = np.stack([np.sin(x / (3 + c + number)) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
        pixels = np.clip(127 + 90 * waves + 20 * rng.standard_normal(waves.shape), 0, 255).astype(np.uint8)
        path = folder / f"n{number % 3}" / f"{number:03}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 7)


@pytest.fixture
def tokenizer(tiny_bundle: Bundle):
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp32", threads=1) as tokenizer:
        yield tokenizer


def run(tokenizer: Tokenizer, photos: Path, output: Path, protocol: Protocol = PROTOCOL, **options: object) -> Results:
    results = evaluate(tokenizer, Dataset.find(photos, **options), output, protocol)  # type: ignore[arg-type]
    results.write(output)
    return results


def values(results: Results) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in results.facts["figures"]}


def test_every_figure_recomputed(tokenizer: Tokenizer, photos: Path, tmp_path: Path) -> None:
    results = run(tokenizer, photos, tmp_path / "out")
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    originals = [resize_and_crop(np.asarray(Image.open(path).convert("RGB")), SIZE) for path in paths]
    tokens = [tokenizer.encode(image) for image in originals]
    for row, groups in zip(results.facts["by_groups"], GROUPS, strict=True):
        decoded = [tokenizer.decode(found, groups=groups) for found in tokens]
        errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(decoded, originals, strict=True)]
        similar = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(decoded, originals, strict=True)]
        assert row["psnr_db"] == pytest.approx(10 * np.log10(255**2 / np.mean(errors)))
        assert row["ssim"] == pytest.approx(np.mean(similar))
        # 48 x 40 pixels padded to 48 x 48: 3 x 3 codes of 6 bits in each group.
        assert row["bits_per_pixel"] == pytest.approx(groups * 6 * 9 / (48 * 40))
    figures = values(results)
    assert figures["psnr"] == results.facts["by_groups"][-1]["psnr_db"]
    assert figures["psnr, mean of images"] == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]))
    codes = np.stack([found.codes.reshape(4, -1) for found in tokens], axis=1).reshape(4, -1)
    entropies = []
    for row, seen in zip(results.facts["codebook"], codes, strict=True):
        _, counts = np.unique(seen, return_counts=True)
        share = counts / counts.sum()
        entropies.append(-np.sum(share * np.log2(share)))
        assert row["used"] == len(counts)
        assert row["usage"] == pytest.approx(len(counts) / 60)
        assert row["entropy_bits"] == pytest.approx(entropies[-1])
        assert row["perplexity"] == pytest.approx(2 ** entropies[-1])
        assert row["tokens"] == 7 * 9
    assert results.facts["by_groups"][1]["entropy_bits_per_pixel"] == pytest.approx(sum(entropies[:2]) * 9 / (48 * 40))
    with (tmp_path / "out" / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [path.relative_to(photos).as_posix() for path in paths]
    assert float(rows[2]["psnr_db_4"]) == pytest.approx(10 * np.log10(255**2 / errors[2]))
    assert float(rows[2]["ssim_4"]) == pytest.approx(similar[2])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results.to_dict()


STOPPABLE = """
import sys, time
from pathlib import Path
from mgvq_export.evaluation.datasets import Dataset
from mgvq_export.evaluation.evaluate import evaluate
from mgvq_export.evaluation.protocol import Protocol
from mgvq_export.runtime.tokenizer import Tokenizer
bundle, photos, output = sys.argv[1:]
with Tokenizer.open(bundle, backend="ort-cpu", precision="fp32", threads=1) as tokenizer:
    protocol = Protocol((48, 40), (1, 2, 4), ("psnr", "ssim"), ("ssim",))
    evaluate(tokenizer, Dataset.find(photos), output, protocol, progress=lambda name, done: time.sleep(0.05))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_and_run_again(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL after a random number of images, the last line cut at a random byte: the second run does the rest only."""
    photos = make_photos(tmp_path / "photos", 12)
    run(tokenizer, photos, tmp_path / "whole")
    chance = random.Random(7)
    wanted, output = chance.randint(1, 8), tmp_path / "stopped"
    command = [sys.executable, "-c", STOPPABLE, str(tokenizer.bundle.path), str(photos), str(output)]
    process = subprocess.Popen(command, cwd=tmp_path)
    while not (output / LINES).is_file() or (output / LINES).read_bytes().count(b"\n") <= wanted:
        assert process.poll() is None, "it ended before it was killed"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    lines = (output / LINES).read_bytes()
    assert wanted + 1 <= lines.count(b"\n") <= 12
    (output / LINES).write_bytes(lines[: -chance.randint(1, 20)])
    kept = (output / LINES).read_bytes().count(b"\n") - 1
    encoded = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, image, **options: encoded.append(1) or encode(self, image, **options))
    run(tokenizer, photos, output)
    assert len(encoded) == 12 - kept
    for name in ("results.json", "images.csv"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_order_and_place_of_the_images_do_not_matter(tokenizer: Tokenizer, photos: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*") if path.is_file())
    found = []
    for number, listed in enumerate((names, names[::-1])):
        (tmp_path / f"{number}.json").write_text(json.dumps({"UHDBench": listed}))
        facts = run(tokenizer, tmp_path / f"{number}.json", tmp_path / f"out{number}", root=photos).to_dict()
        found.append({key: value for key, value in facts.items() if key != "dataset"})
    assert found[0] == found[1]
    folder = run(tokenizer, photos, tmp_path / "out").to_dict()
    assert folder["figures"] == found[0]["figures"]


def test_a_sample_can_grow(tokenizer: Tokenizer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger limit in the same folder takes over what the smaller one had, and ends where a fresh run ends."""
    run(tokenizer, photos, tmp_path / "out", limit=3)
    encoded = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, image, **options: encoded.append(1) or encode(self, image, **options))
    grown = run(tokenizer, photos, tmp_path / "out", limit=5)
    assert len(encoded) == 2
    assert grown.to_dict() == run(tokenizer, photos, tmp_path / "fresh", limit=5).to_dict()


def test_bad_images_are_listed_and_left_out(tokenizer: Tokenizer, photos: Path, tmp_path: Path) -> None:
    good = values(run(tokenizer, photos, tmp_path / "good"))
    (photos / "n0" / "broken.jpg").write_text("no image")
    (photos / "n1" / "empty.png").write_bytes(b"")
    cut = (photos / "n0" / "000.png").read_bytes()[:500]
    (photos / "n2" / "cut.png").write_bytes(cut)
    results = run(tokenizer, photos, tmp_path / "out")
    assert values(results) == good
    assert results.facts["images"]["asked"] == 10
    assert results.facts["images"]["evaluated"] == 7
    assert [entry["name"] for entry in results.facts["images"]["bad"]] == ["n0/broken.jpg", "n1/empty.png", "n2/cut.png"]
    assert sum(line.startswith("left out ") for line in results.remarks()) == 3


def test_only_bad_images(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no image")
    with pytest.raises(InputError, match="none of the 1 images") as error:
        run(tokenizer, tmp_path / "photos", tmp_path / "out")
    assert one_line(str(error.value))


def test_the_output_may_not_join_the_dataset(tokenizer: Tokenizer, photos: Path) -> None:
    with pytest.raises(InputError, match="lies inside the dataset"):
        run(tokenizer, photos, photos / "scores")
    assert not (photos / "scores").exists()


def test_what_decides_the_figures_decides_the_journal(
    tiny_bundle: Bundle, tokenizer: Tokenizer, photos: Path, tmp_path: Path
) -> None:
    run(tokenizer, photos, tmp_path / "out")
    with (
        Tokenizer.open(tiny_bundle, backend="ort-cpu", precision="fp16") as half,
        pytest.raises(InputError, match="precision fp32 there"),
    ):
        run(half, photos, tmp_path / "out")
    with Tokenizer.open(tiny_bundle, backend="ort-cpu", tiling="blend") as blend, pytest.raises(InputError, match="tiling"):
        run(blend, photos, tmp_path / "out")
    with pytest.raises(InputError, match="groups"):
        run(tokenizer, photos, tmp_path / "out", Protocol(SIZE, (4,), ("psnr", "ssim")))


def test_small_images_are_enlarged_and_counted(tokenizer: Tokenizer, photos: Path, tmp_path: Path) -> None:
    results = run(tokenizer, photos, tmp_path / "out", Protocol((70, 62), (4,), ("psnr",)))
    narrow = sum(image.size[0] < 70 or image.size[1] < 62 for image in map(Image.open, photos.rglob("*.*")))
    assert 0 < narrow < 7
    assert results.facts["images"]["enlarged"] == narrow
    assert any("were enlarged" in line for line in results.remarks())


def test_pixels_are_taken_as_stored(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As the released evaluation reads them: EXIF orientation and alpha are left aside."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png", exif=exif)
    Image.fromarray(np.dstack([pixels, np.full((40, 48), 9, np.uint8)])).save(tmp_path / "photos" / "b.png")
    results = run(tokenizer, tmp_path / "photos", tmp_path / "out")
    wanted = np.mean((tokenizer.decode(tokenizer.encode(pixels)).astype(float) - pixels) ** 2)
    np.testing.assert_allclose(results.columns.mse[:, -1], wanted)


def test_memory_does_not_grow_with_the_number_of_images(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Images under way at once vary a little; holding all of them would take what 30 more have in pixels, at least."""
    protocol = Protocol((200, 180), (4,), ("psnr",))
    peaks = []
    for count in (8, 38):
        photos = make_photos(tmp_path / f"photos{count}", count)
        tracemalloc.start()
        run(tokenizer, photos, tmp_path / f"out{count}", protocol)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 30 * (200 * 180 * 3) / 3


def test_perfect_reconstruction_is_written(
    tokenizer: Tokenizer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite PSNR is no JSON number and no place on an axis."""
    images = iter([])
    encode = Tokenizer.encode

    def remember(self: Tokenizer, image: np.ndarray, **options: object):
        nonlocal images
        images = iter([image] * 9)
        return encode(self, image, **options)

    monkeypatch.setattr(Tokenizer, "encode", remember)
    monkeypatch.setattr(Tokenizer, "decode", lambda self, tokens, **options: next(images))
    results = run(tokenizer, photos, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["figures"][0]["value"] == "inf"
    assert len(write_plots(results, tmp_path / "out")) == 3


def test_plots_say_what_they_show(tokenizer: Tokenizer, photos: Path, tmp_path: Path) -> None:
    results = run(tokenizer, photos, tmp_path / "out")
    for path in write_plots(results, tmp_path / "out"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[0] > 400
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["results.json", "images.csv", LINES, DATA, "psnr.png", "groups.png", "codebook.png"]
    )


def test_a_moved_journal_goes_on(tokenizer: Tokenizer, photos: Path, tmp_path: Path) -> None:
    """Records belong to the bytes of images, not to their paths."""
    first = run(tokenizer, photos, tmp_path / "out")
    shutil.move(photos, tmp_path / "moved")
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    size = (tmp_path / "elsewhere" / DATA).stat().st_size
    assert values(run(tokenizer, tmp_path / "moved", tmp_path / "elsewhere")) == values(first)
    assert (tmp_path / "elsewhere" / DATA).stat().st_size == size
