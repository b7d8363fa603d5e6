"""Stopping on a signal, where nothing is half done.

Job schedulers send SIGTERM or SIGUSR1 some time before they kill, closed terminals SIGHUP, Ctrl-C
SIGINT. Each becomes `Interrupted`, at once or at the end of the `defer_interrupts` block that the
program is in. A second Ctrl-C ends the program at once.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A terminal and an agent may both pass on one Ctrl-C: only a later one is a second.
SECOND_AFTER_S = 0.5


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; nothing is half done."""


class _StopRequest:
    """Whether and when a signal asked the program to stop."""

    def __init__(self) -> None:
        self.requested_at: float | None = None  # by time.monotonic()
        self.pending = False  # a signal came inside a `defer_interrupts` block
        self.depth = 0  # of `defer_interrupts` blocks

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
    """Turn the signals to stop into `Interrupted`; only the main thread may.

    Those that the parent ignores, as nohup does SIGHUP, stay ignored.
    """
    global _request
    _request = _StopRequest()
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _request.handle) for number in heeded}
    try:
        yield
    finally:
        _request = _StopRequest()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """Keep `Interrupted` waiting until the block is over: what it changes belongs together."""
    asked = _request
    asked.depth += 1
    try:
        yield
    finally:
        asked.depth -= 1
    if asked.pending and not asked.depth:
        asked.pending = False
        raise Interrupted


def interrupt_pending() -> bool:
    """Whether a signal came inside the current `defer_interrupts` block."""
    return _request.pending


def raise_interrupted() -> NoReturn:
    """Stop here, inside a `defer_interrupts` block, as if a signal had just come."""
    _request.requested_at = _request.requested_at or time.monotonic()
    _request.pending = False
    raise Interrupted
