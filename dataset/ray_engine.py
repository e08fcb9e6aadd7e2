"""The engine ``ray``: Ray Data hands the shards to actors, each with a tokenizer of its own, and gives those of a lost worker to another.

A shard is done by :func:`mgvq_export.dataset.shards.run_shard`, as in one process: a shard that is done twice is the same file twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from mgvq_export.core import errors
from mgvq_export.core.errors import BackendError, InputError, MgvqError, shown
from mgvq_export.core.json_files import JsonSource, convert_json, to_json
from mgvq_export.dataset.manifest import Model, model_of
from mgvq_export.dataset.shards import Count, Job, Receipt, run_shard
from mgvq_export.runtime.tokenizer import OpenOptions, Tokenizer

TESTED = "2.60.0"
_CONNECT_SECONDS, _FIRST_WORKER_SECONDS = 10, 600
_GPU_BACKENDS = ("ort-cuda", "tensorrt", "tensorrt-rtx")


class Cluster:
    """Ray, running: a context manager that starts it, or joins one, and leaves it.

    Attributes:
        model: what the workers make codes with.

    Raises:
        InputError: a release of Ray that is not tested, an address that does not answer, no node with the processors or GPUs asked for.
        MgvqError: what a worker says when it cannot open the bundle.
    """

    model: Model

    def __init__(
        self, bundle: str, run: OpenOptions, address: str | None, workers: int | None, gpus: float | None, debug: bool = False
    ):
        """``run``: arguments of :meth:`Tokenizer.open`; the others as ``TokenizeOptions`` has them."""
        self._bundle, self._address, self._workers, self._gpus, self._debug = bundle, address, workers, gpus, debug
        self._threads = run.get("threads") or 1
        self._run: OpenOptions = {**run, "threads": self._threads}

    def __enter__(self) -> Cluster:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not self._debug:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray

        if ray.__version__ != TESTED:
            raise InputError(f"Ray {ray.__version__} is installed, and {TESTED} is tested; pip install 'mgvq-export[dataset]'")
        if ray.is_initialized():
            raise InputError("Ray is in use in this process; call ray.shutdown() first, and give the cluster's address")
        self._connect()
        try:
            self._size()
            self.model = self._ask_worker()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def _connect(self) -> None:
        import ray

        level = logging.INFO if self._debug else logging.ERROR
        options: dict[str, Any] = {"log_to_driver": self._debug, "logging_level": level}
        if self._address is None:
            threads = self._threads
            wanted = self._workers or max(1, (os.cpu_count() or 1) // threads)
            # One more than the workers take: Ray Data's own tasks need a processor, or all wait for ever.
            options |= {"address": "local", "include_dashboard": False, "num_cpus": wanted * threads + 1}
        else:
            _check_answers(self._address)
            options["address"] = self._address
        try:
            with _outside_the_working_folder():
                ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = "Ray" if self._address is None else f"Ray at {shown(self._address, quoted=False)}"
            reason = shown(" ".join(str(error).split()), 300, quoted=False)
            raise InputError(f"cannot start or join {where}: {reason}") from error
        if not self._debug:
            from ray.data import DataContext

            DataContext.get_current().enable_progress_bars = False
            for name in ("ray", "ray.data"):
                logging.getLogger(name).setLevel(logging.ERROR)

    def _size(self) -> None:
        """Decide how many workers there are and what each takes."""
        import ray

        total, threads = ray.cluster_resources(), self._threads
        gpus, backend = self._gpus, self._run.get("backend", "auto")
        if gpus is None:
            gpus = float(backend in _GPU_BACKENDS or (backend == "auto" and total.get("GPU", 0) >= 1))
        if gpus < 0:
            raise InputError(f"--gpus-per-worker is {gpus:g}; wanted 0 or more, such as 1 or 0.5")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
            raise InputError(
                f"no node of the cluster has {threads} processors and {gpus:g} GPUs, which a worker takes: "
                "give other --threads or --gpus-per-worker"
            )
        most = [(total["CPU"] - 1) // threads] + ([total.get("GPU", 0) // gpus] if gpus else [])
        self._count = int(self._workers or max(1, min(most)))
        self._takes: dict[str, Any] = {"num_cpus": threads, "num_gpus": gpus}

    def _ask_worker(self) -> Model:
        """What a worker makes codes with: it opens the bundle there, where the processors and GPUs are."""
        import ray

        task = ray.remote(_describe).options(max_retries=2, **self._takes).remote(self._bundle, self._run)
        try:
            facts = json.loads(ray.get(task, timeout=_FIRST_WORKER_SECONDS))
        except ray.exceptions.GetTimeoutError:
            raise InputError(f"no worker of the Ray cluster started within {_FIRST_WORKER_SECONDS} s; is it busy?") from None
        except ray.exceptions.RayError as error:
            reason = shown(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__, 300, quoted=False)
            raise BackendError(f"a worker of the Ray cluster failed: {reason}") from error
        _raise_if_error(facts)
        return convert_json(
            facts["model"], Model, JsonSource("the worker's answer", "use one release of mgvq-export on all nodes")
        )

    def run(self, job: Job, todo: Sequence[int], images: Sequence[int], count: Count) -> Iterator[Receipt]:
        """Receipts of the shards ``todo``, as they are done. Raises what a worker raised."""
        if not todo:
            return
        import ray.data

        job_values = to_json(job) | {"run": self._run}
        shards = ray.data.from_items([{"shard": number} for number in todo], override_num_blocks=len(todo))
        done = shards.map_batches(
            ShardWorker,
            fn_constructor_args=(json.dumps(job_values), json.dumps(to_json(self.model))),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=min(self._count, len(todo)),
                initial_size=min(self._count, len(todo)),
                max_tasks_in_flight_per_actor=1,
            ),
            **self._takes,
        )
        for row in done.iter_rows():
            facts = json.loads(row["receipt"])
            _raise_if_error(facts)
            receipt = convert_json(facts["receipt"], Receipt, JsonSource("a worker's receipt", "use one release of mgvq-export"))
            count(images[receipt.shard], len(receipt.failures))
            yield receipt


class ShardWorker:
    """The actor: opens the tokenizer once, and does one shard after the other."""

    def __init__(self, job: str, model: str):
        """``job``, ``model``: as JSON."""
        source = JsonSource("the job", "use one release of mgvq-export on all nodes")
        self._job, self._model = convert_json(json.loads(job), Job, source), convert_json(json.loads(model), Model, source)
        self._tokenizer: Tokenizer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """``shard``: numbers. ``receipt``: JSON of the receipt, or of the error."""
        return {"receipt": [self._one(int(number)) for number in batch["shard"]]}

    def _one(self, number: int) -> str:
        try:
            if self._tokenizer is None:
                tokenizer = Tokenizer.open(self._job.bundle, **self._job.run)
                if model_of(tokenizer) != self._model:
                    raise InputError(
                        f"a worker runs {tokenizer.backend} {tokenizer.precision}, or another bundle, where others run "
                        f"{self._model.backend} {self._model.precision}: give --backend and --precision"
                    )
                self._tokenizer = tokenizer
            return json.dumps({"receipt": to_json(run_shard(self._tokenizer, self._job, number))})
        except MgvqError as error:
            return _as_json(error)


def _describe(bundle: str, run: OpenOptions) -> str:
    """JSON of what a tokenizer opened here makes codes with, or of the error."""
    try:
        with Tokenizer.open(bundle, **run) as tokenizer:
            return json.dumps({"model": to_json(model_of(tokenizer))})
    except MgvqError as error:
        return _as_json(error)


def _as_json(error: MgvqError) -> str:
    return json.dumps({"error": type(error).__name__, "message": str(error), "node": socket.gethostname()})


def _raise_if_error(facts: dict[str, Any]) -> None:
    if "error" in facts:
        raise getattr(errors, facts["error"], InputError)(f"{facts['message']} (on {facts['node']})")


def _check_answers(address: str) -> None:
    """Raise :class:`InputError` unless something listens at ``host:port``; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        raise InputError(
            f"address is {shown(address)}; wanted host:6379, or auto on a node of the cluster; elsewhere use ray job submit"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {shown(address, quoted=False)} within {_CONNECT_SECONDS} s: {error}"
        ) from error


@contextlib.contextmanager
def _outside_the_working_folder() -> Iterator[None]:
    """Ray puts the working folder on its workers' search path; data often lies there, and may hold files called ``numpy.py``."""
    before = os.getcwd()  # noqa: PTH109
    os.chdir("/")
    try:
        yield
    finally:
        os.chdir(before)
