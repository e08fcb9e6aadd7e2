"""What ONNX Runtime is asked for on each backend."""

import onnxruntime as ort
import pytest

from mgvq_export.core.errors import BackendError
from mgvq_export.core.spec import Part
from mgvq_export.runtime.ort.sessions import OrtSession


@pytest.mark.parametrize(
    ("backend", "provider", "settings"),
    [("ort-cuda", "CUDAExecutionProvider", {"use_tf32": "0"}), ("ort-cpu", "CPUExecutionProvider", {})],
)
def test_float32_is_float32_on_the_gpu_too(tiny_bundle, monkeypatch, backend, provider, settings):
    asked = {}

    class Session:
        def __init__(self, path, options, **keywords):
            asked.update(keywords)

        def get_providers(self):
            return asked["providers"]

        def get_inputs(self):
            return []

        get_outputs = get_inputs

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider])
    OrtSession(tiny_bundle.graph_path("fp32", Part.DECODER), backend)
    assert asked["providers"] == [provider] and asked["provider_options"] == [settings]


def test_a_silent_fallback_to_the_cpu_is_an_error(tiny_bundle, monkeypatch):
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        ort, "InferenceSession", lambda path, options, **_: real(path, options, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(BackendError, match="did not load CUDAExecutionProvider"):
        OrtSession(tiny_bundle.graph_path("fp32", Part.DECODER), "ort-cuda")
