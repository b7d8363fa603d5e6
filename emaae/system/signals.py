"""Stopping on a signal, where nothing is half done.

Job schedulers send SIGTERM or SIGUSR1 some time before they kill, closed terminals SIGHUP, Ctrl-C
SIGINT. Each becomes `Interrupted`, at once or at the end of the `uninterrupted` block that the
program is in. A second Ctrl-C ends the program at once.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
# A terminal and an agent may both pass on one Ctrl-C: only a later one is a second.
SECOND_AFTER_S = 0.5


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; nothing is half done."""


class _Asked:
    """Whether and when a signal asked the program to stop."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.pending = False  # a signal came inside an `uninterrupted` block
        self.depth = 0  # of `uninterrupted` blocks

    def handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.at is None:
            self.at = now
            if self.depth:
                self.pending = True
                return
            raise Interrupted
        if number == signal.SIGINT and now - self.at > SECOND_AFTER_S:
            raise KeyboardInterrupt


_asked = _Asked()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Turn the signals to stop into `Interrupted`; only the main thread may."""
    global _asked
    _asked = _Asked()
    with caught(SIGNALS, _asked.handle):
        try:
            yield
        finally:
            _asked = _Asked()


@contextlib.contextmanager
def caught(names: Sequence[str], handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Call `handle` on signals, but for those that the parent ignores, as nohup does SIGHUP."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep `Interrupted` waiting until the block is over: what it changes belongs together."""
    asked = _asked
    asked.depth += 1
    try:
        yield
    finally:
        asked.depth -= 1
    if asked.pending and not asked.depth:
        asked.pending = False
        raise Interrupted


def pending() -> bool:
    """Whether a signal came inside the current `uninterrupted` block."""
    return _asked.pending


def interrupt() -> NoReturn:
    """Stop here, inside an `uninterrupted` block, as if a signal had just come."""
    _asked.at = _asked.at or time.monotonic()
    _asked.pending = False
    raise Interrupted
