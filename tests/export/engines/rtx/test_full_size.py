"""A released variant at full size, built by NVIDIA's own builder."""

from pathlib import Path

import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.spec import VARIANTS


@pytest.mark.slow
def test_a_released_variant_at_2560x1440(in_child, tmp_path) -> None:
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.model.checkpoint import Checkpoint
    from mgvq_export.model.synthetic import synthetic_state_dict

    spec = VARIANTS["mgvq-f16c32-g8"]
    checkpoint = Checkpoint(spec, synthetic_state_dict(spec), "synthetic", Path("synthetic"), "0" * 64)
    export_bundle(checkpoint, tmp_path / "bundle", precisions=("fp16",))
    found = in_child("full_size", tmp_path / "bundle")
    assert found["peak_bytes"] < 3e9  # host memory of the largest build
    # The table in docs/tensorrt.md, GB.
    wanted = {"encoder": 2.37, "quantizer": 0.0066, "dequantizer": 0.0037, "decoder": 1.42}
    assert {part: value / 1e9 for part, value in found["activation_bytes"].items()} == pytest.approx(wanted, rel=0.15)
    assert {record.part for record in Bundle.open(tmp_path / "bundle").engines} == wanted.keys()
