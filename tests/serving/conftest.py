"""A published repository of the tiny network and one real server on it, for all tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mgvq_export.core.bundle import Bundle
from mgvq_export.serving.options import PublishOptions
from mgvq_export.serving.publish import publish
from mgvq_export.tests.support import triton_server

#: Of the shared server.
OPTIONS = PublishOptions(precision="fp32", max_batch=4, max_queue=32, sizes=((64, 96),), max_pixels=1_000_000)


@pytest.fixture(scope="session")
def repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the shared server serves. It was published under another name: a repository can be moved."""
    folder = tmp_path_factory.mktemp("published")
    publish(tiny_bundle, folder / "first", OPTIONS)
    return (folder / "first").rename(folder / "models")


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton_server.Server]:
    """A real tritonserver with explicit model control, ready."""
    triton_server.require_server()
    # After a load that failed this server waits for a model that is not there, until its time to end is over.
    options = ("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=5")
    with triton_server.running(repository, tmp_path_factory.mktemp("server"), options) as found:
        yield found
