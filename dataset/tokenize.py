"""Tokenizing a data set: find the images, make or check the result's folder, do what is missing, write the final form."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError, MgvqError
from mgvq_export.core.files import PathLike, atomic_path, make_folder
from mgvq_export.core.types import Untyped
from mgvq_export.dataset.index import INDEX, build_index, open_index, shard_images, write_index
from mgvq_export.dataset.listing import find_image_column
from mgvq_export.dataset.manifest import MANIFEST, Counts, Model, RunManifest, Summary, check_same_run, model_of, read_manifest
from mgvq_export.dataset.progress import Progress, Watch, unwatched
from mgvq_export.dataset.shards import Count, Job, Receipt, read_receipt, run_shard
from mgvq_export.dataset.sources import Fields, Source, find_source
from mgvq_export.dataset.storage import is_remote
from mgvq_export.dataset.writers import FORMATS, Format, check_keys, write_jsonl, write_npy
from mgvq_export.evaluation.protocol import parse_size
from mgvq_export.runtime.image_files import MAX_PIXELS
from mgvq_export.runtime.tokenizer import OpenOptions, Tokenizer

FAILURES = "failures.parquet"
Engine = Literal["auto", "local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
FEW_IMAGES = 300  # below, starting Ray takes longer than it saves


class TooManyFailures(MgvqError):
    """More images failed than ``max_failures`` allows. ``exit_code`` 1."""

    exit_code = 1


@dataclass(frozen=True)
class TokenizeOptions:
    """How a data set is tokenized.

    Attributes:
        run: arguments of :meth:`Tokenizer.open`.
        format: of the result.
        size: ``WIDTHxHEIGHT``: resize to cover it and take the centre, as ``eval`` does; None leaves images as they are.
        as_stored: leave EXIF orientation, colour profile and alpha aside, as ``eval`` does.
        fields: which columns hold what.
        root: the folder that the paths of a list are relative to.
        shard_size: images in a shard; None for a hundredth of all, 100 to 5000.
        batch: most images encoded together.
        max_failures: stop when more images than that failed.
        retry_failed: do shards with failures again.
        max_pixels: largest image accepted.
        engine: ``local``: in this process; ``ray``: on Ray; ``auto``: Ray where it is installed and there are 300 images or more.
        address: of a running Ray cluster, ``host:6379`` or ``auto``; a Ray of its own when None.
        workers: processes on Ray; None for as many as the processors, or GPUs, allow.
        gpus_per_worker: also a fraction; None for 1 with a backend that runs on the GPU, or with ``auto`` where there are GPUs.
        debug: let Ray say all that it says.
    """

    run: OpenOptions = field(default_factory=OpenOptions)
    format: Format = "parquet"
    size: str | None = None
    as_stored: bool = False
    fields: Fields = field(default_factory=Fields)
    root: str | None = None
    shard_size: int | None = None
    batch: int = 16
    max_failures: int | None = None
    retry_failed: bool = False
    max_pixels: int = MAX_PIXELS
    engine: Engine = "auto"
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    debug: bool = False


def tokenize_dataset(
    bundle: PathLike, source: PathLike, output: PathLike, options: TokenizeOptions | None = None, *, watch: Watch = unwatched
) -> Summary:
    """Tokenize the images of ``source`` into the folder ``output``.

    ``source`` is a folder, a list (.txt, .json, .jsonl), webdataset tars or Parquet files; a path, an address such as ``s3://...``, or a
    pattern. Called again with the same arguments after it was stopped in any way, it goes on: every image is in the result
    once. An image that cannot be read is a row of ``failures.parquet`` and does not end the run.

    Raises:
        InputError: no images, two images of one key, a source that cannot be read, an output folder of another run, a full disk.
        BundleError, BackendError: as :meth:`Tokenizer.open`.
        TooManyFailures: more failed than ``options.max_failures``.
    """
    options = options or TokenizeOptions()
    _check_options(options)
    found = _find(str(source), Path(output).absolute(), options)
    opened = Bundle.open(bundle)
    folder = str(Path(opened.path).absolute())
    if _engine(options, found) == "ray":
        from mgvq_export.dataset.ray_engine import Cluster

        with Cluster(folder, options.run, options.address, options.workers, options.gpus_per_worker, options.debug) as cluster:
            return _run(_prepare(found, cluster.model, folder, options), options, watch, cluster.run)
    with Tokenizer.open(opened, **options.run) as tokenizer:

        def here(job: Job, todo: Sequence[int], images: Sequence[int], count: Count) -> Iterator[Receipt]:
            for number in todo:
                yield run_shard(tokenizer, job, number, count)

        return _run(_prepare(found, model_of(tokenizer), folder, options), options, watch, here)


@dataclass(frozen=True)
class _Found:
    """The source, the result's folder, and what is known of the run: the manifest that is there, or the images."""

    place: str
    source: Source
    output: Path
    image_column: str
    old: RunManifest | None
    table: Any
    classes: list[str]


