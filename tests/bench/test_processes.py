"""Baselines in processes of their own: order, memory, threads, and what is said when one cannot run."""

import os
import sys

import pytest

from mgvq_export.bench.processes import Baseline, measure, reason
from mgvq_export.core.errors import BackendError, InputError
from mgvq_export.tests.support import bench_jobs


def test_turns_alternate_across_processes_and_threads_are_told():
    before = os.environ.get("OMP_NUM_THREADS")
    told = []
    found = measure(
        [Baseline("a", bench_jobs.Stamp, ()), Baseline("b", bench_jobs.Stamp, ())],
        3,
        threads=3,
        progress=lambda name, done: told.append((name, done)),
    )
    stamps = [stamp for pair in zip(found["a"].samples["stamp"], found["b"].samples["stamp"], strict=True) for stamp in pair]
    assert len(stamps) == 6
    assert stamps == sorted(stamps)
    assert told == [("a", 0), ("b", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5), ("a", 6), ("b", 7)]
    assert found["a"].outcome == {"threads": "3"}
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of a process cannot be reset after warming up")
def test_memory_is_that_of_the_pass_and_of_one_process():
    small, large = 2**23, 2**26
    found = measure([Baseline(str(size), bench_jobs.Allocate, (size,)) for size in (small, large)], 1)
    for size in (small, large):
        added = found[str(size)].peak_bytes - found[str(size)].base_bytes
        assert 0.9 * size < added < 1.5 * size  # not twice as much, as while warming up


def test_what_cannot_run_is_a_reason_or_an_error():
    found = measure(
        [
            Baseline("needs", bench_jobs.needs_package, (), optional=True),
            Baseline("breaks", bench_jobs.breaks, (), optional=True),
            Baseline("dies", bench_jobs.Dies, (0,), optional=True),
            Baseline("runs", bench_jobs.Stamp, ()),
        ],
        1,
    )
    assert found["needs"].skipped == "a_package_that_nobody_has is not installed: pip install a_package_that_nobody_has"
    assert found["breaks"].skipped == "ValueError: the first line"
    assert "ran out of memory" in found["dies"].skipped
    assert found["runs"].skipped is None
    assert len(found["runs"].samples["stamp"]) == 1
    with pytest.raises(BackendError, match="^breaks: ValueError: the first line$"):
        measure([Baseline("breaks", bench_jobs.breaks, ())], 1)
    with pytest.raises(BackendError, match="^dies: its process exited unexpectedly"):
        measure([Baseline("dies", bench_jobs.Dies, (1,))], 1)


def test_reasons_name_what_to_install():
    assert reason(ModuleNotFoundError(name="torch")) == "torch is not installed: pip install 'mgvq-export[export]'"
    assert reason(ModuleNotFoundError(name="faiss.swigfaiss")) == "faiss is not installed: pip install faiss-cpu"
    assert reason(InputError("what, got, wanted")) == "what, got, wanted"
    assert reason(RuntimeError("")) == "RuntimeError: no reason given"
