"""The backends ``tensorrt`` and ``tensorrt-rtx``: engines of the bundle that run on this machine."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import BackendError, MgvqError
from mgvq_export.core.manifest import EngineRecord
from mgvq_export.core.spec import Part
from mgvq_export.ops.trt_machine import Machine, find_machine
from mgvq_export.runtime.backend import RunOptions
from mgvq_export.runtime.tensorrt.pipeline import TensorRtBackend
from mgvq_export.runtime.tensorrt.records import missing_reason, usable_engines
from mgvq_export.runtime.tensorrt.session import TensorRtOptions, TensorRtSession


@dataclass(frozen=True)
class Engines:
    """Engines of one precision that run on a machine."""

    precision: str
    records: Mapping[Part, EngineRecord]
    machine: Machine


def open_backend(name: str, bundle: Bundle, options: RunOptions, *, required: bool) -> TensorRtBackend | None:
    """The engines of ``bundle`` for this machine, of :attr:`RunOptions.precision` or else fp16 before fp32.

    Raises :class:`BackendError`, saying why, when none run here; when not ``required``, None is returned instead. So it is where those
    of the quantizer, which every image needs, do not run, or where blended tiles are asked for, which engines do not run.
    """
    settings = options.tensorrt or TensorRtOptions()
    settings = replace(settings, allow_host_code=options.allow_host_code or settings.allow_host_code)
    target = "rtx" if name == "tensorrt-rtx" else "tensorrt"
    built = any(record.target == target for record in bundle.engines)
    if not required and (not built or options.tiling.mode == "blend"):
        return None  # without looking for TensorRT
    found = _engines_here(bundle, target, options.precision, settings.allow_host_code, required)
    if found is None:
        return None
    session = TensorRtSession(bundle, found.records, found.machine, settings)
    backend = TensorRtBackend(name, bundle, found.precision, session, options.tiling)
    # At the end of the process everything is given back anyway, and a stream of the caller's may be gone by then.
    weakref.finalize(backend, _close_session, session).atexit = False
    return backend


def _close_session(session: TensorRtSession) -> None:
    with contextlib.suppress(MgvqError):  # called by the garbage collector: no caller to raise to
        session.close()


def _engines_here(bundle: Bundle, target: str, precision: str | None, allow_host_code: bool, required: bool) -> Engines | None:
    """The engines to run, as :func:`open_backend` says."""
    try:
        machine = find_machine(target)
    except BackendError:
        if required:
            raise
        return None
    names = _engine_precisions(bundle, target, precision)
    usable = {name: usable_engines(bundle, name, machine, allow_host_code=allow_host_code) for name in names}
    built = {(record.precision, record.part) for record in bundle.engines if record.target == target}
    ends = (Part.QUANTIZER, Part.DEQUANTIZER)
    whole = [name for name in names if usable[name] and all(part in usable[name] or (name, part) not in built for part in ends)]
    some = [name for name in names if usable[name]]
    chosen = whole or (some if required else [])
    if chosen:
        return Engines(chosen[0], usable[chosen[0]], machine)
    if not required:
        return None
    nearest = next(
        (name for name in names if usable_engines(bundle, name, machine, allow_host_code=True)), names[0]
    )  # lacks but the permission
    raise BackendError(missing_reason(bundle, nearest, machine, allow_host_code=allow_host_code))


def _engine_precisions(bundle: Bundle, target: str, precision: str | None) -> list[str]:
    """Precisions to look for engines of: the one asked for; else those with engines first, and of these fp16, then fp32."""
    if precision is not None:
        return [precision]
    built = {record.precision for record in bundle.engines if record.target == target}
    return sorted(bundle.precisions, key=lambda name: (name not in built, name != "fp16", name != "fp32"))
