"""Files of trained weights: what kind a file is, its tensors by name, and which of several sets of them is meant.

The content decides, never the suffix. Nothing is executed: files of ``torch.save`` are read with ``weights_only=True`` and one extra
allowed class, :class:`argparse.Namespace` (training arguments; a plain attribute holder).
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgvq_export.core.errors import CheckpointError, InputError, shown
from mgvq_export.core.files import sha256_file, unreadable
from mgvq_export.core.json_files import JsonSource, read_json
from mgvq_export.core.kinds import HEAD_BYTES, kind_of

_ANCHOR = "quantize.embedding.weight"  # every MGVQ has it, once; its place tells where a set of weights begins
# What DistributedDataParallel, torch.compile, FSDP and activation checkpoints put into names; no module of the network is called so.
_WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PLAIN = ("", "model", "state_dict", "params", "generator", "net")  # sets of weights, the first taken when there are several
_DEEPEST = 4  # levels of dictionaries in a file
_LISTED = 8
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class Weights:
    """Tensors by name, as the network names them.

    Attributes:
        tensors: floating ones as stored, float8 as float32.
        metadata: of a safetensors file.
        taken: where in the file they were, such as ``model`` or ``ema``; empty when at its top.
        others: further sets of weights in the file.
        sha256: of the file, of an index with its shards together.
    """

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    taken: str
    others: tuple[str, ...]
    sha256: str


def read_weights(path: Path, wanted: str | None = None) -> Weights:
    """The weights in the file ``path``: of ``torch.save``, safetensors, or the index (.json) of a safetensors file in shards.

    ``wanted``: which set, where a file holds several (``ema``). Raises :class:`CheckpointError`, which names a file of another kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(str(unreadable(path, error))) from error
    kind = kind_of(head)
    sha256 = None
    if kind is not None and kind.name == "a safetensors file":
        metadata, content = _read_safetensors(path)
    elif head.lstrip()[:1] == b"{" or path.suffix == ".json":
        content, sha256 = _read_shards(path)
        metadata = {}
    elif kind is None or kind.name in ("a zip archive", "a Python pickle"):
        metadata, content = {}, _read_torch(path, head)
    else:
        raise CheckpointError(f"{path} is {kind.name}; wanted a checkpoint: .pt or .safetensors")
    tensors, taken, others = _chosen(content, path, wanted)
    size = path.stat().st_size if sha256 is None else None
    _check_storage(tensors, size, path)
    if not any(name.endswith(_ANCHOR) for name in tensors) and _SHARD.fullmatch(path.name):
        raise CheckpointError(f"{path} is one shard of several; give their index, such as model.safetensors.index.json")
    tensors = {
        name: tensor.float() if str(tensor.dtype).startswith("torch.float8") else tensor for name, tensor in tensors.items()
    }
    return Weights(tensors, metadata, taken, others, sha256 or sha256_file(path))


def _read_torch(path: Path, head: bytes) -> Any:
    """What ``torch.save`` wrote. Its archives hold every record as it is: a compressed one could fill all memory."""
    if not head:
        raise CheckpointError(f"{path} is no readable checkpoint: the file is empty; get it again")
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                records = archive.infolist()
            names = {record.filename.rpartition("/")[2] for record in records}
            if "constants.pkl" in names:
                raise CheckpointError(
                    f"{path} is a TorchScript program; wanted the weights alone: torch.save(model.state_dict(), ...)"
                )
            if "data.pkl" not in names:
                raise CheckpointError(
                    f"{path} is a zip archive, and not one of torch.save; unpack it and give the checkpoint inside"
                )
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise CheckpointError(
                    f"{path} is no readable checkpoint: its records are compressed, as torch.save never writes them"
                )
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            # Of a path called .safetensors, torch.load goes by the name.
            mapped = is_zip and path.suffix != ".safetensors"
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"(?:GLOBAL|Unsupported class|Unsupported global:?) ?(?:GLOBAL )?([\w.]+)", str(error))
        if unsafe and "GLOBAL" in str(error).upper() and kind_of(head) is not None:
            raise CheckpointError(
                f"{path} is refused: it asks to run {shown(unsafe[1], quoted=False)}, and only tensors are loaded; "
                "if you trust it, save its weights alone with torch.save"
            ) from error
        raise CheckpointError(f"{path} is no readable checkpoint: {_damage(error)}; get the file again") from error
    except Exception as error:  # damaged files end in errors of many kinds, in PyTorch and below it
        raise CheckpointError(f"{path} is no readable checkpoint: {_damage(error)}; get the file again") from error


