"""Stopped at any moment, a run goes on: every image is in the result once, and no half-written shard is ever seen."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.processes import python_command
from mgvq_export.dataset import tokenize
from mgvq_export.dataset.tokenize import TokenizeOptions, TooManyFailures, tokenize_dataset
from mgvq_export.tests.dataset.conftest import write_images
from mgvq_export.tests.support.token_shards import failure_rows, token_rows

RUN = {"backend": "ort-cpu", "threads": 1}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images, four of them damaged."""
    folder = tmp_path_factory.mktemp("many") / "photos"
    write_images(folder, 120)
    for index in (3, 50, 51, 119):
        (folder / f"class{index % 3}" / f"{index:04d}.png").write_bytes(b"damaged")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tiny_bundle: Bundle, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    tokenize_dataset(tiny_bundle.path, many, output, TokenizeOptions(run=RUN, shard_size=7))
    assert len(token_rows(output)) == 116
    return output


def command(bundle: Bundle, source: Path, output: Path, *more: str) -> list[str]:
    options = ("--shard-size", "7", "--backend", "ort-cpu", "--threads", "1", *more)
    return python_command("mgvq_export.cli", "tokenize", str(bundle.path), str(source), "-o", str(output), *options)


def same_rows(output: Path, undisturbed: Path) -> None:
    assert token_rows(output) == token_rows(undisturbed)
    assert failure_rows(output) == failure_rows(undisturbed)
    assert not list(output.rglob(".mgvq-*")), "what a killed run left half-written is cleaned up"


