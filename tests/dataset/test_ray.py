"""The engine ``ray`` on a real Ray: the same rows as in one process, also when a worker, a node or the driver is killed.

Ray listens on all interfaces; here it runs in a network namespace of its own, where loopback is the only one.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.dataset.tokenize import TokenizeOptions, tokenize_dataset
from mgvq_export.tests.dataset.conftest import need, write_images
from mgvq_export.tests.support.token_shards import failure_rows, token_rows

need("ray")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

RUN = {"backend": "ort-cpu", "threads": 1}
NAMESPACE = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
LOOPBACK = 'ip link set lo up && exec "$@"'


@pytest.fixture(scope="session")
def isolated() -> list[str]:
    """The head of a command that runs where loopback is the only network."""
    head = [*NAMESPACE, "sh", "-c", LOOPBACK, "sh"]
    missing = shutil.which("unshare") is None or subprocess.run([*head, "true"], capture_output=True).returncode != 0
    if missing:
        if os.environ.get("MGVQ_REQUIRE_DATASET") == "1":
            pytest.fail("no network namespace can be made here")
        pytest.skip("no network namespace can be made here: Ray would listen on all interfaces")
    return head


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 images, two of them damaged."""
    folder = tmp_path_factory.mktemp("many") / "photos"
    write_images(folder, 90)
    for index in (3, 50):
        (folder / f"class{index % 3}" / f"{index:04d}.png").write_bytes(b"damaged")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tiny_bundle: Bundle, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    tokenize_dataset(tiny_bundle.path, many, output, TokenizeOptions(run=RUN, shard_size=5))
    return output


def command(bundle: Bundle, source: Path, output: Path, *more: str) -> list[str]:
    words = ["tokenize", str(bundle.path), str(source), "-o", str(output), "--shard-size", "5", "--backend", "ort-cpu"]
    return [sys.executable, "-m", "mgvq_export", *words, "--engine", "ray", "--workers", "2", *more]


def shards(output: Path) -> int:
    return len(list((output / "_done").glob("[!.]*")))


def wait_for_shards(output: Path, count: int, process: subprocess.Popen) -> None:
    while shards(output) < count:
        assert process.poll() is None, f"ended with {process.returncode} before {count} shards were done"
        time.sleep(0.01)


def same_rows(output: Path, undisturbed: Path) -> None:
    assert token_rows(output) == token_rows(undisturbed)
    assert failure_rows(output) == failure_rows(undisturbed)


def end_all(process: subprocess.Popen) -> None:
    """Kill what a run left: Ray's own processes end by themselves only some seconds after their driver."""
    for child in psutil.process_iter(["pid"]):
        try:
            ours = str(Path(f"/proc/{child.pid}/ns/net").readlink()) == process.namespace  # type: ignore[attr-defined]
        except OSError:
            continue
        if ours:
            child.kill()


def start(words: list[str], log: Path) -> subprocess.Popen:
    process = subprocess.Popen(words, stdout=log.open("w"), stderr=subprocess.STDOUT)
    here = str(Path("/proc/self/ns/net").readlink())
    while process.poll() is None:
        process.namespace = str(Path(f"/proc/{process.pid}/ns/net").readlink())  # type: ignore[attr-defined]
        if process.namespace != here:  # type: ignore[attr-defined]
            break
        time.sleep(0.01)
    return process


