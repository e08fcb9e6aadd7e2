"""NVIDIA's TensorRT for RTX itself: a real parser and a real builder that run without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.core.processes import python_command


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    """Skips the tests where the library is not installed; with MGVQ_REQUIRE_RTX=1 that is a failure."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        if os.environ.get("MGVQ_REQUIRE_RTX") == "1":
            pytest.fail("MGVQ_REQUIRE_RTX=1, but tensorrt_rtx is not installed: pip install 'mgvq-export[rtx]'")
        pytest.skip("TensorRT for RTX is not installed: pip install 'mgvq-export[rtx]'")


def plan_of(network: Any, kind: str) -> PrecisionPlan:
    """Every convolution that can be is ``kind``, and so are both branches of every residual sum; scales that hold any value."""
    from mgvq_export.export.graphs.plans import plan_nodes

    nodes = {}
    for name, node in plan_nodes(network).items():
        if node.quantizable:
            scales = {0: 0.05} if node.op == "Conv" else {0: 0.05, 1: 0.05}
            nodes[name] = NodePlan(kind, scales)
    return PrecisionPlan(kind, "fp16", nodes)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The packaged model in fp32, fp16, int8 and fp8. Tests that build into it copy it."""
    from mgvq_export.export.bundles import export_bundle
    from mgvq_export.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint("demo")
    plans = [plan_of(checkpoint.network(), kind) for kind in ("int8", "fp8")]
    return export_bundle(checkpoint, tmp_path_factory.mktemp("rtx") / "demo", precisions=("fp32", "fp16"), plans=plans)


@pytest.fixture
def in_child(tmp_path: Path) -> Callable[..., Any]:
    """Runs a function of :mod:`.child_functions` in a process of its own; gives what it returns, as JSON."""

    def run(function: str, *arguments: object) -> Any:
        command = python_command("mgvq_export.tests.export.engines.rtx.child_functions", *map(str, arguments), function=function)
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs mgvq-export in a process of its own, with a cache folder of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mgvq_export.cli", *map(str, arguments)]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)

    return run
