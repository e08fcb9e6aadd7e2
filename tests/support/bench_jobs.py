"""Jobs for the tests of the bench's processes: a child imports them by name."""

import os
import time

import numpy as np


class Stamp:
    """Says when it ran, and what it was told in the environment."""

    def warm_up(self):
        pass

    def run(self):
        return {"stamp": time.monotonic()}

    def outcome(self):
        return {"threads": os.environ.get("OMP_NUM_THREADS")}


class Allocate(Stamp):
    """Holds so many bytes in a pass, and twice as many while warming up."""

    def __init__(self, count):
        self.count = count

    def warm_up(self):
        np.ones(2 * self.count, np.uint8).sum()

    def run(self):
        np.ones(self.count, np.uint8).sum()
        return {"ones": 0.0}


class Dies(Stamp):
    """Its process ends in the given pass."""

    def __init__(self, last):
        self.left = last

    def run(self):
        if not self.left:
            os._exit(1)
        self.left -= 1
        return {"stamp": 0.0}


def needs_package():
    import a_package_that_nobody_has  # noqa: F401


def breaks():
    raise ValueError("\n  the first line\nthe second")
