"""From images to a precision plan: ranges, float16 safety, 8-bit search, and everything measured again on other images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import mgvq_export
from mgvq_export.bundle import Bundle, package_version
from mgvq_export.calibration.effects import Effect, Effects, Graphs, Journal
from mgvq_export.calibration.items import Choice, Scales, conv_choices, convolutions, inner_convolutions, skip_choices
from mgvq_export.calibration.ranges import Ranges, collect
from mgvq_export.calibration.safety import make_safe
from mgvq_export.calibration.search import Harm, Point, Search, search
from mgvq_export.calibration.windows import Windows, list_images
from mgvq_export.errors import BundleError, InputError
from mgvq_export.export.plans import check_plan, plan_nodes
from mgvq_export.files import PathLike, make_folder, sha256_file
from mgvq_export.model.network import MGVQ
from mgvq_export.parity.network import find_network
from mgvq_export.precision import LARGEST, Budgets, MadeFor, NodePlan, PrecisionPlan
from mgvq_export.runtime.images import read_image

#: What is asked for unless the user asks for something else, by precision.
DEFAULT_BUDGETS = {
    "fp16": Budgets(min_code_agreement=0.99, min_psnr=50.0, max_psnr_drop=0.01),
    "int8": Budgets(min_code_agreement=0.985, min_psnr=38.0, max_psnr_drop=0.15),
    "fp8": Budgets(min_code_agreement=0.985, min_psnr=38.0, max_psnr_drop=0.15),
}

_CURVE_POINTS = 6  # of the curve, measured again on the held-out images

#: Called with what is being done and the share done so far, 0 to 1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """What kind of plan is wanted. Raises :class:`InputError` on contradictions.

    Attributes:
        precision: ``fp16``, ``int8`` or ``fp8``.
        budgets: see :data:`DEFAULT_BUDGETS`.
        parts: sides that 8 bits are tried in, ``decoder`` and ``encoder``. An 8-bit encoder changes codes.
        base: type of what is not in 8 bits, ``fp16`` or ``fp32``.
        measured_islands: start with everything in float16, norms and attention too, instead of keeping them in float32. Only for
            images no larger than the windows: attention sums grow with the image.
        windows, window_size: how many windows of how many pixels a side the ranges are taken from.
        search_windows: how many of them plans are measured on.
        margin: share of the allowed loss that a search leaves unused, 0 to below 1, so that other images stay within the budgets too.
        name: of the plan, and of the folder in a bundle; the precision when None.
    """

    precision: str = "int8"
    budgets: Budgets = DEFAULT_BUDGETS["int8"]
    parts: tuple[str, ...] = ("decoder",)
    base: str = "fp16"
    measured_islands: bool = False
    windows: int = 64
    window_size: int = 256
    search_windows: int = 8
    margin: float = 0.25
    name: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in DEFAULT_BUDGETS:
            raise InputError(f"precision is {self.precision!r}; choose {', '.join(DEFAULT_BUDGETS)}")
        wrong = [part for part in self.parts if part not in ("decoder", "encoder")]
        if wrong or not self.parts:
            raise InputError(f"parts are {', '.join(wrong) or 'none'}; choose decoder, encoder or both")
        PrecisionPlan(self.name or self.precision, self.base, {})  # refuses a name or base that cannot be
        if self.search_windows < 1:
            raise InputError(f"search windows is {self.search_windows}; wanted at least 1")
        if not 0 <= self.margin < 1:
            raise InputError(f"margin is {self.margin}; wanted a share of the allowed loss, 0 to below 1")

    @property
    def target(self) -> Budgets:
        """What a search reaches on the windows: the budgets less the margin."""
        return self.budgets.tightened(self.margin)


@dataclass
class Calibration:
    """A plan and how it was found.

    Attributes:
        plan: with the figures in ``measured``.
        ranges: of every value.
        searches: side, or side and "skips" -> what the search found; empty for fp16.
        effect, held_out: of the plan, on windows of the calibration images and on the held-out images.
        baseline: plan "every convolution but first and last, scales from max", share of work, effects on both; None for fp16.
        curve_held_out: share of work and effect of some points of the curve on the held-out images.
        compared: the side that ``baseline`` and ``curve_held_out`` are of.
        notes: what the user should know.
    """

    plan: PrecisionPlan
    ranges: Ranges
    searches: dict[str, Search]
    effect: Effect
    held_out: Effect
    shares: dict[str, float] = field(default_factory=dict)
    baseline: tuple[float, Effect, Effect] | None = None
    curve_held_out: list[tuple[float, Effect]] = field(default_factory=list)
    compared: str = ""
    notes: list[str] = field(default_factory=list)


def calibrate(
    bundle: PathLike | Bundle,
    images: Sequence[PathLike],
    options: Options,
    *,
    checkpoint: PathLike | None = None,
    held_out: Sequence[PathLike] = (),
    report_dir: PathLike | None = None,
    progress: Progress = lambda step, share: None,
) -> Calibration:
    """The precision plan of ``options`` for the network that ``bundle`` was exported from.

    Ranges on all windows; nodes that float16 is not safe for; 8-bit candidates, scales and search; the whole plan measured, and
    cut back while it misses the budgets; measured again on the held-out images.

    Args:
        images: files and folders.
        checkpoint: as in ``verify``.
        held_out: files and folders, none of them among ``images``; the packaged sample photos when empty.
        report_dir: folder for the state of an interrupted run, which is continued; nothing is kept when None.

    Raises:
        InputError: images that cannot be used, or budgets that no plan meets (with the best there is).
        BundleError: no network for the bundle.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    windows = Windows(tuple(list_images(images)), options.windows, options.window_size)
    others = held_out_images(held_out, windows, bundle.spec.downsample)
    network, why = find_network(bundle, None if checkpoint is None else str(checkpoint))
    if network is None:
        raise BundleError(f"calibration needs the network that {bundle.path} was exported from: {why}")
    if report_dir is not None:
        make_folder(report_dir)
    folder = None if report_dir is None else Path(report_dir)
    source = bundle.manifest["source"]["sha256"]
    key = hashlib.sha256(f"{mgvq_export.__version__} {source} {windows.sha256}".encode()).hexdigest()
    ranges = collect(
        network,
        windows,
        key,
        path=folder and folder / "ranges.json",
        progress=lambda done, total: progress(f"ranges: window {done} of {total}", 0.4 * done / total),
    )
    journal = Journal(folder and folder / "measurements.jsonl")
    every = max(1, options.windows // options.search_windows)
    shown = [window.copy() for index, window in enumerate(windows.read()) if index % every == 0][: options.search_windows]
    graphs = Graphs(network)
    effects = Effects(graphs, shown, f"{key} {options.search_windows}", journal)
    elsewhere = Effects(
        graphs,
        [image for _, image, _ in others],
        f"{mgvq_export.__version__} {source} {[digest for *_, digest in others]}",
        journal,
    )
    found = _Calibrator(network, ranges, options, effects, elsewhere, progress).run()
    plan = replace(
        found.plan,
        made_for=MadeFor(bundle.spec.name, source, bundle.codebook_sha256),
        budgets=options.budgets,
        measured=_measured(found),
        calibration=_calibration_set(windows, options, others),
        tools={"mgvq-export": mgvq_export.__version__}
        | {
            name: package_version(name)
            for name in ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy")
            if package_version(name)
        },
    )
    check_plan(plan, network)
    found.plan = plan
    return found


def held_out_images(paths: Sequence[PathLike], windows: Windows, multiple: int) -> list[tuple[str, np.ndarray, str]]:
    """Name, pixels and SHA-256 of the held-out images; their sides are cut to multiples of ``multiple``.

    Raises :class:`InputError` when one of them is among the calibration images, or too small.
    """
    found = []
    for path in list_images(paths or [Path(mgvq_export.__file__).parent / "parity" / "samples"]):
        digest = sha256_file(path)
        if digest in windows.hashes:
            raise InputError(f"{path} is held out and among the calibration images; leave it out of one of them")
        image = read_image(path)
        height, width = (side // multiple * multiple for side in image.shape[:2])
        if not height or not width:
            raise InputError(f"{path} is {image.shape[0]}x{image.shape[1]}, smaller than one token of {multiple}x{multiple}")
        found.append((path.name, image[:height, :width], digest))
    return found


class _Calibrator:
    """One run: the steps share the network's nodes, the measurements and the count of steps done."""

    def __init__(self, network: MGVQ, ranges: Ranges, options: Options, effects: Effects, held_out: Effects, progress: Progress):
        self.network, self.ranges, self.options = network, ranges, options
        self.effects, self.held_out, self.progress = effects, held_out, progress
        self.known = plan_nodes(network)
        self.expected = 30  # measurements, for the progress bar; raised when the search knows better

    def run(self) -> Calibration:
        if self.options.precision in LARGEST:
            return self._eight_bits()
        plan, effect = self._safe()
        self.say("held-out images")
        found = Calibration(plan, self.ranges, {}, effect, self.held_out.measure(plan))
        names = [node for node in plan.nodes.values() if node.precision == "fp32"]
        found.notes.append(
            f"{len(names)} nodes go to float32 besides norms and attention"
            if names
            else "no node needs float32 besides norms and attention"
        )
        if self.options.measured_islands:
            found.notes[-1] = f"{len(names)} of {len(self.known)} nodes stay in float32"
        return found

    def say(self, step: str) -> None:
        self.progress(step, 0.4 + 0.55 * min(1.0, self.effects.count / self.expected))

    def _safe(self) -> tuple[PrecisionPlan, Effect]:
        options = self.options
        nodes = (
            {name: NodePlan("fp16") for name, node in self.known.items() if node.dtype == "fp32"}
            if options.measured_islands
            else {}
        )
        plan = PrecisionPlan(options.name or options.precision, "fp16", nodes)
        # What 8 bits add comes on top: their base must meet the target as it is.
        budgets = options.target if options.precision in LARGEST else options.budgets
        return make_safe(self.effects, self.ranges, self.known, plan, budgets, target=options.target, say=self.say)

    def _eight_bits(self) -> Calibration:
        options = self.options
        base = PrecisionPlan(options.name or options.precision, options.base, {})
        if options.base == "fp16":
            base, _ = self._safe()
        scales = Scales(self.ranges, options.precision)
        chosen: list[Choice] = []
        searches: dict[str, Search] = {}
        for side in ("decoder", "encoder"):
            if side in options.parts:
                chosen += self._search_side(side, scales, base, chosen, searches)
        plan, effect, dropped = self._cut_back(base, scales, chosen)
        found = Calibration(plan, self.ranges, searches, effect, effect)
        found.shares = {side: self._share(side, plan) for side in options.parts}
        if dropped:
            found.notes.append(
                f"taken back, since it fitted with the rest in fp32 but not in {options.base}: {_named(chosen[-dropped:])}"
            )
        found.notes += [f"{value} is left alone: {why}" for value, why in scales.unusable.items()]
        self._compare(found, scales, base)
        return found

    def _search_side(
        self, side: str, scales: Scales, base: PrecisionPlan, already: Sequence[Choice], searches: dict[str, Search]
    ) -> list[Choice]:
        """Choices of one side within the budgets: convolutions, then the skip branches beside them."""
        harm: Harm = (lambda effect: effect.error) if side == "decoder" else (lambda effect: 1 - effect.agreement)
        exact = PrecisionPlan("trial", "fp32", {})
        start = {choice.item.name: choice for choice in already}
        taken: list[Choice] = []
        promoted = [name for name, node in base.nodes.items() if node.precision == "fp32"]
        convs = conv_choices(inner_convolutions(self.known, side, promoted))
        total = sum(node.macs for node in convolutions(self.known, side))
        for title, choices, work in ((side, convs, total), (f"{side} skips", skip_choices(self.known, side, promoted), None)):
            self.expected = self.effects.count + 4 * len(choices) + 10
            usable = scales.choose(choices, side, self.effects, harm, self.say)
            by_name = {choice.item.name: choice for choice in usable} | start

            def measure(names: Sequence[str], by_name: dict[str, Choice] = by_name, title: str = title) -> Effect:
                self.say(f"{title}: {len(names)} in {self.options.precision}")
                return self.effects.measure(scales.plan(exact, [by_name[name] for name in names]))

            items = [choice.item for choice in usable]
            if work is not None and not items:
                raise InputError(
                    f"the {side} has no convolution that {self.options.precision} is for, or all its values are zero: try fp16"
                )
            found = search(items, work or len(items), measure, self.options.target, harm=harm, start=list(start))
            searches[title] = found
            if found.chosen is None:
                if work is None:
                    break  # skip branches are an extra
                raise InputError(self._best_there_is(side, found))
            taken += [by_name[name] for name in found.chosen.names]
            start |= {name: by_name[name] for name in found.chosen.names}
        return taken

    def _best_there_is(self, side: str, found: Search) -> str:
        best = max((one for one in found.alone), key=lambda one: one.effect.psnr if side == "decoder" else one.effect.agreement)
        return (
            f"no convolution of the {side} can run in {self.options.precision} within the budgets; the best, {best.names[0]} alone "
            f"({best.share:.1%} of the work), gives {'; '.join(best.effect.misses(self.options.target))}{self._margin_said()}"
        )

    def _margin_said(self) -> str:
        margin = self.options.margin
        return f" (a margin of {margin:.0%} below the budgets, for other images; --margin 0 leaves none)" if margin else ""

    def _cut_back(self, base: PrecisionPlan, scales: Scales, chosen: Sequence[Choice]) -> tuple[PrecisionPlan, Effect, int]:
        """The plan of ``chosen`` on ``base``, its effect, and how many of the last choices had to go for the budgets to hold."""
        for dropped in range(len(chosen)):
            plan = scales.plan(base, chosen[: len(chosen) - dropped])
            self.say("the whole plan")
            effect = self.effects.measure(plan)
            if effect.holds(self.options.target):
                return plan, effect, dropped
        raise InputError(
            f"no {self.options.precision} plan meets the budgets with {self.options.base} for the rest; "
            f"with one choice in {self.options.precision}: {'; '.join(effect.misses(self.options.target))}{self._margin_said()}; try --base fp32"
        )

    def _share(self, side: str, plan: PrecisionPlan) -> float:
        """The share of a side's convolution work that ``plan`` has in 8 bits."""
        convs = convolutions(self.known, side)
        return sum(node.macs for node in convs if node.name in plan.nodes and plan.nodes[node.name].quantized) / sum(
            node.macs for node in convs
        )

    def _compare(self, found: Calibration, scales: Scales, base: PrecisionPlan) -> None:
        """Hold the search against the plan that needs none, and measure on the held-out images."""
        side = found.compared = "decoder" if "decoder" in self.options.parts else "encoder"
        exact = PrecisionPlan("trial", "fp32", {})
        plain = Scales(self.ranges, self.options.precision)
        everything = conv_choices(inner_convolutions(self.known, side))
        for choice in everything:
            rules = plain.rules(side, choice.value)
            if rules:
                plain.chosen[choice.value] = next(scale for scale in rules if scale.method == "max")
                plain.why[choice.value] = "max"
        plan = plain.plan(exact, [choice for choice in everything if choice.value in plain.chosen])
        self.say("every convolution but first and last")
        found.baseline = (self._share(side, plan), self.effects.measure(plan), self.held_out.measure(plan))
        found.notes.append(versus(found.searches[side], found.baseline[0], found.baseline[1], side))
        promoted = [name for name, node in base.nodes.items() if node.precision == "fp32"]
        by_name = {choice.item.name: choice for choice in conv_choices(inner_convolutions(self.known, side, promoted))}
        for point in _thinned(found.searches[side].curve):
            self.say("held-out images")
            trial = scales.plan(exact, [by_name[name] for name in point.names])
            found.curve_held_out.append((point.share, self.held_out.measure(trial)))
        found.held_out = self.held_out.measure(found.plan)


def versus(found: Search, share: float, effect: Effect, side: str = "decoder") -> str:
    """Whether the search's points beat a plan of ``share`` and ``effect`` at equal quality, in one sentence."""
    wanted, unit = effect.quality(side), "dB" if side == "decoder" else "% of codes equal"
    as_good = [one for one in found.curve if one.effect.quality(side) >= wanted]
    best = max(as_good, key=lambda one: (one.share, one.effect.quality(side)), default=None)
    plain = (
        f'"every convolution but first and last, scales from max" has {share:.1%} of the work in 8 bits at {wanted:.2f} {unit}'
    )
    if best is None or best.share < share - 1e-9:
        return f"{plain}; at that quality the search does not beat it{f': {best.share:.1%}' if best else ''}"
    reached = best.effect.quality(side)
    if best.share > share + 1e-9:
        return f"{plain}; the search beats it: {best.share:.1%} at {reached:.2f} {unit}"
    if reached - wanted < 0.005:
        return f"{plain}; the search finds the same and does not beat it"
    return f"{plain}; with as much work in 8 bits the search's scales give {reached:.2f}, {reached - wanted:.2f} more"


def _named(choices: Sequence[Choice]) -> str:
    return ", ".join(choice.item.name for choice in choices)


def _thinned(curve: Sequence[Point]) -> Iterator[Point]:
    """At most ``_CURVE_POINTS`` points, the last among them, evenly spaced; the first, with nothing in 8 bits, is left out."""
    count = min(_CURVE_POINTS, len(curve) - 1)
    for index in range(1, count + 1):
        yield curve[index * (len(curve) - 1) // count]


def _measured(found: Calibration) -> dict[str, Any]:
    values: dict[str, Any] = {"calibration": found.effect.to_dict(), "held_out": found.held_out.to_dict()}
    if found.shares:
        values["share_of_convolution_work"] = {side: round(share, 6) for side, share in found.shares.items()}
    return values


def _calibration_set(windows: Windows, options: Options, others: Sequence[tuple[str, np.ndarray, str]]) -> dict[str, Any]:
    used = zip(windows.per_image, windows.hashes, strict=True)
    return {
        "sha256": windows.sha256,
        "windows": options.windows,
        "window_size": options.window_size,
        "search_windows": options.search_windows,
        "margin": options.margin,
        "images": [{"name": path.name, "sha256": digest, "windows": count} for (path, count), digest in used],
        "held_out": [{"name": name, "sha256": digest} for name, _, digest in others],
    }
