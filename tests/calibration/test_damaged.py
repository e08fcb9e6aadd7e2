"""Damaged state of a calibration: read, refused in one line, or measured again."""

import json
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.calibration.effects import Effect, Journal
from mgvq_export.calibration.ranges import Ranges
from mgvq_export.calibration.statistics import TensorStatistics
from mgvq_export.core.errors import InputError
from mgvq_export.tests.support import fuzz


def ranges() -> Ranges:
    """Ranges of three values, one of them of zeros only."""
    rng = np.random.default_rng(0)
    sides: dict[str, dict[str, TensorStatistics]] = {"encoder": {}, "decoder": {}}
    for side, name, scale in (("encoder", "a", 1.0), ("encoder", "zeros", 0.0), ("decoder", "b", 1e5)):
        sides[side][name] = TensorStatistics()
        sides[side][name].add((scale * rng.standard_normal(50)).astype(np.float32))
    return Ranges("key", 2, 5, sides)


def test_every_mutation_of_the_ranges_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    ranges().save(path)
    good = path.read_bytes()

    def use() -> None:
        found = Ranges.load(path)
        found.check_finite()
        for values in found.sides.values():
            for one in values.values():
                one.percentile(99.9)
                one.add(np.ones(3, np.float32))

    # Most of the file are counts: the rest of it is changed as often.
    document = json.loads(good)
    short = {**document, "values": {side: {} for side in document["values"]}}
    for what, data in (*fuzz.mutations(document, 200), *fuzz.mutations(short, 100), *fuzz.damaged(good, 50)):
        path.write_bytes(data)
        fuzz.assert_read_or_refused(use, what)


def test_the_key_is_named(tmp_path: Path) -> None:
    values = ranges().to_dict()
    values["values"]["encoder"]["a"]["zeros"] = "many"
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"values\.encoder\.a\.zeros: expected int, got str; delete it and calibrate again"):
        Ranges.load(tmp_path / "r.json")


def test_damaged_measurements_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    effect = Effect(0.99, float("inf"), 0.01, 0.02, 0.0)
    for key in ("a", "b"):
        Journal(path).add(key, effect)
    first, second = path.read_bytes().splitlines()
    for what, data in (*fuzz.mutations(json.loads(first), 200), *fuzz.damaged(first, 50)):
        path.write_bytes(data + b"\n" + second + b"\n")
        journal = Journal(path)
        assert journal.get("b") == effect, what
        assert journal.get("a") is None or 0 <= journal.get("a").agreement <= 1, what  # type: ignore[union-attr]
