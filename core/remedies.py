"""The commands that errors advise: how an engine is built, spelled for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from mgvq_export.core.manifest import EngineOptions, EngineRecord
from mgvq_export.core.spec import TRUNKS, ModelSpec, stride
from mgvq_export.core.units import Size

_FLAGS = ("version_compatible", "hardware_compatible", "detailed")


def build_pattern(path: Path, precision: str | None = None, target: str = "tensorrt") -> str:
    """The command that builds engines, with WxH in place of the sizes."""
    options = ["--target", target] if target != "tensorrt" else []
    options += ["--precision", precision] if precision else []
    return shlex.join(["mgvq-export", "build", str(path), *options, "--size", "WxH"])


def build_command(
    path: Path, spec: ModelSpec, record: EngineRecord, *, shapes: Sequence[Size] = (), tile: Size | None = None
) -> str:
    """The command that builds the engine of ``record`` in the bundle at ``path`` again: its part, sizes, batch and options.

    With ``shapes``, and ``tile`` for trunks in windows: all engines that images of these sizes need, with its batch and options.
    Of a record that lacks what is needed, as those of other releases can: :func:`build_pattern`.
    """
    part, held, options = record.known_part, engine_sizes(spec, record), record.options
    if part is None or not held or options.builder_level is None:
        return build_pattern(path, record.precision, record.target)
    command = ["mgvq-export", "build", str(path)]
    if not shapes:
        command += ["--part", str(part)]
        # A trunk of one size is the same engine whether it was built for windows or for images of that size.
        tile = held[0][0] if part in TRUNKS and len(held) == 1 else None
        shapes = [] if tile else [size for size, _ in held]
    if record.target != "tensorrt":
        command += ["--target", record.target]
    for capability in record.compute_capabilities:
        command += ["--compute-capability", capability]
    command += _build_options(options, max(batch for _, batch in held))
    command += ["--precision", record.precision] if record.precision else []
    for height, width in shapes:
        command += ["--size", f"{width}x{height}"]
    if tile:
        command += ["--tile", f"{tile[1]}x{tile[0]}"]
    return shlex.join(command)


def engine_sizes(spec: ModelSpec, record: EngineRecord) -> list[tuple[Size, int]]:
    """The sizes (height, width) an engine holds, in image pixels, each with the largest batch: those of its profiles.

    Profiles that are not of this release's engines are left out.
    """
    found = []
    for profile in record.profiles:
        value, shapes = next(iter(profile.items()), ("", None))
        if len(profile) != 1 or shapes is None or len(shapes.max) != 4:  # every part has one input whose shape varies
            continue
        first, scale = (1 if value == "image" else 2), stride(spec, value)
        height, width = shapes.max[first : first + 2]
        found.append(((height * scale, width * scale), shapes.max[0]))
    return found


def _build_options(options: EngineOptions, batch: int) -> list[str]:
    """Options of the build command; those that it has by default are left out."""
    words = [f"--{name.replace('_', '-')}" for name in _FLAGS if getattr(options, name)]
    if options.workspace_bytes is not None:
        words += ["--workspace", str(options.workspace_bytes)]
    if options.builder_level != 3:
        words += ["--builder-level", str(options.builder_level)]
    if batch != 1:
        words += ["--batch", str(batch)]
    return words