def killed_and_run_again(bundle: Bundle, many: Path, output: Path, undisturbed: Path, moment: random.Random) -> int:
    """Kill runs at random moments until one ends by itself; returns how many were killed."""
    for killed in range(200):
        process = subprocess.Popen(command(bundle, many, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (output / "_manifest.json").exists():
            time.sleep(0.01)
        shards = len(list((output / "tokens").glob("[!.]*")))
        if shards == 18:  # nothing is left to be killed but the end of the run, which is let be
            process.wait()
        wanted = shards + moment.randrange(4)  # so that runs get on, however slow the machine is
        while process.poll() is None and len(list((output / "tokens").glob("[!.]*"))) < min(wanted, 18):
            time.sleep(0.002)
        time.sleep(moment.random() * 0.05)
        process.kill()
        if process.wait() in (0, 1):
            return killed
        seen = token_rows(output)  # whole shards, whenever it was killed
        assert len({row["key"] for row in seen}) == len(seen)
    raise AssertionError("the run never ended")


def test_killed_and_run_again(tiny_bundle: Bundle, many: Path, undisturbed: Path, tmp_path: Path) -> None:
    output, moment = tmp_path / "out", random.Random(0)
    killed_and_run_again_once = subprocess.Popen(
        command(tiny_bundle, many, output), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while len(list((output / "tokens").glob("[!.]*"))) < 4:
        assert killed_and_run_again_once.poll() is None
        time.sleep(0.002)
    time.sleep(moment.random() * 0.05)
    killed_and_run_again_once.kill()
    killed_and_run_again_once.wait()
    assert 0 < len(token_rows(output)) < 116
    tokenize_dataset(tiny_bundle.path, many, output, TokenizeOptions(run=RUN, shard_size=7))
    same_rows(output, undisturbed)


@pytest.mark.slow
def test_killed_at_thirty_random_moments(tiny_bundle: Bundle, many: Path, undisturbed: Path, tmp_path: Path) -> None:
    moment, killed, rounds = random.Random(1), 0, 0
    while killed < 30:
        output = tmp_path / f"out{rounds}"
        killed += killed_and_run_again(tiny_bundle, many, output, undisturbed, moment)
        same_rows(output, undisturbed)
        shutil.rmtree(output)
        rounds += 1


def test_shards_that_have_gone_or_changed_are_made_again(
    tiny_bundle: Bundle, many: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    first, second, third, *_ = sorted((output / "tokens").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    (output / "_done" / "00002.json").write_text("{")
    (output / "failures.parquet").unlink()
    summary = tokenize_dataset(tiny_bundle.path, many, output, TokenizeOptions(run=RUN, shard_size=7))
    assert 18 <= summary.tokenized <= 21 and third.exists()
    same_rows(output, undisturbed)
    again = tokenize_dataset(tiny_bundle.path, many, output, TokenizeOptions(run=RUN, shard_size=7))
    assert again.tokenized == 0 and len(again.failures) == 4


def test_other_options_another_source_or_bundle_are_refused(
    tiny_bundle: Bundle, many: Path, images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in undisturbed.rglob("*"))
    for source, changed, message in (
        (many, {"size": "32x32"}, "differs in option size: null, now '32x32'"),
        (many, {"shard_size": 8}, "differs in option shard size: 7, now 8|differs in option shard size: '7', now '8'"),
        (many, {"run": RUN | {"precision": "fp16"}}, "the bundle's"),
        (images, {}, "the source: other files"),
    ):
        with pytest.raises(InputError, match="holds the result of another run; it .*") as refused:
            tokenize_dataset(tiny_bundle.path, source, undisturbed, TokenizeOptions(**{"run": RUN, "shard_size": 7, **changed}))
        assert message.split("|")[0].replace("'", "") in str(refused.value).replace("'", "")
    assert sorted((path, path.stat().st_mtime_ns) for path in undisturbed.rglob("*")) == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no _manifest.json"):
        tokenize_dataset(tiny_bundle.path, images, tmp_path, TokenizeOptions(run=RUN))


def test_failures_stop_the_run_when_there_are_too_many_and_are_done_again_on_request(
    tiny_bundle: Bundle, many: Path, tmp_path: Path
) -> None:
    output, source = tmp_path / "out", tmp_path / "photos"
    shutil.copytree(many, source)
    with pytest.raises(TooManyFailures, match="failed, more than --max-failures 1"):
        tokenize_dataset(tiny_bundle.path, source, output, TokenizeOptions(run=RUN, shard_size=7, max_failures=1))
    assert len(failure_rows(output)) >= 2
    assert all("no image of a known format" in row["reason"] for row in failure_rows(output))
    summary = tokenize_dataset(tiny_bundle.path, source, output, TokenizeOptions(run=RUN, shard_size=7))
    assert len(summary.failures) == 4 and not summary.manifest.counts.images - summary.manifest.counts.tokenized - 4
    shutil.copy(source / "class0" / "0000.png", source / "class0" / "0003.tmp")
    good, bad = source / "class0" / "0000.png", source / "class0" / "0003.png"
    bad.write_bytes(good.read_bytes())
    with pytest.raises(InputError, match="the source"):  # its size is another one now
        tokenize_dataset(tiny_bundle.path, source, output, TokenizeOptions(run=RUN, shard_size=7, retry_failed=True))


def test_failed_images_are_done_again(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"late.png\n{images}/class1/0001.png\n")
    options = TokenizeOptions(run=RUN)
    assert len(tokenize_dataset(tiny_bundle.path, tmp_path / "list.txt", tmp_path / "out", options).failures) == 1
    shutil.copy(images / "class0" / "0000.png", tmp_path / "late.png")
    assert len(tokenize_dataset(tiny_bundle.path, tmp_path / "list.txt", tmp_path / "out", options).failures) == 1
    again = tokenize_dataset(
        tiny_bundle.path, tmp_path / "list.txt", tmp_path / "out", TokenizeOptions(run=RUN, retry_failed=True)
    )
    assert again.failures == [] and len(token_rows(tmp_path / "out")) == 2


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(
    tiny_bundle: Bundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = [sys.executable, "-c", (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from mgvq_export.cli import main; main()"
    ), "tokenize", str(tiny_bundle.path), str(images), "-o", str(tmp_path / "out"), "--backend", "ort-cpu"]  # fmt: skip
    # The measurement of coverage writes files too: it is not to run into the limit.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(limited, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot write ") and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("tokens-*"))


def test_the_command(tiny_bundle: Bundle, images: Path, many: Path, tmp_path: Path) -> None:
    import json

    done = subprocess.run(command(tiny_bundle, many, tmp_path / "out", "--json"), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["images"], facts["tokenized"], facts["failed"], len(facts["failures"])) == (120, 116, 4, 4)
    assert done.stderr.splitlines()[-1].startswith("error: 4 of 120 images failed; ")
    done = subprocess.run(command(tiny_bundle, images, tmp_path / "good"), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "images/s" in done.stdout and "12, 12 tokenized" in done.stdout


def test_it_needs_pyarrow(tiny_bundle: Bundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'mgvq-export\[dataset\]'"):
        tokenize_dataset(tiny_bundle.path, images, tmp_path / "out")