def _damage(error: BaseException) -> str:
    """A reason in one line; PyTorch's advice to load with ``weights_only=False`` would run what the file holds."""
    first = (str(error).strip().splitlines() or [""])[0]
    if not first or "weights_only" in first or "Weights only" in first:
        return "its content is neither that of torch.save nor of safetensors"
    return shown(first, 200, quoted=False)


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {_damage(error)}; get the file again") from error


def _read_shards(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of all shards that an index names, and one hash over the index and them."""
    source = JsonSource(str(path), "give a checkpoint, or the index of one in shards", CheckpointError, max_bytes=64 << 20)
    try:
        index = read_json(path, source)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        source.fail("is JSON, and no index of shards (it has no weight_map)")
    digest = hashlib.sha256(sha256_file(path).encode())
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        shard = path.parent / name
        if Path(name).name != name or name in ("", ".", ".."):
            source.fail(f"names the shard {shown(name)}, which is outside its folder")
        if not shard.is_file():
            source.fail(f"names the shard {shown(name)}, which is not beside it")
        _, found = _read_safetensors(shard)
        tensors |= {key: tensor for key, tensor in found.items() if places.get(key) == name}
        digest.update(sha256_file(shard).encode())
    missing = next((key for key in places if key not in tensors), None)
    if missing is not None:
        source.fail(f"names the tensor {shown(missing)}, which is not in its shard")
    return tensors, digest.hexdigest()


def _chosen(content: object, path: Path, wanted: str | None) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """One set of weights of a file, where it was, and the others' places."""
    flat = dict(_flattened(content, "", 0))
    if not flat:
        found = (
            ", ".join(shown(str(key), 40) for key in list(content)[:_LISTED])
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise CheckpointError(
            f"{path} holds no weights: wanted tensors by name, at top level or under 'model', 'state_dict' or 'ema'; found {found or 'nothing'}"
        )
    sets = {name.removesuffix(_ANCHOR) for name in flat if name.endswith(_ANCHOR) and name[: -len(_ANCHOR)][-1:] in ("", ".")}
    if not sets:
        # No MGVQ; the caller says what is missing.
        sets = {next((f"{key}." for key in _PLAIN[1:] if any(name.startswith(f"{key}.") for name in flat)), "")}
    places = sorted((place.rstrip(".") for place in sets), key=_rank)
    taken = places[0]
    if wanted is not None:
        taken = next((place for place in places if wanted == place or wanted in place.split(".")), wanted)
        if taken not in places:
            raise CheckpointError(
                f"{path} holds no weights {shown(wanted)}; it has {', '.join(shown(place or 'top level', 40) for place in places[:_LISTED])}"
            )
    prefix = f"{taken}." if taken else ""
    others = tuple(place for place in places if place != taken)
    inside = [f"{place}." for place in others if place.startswith(prefix)]  # of the rest of the file these are no part
    tensors = {}
    for name, tensor in flat.items():
        if name.startswith(prefix) and not (inside and name.startswith(tuple(inside))):
            tensors[name.removeprefix(prefix)] = tensor
    return tensors, taken, others


def _rank(place: str) -> tuple[bool, int, int, str]:
    """Trained weights before their running means, well-known places before others, outer ones before inner ones."""
    steps = place.split(".")
    known = _PLAIN.index(steps[0]) if steps[0] in _PLAIN else len(_PLAIN)
    return any("ema" in step.lower() for step in steps), known, len(steps), place


def _flattened(content: object, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under names of text, with the names of the dictionaries that it is in; wrappers' parts of names left out."""
    if depth > _DEEPEST or not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield _WRAPPERS.sub("", prefix + key), value
        elif not (depth == 0 and key.startswith("optim")):  # its state has the weights' shapes, and may have their names
            yield from _flattened(value, f"{prefix}{key}.", depth + 1)


def _check_storage(tensors: Mapping[str, Tensor], size: int | None, path: Path) -> None:
    """Tensors must be in the file with all their values: a shape alone could claim more memory than there is."""
    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense:
            raise CheckpointError(f"{path}: {shown(name)} is sparse, quantized or without values; wanted plain tensors")
        bytes_named = tensor.numel() * tensor.element_size()
        if bytes_named > tensor.untyped_storage().nbytes() or (size is not None and bytes_named > size):
            raise CheckpointError(
                f"{path}: {shown(name)} claims {bytes_named:,} bytes, more than the file holds for it; get the file again"
            )
