"""What is shown while a data set is tokenized: images per second, failures, and how far it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

#: Makes a context whose value is called with (text, images done).
Watch = Callable[[str, int], AbstractContextManager[Callable[[str, float], None]]]


@contextlib.contextmanager
def unwatched(task: str, total: int) -> Iterator[Callable[[str, float], None]]:
    """A :data:`Watch` that shows nothing."""
    yield lambda text, done: None


class Progress:
    """Counts images and says how fast they go."""

    def __init__(self, before: int, failed: int):
        """``before``: images done by earlier runs, ``failed`` of which failed."""
        self.update: Callable[[str, float], None] = lambda text, done: None
        self._before, self._failed, self._done = before, failed, 0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def add(self, done: int, failed: int) -> None:
        """Count images done, some of which failed."""
        self._done += done
        self._failed += failed
        self.show()

    def show(self) -> None:
        """Show the counts."""
        speed = f"{self._done / max(self.seconds, 1e-9):.3g} images/s" if self._done else "tokenize"
        self.update(f"{speed}{f', {self._failed} failed' if self._failed else ''}", self._before + self._done)