@dataclass(frozen=True)
class _Plan:
    """A run: its manifest, the job for the workers, how many images each shard has."""

    manifest: RunManifest
    job: Job
    images: list[int]


def _check_options(options: TokenizeOptions) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError("tokenizing data sets needs pyarrow: pip install 'mgvq-export[dataset]'")
    if options.format not in FORMATS:
        raise InputError(f"format is {options.format!r}; choose {', '.join(FORMATS)}")
    if options.engine not in ENGINES:
        raise InputError(f"engine is {options.engine!r}; choose {', '.join(ENGINES)}")
    for name in ("batch", "shard_size", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; wanted a whole number of at least 1")
    if options.format == "npy" and (options.size is None or len(set(parse_size(options.size))) > 1):
        raise InputError("npy is LlamaGen's format, for square images of one size; give --size, such as 256x256")


def _engine(options: TokenizeOptions, found: _Found) -> Engine:
    """The engine to use. Raises :class:`InputError` when Ray is asked for and is not there."""
    ray = importlib.util.find_spec("ray") is not None
    wanted = options.address is not None or options.gpus_per_worker is not None or (options.workers or 1) > 1
    if options.engine == "local" and wanted:
        raise InputError("--address, --workers and --gpus-per-worker are for Ray; leave them out, or choose --engine ray")
    if options.engine == "local" or (options.engine == "auto" and not wanted and not ray):
        return "local"
    if options.engine == "ray" or wanted:
        if not ray:
            raise InputError("the engine ray needs Ray: pip install 'mgvq-export[dataset]', or choose --engine local")
        return "ray"
    images = found.table.num_rows if found.old is None else found.old.counts.images
    return "ray" if images >= FEW_IMAGES and not (found.old and found.old.complete) else "local"


def _find(place: str, output: Path, options: TokenizeOptions) -> _Found:
    """The source and the state of the result's folder."""
    source = find_source(place, options.root)
    _check_output(source, output)
    image_column = find_image_column(source, options.fields) if source.kind == "parquet" else ""
    if (output / MANIFEST).exists():
        return _Found(place, source, output, image_column, read_manifest(output), None, [])
    if output.is_dir() and any(name.name != INDEX and not name.name.startswith(".mgvq-") for name in output.iterdir()):
        raise InputError(f"{output} is not empty and holds no {MANIFEST}; choose another -o")
    table, classes = build_index(source, options.fields)
    if options.format in ("npy", "jsonl") and table.column("class_id").null_count:
        raise InputError(
            f"{options.format} holds a class for every image, and {place} has images without; choose --format parquet"
        )
    check_keys(table.column("key").to_pylist() if options.format in ("safetensors", "webdataset") else [], options.format)
    return _Found(place, source, output, image_column, None, table, classes)


def _prepare(found: _Found, model: Model, bundle: str, options: TokenizeOptions) -> _Plan:
    """The run in the result's folder: the one that is there, if it is the same, else a new one."""
    decides = {
        "format": options.format,
        "size": None if options.size is None else "x".join(map(str, parse_size(options.size))),
        "as_stored": options.as_stored,
        "image_column": options.fields.image,
        "key_column": options.fields.key,
        "class_column": options.fields.label,
        "keep": list(options.fields.keep),
        "max_pixels": options.max_pixels,
        "shard_size": options.shard_size,
    }
    source, output, old = found.source, found.output, found.old
    facts = {"place": found.place, "kind": source.kind, "fingerprint": source.fingerprint}
    if old is not None:
        check_same_run(old, RunManifest(model, facts, decides, old.classes, old.shards, old.counts), output)
        manifest = old
    else:
        shard_size = options.shard_size or shard_images(found.table.num_rows)
        shards = -(-found.table.num_rows // shard_size)
        manifest = RunManifest(model, facts, decides, found.classes, shards, Counts(found.table.num_rows))
        make_folder(output)
        write_index(output, found.table, shard_size)
        manifest.write(output)
    index = open_index(output)
    job = Job(
        bundle,
        options.run,
        str(output),
        manifest.run_id,
        manifest.shards,
        source.kind,
        options.format,
        options.fields.keep,
        found.image_column,
        None if options.size is None else parse_size(options.size),
        options.as_stored,
        options.batch,
        options.max_pixels,
    )
    if index.num_row_groups != manifest.shards or index.metadata.num_rows != manifest.counts.images:
        raise InputError(f"{output / INDEX} does not fit {MANIFEST}; remove {output} and start again")
    return _Plan(manifest, job, [index.metadata.row_group(number).num_rows for number in range(manifest.shards)])


def _check_output(source: Source, output: Path) -> None:
    if not is_remote(source.place) and source.kind == "folder" and output.resolve().is_relative_to(Path(source.place).resolve()):
        raise InputError(f"the output folder {output} lies inside the source, whose images it would join; choose another with -o")


#: An engine: given the job, the shards to do, how many images each shard has, and what counts images; receipts as shards are done.
RunShards = Callable[[Job, Sequence[int], Sequence[int], Count], Iterator[Receipt]]


def _run(plan: _Plan, options: TokenizeOptions, watch: Watch, run_shards: RunShards) -> Summary:
    """Do the shards that are missing, then write the final form."""
    job = plan.job
    receipts: dict[int, Receipt] = {}
    for number, images in enumerate(plan.images):
        receipt = read_receipt(job, number, images)
        if receipt and not (options.retry_failed and receipt.failures):
            receipts[number] = receipt
    todo = [number for number in range(job.shards) if number not in receipts]
    before = sum(plan.images[number] for number in receipts)
    progress = Progress(before, sum(len(receipt.failures) for receipt in receipts.values()))
    made = 0
    if todo and plan.manifest.complete:
        plan.manifest.with_counts(plan.manifest.counts, False).write(job.folder)
    try:
        with watch("tokenize", plan.manifest.counts.images) as progress.update:
            progress.show()
            _check_failures(receipts.values(), options)
            for receipt in run_shards(job, todo, plan.images, progress.add):
                receipts[receipt.shard] = receipt
                made += receipt.rows
                _check_failures(receipts.values(), options)
    finally:
        counts = _counts(receipts.values(), plan.manifest.counts.images)
        failures = [failure for _, receipt in sorted(receipts.items()) for failure in receipt.failures]
        complete = len(receipts) == job.shards
        if todo or not plan.manifest.complete or any(not path.exists() for path in _final(job)):
            with contextlib.suppress(InputError) if not complete else contextlib.nullcontext():
                _write_failures(job.folder / FAILURES, failures)
                if complete:
                    _finish(job)
                plan.manifest.with_counts(counts, complete).write(job.folder)
    return Summary(job.folder, plan.manifest.with_counts(counts, True), made, progress.seconds, failures)


def _check_failures(receipts: Untyped, options: TokenizeOptions) -> None:
    failed = sum(len(receipt.failures) for receipt in receipts)
    if options.max_failures is not None and failed > options.max_failures:
        raise TooManyFailures(
            f"{failed} images failed, more than --max-failures {options.max_failures}; {FAILURES} says which and why. "
            "Give a larger number to go on, or --retry-failed once they are repaired"
        )


def _counts(receipts: Untyped, images: int) -> Counts:
    done = list(receipts)
    return Counts(
        images,
        sum(receipt.rows for receipt in done),
        sum(len(receipt.failures) for receipt in done),
        sum(receipt.codes for receipt in done),
        sum(receipt.pixels for receipt in done),
        sum(receipt.bytes for receipt in done),
    )


def _write_failures(path: Path, failures: list[tuple[str, str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        name: pa.array([failure[place] for failure in failures], pa.string())
        for place, name in enumerate(("key", "path", "reason"))
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _final(job: Job) -> list[Path]:
    """What stands in the result's folder at the end, besides the shards."""
    names = [FAILURES]
    if job.format == "jsonl":
        names.append("pretokenized.jsonl")
    if job.format == "npy" and job.size:
        names += [f"imagenet{job.size[0]}_{what}" for what in ("codes", "labels")]
    return [job.folder / name for name in names]


def _finish(job: Job) -> None:
    """What is made of all shards, and the removal of what a killed worker left half-written."""
    shards = [job.shard(number) for number in range(job.shards)]
    if job.format == "jsonl":
        write_jsonl(job.folder / "pretokenized.jsonl", shards)
    if job.format == "npy":
        assert job.size is not None
        write_npy(job.folder, shards, job.size[0])
    for left in [*job.folder.glob(".mgvq-*"), *job.folder.glob("*/.mgvq-*")]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
