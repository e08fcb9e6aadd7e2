"""docs/serving.md and the deployment files: they parse, agree with each other and with what the server takes."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Command, Context

import mgvq_export
from mgvq_export.cli import main
from mgvq_export.tests.support import triton_server

ROOT = Path(mgvq_export.__file__).parent
PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "examples/triton/compose.yaml").read_text(encoding="utf-8"))["services"]["triton"]


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((ROOT / "examples/triton/kubernetes.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(kubernetes) -> dict[str, Any]:
    return kubernetes["Deployment"]["spec"]["template"]["spec"]


def flags(command: list[str]) -> dict[str, str]:
    assert command[0] == "tritonserver"
    return {name: value for name, _, value in (word.partition("=") for word in command[1:])}


def test_both_start_the_same_server(compose, pod):
    ours, theirs = flags(compose["command"]), flags(pod["containers"][0]["args"])
    assert set(ours) == set(theirs)
    for found in (ours, theirs):
        assert found["--model-control-mode"] == "none"
        for name in ("--http-restricted-api", "--grpc-restricted-protocol"):
            apis, _, key = found[name].partition(":")
            assert {"model-repository", "shared-memory"} <= set(apis.split(",")) and "MGVQ_ADMIN_KEY" in key


def test_compose(compose):
    assert all(port.startswith("127.0.0.1:") for port in compose["ports"])
    assert compose["volumes"] == ["./models:/models:ro"] and compose["read_only"] is True
    assert int(compose["stop_grace_period"].removesuffix("s")) > int(flags(compose["command"])["--exit-timeout-secs"])
    assert compose["healthcheck"]["test"][-1].endswith(":8000/v2/health/ready")


def test_kubernetes(kubernetes, pod):
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > int(flags(container["args"])["--exit-timeout-secs"])
    ports = {port["name"] for port in container["ports"]}
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["path"] for probe in probes.values()} == {"/v2/health/ready", "/v2/health/live"}
    assert probes["livenessProbe"]["path"] == "/v2/health/live"
    assert {port["targetPort"] for port in kubernetes["Service"]["spec"]["ports"]} == ports
    assert kubernetes["Service"]["spec"]["selector"] == kubernetes["Deployment"]["spec"]["selector"]["matchLabels"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]} and mounts["models"]["readOnly"] is True
    dockerfile = (ROOT / "docker/Dockerfile.triton").read_text(encoding="utf-8")
    assert pod["securityContext"]["runAsUser"] == int(re.search(r"^USER (\d+)", dockerfile, re.MULTILINE)[1])


@pytest.mark.triton
def test_the_server_knows_every_option_of_the_files_and_the_page(compose):
    triton_server.require_server()
    home = triton_server.server_home()
    variables = {"LD_LIBRARY_PATH": f"{home / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"}
    command = [home / "pytriton/tritonserver/bin/tritonserver", "--help"]
    helped = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    known = set(re.findall(r"^\s*(--[a-z-]+)", helped.stdout + helped.stderr, re.MULTILINE))
    assert len(known) > 40
    assert set(flags(compose["command"])) <= known
    publish = main.get_command(Context(main), "publish")
    assert isinstance(publish, Command)
    ours = {name for option in publish.params for name in option.opts}
    others = {"--gpus", "--shm-size", "--version-compatible"}  # Docker's, and build's
    for block in re.findall(r"`(--[a-z-]+)", PAGE):
        assert block in known | ours | others, block


def test_the_page_has_every_option_of_publish():
    publish = main.get_command(Context(main), "publish")
    assert isinstance(publish, Command)
    for option in publish.params:
        if option.name not in ("bundle", "output", "as_json", "debug", "target", "precision"):
            assert f"`{option.opts[0]}" in PAGE or f" `{option.opts[0]}" in PAGE, option.opts[0]


def test_links_resolve():
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
