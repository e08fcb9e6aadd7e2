"""Long runs that Ctrl-C ends: the work in a thread, the main thread free to take the signal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_INTERVAL = 0.1  # seconds between looks; on Linux a signal ends the wait at once

T = TypeVar("T")


def run_interruptibly(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """The result of ``work``, which runs in native code for long.

    Python handles signals in the main thread alone, between two bytecodes, so one stuck in a native call cannot be interrupted.
    Called in the main thread, ``work`` therefore runs in another one. When an exception such as :class:`KeyboardInterrupt` comes
    while it runs, ``stop`` is called, the end of ``work`` is awaited, and the exception goes on. In other threads ``work`` just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()  # an exception in Thread.join makes Python 3.11 take a running thread for ended

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=target, name="mgvq-run", daemon=True)
    try:
        thread.start()
        while not done.wait(_INTERVAL):
            pass
    except BaseException:
        stop()
        if thread.ident is not None:  # it was started
            done.wait()
        raise
    if errors:
        raise errors[0]
    return results[0]
