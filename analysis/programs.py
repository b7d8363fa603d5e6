"""Shared parts of the programs of this package, `python -m analysis.NAME`."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from emaae.system.errors import UserError


def program(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a program of this package; its help begins with the docstring of its module."""
    return argparse.ArgumentParser(
        prog=f"python -m analysis.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def folder_of(ref: str) -> Path:
    """The folder that REF names, or the current one for runs on W&B."""
    return Path(ref) if os.path.isdir(ref) else Path()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written inside; raises UserError when the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
