"""Checkpoints: find, download, read safely, check by name and shape.

Nothing in a checkpoint is ever executed: see :mod:`mgvq_export.model.weight_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgvq_export.core.errors import CheckpointError, shown
from mgvq_export.core.json_files import JsonSource, parse_json
from mgvq_export.core.spec import VARIANTS, ModelSpec, variant
from mgvq_export.model.demo import DEMO_WEIGHTS, SPEC_KEY
from mgvq_export.model.network import MGVQ
from mgvq_export.model.weight_files import read_weights

HUB_REPOSITORY = "mkjia/MGVQ"


# Training statistics: unused at inference, so their absence is no fault.
_STATISTICS = re.compile(r"quantize\.(codebook_used|embed_prob)|.*\.num_batches_tracked")
_MOST_STAGES = 64  # each halves the image's sides
_LISTED = 8  # names given in full per kind of mismatch


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights and where they came from.

    Attributes:
        spec: the network they belong to.
        tensors: name -> tensor, floating tensors as stored (float32, float16 or bfloat16).
        source: what the user named; ``path``: the file read; ``sha256``: of that file; ``revision``: hub commit, if any.
        taken: where in the file the weights were, such as ``model``; ``others``: further sets of weights there, such as ``ema``;
            ``weights``: which set the user asked for.
    """

    spec: ModelSpec
    tensors: Mapping[str, Tensor]
    source: str
    path: Path
    sha256: str
    revision: str | None = None
    taken: str = ""
    others: tuple[str, ...] = ()
    weights: str | None = None

    def network(self, dtype: torch.dtype = torch.float32) -> MGVQ:
        """The network with these weights in ``dtype`` (float32 or float16), in evaluation mode, without gradients."""
        with torch.device("meta"):
            network = MGVQ(self.spec)
        network.to_empty(device="cpu")
        network.load_state_dict({**_statistics(network), **self.tensors}, strict=True)
        return network.to(dtype).requires_grad_(False)


def load_checkpoint(source: str | Path, model: str | ModelSpec | None = None, *, weights: str | None = None) -> Checkpoint:
    """The checkpoint that ``source`` names, checked tensor by tensor against its network.

    Args:
        source: a file (safetensors, the index of one in shards, or what ``torch.save`` wrote, with the weights at top level or in
            dictionaries such as ``model``, ``state_dict`` or ``ema``); a released variant's name, downloaded from the hub;
            ``hf://owner/repo/file@revision``; or ``demo``, the packaged model.
        model: the network the weights belong to: a spec, a variant's name, or a JSON or YAML file with a spec. When None: from the
            variant named as ``source``, else from the file's metadata, else from the tensors' shapes.
        weights: which set, where the file holds several, such as ``ema``; when None, not the running means.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or tensors are missing, unexpected, mis-shaped or not finite.
        SpecError: ``model`` names no known network.
    """
    name = str(source)
    path, revision = _locate(name)
    read = read_weights(path, weights)
    tensors, metadata = read.tensors, read.metadata
    if model is None and name in VARIANTS:
        model = name
    if model is None and SPEC_KEY in metadata:
        damaged = JsonSource(f"{path}: metadata {SPEC_KEY}", "give the model with --variant", CheckpointError)
        model = ModelSpec.from_dict(parse_json(metadata[SPEC_KEY], damaged))
    spec = infer_spec(tensors, path) if model is None else _resolve(model)
    _check(tensors, spec, path)
    return Checkpoint(spec, tensors, name, path, read.sha256, revision, read.taken, read.others, weights)


def _resolve(model: str | ModelSpec) -> ModelSpec:
    if isinstance(model, ModelSpec):
        return model
    if Path(model).suffix.lower() in (".json", ".yaml", ".yml"):
        return ModelSpec.from_file(model)
    return variant(model)


def _locate(source: str) -> tuple[Path, str | None]:
    """The local file behind ``source``, and the hub revision it was downloaded from."""
    if source == "demo":
        return DEMO_WEIGHTS, None
    if source.startswith("hf://"):
        match = re.fullmatch(r"hf://([^/@]+/[^/@]+)/([^@]+)(?:@(.+))?", source)
        if not match:
            raise CheckpointError(f"cannot read {source!r} as a hub address; wanted hf://owner/repo/file@revision")
        return _download(match[1], match[2], match[3])
    path = Path(source)
    if path.is_file():
        return path, None
    if source in VARIANTS:
        return _download(HUB_REPOSITORY, f"{source.replace('-', '_')}.pt", None)
    if path.is_dir():
        raise CheckpointError(f"{source} is a folder; wanted a checkpoint file (.pt or .safetensors)")
    raise CheckpointError(
        f"no checkpoint {source!r}: no such file, and no known model; give a file, hf://owner/repo/file@revision, demo, or one of {', '.join(VARIANTS)}"
    )


