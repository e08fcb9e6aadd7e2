"""GPU acceptance: how times are taken, of calls that wait for their result and of work that is only queued."""

from __future__ import annotations

import time
from collections.abc import Callable

from mgvq_export.benchmarks.gpu.report import GpuOptions

_WARM_UP_SECONDS = 0.3  # an idle GPU's clocks take about so long to rise
_WARM_UP_RUNS = 3  # the first ones compile, choose algorithms and capture graphs
_MOST_LAUNCHES = 20
_BURST_MS = 10.0  # so many that the time besides the work is negligible


def wall_times(action: Callable[[], object], repeats: int, *, dry_run: bool = False) -> list[float]:
    """Milliseconds of wall-clock time of each of ``repeats`` calls that wait for their result, after a warm-up."""
    begun, done = time.perf_counter(), 0
    while done < 1 or (not dry_run and _is_cold(begun, done)):
        action()
        done += 1
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def burst_times(burst: Callable[[int], float], repeats: int) -> list[float]:
    """Milliseconds of one launch, ``repeats`` times, on a GPU that is warm.

    The time of one launch would include the gap until Python has queued it, about half the time of a short kernel. So
    short ones are timed many in a row, with one gap for all.

    Args:
        burst: queues so many launches and waits; gives the milliseconds from before the first to after the last.
    """
    begun, done, launches = time.perf_counter(), 0, 1
    while _is_cold(begun, done):  # checked after each burst: with a slow driver, two are enough
        each = burst(launches) / launches
        done += launches
        launches = min(_MOST_LAUNCHES, max(1, round(_BURST_MS / max(each, 1e-3))))
    return [burst(launches) / launches for _ in range(repeats)]


def device_times(action: Callable[[], object], options: GpuOptions) -> list[float]:
    """Milliseconds that the device takes for what ``action`` queues with PyTorch, by CUDA's events; wall-clock time in a dry run."""
    if options.dry_run:
        return wall_times(action, options.repeats, dry_run=True)
    import torch

    def burst(launches: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(launches):
            action()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return burst_times(burst, options.repeats)


def _is_cold(begun: float, done: int) -> bool:
    return done < _WARM_UP_RUNS or time.perf_counter() - begun < _WARM_UP_SECONDS
