"""How the acceptance takes times: after a warm-up, and short launches many in a row. On a clock of its own."""

from types import SimpleNamespace

import pytest

from mgvq_export.benchmarks.gpu import timing
from mgvq_export.benchmarks.gpu.report import GpuOptions


class Gpu:
    """A launch takes ``each`` milliseconds, twice that while the clocks are low; the first is queued ``gap`` milliseconds late."""

    def __init__(self, each: float, gap: float = 0.01):
        self.each, self.gap = each, gap
        self.now = 0.0  # seconds
        self.bursts: list[int] = []

    def launch(self) -> None:
        self.now += self.each * (2 if self.now < 0.25 else 1) / 1e3

    def burst(self, launches: int) -> float:
        self.bursts.append(launches)
        start = self.now
        self.now += self.gap / 1e3
        for _ in range(launches):
            self.launch()
        return (self.now - start) * 1e3


@pytest.fixture
def on_clock(monkeypatch):
    def put(each: float) -> Gpu:
        gpu = Gpu(each)
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
        return gpu

    return put


@pytest.mark.parametrize(("each", "launches"), [(0.022, 20), (2.5, 4), (60.0, 1)])
def test_short_launches_are_timed_in_a_row(on_clock, each, launches):
    gpu = on_clock(each)
    times = timing.burst_times(gpu.burst, 5)
    assert gpu.bursts[-5:] == [launches] * 5
    assert times == pytest.approx([each] * 5, rel=0.03)  # one alone would be 50 % too long
    assert sum(gpu.bursts[:-5]) >= 3


def test_a_slow_driver_does_not_warm_up_for_ever(on_clock):
    gpu = on_clock(900.0)
    timing.burst_times(gpu.burst, 1)
    assert gpu.bursts == [1, 1, 1, 1]


def test_calls_are_timed_warm(on_clock):
    gpu = on_clock(1.0)
    assert timing.wall_times(gpu.launch, 4) == pytest.approx([1.0] * 4)
    gpu = on_clock(1.0)
    timing.wall_times(gpu.launch, 4, dry_run=True)
    assert gpu.now == pytest.approx(5 * 0.002)  # one call before the four


def test_what_torch_queues_is_timed_by_its_events(on_clock, monkeypatch):
    import torch

    gpu = on_clock(0.05)

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            self.at = gpu.now
            gpu.now += gpu.gap / 2e3

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert timing.device_times(gpu.launch, GpuOptions(repeats=3)) == pytest.approx([0.05] * 3, rel=0.01)
    assert len(timing.device_times(gpu.launch, GpuOptions("cpu", repeats=3))) == 3
