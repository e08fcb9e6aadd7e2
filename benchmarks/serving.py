"""Triton over direct calls on this machine: latency, throughput under clients, memory over many requests; the tables of docs/serving.md.

    python -m mgvq_export.benchmarks.serving BUNDLE [--side 256] [--rounds 15] [--requests 10000] [-o FILE]

The server is the one of the tests (the wheel nvidia-pytriton, CPU), with the repository that ``publish`` writes. Direct calls are
:class:`Tokenizer`'s in this process, with the same backend and threads. Both take turns, round by round, so that other work on the machine affects
both; reported are medians over the rounds, their ratio, and the ratio of the processor time of all processes. Every answer's codes are compared with those of direct calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.files import atomic_write_bytes
from mgvq_export.runtime.tokenizer import Tokenizer
from mgvq_export.serving.options import PublishOptions
from mgvq_export.serving.publish import publish
from mgvq_export.tests.support import triton_server

CLIENTS = 8
IMAGES_A_CLIENT = 3  # of one round
TINY = ((32, 32), (40, 24), (16, 64))  # of the many requests, (height, width)
SETTLED = 1000  # requests after which memory is compared

Image = np.ndarray


@dataclass(frozen=True)
class Compared:
    """Medians over the rounds of one image's time, the median of the rounds' ratios, and the ratio of the processor's time.

    Attributes:
        direct, triton: milliseconds an image.
        ratio: of these; above 1 Triton is slower.
        processor_ratio: seconds of processor time of the server, its models and the clients over those of direct calls.
    """

    name: str
    direct: float
    triton: float
    ratio: float
    processor_ratio: float


@dataclass(frozen=True)
class Memory:
    """Proportional memory of the server and its models, in bytes, after :data:`SETTLED` requests and at the end."""

    requests: int
    settled: int
    end: int
    wrong: int


class Client:
    """One connection over gRPC, for one thread."""

    def __init__(self, server: triton_server.Server):
        import tritonclient.grpc as triton

        self._triton, self._client = triton, triton.InferenceServerClient(server.grpc)

    def encode(self, image: Image) -> np.ndarray:
        """Codes uint16 [G, h, w]."""
        value = self._triton.InferInput("image", [1, *image.shape], "UINT8")
        value.set_data_from_numpy(image[None])
        return self._client.infer("mgvq_encode", [value]).as_numpy("codes")[0]

    def decode(self, codes: np.ndarray) -> Image:
        """Image uint8 [H, W, 3]."""
        value = self._triton.InferInput("codes", [1, *codes.shape], "UINT16")
        value.set_data_from_numpy(codes[None])
        return self._client.infer("mgvq_decode", [value]).as_numpy("image")[0]

    def close(self) -> None:
        """End the connection."""
        self._client.close()


@contextmanager
def clients(server: triton_server.Server, count: int) -> Iterator[list[Client]]:
    """``count`` connections."""
    found = [Client(server) for _ in range(count)]
    try:
        yield found
    finally:
        for client in found:
            client.close()


class Turns:
    """Times direct calls and Triton's in turns."""

    def __init__(self, server: triton_server.Server, rounds: int):
        self.server, self.rounds = server, rounds

    def compare(self, name: str, images: int, direct: Callable[[], Any], triton: Callable[[], Any]) -> Compared:
        """Both on ``images`` images a round; the first round, which loads graphs and connects, is not counted."""
        direct(), triton()
        found = [(self._time(direct), self._time(triton)) for _ in range(self.rounds)]
        here, there = ([1e3 * wall / images for wall, _ in side] for side in zip(*found, strict=True))
        least = 1 / os.sysconf("SC_CLK_TCK")  # what the system counts in
        processor = sum(used for _, (_, used) in found) / max(least, sum(used for (_, used), _ in found))
        ratio = statistics.median(other / one for one, other in zip(here, there, strict=True))
        return Compared(name, statistics.median(here), statistics.median(there), ratio, processor)

    def _time(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Seconds on the clock, and of all processes' processor time."""
        start, used = time.perf_counter(), self._processor_seconds()
        work()
        return time.perf_counter() - start, self._processor_seconds() - used

    def _processor_seconds(self) -> float:
        processes = [psutil.Process(), *family(self.server.process.pid)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)


def measure_latency(tokenizer: Tokenizer, server: triton_server.Server, image: Image, rounds: int) -> list[Compared]:
    """One client, one image at a time."""
    tokens = tokenizer.encode(image)
    turns = Turns(server, rounds)
    with clients(server, 1) as (client,):
        assert np.array_equal(client.encode(image), tokens.codes)
        return [
            turns.compare("encode, 1 client", 1, lambda: tokenizer.encode(image), lambda: client.encode(image)),
            turns.compare("decode, 1 client", 1, lambda: tokenizer.decode(tokens), lambda: client.decode(tokens.codes)),
        ]


def measure_throughput(
    tokenizer: Tokenizer, server: triton_server.Server, images: Sequence[Image], rounds: int
) -> list[Compared]:
    """:data:`CLIENTS` clients at once against ``encode_batch`` and ``decode_batch``."""
    tokens = tokenizer.encode_batch(images)
    share = len(images) // CLIENTS
    turns = Turns(server, rounds)

    def encode(client: Client, start: int) -> None:
        for image, one in zip(images[start : start + share], tokens[start : start + share], strict=True):
            if not np.array_equal(client.encode(image), one.codes):
                raise AssertionError("the server's codes are not those of a direct call")

    def decode(client: Client, start: int) -> None:
        for one in tokens[start : start + share]:
            client.decode(one.codes)

    with clients(server, CLIENTS) as connections, ThreadPoolExecutor(CLIENTS) as pool:

        def served(work: Callable[[Client, int], None]) -> Callable[[], Any]:
            return lambda: list(pool.map(work, connections, range(0, len(images), share)))

        count = len(images)
        return [
            turns.compare(f"encode, {CLIENTS} clients", count, lambda: tokenizer.encode_batch(images), served(encode)),
            turns.compare(f"decode, {CLIENTS} clients", count, lambda: tokenizer.decode_batch(tokens), served(decode)),
        ]


def measure_memory(tokenizer: Tokenizer, server: triton_server.Server, requests: int) -> Memory:
    """Many small requests of several sizes from four clients."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in TINY]
    wanted = [tokenizer.encode(image).codes for image in images]

    def run(client: Client, count: int) -> int:
        wrong = 0
        for index in range(count):
            which = index % len(images)
            wrong += not np.array_equal(client.encode(images[which]), wanted[which])
        return wrong

    def all_clients(count: int) -> int:
        return sum(pool.map(run, connections, [count // len(connections)] * len(connections)))

    with clients(server, 4) as connections, ThreadPoolExecutor(4) as pool:
        wrong = all_clients(SETTLED)
        settled = memory_of(server.process.pid)
        wrong += all_clients(requests - SETTLED)
        return Memory(requests, settled, memory_of(server.process.pid), wrong)


def memory_of(pid: int) -> int:
    """Proportional set size of a process and those it started, in bytes: pages that they share count once."""
    return sum(process.memory_full_info().pss for process in family(pid))


def family(pid: int) -> list[psutil.Process]:
    """A process and those it started."""
    server = psutil.Process(pid)
    return [server, *server.children(recursive=True)]


def tables(compared: Sequence[Compared], memory: Memory) -> str:
    """The results as the page has them."""
    lines = ["| | direct, ms an image | Triton | ratio | of processor time |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.name} | {one.direct:.1f} | {one.triton:.1f} | {one.ratio:.2f} | {one.processor_ratio:.2f} |" for one in compared
    ]
    mib = 2**20
    change = memory.end / memory.settled - 1
    lines.append("")
    lines.append(
        f"{memory.requests} small requests: {memory.settled / mib:.0f} MiB after {SETTLED}, {memory.end / mib:.0f} MiB at the end "
        f"({change:+.1%}); {memory.wrong} wrong codes."
    )
    return "\n".join(lines)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    side, rounds = arguments.side, arguments.rounds
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(CLIENTS * IMAGES_A_CLIENT)]
    bundle = Bundle.open(arguments.bundle)
    options = PublishOptions(sizes=((side, side),), max_batch=CLIENTS)
    with tempfile.TemporaryDirectory() as folder:
        publish(bundle, Path(folder) / "models", options)
        with (
            triton_server.running(Path(folder) / "models", Path(folder) / "server") as server,
            Tokenizer.open(bundle) as tokenizer,
        ):
            compared = measure_latency(tokenizer, server, images[0], 2 * rounds)
            compared += measure_throughput(tokenizer, server, images, max(3, rounds // 2))
            memory = measure_memory(tokenizer, server, arguments.requests)
            backend, precision = tokenizer.backend, tokenizer.precision
    print(f"{bundle.spec.name} {precision}, {side}x{side}, {backend}, {os.cpu_count()} cores\n\n{tables(compared, memory)}")
    if arguments.output:
        facts = {"compared": [asdict(one) for one in compared], "memory": asdict(memory), "backend": backend}
        atomic_write_bytes(arguments.output, json.dumps(facts, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
