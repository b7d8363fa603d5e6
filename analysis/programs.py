"""What the programs of this package share: `python -m analysis.NAME`, and where they write."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from emaae.system.errors import UserError


def program(name: str, description: str | None) -> argparse.ArgumentParser:
    """Of a program of this package, whose help begins with its module's docstring as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m analysis.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def folder_of(ref: str) -> Path:
    """The folder of REF; of runs on W&B the current one."""
    return Path(ref) if os.path.isdir(ref) else Path()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file, whose folder is made: raises UserError when the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
