"""A program that does not end of its own accord is ended: when the time is up, or at the second signal."""

import signal
import subprocess
import sys

import pytest

STUBBORN = """
import time
from mgvq_export.commands.stopping import Stopped, stoppable
with stoppable():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(1000)
        except Stopped as stop:
            print(f"{stop} with {stop.code}", flush=True)
"""


def start(code: str, **kwargs: object) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,  # type: ignore[call-overload]
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "said", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "stopped by SIGTERM", 143)]
)
def test_it_is_ended_when_the_time_is_up(number: int, said: str, code: int) -> None:
    process = start(STUBBORN)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert output == f"{said} with {code}\nready\n"
    assert errors == "stopping…\n"  # once


def test_the_second_signal_ends_it() -> None:
    patient = STUBBORN.replace(
        "import time\n", "import time\nimport mgvq_export.commands.stopping as s; s.LIMIT_SECONDS = 1000\n"
    )
    process = start(patient)
    process.send_signal(signal.SIGINT)
    assert process.stdout and process.stdout.readline() == "interrupted with 130\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    code = """
import signal, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
from mgvq_export.commands.stopping import stoppable
with stoppable():
    print("ready", flush=True)
    time.sleep(1.5)
print("done")
"""
    process = start(code)
    process.send_signal(signal.SIGHUP)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "done\n", "")


def test_handlers_are_put_back() -> None:
    from mgvq_export.commands.stopping import stoppable

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
