"""The precision plan: which nodes of the graphs run in which type, as data that is made by measurement and may be edited by hand.

A plan is one JSON file::

    {
      "format": "mgvq-precision-plan", "version": 1,
      "name": "int8",                       the bundle's folder that is made by it
      "base": "fp16",                       type of every node that is not named
      "made_for": {"model": "demo", "checkpoint_sha256": "...", "codebook_sha256": "..."},   null: fits any
      "nodes": {
        "decoder.stages.1.op_list.1.main.conv1.conv": {
          "precision": "int8",              fp32, fp16, int8 or fp8
          "scales": {"0": 0.0213},          of the inputs that are quantized, by their position
          "weight_scales": [],              of the output channels; empty: from the weights
          "reason": "why this node runs so"
        }
      },
      "budgets": {"min_code_agreement": 0.99, "min_psnr": 38.0, "max_psnr_drop": 0.15},      null: not asked for
      "measured": {}, "calibration": {}, "tools": {}                                         figures, images, versions
    }

Quantization is symmetric: ``x`` is stored as ``round(x / scale)``, so that a scale is the largest magnitude divided by 127 (int8) or
448 (fp8, the format E4M3FN of arXiv:2209.05433). Weights have one scale per output channel, activations one per tensor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mgvq_export.core.budgets import Budgets, is_number
from mgvq_export.core.errors import InputError, shown
from mgvq_export.core.files import PathLike, atomic_write_bytes
from mgvq_export.core.json_files import JsonSource, json_bytes, read_json
from mgvq_export.core.types import JsonObject, Unchecked

FORMAT = "mgvq-precision-plan"
VERSION = 1

FLOATS = ("fp32", "fp16")
#: Largest magnitude of each 8-bit type.
LARGEST = {"int8": 127.0, "fp8": 448.0}
PRECISIONS = (*FLOATS, *LARGEST)

# Folders of a bundle with a meaning of their own: the reference that other precisions are held against, and the engines.
_RESERVED = ("fp32", "engines")


@dataclass(frozen=True)
class NodePlan:
    """How one node runs. Raises :class:`InputError` on contradictions.

    Attributes:
        precision: ``fp32`` or ``fp16``: the type it computes in. ``int8`` or ``fp8``: the inputs in ``scales``, and a
            convolution's weights, pass through that type.
        scales: position of an input -> scale of its values; one entry or more for ``int8`` and ``fp8``, none for others.
        weight_scales: one per output channel; empty: the largest weight of the channel decides.
        reason: why, for people.
    """

    precision: str
    scales: Mapping[int, float] = field(default_factory=dict)
    weight_scales: tuple[float, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {shown(self.precision)}; choose {', '.join(PRECISIONS)}")
        if self.precision in LARGEST and not self.scales:
            raise InputError(f'{self.precision} needs the scale of each quantized input, such as "scales": {{"0": 0.02}}')
        if self.precision in FLOATS and (self.scales or self.weight_scales):
            raise InputError(f"{self.precision} takes no scales: remove them, or choose int8 or fp8")
        for position, scale in self.scales.items():
            if not _is_count(position):
                raise InputError(f"scales has the key {shown(position)}; wanted the position of an input, 0 for the first")
            _check_scale(f"the scale of input {shown(position)}", scale)
        for channel, scale in enumerate(self.weight_scales):
            _check_scale(f"the weight scale of channel {channel}", scale)

    @property
    def quantized(self) -> bool:
        """Whether values pass through 8 bits."""
        return self.precision in LARGEST


@dataclass(frozen=True)
class MadeFor:
    """The checkpoint a plan was made for; None fits any.

    Attributes:
        model: its name, for people.
        checkpoint_sha256: of its file.
        codebook_sha256: of its codebook, as in a bundle's manifest.
    """

    model: str = ""
    checkpoint_sha256: str | None = None
    codebook_sha256: str | None = None


@dataclass(frozen=True)
class PrecisionPlan:
    """Which nodes run in which type. Raises :class:`InputError` on contradictions.

    Attributes:
        name: the folder in the bundle: small letters, digits and dashes.
        base: ``fp32`` or ``fp16``, the type of every node that is not named (norms and attention stay fp32 all the same).
        nodes: node name -> how it runs.
        made_for: the checkpoint.
        budgets: the quality asked for.
        measured, calibration, tools: figures, the images they were taken on (names and hashes), versions; JSON-ready, for people.
    """

    name: str
    base: str
    nodes: Mapping[str, NodePlan]
    made_for: MadeFor = MadeFor()
    budgets: Budgets = field(default_factory=Budgets)
    measured: Mapping[str, object] = field(default_factory=dict)
    calibration: Mapping[str, object] = field(default_factory=dict)
    tools: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise InputError(f"the plan's name is {shown(self.name)}; wanted small letters, digits and dashes, such as int8")
        if self.name in _RESERVED:
            raise InputError(f"a plan cannot be called {self.name}, which has a meaning of its own in a bundle; rename it")
        if self.base not in FLOATS:
            raise InputError(f"the plan's base is {shown(self.base)}; choose {', '.join(FLOATS)}")
        for name in self.nodes:
            # Names stand in errors of one line and in tables.
            if not name.isprintable():
                raise InputError(f"a node is called {shown(name)}; wanted a name without line breaks and control characters")
        if self.name == "fp16" and self.kind() in LARGEST:
            raise InputError(
                f"a plan with {self.kind()} nodes cannot be called fp16: --precision fp16 would run it; rename it, such as {self.kind()}"
            )

    def kind(self, side: str | None = None) -> str:
        """The lowest precision it uses: ``int8`` or ``fp8`` if any node is quantized, else its base.

        ``side``: ``encoder`` or ``decoder``, to look at the nodes of that side only.
        """
        found = {node.precision for name, node in self.nodes.items() if side in (None, side_of(name))}
        return next((kind for kind in LARGEST if kind in found), self.base)

    def counts(self) -> dict[str, int]:
        """How many nodes are named for each precision, those that occur."""
        found = Counter(node.precision for node in self.nodes.values())
        return {precision: found[precision] for precision in PRECISIONS if found[precision]}

    def check_made_for(self, *, checkpoint_sha256: str | None = None, codebook_sha256: str | None = None) -> None:
        """Raises :class:`InputError` when the plan was made for another checkpoint than the one with these hashes (None: unknown)."""
        mine = self.made_for
        for what, wanted, found in (
            ("codebook", mine.codebook_sha256, codebook_sha256),
            ("checkpoint", mine.checkpoint_sha256, checkpoint_sha256),
        ):
            if wanted is not None and found is not None and wanted != found:
                raise InputError(
                    f"plan {self.name} was made for another checkpoint{f' ({mine.model})' if mine.model else ''}: its {what} is "
                    f"{wanted[:12]}..., this one's {found[:12]}...; calibrate this checkpoint, or set made_for to null if they are the same"
                )

    def to_dict(self) -> JsonObject:
        """The plan as JSON-ready values; :meth:`from_dict` reads it back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "base": self.base,
            "made_for": dict(vars(self.made_for)),
            "nodes": {
                name: {
                    "precision": node.precision,
                    "scales": {str(position): scale for position, scale in sorted(node.scales.items())},
                    "weight_scales": list(node.weight_scales),
                    "reason": node.reason,
                }
                for name, node in self.nodes.items()
            },
            "budgets": dict(vars(self.budgets)),
            "measured": dict(self.measured),
            "calibration": dict(self.calibration),
            "tools": dict(self.tools),
        }

    def to_bytes(self) -> bytes:
        """The plan as it is written: JSON, two spaces, a final newline."""
        return json_bytes(self.to_dict())

    def save(self, path: PathLike) -> None:
        """Write the plan to ``path``, whole or not at all. Raises :class:`InputError`."""
        atomic_write_bytes(path, self.to_bytes())

    @classmethod
    def from_dict(cls, values: Unchecked, where: str = "the plan") -> PrecisionPlan:
        """The plan in ``values``; ``where`` names it in messages. Raises :class:`InputError`."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise InputError(f'{where} is no precision plan: it has no "format": "{FORMAT}"')
        if values.get("version") != VERSION:
            raise InputError(f"{where} is a plan of version {shown(values.get('version'))}; this release reads version {VERSION}")
        try:
            _check_keys(values, required=("format", "version", "name", "base", "nodes"), optional=_OPTIONAL)
            records = {name: _mapping(values.get(name, {}), name) for name in ("measured", "calibration", "tools")}
            nodes = {name: _node(name, entry) for name, entry in _mapping(values["nodes"], "nodes").items()}
            made_for, budgets = (_mapping(values.get(name, {}) or {}, name) for name in ("made_for", "budgets"))
            return cls(values["name"], values["base"], nodes, _made_for(made_for), _budgets(budgets), **records)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    @classmethod
    def load(cls, path: PathLike) -> PrecisionPlan:
        """The plan in the JSON file ``path``. Raises :class:`InputError` when it cannot be read or contradicts itself."""
        values = read_json(path, JsonSource(str(path), "give a plan that calibrate wrote"))
        return cls.from_dict(values, str(path))


def side_of(node: str) -> str:
    """``encoder`` or ``decoder``: the graphs a node belongs to, by its name."""
    return "encoder" if node.split(".")[0].split("/")[0] in ("encoder", "quant_conv") else "decoder"


_OPTIONAL = ("made_for", "budgets", "measured", "calibration", "tools")


def _node(name: str, entry: Unchecked) -> NodePlan:
    try:
        values = _mapping(entry, "its entry")
        _check_keys(values, required=("precision",), optional=("scales", "weight_scales", "reason"))
        scales = _mapping(values.get("scales") or {}, "scales")
        weight_scales = values.get("weight_scales") or []
        if not isinstance(weight_scales, list):
            raise InputError(f"weight_scales is {shown(weight_scales)}; wanted a list, empty to take them from the weights")
        # JSON has text as keys only. "00" stays text and is refused: as a number it would hide "0".
        positions: dict[Unchecked, Unchecked] = {
            int(key) if isinstance(key, str) and re.fullmatch("0|[1-9][0-9]{0,8}", key) else key: value
            for key, value in scales.items()
        }
        return NodePlan(values["precision"], positions, tuple(weight_scales), str(values.get("reason") or ""))
    except InputError as error:
        raise InputError(f"node {shown(name, quoted=False)}: {error}") from None


def _made_for(values: Mapping[str, Unchecked]) -> MadeFor:
    _check_keys(values, optional=tuple(MadeFor.__dataclass_fields__))
    for name, value in values.items():
        if value is not None and not (isinstance(value, str) and value.isprintable()):
            raise InputError(f"made_for has {name} = {shown(value)}; wanted one line of text, or null")
    return MadeFor(values.get("model") or "", values.get("checkpoint_sha256"), values.get("codebook_sha256"))


def _budgets(values: Mapping[str, Unchecked]) -> Budgets:
    _check_keys(values, optional=tuple(Budgets.__dataclass_fields__))
    return Budgets(**values)


def _check_keys(values: Mapping[str, Unchecked], *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> None:
    missing = [name for name in required if name not in values]
    unknown = [name for name in values if name not in (*required, *optional)]
    if missing:
        raise InputError(f"it lacks {', '.join(missing)}; wanted {', '.join((*required, *optional))}")
    if unknown:
        raise InputError(f"it has the unknown key {shown(unknown[0])}; wanted {', '.join((*required, *optional))}")


def _mapping(value: Unchecked, name: str) -> Mapping[str, Unchecked]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is {shown(value)}; wanted an object")
    return value


def _check_scale(what: str, scale: Unchecked) -> None:
    if not is_number(scale) or scale <= 0:
        raise InputError(f"{what} is {shown(scale)}; wanted a number above 0")


def _is_count(value: Unchecked) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
