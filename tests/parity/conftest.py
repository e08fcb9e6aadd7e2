"""Images, a bundle to plant faults in, and a report's data, gathered once for the tests of its content and of its page."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.parity.context import VerificationContext
from mgvq_export.parity.report.gather import gather
from mgvq_export.parity.report.report_data import ReportData
from mgvq_export.parity.results import CheckResult, ParityReport
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.image_files import write_image
from mgvq_export.runtime.images import pad_to_multiple

#: Names as a folder may hold them: markup, what Markdown and matplotlib take for more than text, bytes that are no text.
HOSTILE = ("<img src=x onerror=alert(1)>.png", "_a|b`$x_{y$ & \"q'.png", "new\nline\x07.png", os.fsdecode(b"\xff\xfe.png"))


def waves(height: int, width: int) -> np.ndarray:
    """An image uint8 [height, width, 3] with structure and noise."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.stack([np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
    return np.clip(127 + 90 * image + 20 * rng.standard_normal(image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True, scope="module")
def onnx_runtime_is_the_cpu_backend():
    """``auto`` takes ONNX Runtime on the CPU here, whether OpenVINO is installed or not: what is expected was made with it."""
    from mgvq_export.runtime.backend import BACKENDS

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(BACKENDS, "openvino")
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images: one large enough for several windows, one with sides that f does not divide."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for name, size in {"a": (192, 224), "b": (75, 101)}.items():
        paths.append(folder / f"{name}.png")
        write_image(paths[-1], waves(*size))
    return paths


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to plant faults in."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def report_context(tiny_bundle: Bundle):
    """Four images of hostile names: one large enough for windows, and of a size that f does not divide."""
    images, sizes = {}, {}
    for index, name in enumerate(HOSTILE):
        images[name], sizes[name] = pad_to_multiple(waves(*((203, 301) if not index else (64 + index, 90))), 16)
    context = VerificationContext(tiny_bundle, images, "ort-cpu", sizes=sizes)
    yield context
    context.close()


@pytest.fixture(scope="session")
def data(report_context: VerificationContext) -> ReportData:
    checks = [
        CheckResult.judged("network/latent", "Is <b>it</b> & so?", 3e-7, tolerance("latent", "fp32"), f"worst: {HOSTILE[0]}"),
        CheckResult.judged("network/pixels", "Are the pixels?", 0.5, tolerance("pixels", "fp32"), f"worst: {HOSTILE[1]}"),
        CheckResult("round-trip", "How many codes stay?", "reported", float("nan"), None, "not finite"),
        CheckResult.skipped("backend", "Does the backend agree?", "there is no other"),
    ]
    facts = {
        "model": "tiny",
        "bundle": "a/<b>",
        "backend": "ort-cpu",
        "images": {name: [80, 96] for name in HOSTILE},
        "seconds": 1.5,
    }
    return gather(report_context, ParityReport(checks, facts))


@pytest.fixture(scope="session")
def page(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data as a page on disk."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    from mgvq_export.parity.report.write import render

    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(data, ".html"), encoding="utf-8")
    return path
