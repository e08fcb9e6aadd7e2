"""The acceptance's section about TensorRT on a fake GPU: comparisons at the large size, windows, goals, this machine's engines.

The section as a whole is run in ``tests/examples/test_embedding.py``.
"""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from mgvq_export.benchmarks.gpu import bundle, engines, network
from mgvq_export.benchmarks.gpu.report import CannotRun, GpuOptions, Row, goal
from mgvq_export.core.bundle import Bundle
from mgvq_export.runtime.images import to_float

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def built(fake, with_bundle) -> Bundle:
    shared = bundle.shared_bundle(with_bundle)
    list(engines._build(shared, with_bundle))
    return Bundle.open(shared.path)


def compared(built, options) -> list[Row]:
    return list(engines._large_against_single(built, bundle.waves(options.large), options))


def test_large_images_are_compared_with_float32_untiled_and_tiled(built, with_bundle):
    rows = compared(built, with_bundle)
    tilings = ("untiled", "windows of 72x72, up to 4 at once")
    found = ("equal codes", "same codes decoded")
    assert [row.check for row in rows] == [
        f"engines fp16 112x96, {tiling}, against fp32: {what}" for tiling in tilings for what in found
    ]
    assert [str(row) for row in rows if not row.ok] == []
    assert "windows 6 of 72x72" in rows[2].facts["plan"]


def test_both_sizes_are_compared_in_the_section(fake, with_bundle, monkeypatch):
    for name in ("_times", "_example"):
        monkeypatch.setattr(engines, name, lambda *_: iter(()))
    rows = [row for row in engines.tensorrt_section(with_bundle) if row.ok is not None]
    assert [str(row) for row in rows if not row.ok] == []
    compared = [row.check.split(":")[0] for row in rows if row.check.endswith("equal codes")]
    assert compared == [
        "engines fp16 96x64, untiled, against fp32",
        "engines fp16 112x96, untiled, against fp32",
        "engines fp16 112x96, windows of 72x72, up to 4 at once, against fp32",
        "tiled against untiled, 112x96",
    ]


def test_wrong_engines_are_noticed_on_large_images(built, with_bundle, monkeypatch):
    right = engines.single_results

    def other(*arguments):
        found = right(*arguments)
        return dataclasses.replace(found, codes=(found.codes + 1) % 60, pixels=-found.pixels)

    monkeypatch.setattr(engines, "single_results", other)
    assert [row.ok for row in compared(built, with_bundle)] == [False] * 4


def test_no_reference_for_large_images_is_a_row(built, with_bundle, monkeypatch):
    import torch

    on_gpu = dataclasses.replace(with_bundle, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = compared(built, on_gpu)
    assert row.ok is None and row.value == "not compared" and "finds no GPU" in row.facts["note"]

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore.")

    monkeypatch.setattr(network, "_results", full)
    (row,) = compared(built, with_bundle)
    assert row.ok is None and row.facts["note"] == "PyTorch in float32: CUDA out of memory. Tried to allocate 9 GiB."


def test_the_reference_is_the_network_of_the_bundle(with_bundle):
    shared = bundle.shared_bundle(with_bundle)
    image = to_float(bundle.waves(with_bundle.large))
    found, wanted = (
        network.single_results(shared, image, with_bundle),
        bundle.run_graphs(shared, "fp32", "ort-cpu", image),
    )
    assert np.mean(found.codes == wanted.codes) > 0.99 and np.abs(found.latent - wanted.latent).max() < 1e-3
    source = replace(shared.manifest.source, name="elsewhere.safetensors")
    shared.manifest = replace(shared.manifest, source=source)
    with pytest.raises(CannotRun, match="elsewhere.safetensors"):
        network.single_results(shared, image, with_bundle)


def test_tiled_engines_take_four_windows(built):
    batches = {
        record.part: max(shapes.max[0] for profile in record.profiles for shapes in profile.values())
        for record in built.engines
        if any(record.profiles)
    }
    assert {part for part, batch in batches.items() if batch == 4} == {"encoder_trunk", "decoder_trunk"}
    assert set(batches.values()) == {1, 4}


def test_untiled_images_with_cuda_graphs_are_judged(built, with_bundle, monkeypatch):
    monkeypatch.setattr(engines, "_goal", lambda verb, options, gpu: goal(1e9, gpu))
    image = bundle.waves(with_bundle.large)
    rows = list(engines._times(built, image, with_bundle, "NVIDIA H200"))
    judged = [row.check for row in rows if row.ok]
    assert judged == [f"{verb} 112x96, untiled, CUDA graphs" for verb in ("encode", "decode")]
    assert [row.check for row in rows][4:6] == [
        f"{verb} 112x96, windows of 72x72, up to 4 at once, CUDA graphs" for verb in ("encode", "decode")
    ]
    assert {row.facts["count"] for row in rows} == {5 * with_bundle.repeats}
    assert GpuOptions().engine_repeats == 100


def test_goals_are_those_of_one_network_and_size():
    assert engines._goal("encode", GpuOptions(), "NVIDIA H200") == {"at_most": 50}
    assert engines._goal("decode", GpuOptions(), "NVIDIA H200") == {"at_most": 65}
    assert engines._goal("decode", GpuOptions(), "NVIDIA L4") == {"note": "wanted on an H200: at most 65 ms"}
    assert engines._goal("encode", GpuOptions(large=(1024, 1024)), "NVIDIA H200") == {}


def test_the_example_gets_the_engines_of_this_machine(built):
    here = engines.engine_folder(built)
    kept = [replace(record, gpu="NVIDIA L4", file=f"engines/l4/fp16/{record.part}.engine") for record in built.engines]
    built.manifest = replace(built.manifest, engines=(*built.engines, *kept))
    assert engines.engine_folder(built) == here and "h200" in str(here)