def _download(repository: str, filename: str, revision: str | None) -> tuple[Path, str | None]:
    """Download through the hub's cache, with its progress bar. Returns the file and the commit it belongs to."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise CheckpointError("downloading needs huggingface_hub: pip install 'mgvq-export[export]'") from None
    try:
        path = Path(hf_hub_download(repository, filename, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"cannot download {filename} from {repository}{f' at {revision}' if revision else ''}: {reason}; "
            "check the name and the network, or download the file by hand and give its path"
        ) from error
    commit = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else None
    return path, commit


def infer_spec(tensors: Mapping[str, Tensor], path: Path) -> ModelSpec:
    """The network whose tensors these are, read off their names and shapes.

    Two released variants can share all shapes (``mgvq-f16c32-g4`` and its ``-mix``); then the file's name decides. A network that is no
    released variant is named after the file. Raises :class:`CheckpointError` when the tensors are not those of an MGVQ.
    """
    try:
        stages = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"encoder\.stages\.(\d{1,4})\.", name)))
        if stages > _MOST_STAGES:
            raise ValueError(stages)
        widths, blocks = [], []
        depths: dict[str, list[int]] = {"encoder": [], "decoder": []}
        for stage in range(stages):
            for side in depths:
                prefix = f"{side}.stages.{stage}.op_list."
                kinds = {int(name[len(prefix) :].split(".")[0]): name for name in tensors if name.startswith(prefix)}
                resamples = any(f"{prefix}{index}.main.conv.conv.weight" in tensors for index in kinds)
                depths[side].append(len(kinds) - resamples)
            prefix = f"encoder.stages.{stage}.op_list.0."
            attention = f"{prefix}context_module.main.proj.conv.weight"
            convolution = f"{prefix}main.conv1.conv.weight"
            blocks.append("evit" if attention in tensors else "res")
            first = tensors.get(attention, tensors.get(convolution))
            # An empty stage 0 has no tensors; its width is no part of the network: the released variants say half of stage 1's.
            widths.append(0 if first is None else first.shape[0])
        if widths[0] == 0:
            widths[0] = max(1, widths[1] // 2)
        latent_channels, group_dim = tensors["quant_conv.weight"].shape[:2]
        codebook_size = tensors["quantize.embedding.weight"].shape[0]
    except (KeyError, ValueError, IndexError, AttributeError):
        listed = ", ".join(shown(name, 60, quoted=False) for name in list(tensors)[:3])
        raise CheckpointError(f"{path} holds no MGVQ tokenizer: its tensors are {listed}, ...") from None
    found = ModelSpec(
        name=path.stem,
        widths=tuple(widths),
        encoder_depths=tuple(depths["encoder"]),
        decoder_depths=tuple(depths["decoder"]),
        blocks=tuple(blocks),
        groups=latent_channels // group_dim,
        codebook_size=codebook_size,
        latent_channels=latent_channels,
    )
    same = [spec for spec in VARIANTS.values() if {**spec.to_dict(), "name": ""} == {**found.to_dict(), "name": ""}]
    if not same:
        return found
    mixed = "mix" in path.stem.lower()
    return next((spec for spec in same if spec.name.endswith("-mix") == mixed), same[0])


def _statistics(network: MGVQ) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(value, device="cpu") for name, value in network.state_dict().items() if _STATISTICS.fullmatch(name)
    }


def _check(tensors: dict[str, Tensor], spec: ModelSpec, path: Path) -> None:
    """Compare names, shapes, dtypes and finiteness with ``spec``; drop mis-shaped training statistics."""
    blocks = sum(spec.encoder_depths) + sum(spec.decoder_depths)
    if blocks > len(tensors):  # a network of so many blocks is not even built
        raise CheckpointError(
            f"{path} does not fit {spec.name}: it has {len(tensors)} tensors for {blocks:,} blocks; name the right model with --variant"
        )
    try:
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in MGVQ(spec).state_dict().items()}
    except (AssertionError, RuntimeError, ValueError, OverflowError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not fit {spec.name}: no network has these sizes ({shown(str(error), 120, quoted=False)})"
        ) from error
    for name in [name for name in tensors if _STATISTICS.fullmatch(name)]:
        if tuple(tensors[name].shape) != wanted.get(name):
            del tensors[name]
    missing = [
        f"{name} {list(shape)}" for name, shape in wanted.items() if name not in tensors and not _STATISTICS.fullmatch(name)
    ]
    extra = [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items() if name not in wanted]
    shapes = [
        f"{name} {list(tensors[name].shape)} for {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if missing or extra or shapes:
        listed = [
            _listing(kind, names)
            for kind, names in (("missing", missing), ("unexpected", extra), ("wrong shape", shapes))
            if names
        ]
        raise CheckpointError(f"{path} does not fit {spec.name}: {'; '.join(listed)}; name the right model with --variant")
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; wanted floating point weights")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged or its training diverged"
            )


def _listing(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {kind} ({', '.join(shown(name, 100, quoted=False) for name in names[:_LISTED])}{more})"
