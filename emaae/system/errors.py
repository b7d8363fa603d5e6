"""Usage errors: one line on stderr and exit status 2."""

import argparse
import contextlib
import errno
import io
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from emaae.system.signals import handle_signals

MAX_MESSAGE = 2000  # characters; a message may quote a long text from a file
EXIT_INTERRUPTED = 130  # a shell's exit status for a program that Ctrl-C ended
EXIT_BROKEN_PIPE = 141  # ... and for one whose output is no longer read, as in `| head -1`


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one line that names the file or flag, its value, what was expected and what to
    do. Programs print it without a traceback and end with exit status 2.
    """


class BadFile(UserError):
    """A file that is broken or of another kind; other files of the same folder may be fine."""


class ArgumentParser(argparse.ArgumentParser):
    """A parser that raises UserError for usage errors."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; a leading ~ of a value becomes the home directory, also in --flag=~/x."""

        def expanded(word: str) -> str:
            flag, equals, value = word.partition("=") if word[:2] == "--" else ("", "", word)
            return flag + equals + os.path.expanduser(value)

        words = sys.argv[1:] if args is None else args
        return super().parse_args([expanded(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """A block that imports packages of an extra; raises UserError on how to install them."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"this needs {error.name or error}, which is not installed: pip install -r "
            f"requirements-{name}.txt, or, where emaae is installed, pip install 'emaae[{name}]'"
        ) from error


@contextlib.contextmanager
def reporting_errors(program: str) -> Iterator[None]:
    """The block of a whole program, with errors and warnings of one line.

    A `UserError` gives exit status 2, a signal to stop (see `emaae.system.signals`) 130, and output
    that is no longer read 141, without a message. Standard streams that the parent has closed, or
    that accept only ASCII, are made usable.
    """
    _repair_streams()
    as_usual = warnings.formatwarning

    def formatted(message, category, *where, **more) -> str:
        if category is UserWarning:  # from this project
            return f"warning: {one_line(str(message))}\n"
        return as_usual(message, category, *where, **more)

    warnings.formatwarning = formatted
    try:
        try:
            _check_current_folder()
            with handle_signals():
                yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if _has_reader(sys.stdout):
            raise
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except (UserError, OSError) as error:
        why = str(error)
        if isinstance(error, OSError):
            # A folder that may not be read, a name that is too long, a full disk behind stdout.
            if error.errno not in (errno.EACCES, errno.ENAMETOOLONG, errno.ENOSPC):
                raise
            what = error.filename or "the output"
            why = f"{what}: {error.strerror}; make room, or name another path"
        print(f"{program}: error: {one_line(why)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        warnings.formatwarning = as_usual


def _check_current_folder() -> None:
    """Raise UserError if the current folder was deleted, which torch does not survive."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted: change to another folder") from None


def _repair_streams() -> None:
    """Make the environment usable: closed streams, ASCII streams, the matplotlib of a notebook."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the program ends
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Figures are only written to files, and a notebook's backend may not be installed.
    os.environ["MPLBACKEND"] = "agg"


def _has_reader(stream: TextIO) -> bool:
    """Whether a stream still has a reader; without one, redirects it to /dev/null."""
    ready = select.poll()
    ready.register(stream.fileno(), select.POLLOUT)
    if any(event & select.POLLERR for _, event in ready.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def last_error(log: Path) -> str:
    """The last error line in a log file of a program, else its last line; "" if there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    last = [line.strip()[:300] for line in reversed(lines) if line.strip()]
    # torchrun prints a long report after the error of its program.
    return next((line for line in last if ": error: " in line), last[0] if last else "")


def shortened(names: Sequence[str]) -> str:
    """The first five names, joined by commas, and dots if there are more."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def reason(error: BaseException) -> str:
    """The first line of an error's message or, without a message, the name of its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def one_line(message: str) -> str:
    """The message as one line of limited length, without control characters."""
    line = " ".join(message.split())
    if len(line) > MAX_MESSAGE:
        line = f"{line[: MAX_MESSAGE // 2]} ... {line[-MAX_MESSAGE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
