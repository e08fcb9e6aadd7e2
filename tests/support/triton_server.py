"""A real Triton Inference Server for tests: unpacked from the wheel nvidia-pytriton, never installed beside the product.

The wheel's server runs on the CPU with the Python backend. It asks for NumPy 1, so its models run in an environment of their own
that has NumPy 1 and sees the product's packages. Both are kept under this virtual environment, so they are fetched once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

WHEEL = "nvidia-pytriton==0.7.0"
NUMPY = "numpy==1.26.4"
REQUIRED = "MGVQ_REQUIRE_TRITON"

_HOME = Path(sys.prefix) / "triton"
_LOCALHOST = "127.0.0.1"


class Unavailable(Exception):
    """Why there is no server here."""


class Server:
    """A running server.

    Attributes:
        http, grpc, metrics: addresses, ``127.0.0.1:PORT``.
        process: the server's.
    """

    def __init__(self, repository: Path, folder: Path, options: Sequence[str] = (), *, environment: Path | None = None):
        """Start it on ``repository``; its log goes to ``folder``. ``environment``: of the models' Python; that with NumPy 1 when None."""
        home, environment = server_home(), environment or numpy1_environment()
        ports = _free_ports(3)
        self.http, self.grpc, self.metrics = (f"{_LOCALHOST}:{port}" for port in ports)
        # The stub has its working folder first on Python's path: an empty one.
        (folder / "cwd").mkdir(parents=True)
        self.log_file = folder / "triton.log"
        command = [str(home / "pytriton/tritonserver/bin/tritonserver"), f"--model-repository={repository}"]
        command += [f"--backend-directory={home / 'pytriton/tritonserver/backends'}"]
        for name, port in zip(("http", "grpc", "metrics"), ports, strict=True):
            command += [f"--{name}-address={_LOCALHOST}", f"--{name}-port={port}"]
        # A name of its own: servers of one machine share the names of shared memory.
        command += [f"--backend-config=python,shm-region-prefix-name=mgvq{os.getpid()}_{ports[0]}_"]
        libraries = [str(home / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        variables |= {"PATH": f"{environment / 'bin'}:{variables['PATH']}", "LD_LIBRARY_PATH": ":".join(libraries)}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *options], cwd=folder / "cwd", env=variables, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> str:
        """What the server and its models wrote."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, address: str = "") -> tuple[int, str]:
        """Status and body of a GET request."""
        return self._open(urllib.request.Request(f"http://{address or self.http}/{path}"))

    def post(self, path: str, body: str) -> tuple[int, str]:
        """Status and body of a POST request with JSON."""
        return self._open(
            urllib.request.Request(f"http://{self.http}/{path}", body.encode(), {"Content-Type": "application/json"})
        )

    def _open(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait(self, *, live: bool = False, seconds: float = 120) -> None:
        """Until it is ready (``live``: until it answers at all). Fails with the log when it ends or never is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                pytest.fail(f"tritonserver ended with {self.process.returncode}:\n{self.log[-4000:]}")
            with contextlib.suppress(OSError):
                if self.get("v2/health/live" if live else "v2/health/ready")[0] == 200:
                    return
            time.sleep(0.1)
        pytest.fail(f"tritonserver is not ready after {seconds} s:\n{self.log[-4000:]}")

    def stop(self, seconds: float = 60) -> int:
        """End it as an orchestrator does, with SIGTERM; its exit status. Killed, with its models, when it takes longer."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            return self.process.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def running(
    repository: Path, folder: Path, options: Sequence[str] = (), *, environment: Path | None = None, live: bool = False
) -> Iterator[Server]:
    """A server that is ready (``live``: that answers)."""
    server = Server(repository, folder, options, environment=environment)
    try:
        server.wait(live=live)
        yield server
    finally:
        server.stop()


def require_server() -> None:
    """Skip the test where there is no server, with the reason; fail under ``MGVQ_REQUIRE_TRITON=1``."""
    try:
        server_home()
        numpy1_environment()
    except Unavailable as error:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1 and {error}")
        pytest.skip(str(error))


def server_home() -> Path:
    """The unpacked wheel, with the stub of this Python in its place. Raises :class:`Unavailable`."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = _HOME / WHEEL.replace("==", "-") / python
    if not home.exists():
        library = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("INSTSONAME"))
        if not library.is_file() or ".so" not in library.name:
            raise Unavailable(f"Triton's stub needs Python's shared library, and there is no {library}")
        download = _HOME / "download"
        _pip("download", "--no-deps", "--dest", str(download), WHEEL)
        (wheel,) = download.glob("*.whl")
        made = _HOME / f"unpacked-{os.getpid()}"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(made)
        server = made / "pytriton/tritonserver"
        stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
        if not stub.is_file():
            raise Unavailable(f"{WHEEL} has no stub for Python {python}")
        placed = shutil.copy(stub, server / "backends/python/triton_python_backend_stub")
        for program in (server / "bin/tritonserver", placed):
            Path(program).chmod(0o755)
        _place(made, home)
        wheel.unlink()
    return home


def numpy1_environment() -> Path:
    """A virtual environment with NumPy 1 and, behind it, the packages of this one. Raises :class:`Unavailable`."""
    home = _HOME / f"{NUMPY.replace('==', '-')}-python{sys.version_info.major}.{sys.version_info.minor}"
    if not home.exists():
        made = _HOME / f"environment-{os.getpid()}"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
        packages = made / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        _pip("install", "--no-deps", "--target", str(packages), NUMPY)
        own = [folder for folder in site.getsitepackages() if Path(folder).is_dir()]
        lines = [f"import site; site.addsitedir({folder!r})" for folder in own]  # with their own .pth files
        (packages / "product.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _place(made, home)
    return home


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise Unavailable(f"pip {words[0]} {words[-1]} failed: {found.stderr.strip().splitlines()[-1:]}")


def _place(made: Path, home: Path) -> None:
    """Rename, unless another process was faster."""
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(home)
    except OSError:
        shutil.rmtree(made)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((_LOCALHOST, 0))
        return [one.getsockname()[1] for one in sockets]
