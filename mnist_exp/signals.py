"""SIGINT and SIGTERM: a run ends with a checkpoint, everything else with KeyboardInterrupt. Workers end with their sweeper."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

log = logging.getLogger(__name__)
_GRACE = 10  # seconds for a checkpoint


class Stop:
    """Whether the user has asked the run to stop."""

    asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a true ``Stop``; a second raises KeyboardInterrupt at once.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    stop = Stop()

    def handle(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        log.warning("%s: writing a checkpoint (again to stop without one) ...", signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """While inside, SIGTERM raises KeyboardInterrupt, as SIGINT does (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@functools.cache
def end_with(parent: int) -> None:
    """Let this process not outlive ``parent``, which started it: a run that goes on has a few seconds for a checkpoint."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)  # the end of a process that is at no run
        end = time.monotonic() + _GRACE
        while signal.getsignal(signal.SIGTERM) != signal.SIG_DFL and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)  # for the status
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
