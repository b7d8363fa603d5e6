"""What does a user see when something they gave is wrong? One line, and exit status 2."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

from emaae.signals import listening

INTERRUPTED = 130  # the shell's exit status of a program that Ctrl-C ended


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that names the file or flag, its value, what was expected and the
    way out. Programs show it without a traceback and end with exit status 2.
    """


@contextlib.contextmanager
def speaking_plainly(program: str) -> Iterator[None]:
    """Turn a `UserError` into one line and exit status 2, and a warning into one line.

    A signal to stop ends the program with one line too, see `emaae.signals`.
    """
    as_usual = warnings.formatwarning

    def one_line(message, category, *where, **more) -> str:
        ours = category is UserWarning
        return f"warning: {message}\n" if ours else as_usual(message, category, *where, **more)

    warnings.formatwarning = one_line
    try:
        with listening():
            yield
    except UserError as error:
        line = " ".join(str(error).split())
        print(f"{program}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        warnings.formatwarning = as_usual
