"""Times the graphs inside an encode or decode: wraps the sessions of any backend."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from mgvq_export.core.spec import Part
from mgvq_export.runtime.backend import GraphRunner, Session

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of one run: input name, sizes


class TimedSessions:
    """The sessions of a tokenizer, timed by part.

    A session's ``run`` takes and gives host arrays, so a GPU has finished when it returns.

    Attributes:
        seconds: part -> seconds of its runs since :meth:`reset`; windows add up.
        runs: (part, shapes of its inputs) -> runs since :meth:`reset`.
    """

    def __init__(self, sessions: GraphRunner, clock: Callable[[], float] = time.perf_counter):
        self._sessions, self._clock = sessions, clock
        self._timed: dict[Part, _TimedSession] = {}
        self.reset()

    def reset(self) -> None:
        """Clear what was recorded."""
        self.seconds: dict[str, float] = {}
        self.runs: dict[tuple[str, Shapes], int] = {}

    def __getitem__(self, part: Part) -> Session:
        if part not in self._timed:
            self._timed[part] = _TimedSession(self._sessions[part], str(part), self)
        return self._timed[part]

    def rest(self, part: Part) -> None:
        """Give back the working memory that a part kept."""
        self._sessions.rest(part)

    def drop(self, part: Part) -> None:
        """Drop a loaded graph."""
        self._timed.pop(part, None)
        self._sessions.drop(part)

    def close(self) -> None:
        """Drop all loaded graphs."""
        self._timed.clear()
        self._sessions.close()


class _TimedSession:
    def __init__(self, session: Session, part: str, owner: TimedSessions):
        self._session, self._part, self._owner, self._clock = session, part, owner, owner._clock

    @property
    def inputs(self) -> Mapping[str, np.dtype]:
        return self._session.inputs

    def run(self, feeds: Mapping[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
        start = self._clock()
        found = self._session.run(feeds, outputs)
        elapsed = self._clock() - start
        seconds, runs = self._owner.seconds, self._owner.runs
        seconds[self._part] = seconds.get(self._part, 0.0) + elapsed
        key = (self._part, tuple((name, array.shape) for name, array in feeds.items()))
        runs[key] = runs.get(key, 0) + 1
        return found


class _NoSessions:
    """Sessions that do nothing."""

    inputs: Mapping[str, np.dtype] = {}

    def __getitem__(self, part: Part) -> _NoSessions:
        return self

    def run(self, feeds: Mapping[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
        return []

    def rest(self, part: Part) -> None:
        pass

    def drop(self, part: Part) -> None:
        pass

    def close(self) -> None:
        pass


def overhead(runs: int = 2000, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median seconds that timing one run of a graph takes: measured as a run of sessions that do nothing."""
    sessions = TimedSessions(_NoSessions(), clock)
    feeds = {"features": np.zeros((1, 1, 1, 1), np.float32)}
    samples = []
    for _ in range(runs):
        start = clock()
        sessions[Part.ENCODER_HEAD].run(feeds)
        samples.append(clock() - start)
    return statistics.median(samples)
