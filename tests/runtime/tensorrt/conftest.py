"""``auto`` without engines."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def onnx_runtime_is_the_cpu_backend():
    """``auto`` takes ONNX Runtime on the CPU here, whether OpenVINO is installed or not: what is expected was made with it."""
    from mgvq_export.runtime.backend import BACKENDS

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(BACKENDS, "openvino")
        yield
