"""Stopping on a signal, in a consistent state.

Job schedulers send SIGTERM or SIGUSR1 some time before they kill a program, a terminal that closes
sends SIGHUP, and Ctrl-C sends SIGINT. The program then raises `Interrupted`: at once, or at the end
of the current `defer_interrupts` block. A second Ctrl-C ends the program at once.
"""

import contextlib
import ctypes
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A terminal and an agent may both send the same Ctrl-C: a second one must come later than this.
SECOND_AFTER_S = 0.5


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; the state is consistent."""


class _StopRequest:
    """Whether and when a signal asked the program to stop."""

    def __init__(self) -> None:
        self.requested_at: float | None = None  # by time.monotonic()
        self.pending = False  # a signal came inside a `defer_interrupts` block
        self.depth = 0  # number of nested `defer_interrupts` blocks

    def handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.requested_at is None:
            self.requested_at = now
            if self.depth:
                self.pending = True
                return
            raise Interrupted
        if number == signal.SIGINT and now - self.requested_at > SECOND_AFTER_S:
            raise KeyboardInterrupt


_request = _StopRequest()


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """A block in which `SIGNALS` raise `Interrupted`; for the main thread only.

    Signals that the parent process ignores, such as SIGHUP under nohup, stay ignored.
    """
    global _request
    _request = _StopRequest()
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    old_handlers = {number: signal.signal(number, _request.handle) for number in handled}
    try:
        yield
    finally:
        _request = _StopRequest()
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def end_with_parent(number: int) -> None:
    """Ask Linux to send this process the signal `number` when its parent ends, even by SIGKILL."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
        ctypes.CDLL(None).prctl(set_death_signal, number)


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """A block that delays `Interrupted` to its end, so that its changes are made together."""
    request = _request
    request.depth += 1
    try:
        yield
    finally:
        request.depth -= 1
    if request.pending and not request.depth:
        request.pending = False
        raise Interrupted


def interrupt_pending() -> bool:
    """Whether a signal came inside the current `defer_interrupts` block."""
    return _request.pending


def raise_interrupted() -> NoReturn:
    """Raise `Interrupted` now, inside a `defer_interrupts` block."""
    _request.requested_at = _request.requested_at or time.monotonic()
    _request.pending = False
    raise Interrupted
