"""The command line in a real pseudo-terminal, with an emulator that says what a person sees."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

LONGEST = 120.0  # seconds; a program that takes longer hangs


@dataclass
class Seen:
    """What a program left on the screen, all it scrolled away included, and how it ended."""

    lines: list[str]
    code: int
    moments: list[list[str]]

    @property
    def text(self) -> str:
        """The screen as text."""
        return "\n".join(self.lines)


def in_terminal(
    arguments: Sequence[object],
    *,
    columns: int = 80,
    folder: Path | None = None,
    react: Callable[[subprocess.Popen[bytes], int, list[str]], None] = lambda process, terminal, lines: None,
) -> Seen:
    """Run ``mgvq-export`` with ``arguments`` in a terminal that many columns wide.

    ``react`` is called with the process, the terminal's other end (write ``b"\\x03"`` there for Ctrl-C) and the lines on the screen whenever
    something has been printed.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 200, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")} | {
        "TERM": "xterm"
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mgvq_export", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment,
        preexec_fn=_own_terminal,
    )
    os.close(theirs)
    screen = pyte.Screen(columns, 200)
    stream = pyte.ByteStream(screen)
    moments: list[list[str]] = []
    end = time.monotonic() + LONGEST
    try:
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # Linux: the other end is closed
                    break
                if not data:
                    break
                stream.feed(data)
                moments.append(_lines(screen))
                react(process, ours, moments[-1])
        return Seen(_lines(screen), process.wait(10), moments)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C reaches the program as it does from a keyboard


def _lines(screen: pyte.Screen) -> list[str]:
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines
