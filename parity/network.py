"""Finds the PyTorch network of a bundle, checks it against the bundle, and runs it as the reference. Torch is imported late."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BundleError, MgvqError

if TYPE_CHECKING:
    from mgvq_export.model.network import MGVQ


@dataclass(frozen=True)
class Reference:
    """The network that a bundle was exported from.

    Attributes:
        network: in float32; None when there is none here.
        why: why there is none; empty when there is.
        checkpoint_sha256: hash of the checkpoint's files, as the export records it; empty without a network.
    """

    network: MGVQ | None
    why: str = ""
    checkpoint_sha256: str = ""


def find_network(bundle: Bundle, checkpoint: str | Path | None = None) -> Reference:
    """The network that ``bundle`` was exported from, or the reason why there is none.

    Args:
        checkpoint: as for ``load_checkpoint``; when None, the file the bundle was exported from, if it is still there, or lies in or
            beside the bundle's folder (nothing is downloaded).

    Raises :class:`BundleError` when the checkpoint given belongs to another codebook, :class:`CheckpointError` when it
    cannot be read.
    """
    try:
        from mgvq_export.export.bundles import codebook_sha256
        from mgvq_export.model.checkpoint import load_checkpoint
    except ImportError as error:
        return Reference(None, f"{error.name} is not installed: pip install 'mgvq-export[export]'")
    source = bundle.manifest.source
    if checkpoint is not None:
        given = load_checkpoint(checkpoint, bundle.spec, weights=source.weights)
        network = given.network()
        if codebook_sha256(network) != bundle.codebook_sha256:
            raise BundleError(
                f"{checkpoint} has another codebook than {bundle.path}; give the checkpoint the bundle was exported from"
            )
        return Reference(network, checkpoint_sha256=given.sha256)
    name = source.name
    why = f"the checkpoint {name!r} is not here; give it with --checkpoint"
    for candidate in [name] if name == "demo" else _places(bundle.path, name):
        try:
            loaded = load_checkpoint(candidate, bundle.spec, weights=source.weights)
        except MgvqError as error:
            why = f"the checkpoint cannot be used: {error}"
            continue
        if loaded.sha256 == source.sha256:
            return Reference(loaded.network(), checkpoint_sha256=loaded.sha256)
        why = f"the checkpoint {candidate} has changed since the export; give the right one with --checkpoint"
    return Reference(None, why)


def _places(bundle: Path, name: str) -> list[str]:
    """Where a file called ``name`` when the bundle was exported may be now: there, beside the bundle, or in it."""
    folder = Path(bundle).absolute()
    places = [Path(name), folder.parent / Path(name).name, folder / Path(name).name]
    return [str(place) for place in dict.fromkeys(places) if place.is_file()]


def run_latent(network: MGVQ, image: np.ndarray) -> np.ndarray:
    """Image float32 [B, 3, H, W] in [-1, 1] -> latent float32 [B, G*d, H/f, W/f]."""
    import torch

    with torch.inference_mode():
        return network.latent(torch.from_numpy(image)).numpy()


def run_codes(network: MGVQ, latent: np.ndarray) -> np.ndarray:
    """Latent float32 [B, G*d, h, w] -> codes int32 [B, G, h, w]."""
    import torch

    with torch.inference_mode():
        return network.quantize.encode(torch.from_numpy(latent)).numpy()


def run_decode(network: MGVQ, codes: np.ndarray, groups: int | None = None) -> np.ndarray:
    """Codes int [B, G, h, w] -> image float32 [B, 3, h*f, w*f], not clipped, from the first ``groups`` groups."""
    import torch

    with torch.inference_mode():
        return network.decode(torch.from_numpy(np.ascontiguousarray(codes)), groups).numpy()


def network_codebook(network: MGVQ) -> np.ndarray:
    """Unit rows, float32 [G, K, d]."""
    import torch

    with torch.inference_mode():
        return network.quantize.codebook().numpy()