def test_a_worker_is_killed(isolated: list[str], tiny_bundle: Bundle, many: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start([*isolated, *command(tiny_bundle, many, output)], tmp_path / "log")
    try:
        wait_for_shards(output, 2, process)
        workers = [
            child for child in psutil.Process(process.pid).children(recursive=True) if "ShardWorker" in " ".join(child.cmdline())
        ]
        assert workers, "Ray names its workers after what they run"
        workers[0].kill()
        assert process.wait(200) == 1, (tmp_path / "log").read_text()  # two images are damaged
    finally:
        end_all(process)
    same_rows(output, undisturbed)
    said = (tmp_path / "log").read_text()
    assert "88 tokenized" in said and "90" in said
    assert said.splitlines()[-1].startswith("error: 2 of 90 images failed; ") or "error: 2 of 90 images failed; " in said
    assert "Traceback" not in said


def test_the_driver_is_killed_and_run_again_in_one_process(
    isolated: list[str], tiny_bundle: Bundle, many: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = start([*isolated, *command(tiny_bundle, many, output)], tmp_path / "log")
    try:
        wait_for_shards(output, 3, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        end_all(process)
    assert 3 <= shards(output) < 18
    tokenize_dataset(tiny_bundle.path, many, output, TokenizeOptions(run=RUN, shard_size=5))
    same_rows(output, undisturbed)


CLUSTER = """
import random, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from mgvq_export.dataset.tokenize import TokenizeOptions, tokenize_dataset
bundle, source, output = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
def kill():
    while len(list((Path(output) / "_done").glob("[!.]*"))) < 3:
        time.sleep(0.01)
    cluster.remove_node(second, allow_graceful=False)
    print("killed the second node", flush=True)
killer = threading.Thread(target=kill)
killer.start()
options = TokenizeOptions(run={"backend": "ort-cpu", "threads": 1}, shard_size=5, engine="ray", address=cluster.address, workers=2)
summary = tokenize_dataset(bundle, source, output, options)
killer.join()
print("tokenized", summary.manifest.counts.tokenized)
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_of_a_cluster_is_killed(
    isolated: list[str], tiny_bundle: Bundle, many: Path, undisturbed: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", CLUSTER, str(tiny_bundle.path), str(many), str(tmp_path / "out")]
    process = start([*isolated, *words], tmp_path / "log")
    try:
        code = process.wait(280)
    finally:
        end_all(process)
    said = (tmp_path / "log").read_text()
    assert code == 0 and "killed the second node" in said and "tokenized 88" in said, said
    same_rows(tmp_path / "out", undisturbed)


@pytest.mark.slow
def test_workers_are_killed_at_random_moments(
    isolated: list[str], tiny_bundle: Bundle, many: Path, undisturbed: Path, tmp_path: Path
) -> None:
    moment = random.Random(3)
    process = start([*isolated, *command(tiny_bundle, many, tmp_path / "out")], tmp_path / "log")
    try:
        for wanted in (1, 6, 11):
            wait_for_shards(tmp_path / "out", wanted, process)
            time.sleep(moment.random() * 0.2)
            children = psutil.Process(process.pid).children(recursive=True)
            for child in [child for child in children if "ShardWorker" in " ".join(child.cmdline())][:1]:
                child.kill()
        assert process.wait(250) == 1, (tmp_path / "log").read_text()
    finally:
        end_all(process)
    same_rows(tmp_path / "out", undisturbed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "127.0.0.1:1"}, "no Ray cluster answers at 127.0.0.1:1"),
        ({"address": "nonsense"}, "wanted host:6379, or auto"),
        ({"address": "ray://127.0.0.1:1"}, "ray job submit"),
        ({"engine": "local", "workers": 2}, "are for Ray"),
        ({"engine": "spark"}, "choose auto, local, ray"),
    ],
)
def test_bad_options(tiny_bundle: Bundle, images: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenize_dataset(tiny_bundle.path, images, tmp_path / "out", TokenizeOptions(**{"engine": "ray", **options}))
    assert not (tmp_path / "out").exists()


def test_other_releases_of_ray_are_refused(
    tiny_bundle: Bundle, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "__version__", "2.10.0")
    with pytest.raises(InputError, match=r"Ray 2.10.0 is installed, and 2.60.0 is tested; pip install 'mgvq-export\[dataset\]'"):
        tokenize_dataset(tiny_bundle.path, images, tmp_path / "out", TokenizeOptions(engine="ray"))
