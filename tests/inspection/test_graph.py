"""Graphs that are described, and those that cannot be."""

from pathlib import Path

import onnx
import pytest

from mgvq_export.core.errors import InputError
from mgvq_export.inspection.graph import describe_graph


def test_a_type_that_onnx_does_not_have(tiny_bundle, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle.path / "fp32" / "quantizer.onnx", load_external_data=False)
    model.graph.input[0].type.tensor_type.elem_type = 74
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="no type that ONNX knows"):
        describe_graph(tmp_path / "a.onnx")
