"""What both targets write: models, and the labels that say what they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.version import __version__
from mgvq_export.serving.config import ModelConfig

#: The version of the parameters below; a model published in another one is refused when it is loaded.
FORMAT = "1"


@dataclass(frozen=True)
class Model:
    """A model to write.

    Attributes:
        config: its ``config.pbtxt``.
        files: paths inside the model's folder -> content, or the file to copy.
    """

    config: ModelConfig
    files: Mapping[str, Path | bytes] = field(default_factory=dict)


def labels(bundle: Bundle, precision: str) -> dict[str, str]:
    """What a repository was made of, as parameters of every model: enough for a client to write token files of its own."""
    spec = bundle.spec
    return {
        "format": FORMAT,
        "mgvq_export": __version__,
        "model": spec.name,
        "precision": precision,
        "checkpoint_sha256": bundle.manifest.source.sha256,
        "codebook_sha256": bundle.codebook_sha256,
        "groups": str(spec.groups),
        "codes_per_group": str(spec.codes_per_group),
        "downsample": str(spec.downsample),
    }


def size_name(size: tuple[int, int]) -> str:
    """A size (height, width) as it is written: ``WxH``."""
    return f"{size[1]}x{size[0]}"
