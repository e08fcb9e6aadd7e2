"""Which of a bundle's engines run on this machine, from their records in the manifest alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mgvq_export.core.bundle import MANIFEST, Bundle
from mgvq_export.core.errors import BundleError, shown
from mgvq_export.core.files import PathLike
from mgvq_export.core.manifest import EngineRecord
from mgvq_export.core.remedies import build_command, build_pattern, engine_sizes
from mgvq_export.core.spec import TRUNKS, Part
from mgvq_export.ops.cuda_kernel import kernel_source_sha256
from mgvq_export.ops.trt_machine import TARGETS, Machine, rtx_capabilities, version_numbers

_AMPERE = (8, 0)  # hardware-compatible engines run from here on
_OTHER_GRAPHS = "it was built from other graphs than the bundle has now"
HOST_CODE = "it is version-compatible and so runs code of its own on the host"
PERMISSION = "if you trust whoever built it, give encode, decode, reconstruct, eval or inspect --allow-host-code (in Python allow_host_code=True)"


def engine_problems(record: EngineRecord, machine: Machine) -> list[str]:
    """Why the engine of ``record`` cannot run on ``machine``: a plain sentence each; empty when it can."""
    options, problems = record.options, []
    built, here = record.tensorrt, machine.tensorrt
    if record.target != machine.target:
        return [f"it is an engine for {TARGETS.get(record.target, shown(record.target))}, not for {TARGETS[machine.target]}"]
    if record.target == "rtx":
        return _rtx_problems(record, machine)
    if built != here:
        if not options.version_compatible:
            problems.append(f"it was built with TensorRT {built}, here is {here}")
        elif version_numbers(built) > version_numbers(here):
            problems.append(f"it was built with TensorRT {built}, here is {here}, which is older")
    gpu, capability = record.gpu, record.compute_capability
    if (gpu, capability) != (machine.gpu, machine.compute_capability):
        if not options.hardware_compatible:
            problems.append(f"it was built on {gpu} ({capability}), here is {machine.gpu} ({machine.compute_capability})")
        elif version_numbers(machine.compute_capability) < _AMPERE:
            problems.append(f"it runs on GPUs from compute capability 8.0 on, {machine.gpu} has {machine.compute_capability}")
    return problems


def _rtx_problems(record: EngineRecord, machine: Machine) -> list[str]:
    problems = []
    if record.tensorrt != machine.tensorrt:
        problems.append(f"it was built with TensorRT for RTX {record.tensorrt}, here is {machine.tensorrt}")
    gpu = f"{machine.gpu} has {machine.compute_capability}"
    if machine.compute_capability not in rtx_capabilities():
        problems.append(f"TensorRT for RTX does not support this GPU, {gpu}: use TensorRT, building with --target tensorrt")
    elif record.compute_capabilities and machine.compute_capability not in record.compute_capabilities:
        problems.append(f"it was built for GPUs of compute capability {', '.join(record.compute_capabilities)}, {gpu}")
    return problems


def usable_engines(
    bundle: Bundle, precision: str, machine: Machine, *, allow_host_code: bool = False
) -> dict[Part, EngineRecord]:
    """The engines of ``bundle`` that can run on ``machine`` and were built from what it and this release have now, by part.

    Of several, one without code of its own for the host wins, then one built on this very machine over a compatible one.

    Args:
        allow_host_code: take engines with code of their own for the host as well; loading them takes the permission again.
    """
    found: dict[Part, tuple[tuple[bool, bool], EngineRecord]] = {}
    for record in bundle.engines:
        part = record.known_part
        if part is None or record.precision != precision or _unusable(bundle, record, machine, allow_host_code):
            continue
        here = (record.gpu, record.tensorrt) == (machine.gpu, machine.tensorrt)
        rank = (not needs_host_code(record), here)
        if part not in found or rank > found[part][0]:
            found[part] = (rank, record)
    return {part: record for part, (_, record) in found.items()}


def missing_reason(
    bundle: Bundle, precision: str, machine: Machine, *, allow_host_code: bool = False, part: Part | None = None
) -> str:
    """Why :func:`usable_engines` gives nothing, or none of ``part``, in one line with the remedy."""
    library = TARGETS[machine.target]
    here = [record for record in bundle.engines if record.target == machine.target]
    records = [record for record in here if record.precision == precision]
    if not records:
        others = sorted({record.precision for record in here} - {precision})
        others += ["TensorRT for RTX" if machine.target == "tensorrt" else "TensorRT"] * (len(here) < len(bundle.engines))
        there = f" (it has {', '.join(others)} ones)" if others else ""
        build = build_pattern(bundle.path, precision, machine.target)
        return f"{bundle.path} has no {precision} {library} engines{there}; build them here: {build}"
    record = [record for record in records if part is None or record.part == part][-1]
    problem = _unusable(bundle, record, machine, allow_host_code)
    permission = ""
    if problem == HOST_CODE:
        permission, record = f"{PERMISSION}, or ", without_host_code(record)
    build = _build_all(bundle, record) if part is None else build_command(bundle.path, bundle.spec, record)
    return (
        f"the {precision} {library} engines of {bundle.path} do not run here: of {record.part}, {problem}; "
        f"{permission}build them here: {build}"
    )


def _unusable(bundle: Bundle, record: EngineRecord, machine: Machine, allow_host_code: bool) -> str:
    """Why the engine of ``record`` is not to be run on ``machine``, in a plain sentence; empty when it is."""
    for problem in engine_problems(record, machine):
        return problem
    entry = bundle.manifest.precisions.get(record.precision)
    graph = entry.graphs.get(record.known_part) if entry and record.known_part else None
    if entry is None or graph is None or (record.graph_sha256, record.weights_sha256) != (graph.sha256, entry.weights.sha256):
        return _OTHER_GRAPHS
    if record.kernel and record.kernel.source_sha256 != kernel_source_sha256():
        return "the quantizer's GPU kernel inside it is not the one of this release"
    return HOST_CODE if needs_host_code(record) and not allow_host_code else ""


def needs_host_code(record: EngineRecord) -> bool:
    """Whether the engine of ``record`` runs code of its own on the host."""
    return record.options.version_compatible


def without_host_code(record: EngineRecord) -> EngineRecord:
    """``record`` as it would be of an engine built without code for the host."""
    return replace(record, options=replace(record.options, version_compatible=False))


def _build_all(bundle: Bundle, like: EngineRecord) -> str:
    """The command that builds what was built with the engine ``like``, in one piece or in windows, with its options."""
    key = (like.precision, like.target, like.gpu, like.tensorrt)
    together = {each.known_part: each for each in bundle.engines if (each.precision, each.target, each.gpu, each.tensorrt) == key}
    held = {part: engine_sizes(bundle.spec, each) for part, each in together.items() if part is not None}
    shapes = list(dict.fromkeys(size for part, sizes in held.items() if part not in TRUNKS for size, _ in sizes))
    whole = [part for part in held if part in (Part.ENCODER, Part.DECODER)]
    trunks = [part for part, sizes in held.items() if part in TRUNKS and len(sizes) == 1]
    if not shapes or not (whole or trunks):
        return build_command(bundle.path, bundle.spec, like)
    part = (whole or trunks)[0]
    record = replace(together[part], options=like.options)  # the batch is of images, or of windows
    return build_command(bundle.path, bundle.spec, record, shapes=shapes, tile=None if whole else held[part][0][0])


def find_record(path: PathLike) -> tuple[Bundle, EngineRecord] | None:
    """The bundle that ``path`` lies in, and the engine's entry in its manifest; None for a file in no bundle's manifest."""
    path = Path(path).resolve()
    for folder in path.parents:
        if not (folder / MANIFEST).is_file():
            continue
        try:
            bundle = Bundle.open(folder)
        except BundleError:
            continue
        for record in bundle.engines:
            if (folder / record.file).resolve() == path:
                return bundle, record
    return None
