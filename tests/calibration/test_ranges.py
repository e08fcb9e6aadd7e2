"""Ranges of a network's values: equal numpy's on everything at once, resumable, the same in pieces; bad input is one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mgvq_export.calibration.crops import Crops
from mgvq_export.calibration.ranges import Ranges, collect
from mgvq_export.core.errors import InputError
from mgvq_export.core.spec import Part
from mgvq_export.export.graphs.builder import WeightStore
from mgvq_export.export.graphs.in_memory import load_session
from mgvq_export.export.graphs.parts import build_graph
from mgvq_export.runtime.images import to_float
from mgvq_export.tests.support.checks import one_line


def test_equal_all_values_at_once(small_network, photos: tuple[Path, ...]) -> None:
    crops = Crops(photos, 5, 32)
    found = collect(small_network, crops, "key")
    store = WeightStore()
    model = build_graph(small_network, Part.ENCODER, "fp32", store)
    names = [name for node in model.graph.node for name in node.output if not name.endswith(("/size", "/shape"))]
    session = load_session(model, store, outputs=[name for name in names if name != "latent"])
    image = np.concatenate([to_float(window) for window in crops.read()])
    everything = dict(zip([value.name for value in session.get_outputs()], session.run(None, {"image": image}), strict=True))
    assert set(found.sides["encoder"]) == {"image", *everything}
    for name, values in everything.items():
        statistics = found.sides["encoder"][name]
        assert statistics.count == values.size
        np.testing.assert_allclose([statistics.minimum, statistics.maximum], [values.min(), values.max()], rtol=1e-4, atol=1e-5)
    decoder = build_graph(small_network, Part.DECODER, "fp32", WeightStore())
    assert {node.name for node in decoder.graph.node if node.op_type == "Conv"} - {"image"} <= {
        "image",
        *found.sides["decoder"],
    } | {
        decoder.graph.node[-1].name,
        *(node.name for node in decoder.graph.node if "image" in node.output),
    }
    assert found.sides["decoder"]["quantized"].largest <= 1 + 1e-6  # codebook rows are unit vectors


def test_pieces_of_the_graph_and_batches_change_nothing(small_network, photos, monkeypatch) -> None:
    crops = Crops(photos, 5, 32)
    whole = collect(small_network, crops, "key")
    monkeypatch.setattr("mgvq_export.calibration.ranges._MEMORY", 1 << 18)  # a few nodes at a time, one window at a time
    pieces = collect(small_network, crops, "key")
    assert list(pieces.sides["encoder"]) == list(whole.sides["encoder"])
    for side, values in whole.sides.items():
        for name, statistics in values.items():
            other = pieces.sides[side][name]
            assert (other.count, other.zeros) == (statistics.count, statistics.zeros)
            np.testing.assert_allclose(other.largest, statistics.largest, rtol=1e-5)


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(small_network, photos, tmp_path, monkeypatch) -> None:
    crops = Crops(photos, 7, 32)
    monkeypatch.setattr("mgvq_export.calibration.ranges._SAVED_EVERY", 1)
    wanted = collect(small_network, crops, "key", path=tmp_path / "whole.json")

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    path = tmp_path / "stopped.json"
    with pytest.raises(KeyboardInterrupt):
        collect(small_network, crops, "key", path=path, progress=stop)
    assert 0 < Ranges.load(path).done < 7
    seen: list[int] = []
    again = collect(small_network, crops, "key", path=path, progress=lambda done, total: seen.append(done))
    assert min(seen) > 2  # it did not start over
    assert again.to_dict() == wanted.to_dict()
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    # Complete: read, not computed. Under another key: computed anew.
    assert collect(None, crops, "key", path=path).to_dict() == wanted.to_dict()
    assert collect(small_network, crops, "other", path=path).key == "other"


def test_bad_input_is_one_line(small_network, photos, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"format": "mgvq-ra')
    with pytest.raises(InputError, match="is no valid JSON: .*; delete it and calibrate again") as error:
        collect(small_network, Crops(photos, 2, 32), "key", path=tmp_path / "broken.json")
    assert one_line(str(error.value))


def test_nan_names_the_first_node(small_network, photos) -> None:
    with torch.no_grad():
        small_network.encoder.stages[1].op_list[0].main["conv2"].conv.weight[3] = 1e38
    with pytest.raises(
        InputError, match=r"the first node is encoder.stages.1.op_list.0.main.conv2.conv: .* infinite of"
    ) as error:
        collect(small_network, Crops(photos, 2, 32), "key")
    assert one_line(str(error.value))
