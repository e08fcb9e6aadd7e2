"""Ctrl-C, SIGTERM and SIGHUP: said at once, ended within two seconds, by force at the second signal.

Python runs a signal's handler in the main thread, between two bytecodes; a call into native code delays it. The number of a signal is
therefore also written to a socket, by C, and a thread that reads it says "stopping…" and keeps the time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from mgvq_export.commands.output import say

LIMIT_SECONDS = 1.8  # from the first signal to the end by force
_GRACE_SECONDS = 0.1  # the main thread says it itself where it is not in native code

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end. ``code`` is the exit code: 128 and the signal's number."""

    def __init__(self, number: int):
        super().__init__(number)
        self.code = 128 + number

    def __str__(self) -> str:
        number = self.code - 128
        return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """In the body, the first signal raises :class:`Stopped` in the main thread; a second one ends the process at once.

    A signal that was ignored when the program started (``nohup``, a job in the background of a script) stays ignored. Ends the process
    itself, with the body's exit code, once a signal has come: no thread that is still reading a file delays the end.
    """
    taken = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread() or not taken:
        yield
        return
    first: list[int] = []

    said = _Said()

    def raise_once(number: int, _: FrameType | None) -> None:
        if not first:
            first.append(number)
            said.once()
            raise Stopped(number)

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    threading.Thread(target=_watch, args=(ours, said), name="mgvq-signals", daemon=True).start()
    old_descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    old = {number: signal.signal(number, raise_once) for number in taken}
    code = 0
    try:
        yield
    except Stopped as stop:  # it came outside of any verb
        code = stop.code
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not first:
            raise
    finally:
        if not first:
            signal.set_wakeup_fd(old_descriptor)
            for number, handler in old.items():
                signal.signal(number, handler)
            theirs.close()
    if first:
        _end(code)


class _Said:
    """Says "stopping…", once, from whichever thread comes first."""

    def __init__(self) -> None:
        self._lock, self._done = threading.RLock(), False

    def once(self) -> None:
        with self._lock:
            if not self._done:
                self._done = True
                say("\rstopping…" if sys.stderr.isatty() else "stopping…", err=True)


def _watch(signals: socket.socket, said: _Said) -> None:
    """Says "stopping…" at the first signal, and ends the process at the second one, or when the time is up."""
    data = signals.recv(16)
    if not data:
        return  # the program ends of its own accord
    number = data[0]
    again = len(data) > 1
    for seconds, then in ((_GRACE_SECONDS, said.once), (LIMIT_SECONDS, lambda: None)):
        if not again:
            signals.settimeout(seconds)
            try:
                again = bool(signals.recv(16))
            except TimeoutError:
                then()
    _end(128 + number)


def _end(code: int) -> None:
    """End the process now, and those it started. Everything is written under another name first: no file is left half-written."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
