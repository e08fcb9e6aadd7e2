"""``mgvq-export bench``: measures a bundle's tokenizers and their peers in turns: stages, files, memory, operations."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mgvq_export.bench.peers import CEILING_SIDE, CeilingJob, PeerOptions, build_peer, check_peers
from mgvq_export.bench.processes import Baseline, Measured, Outcome, measure, reason
from mgvq_export.bench.record import CEILING, Entry, EntryFacts, Results, Settings, describe_bundle
from mgvq_export.bench.stages import TimedSessions, overhead
from mgvq_export.bench.timing import Laps
from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import InputError
from mgvq_export.core.files import PathLike
from mgvq_export.core.spec import ModelSpec, Part
from mgvq_export.core.tokens import Tokens
from mgvq_export.core.units import Size
from mgvq_export.parity.verify import SAMPLES
from mgvq_export.runtime.backend import GraphRunner
from mgvq_export.runtime.image_files import read_image, write_image
from mgvq_export.runtime.tokenizer import OpenOptions, Tokenizer

Progress = Callable[[str, int], None]

DEFAULT_SIZE = (1024, 1024)


@dataclass(frozen=True)
class BenchOptions:
    """What to measure: every combination of backend, precision and tiling at every size, and the peers.

    Attributes:
        sizes: (height, width) each; a photo is extended to it by mirroring. Not used when ``image`` is given.
        image: an image to measure at its own size.
        backends: as in ``Tokenizer.open``.
        precisions: fp32 if the bundle has it, else what it has, when empty.
        tilings, tile, memory_limit, threads: as in ``Tokenizer.open``.
        against: names of :data:`~mgvq_export.bench.peers.PEERS`.
        repeat: timed passes of each.
        checkpoint: for the torch peers, when it is no longer at the path that the bundle was exported from.
    """

    sizes: tuple[Size, ...] = (DEFAULT_SIZE,)
    image: Path | None = None
    backends: tuple[str, ...] = ("auto",)
    precisions: tuple[str, ...] = ()
    tilings: tuple[str, ...] = ("auto",)
    tile: Size | None = None
    memory_limit: str | None = None
    threads: int | None = None
    against: tuple[str, ...] = ()
    repeat: int = 10
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        check_peers(self.against)
        if self.repeat < 1:
            raise InputError(f"repeat is {self.repeat}; wanted at least 1")


@dataclass(frozen=True)
class Case:
    """One tokenizer to measure."""

    backend: str
    precision: str
    tiling: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision} {self.tiling}"


def bench(
    bundle: PathLike | Bundle,
    options: BenchOptions | None = None,
    *,
    progress: Progress = lambda name, done: None,
) -> Results:
    """Measure ``bundle``: for each size, load all cases and peers, each in its own process, and time them in turns.

    The others and the peers are compared with the first case of a size; a matrix product is timed in turn too.

    Args:
        progress: called with a name and the number of passes done, of :func:`passes`.

    Raises:
        InputError: an unknown peer or tiling, a size no larger than one latent cell, an image that cannot be read.
        BundleError: no bundle, or it lacks a precision.
        BackendError: a backend is unknown, not installed, or ran into an error.
    """
    options = options or BenchOptions()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    cases = _cases(bundle, options)
    sizes = [read_image(options.image).shape[:2]] if options.image else options.sizes
    for size in sizes:
        _check_size(bundle.spec, size)
    results = Results("tokenizer", [], _settings(options), describe_bundle(bundle))
    with tempfile.TemporaryDirectory(prefix="mgvq-bench-") as folder:
        for number, size in enumerate(sizes):
            image = options.image or _picture(size, Path(folder))
            baselines = _baselines(bundle, options, cases, image, Path(folder))
            each = len(baselines) * (options.repeat + 1)
            told = partial(_tell, progress, number * each)
            found = measure(baselines, options.repeat, threads=options.threads, progress=told)
            results.entries += _entries(bundle, cases, f"{size[1]}x{size[0]}", found)
    results.settings["overhead_seconds"] = overhead()
    return results


def _tell(progress: Progress, before: int, name: str, done: int) -> None:
    progress(name, before + done)


def passes(options: BenchOptions) -> int:
    """Passes that :func:`bench` makes over all baselines and sizes."""
    cases = len(options.backends) * max(1, len(options.precisions)) * len(options.tilings)
    sizes = 1 if options.image else len(options.sizes)
    return (cases + len(options.against) + 1) * (options.repeat + 1) * sizes


def _cases(bundle: Bundle, options: BenchOptions) -> list[Case]:
    cases = []
    for backend, precision, tiling in itertools.product(options.backends, options.precisions or (None,), options.tilings):
        # Opened once before anything is loaded, so that wrong options are reported at once.
        with Tokenizer.open(bundle, **_choices(options, backend, precision, tiling)) as tokenizer:
            cases.append(Case(tokenizer.backend, tokenizer.precision, tiling))
    return list(dict.fromkeys(cases))


def _choices(options: BenchOptions, backend: str, precision: str | None, tiling: str) -> OpenOptions:
    tile = None if tiling == "off" else options.tile  # so that off and exact can be measured in one run
    return {
        "threads": options.threads,
        "memory_limit": options.memory_limit,
        "backend": backend,
        "precision": precision,
        "tiling": tiling,
        "tile": tile,
    }


def _check_size(spec: ModelSpec, size: Sequence[int]) -> None:
    f = spec.downsample
    if min(size) <= f:
        raise InputError(
            f"size {size[1]}x{size[0]} is no larger than one cell of {spec.name}, {f}x{f}; wanted at least {2 * f}x{2 * f}"
        )


def _settings(options: BenchOptions) -> Settings:
    return {
        "tile": None if options.tile is None else list(options.tile),
        "memory_limit": options.memory_limit,
        "threads": options.threads,
        "against": list(options.against),
        "repeat": options.repeat,
        "image": str(options.image) if options.image else "coffee.jpg, mirrored out to the size",
    }


def _picture(size: Size, folder: Path) -> Path:
    """A photo mirrored at its edges to ``size``, as a JPEG file: similar detail at every size."""
    photo = read_image(SAMPLES / "coffee.jpg")
    missing = [max(0, want - have) for want, have in zip(size, photo.shape[:2], strict=True)]
    whole = np.pad(photo, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    path = folder / f"{size[1]}x{size[0]}.jpg"
    write_image(path, np.ascontiguousarray(whole[: size[0], : size[1]]))
    return path


def _baselines(bundle: Bundle, options: BenchOptions, cases: Sequence[Case], image: Path, folder: Path) -> list[Baseline]:
    found = []
    for case in cases:
        chosen = _choices(options, case.backend, case.precision, case.tiling)
        found.append(Baseline(str(case), TokenizerJob, (bundle.path, chosen, image, folder)))
    first = cases[0]
    for name in options.against:
        peer = PeerOptions(bundle.path, image, first.precision, first.backend, options.threads, options.checkpoint)
        found.append(Baseline(name, build_peer, (name, peer), optional=True))
    return [*found, Baseline(CEILING, CeilingJob, (first.backend, first.precision, CEILING_SIDE), optional=True)]


class TokenizerJob:
    """One pass: image file to token file to image file, by stages.

    The plans are made once, so that all passes are alike; making them is not timed.
    """

    def __init__(self, bundle: Path, choices: OpenOptions, image: Path, folder: Path):
        self._sessions: TimedSessions | None = (
            None  # None for backends that do not run graph by graph: only whole stages are timed
        )
        self._tokenizer = Tokenizer.open(bundle, **choices, instrument=self._time)
        self._image = image
        # Named after this object: several jobs write to one folder.
        self._tokens_file, self._image_file = (
            folder / f"{id(self):x}-{time.time_ns()}{suffix}" for suffix in (".safetensors", ".png")
        )
        self._outcome: Outcome = {}

    def _time(self, graphs: GraphRunner) -> GraphRunner:
        self._sessions = TimedSessions(graphs)
        return self._sessions

    def warm_up(self) -> None:
        """Load, compile and start threads on a small input; not timed."""
        size = read_image(self._image).shape[:2]
        side = 4 * self._tokenizer.spec.downsample
        small = (side, side) if self._sessions else size  # engines may be built for one size only
        self._plan(size)  # a limit that is too small is then reported for this size
        self._tokenizer.decode(self._tokenizer.encode(np.zeros((*small, 3), np.uint8)))
        self._plan(size)  # again, for the memory in use now

    def _plan(self, size: Size) -> None:
        self._encode_plan, self._decode_plan = self._tokenizer.encode_plan(*size), self._tokenizer.decode_plan(*size)

    def run(self) -> dict[str, float]:
        """One pass: seconds by stage."""
        if self._sessions:
            self._sessions.reset()
        laps = Laps(time.perf_counter)
        image = read_image(self._image)
        laps.lap("read")
        tokens = self._tokenizer.encode(image, plan=self._encode_plan)
        encode = self._parts("encode", laps.lap("encode"))
        tokens.save(self._tokens_file)
        laps.lap("save")
        tokens = Tokens.load(self._tokens_file)
        laps.lap("load")
        image = self._tokenizer.decode(tokens, plan=self._decode_plan)
        decode = self._parts("decode", laps.lap("decode"))
        write_image(self._image_file, image)
        laps.lap("write")
        self._outcome["codes"] = tokens.codes
        return laps.seconds | encode | decode

    def _parts(self, direction: str, whole: float) -> dict[str, float]:
        """Seconds of the graphs, and of the work between them: padding, conversion, windows."""
        if self._sessions is None:
            return {}
        parts = {f"{direction}/{part}": seconds for part, seconds in self._sessions.seconds.items()}
        runs = [(part, dict(shapes), count) for (part, shapes), count in self._sessions.runs.items()]
        if direction == "encode":
            self._outcome["encode"] = runs
        else:
            self._outcome["decode"] = runs
        self._sessions.reset()
        return {f"{direction}/convert": whole - sum(parts.values())} | parts

    def outcome(self) -> Outcome:
        """Facts about the last pass, as :class:`~mgvq_export.bench.processes.Measured` keeps them."""
        return {
            **self._outcome,
            "facts": {"encode_plan": str(self._encode_plan), "decode_plan": str(self._decode_plan)},
        }


def _entries(bundle: Bundle, cases: Sequence[Case], group: str, found: Mapping[str, Measured]) -> list[Entry]:
    by_name = {str(case): case for case in cases}
    reference: np.ndarray | None = None
    entries = []
    for name, measured in found.items():
        outcome: Outcome = measured.outcome or {}
        facts: EntryFacts = {**outcome.get("facts", {})}
        if name in by_name:
            case = by_name[name]
            facts |= {"backend": case.backend, "precision": case.precision, "tiling": case.tiling}
            facts |= _operations(bundle, case.precision, outcome)
        if "codes" in outcome:
            reference = outcome["codes"] if reference is None else reference
            facts |= {"codes": int(reference.size), "differ": int((outcome["codes"] != reference).sum())}
        entries.append(Entry.of(name, group, measured, facts))
    return entries


def _operations(bundle: Bundle, precision: str, outcome: Outcome) -> EntryFacts:
    """``flop``: stage -> operations of one pass, windows and their halos included; or ``no_flop``: why not."""
    flop: dict[str, int] = {}
    if "encode" not in outcome:
        return {"no_flop": "this backend does not run graph by graph"}
    try:
        from mgvq_export.export.graphs.flops import graph_flops

        for direction, runs in (("encode", outcome["encode"]), ("decode", outcome["decode"])):
            for part, shapes, count in runs:
                operations = count * graph_flops(bundle.graph_path(precision, Part(part)), shapes)
                if operations:
                    flop[f"{direction}/{part}"] = flop.get(f"{direction}/{part}", 0) + operations
            flop[direction] = sum(value for stage, value in flop.items() if stage.startswith(f"{direction}/"))
    except (ImportError, InputError) as error:
        return {"no_flop": reason(error)}
    return {"flop": flop}
