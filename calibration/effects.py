"""The effect of a plan on codes and pixels, measured against fp32 on real images and kept in a journal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from mgvq_export.calibration.rounding import has_float16, rounded
from mgvq_export.core.budgets import Budgets
from mgvq_export.core.errors import InputError
from mgvq_export.core.json_files import JsonSource, convert_json, parse_json, read_bounded, to_json
from mgvq_export.core.precision_plan import PrecisionPlan, side_of
from mgvq_export.core.spec import Part
from mgvq_export.core.types import JsonObject
from mgvq_export.export.graphs.builder import WeightStore
from mgvq_export.export.graphs.in_memory import load_session
from mgvq_export.export.graphs.parts import build_graph
from mgvq_export.model.network import MGVQ
from mgvq_export.parity.metrics import agreement, psnr
from mgvq_export.runtime.images import to_float

_JOURNAL_BYTES = 256 << 20
_PEAK = 2.0  # pixels span [-1, 1]

REFERENCE = PrecisionPlan("reference", "fp32", {})
SIDES = ("encoder", "decoder")

#: One array per image, or None when some value was not finite.
Results = list[np.ndarray] | None


@dataclass(frozen=True)
class Effect:
    """The difference between a plan and fp32 on some images.

    Attributes:
        agreement: share of codes that equal fp32's, over all images, 0 to 1.
        psnr: dB of the decoder against fp32 decoding of the same codes, of the worst image; infinite when equal.
        drop: dB that encoding and decoding loses against the photo compared with fp32, mean over the images.
        worst_drop: the same, of the image that loses most.
        error: mean squared difference of the pixels behind ``psnr``, over all images.
        finite: whether all latents and pixels were finite; else agreement is 0, psnr -inf, drops and error inf.
    """

    agreement: float
    psnr: float
    drop: float
    worst_drop: float
    error: float
    finite: bool = True

    def misses(self, budgets: Budgets, *, worst: bool = False) -> list[str]:
        """The budgets that are not met, as text; empty when all are.

        ``worst``: judge by ``worst_drop``, as verification does on whole images, in place of the mean. For windows the mean is better:
        one code that changes can move the PSNR of a small image by more than a precision does.
        """
        if not self.finite:
            return ["values are not finite"]
        found = []
        if budgets.min_code_agreement is not None and not self.agreement >= budgets.min_code_agreement:
            found.append(f"code agreement {self.agreement:.2%}, wanted at least {budgets.min_code_agreement:.2%}")
        if budgets.min_psnr is not None and not self.psnr >= budgets.min_psnr:
            found.append(f"{self.psnr:.2f} dB against fp32, wanted at least {budgets.min_psnr:g}")
        drop = self.worst_drop if worst else self.drop
        if budgets.max_psnr_drop is not None and not drop <= budgets.max_psnr_drop:
            found.append(f"{drop:.3f} dB lost against the photos, wanted at most {budgets.max_psnr_drop:g}")
        return found

    def holds(self, budgets: Budgets) -> bool:
        """Whether all budgets are met, drops by their mean."""
        return not self.misses(budgets)

    def quality(self, side: str) -> float:
        """The figure by which 8 bits on one side are judged: ``psnr`` of the decoder, percent of equal codes of the encoder."""
        return self.psnr if side == "decoder" else 100 * self.agreement

    def to_dict(self) -> JsonObject:
        """JSON-ready; infinite figures as text."""
        return to_json(self)


_BROKEN = Effect(0.0, -math.inf, math.inf, math.inf, math.inf, finite=False)


Figure = float | Literal["inf", "-inf"]


@dataclass(frozen=True)
class _StoredEffect:
    """A line of the journal: infinite figures are text."""

    key: str
    effect: _StoredFigures

    def restored(self) -> Effect:
        found = self.effect
        return Effect(
            found.agreement,
            float(found.psnr),
            float(found.drop),
            float(found.worst_drop),
            float(found.error),
            found.finite,
        )


@dataclass(frozen=True)
class _StoredFigures:
    agreement: Annotated[float, Meta(ge=0, le=1)]
    psnr: Figure
    drop: Figure
    worst_drop: Figure
    error: Figure
    finite: bool


class Journal:
    """Measurements by key, one JSON object a line, so that an interrupted run can be continued."""

    def __init__(self, path: Path | None):
        self.path = path
        self._known: dict[str, Effect] = {}
        self._open_line = ""
        if path is not None and path.is_file():
            data = read_bounded(path, _JOURNAL_BYTES)
            self._open_line = "" if data.endswith(b"\n") or not data else "\n"
            for line in data.splitlines():
                source = JsonSource(str(path), "")
                # A line that is damaged, such as the one being written when a run was stopped, is measured again.
                with contextlib.suppress(InputError):
                    entry = convert_json(parse_json(line, source), _StoredEffect, source)
                    self._known[entry.key] = entry.restored()

    def get(self, key: str) -> Effect | None:
        """The measurement of ``key``, if there is one."""
        return self._known.get(key)

    def add(self, key: str, effect: Effect) -> None:
        """Keep a measurement. Raises :class:`InputError` when the file cannot be written."""
        self._known[key] = effect
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(self._open_line + json.dumps({"key": key, "effect": effect.to_dict()}) + "\n")
                self._open_line = ""
            except OSError as error:
                raise InputError(
                    f"cannot write {self.path}: {error.strerror}; choose another folder with --report-dir"
                ) from error


class Graphs:
    """The graphs of one network under plans, ready to run; float16 as a GPU rounds it (:mod:`~mgvq_export.calibration.rounding`)."""

    def __init__(self, network: MGVQ):
        self.network = network
        self._weights: dict[str, WeightStore] = {}
        self._loaded: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {}

    def load(self, plan: PrecisionPlan, side: str) -> Callable[[np.ndarray], np.ndarray]:
        """The function values -> values of one side under ``plan``; the latest of each side stays loaded."""
        key = _side_key(plan, side)
        if self._loaded.get(side, ("", None))[0] != key:
            self._loaded.pop(side, None)  # first, so that two sets of weights need not fit in memory
            # Weights are stored once per base type; building again adds only what is quantized for the first time.
            weights = self._weights.setdefault(plan.base, WeightStore())
            model = build_graph(self.network, Part(side), plan, weights)
            session = load_session(rounded(model) if has_float16(model) else model, weights)
            name = session.get_inputs()[0].name
            self._loaded[side] = (key, lambda values: session.run(None, {name: values})[0])
        return self._loaded[side][1]


class Effects:
    """Measures plans of one network on some images."""

    def __init__(self, graphs: Graphs, images: Sequence[np.ndarray], key: str, journal: Journal | None = None):
        """
        Args:
            graphs: those of the network; several objects may share them, which saves loading and memory.
            images: uint8 [H, W, 3], sides multiples of f.
            key: hash of network and images: measurements with another one in the journal are not used.
        """
        self.graphs, self.images, self.key = graphs, images, key
        self.network = graphs.network
        self.journal = journal or Journal(None)
        self.count = 0  # plans measured, those from the journal included
        self._results: dict[str, tuple[str, Results]] = {}

    def measure(self, plan: PrecisionPlan) -> Effect:
        """The effect of ``plan``."""
        key = hashlib.sha256("".join([self.key, *(_side_key(plan, side) for side in SIDES)]).encode()).hexdigest()
        self.count += 1
        effect = self.journal.get(key)
        if effect is None:
            effect = self._measure(plan)
            self.journal.add(key, effect)
        return effect

    @cached_property
    def reference(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Codes int32 [1, G, h, w] and pictures float32 [1, 3, H, W], not clipped, of every image in fp32."""
        encode, decode = self.graphs.load(REFERENCE, "encoder"), self.graphs.load(REFERENCE, "decoder")
        codes = [self._codes(encode(to_float(image))) for image in self.images]
        return codes, [decode(self._rows(one)) for one in codes]

    def _measure(self, plan: PrecisionPlan) -> Effect:
        codes, pictures = self.reference
        own = self._latest("encoder", plan, self._own_codes)
        same = self._latest("decoder", plan, self._same_codes)
        if own is None or same is None:
            return _BROKEN
        equal, drops, errors = 0.0, [], []
        for image, code, picture, own_code, decoded in zip(self.images, codes, pictures, own, same, strict=True):
            equal += agreement(own_code, code) * code.size
            errors.append(float(np.mean(np.square(decoded.astype(np.float64) - picture))))
            if not np.array_equal(own_code, code):
                decoded = self.graphs.load(plan, "decoder")(self._rows(own_code))
            drops.append(_photo_psnr(picture, image) - _photo_psnr(decoded, image))
        if not np.isfinite(drops).all():
            return _BROKEN
        lowest = 10 * math.log10(_PEAK**2 / max(errors)) if max(errors) else math.inf
        mean = sum(drops) / len(drops)
        return Effect(equal / sum(code.size for code in codes), lowest, mean, max(drops), sum(errors) / len(errors))

    def _own_codes(self, plan: PrecisionPlan) -> Results:
        """The codes that ``plan`` gives for every image."""
        latents = [self.graphs.load(plan, "encoder")(to_float(image)) for image in self.images]
        return [self._codes(latent) for latent in latents] if _finite(latents) else None

    def _same_codes(self, plan: PrecisionPlan) -> Results:
        """The pictures that ``plan`` decodes from fp32's codes."""
        decoded = [self.graphs.load(plan, "decoder")(self._rows(codes)) for codes in self.reference[0]]
        return decoded if _finite(decoded) else None

    def _latest(self, side: str, plan: PrecisionPlan, compute: Callable[[PrecisionPlan], Results]) -> Results:
        """What ``compute`` gives for one side of ``plan``; a search changes one side at a time, so the last result is kept."""
        key = _side_key(plan, side)
        if self._results.get(side, ("", None))[0] != key:
            reference = self.reference[SIDES.index(side)]
            self._results[side] = (key, reference if key == _side_key(REFERENCE, side) else compute(plan))
        return self._results[side][1]

    def _codes(self, latent: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.network.quantize.encode(torch.from_numpy(latent)).numpy()

    def _rows(self, codes: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.network.quantize.decode(torch.from_numpy(codes)).numpy()


def _side_key(plan: PrecisionPlan, side: str) -> str:
    """Everything in ``plan`` that affects the results of one side."""
    nodes = sorted(
        (name, node.precision, sorted(node.scales.items()), node.weight_scales)
        for name, node in plan.nodes.items()
        if side_of(name) == side
    )
    return json.dumps([side, plan.base, nodes])


def _photo_psnr(picture: np.ndarray, image: np.ndarray) -> float:
    """PSNR of a decoded picture, clipped as pixels are, against the photo uint8 [H, W, 3]."""
    return psnr(np.clip(picture, -1, 1), to_float(image), _PEAK)


def _finite(arrays: Sequence[np.ndarray]) -> bool:
    return all(np.isfinite(array).all() for array in arrays)
