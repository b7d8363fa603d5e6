"""Where the programs of this package write."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from emaae.system.errors import UserError


def folder_of(ref: str) -> Path:
    """The folder of REF; of runs on W&B the current one."""
    return Path(ref) if Path(ref).is_dir() else Path()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file, whose folder is made: raises UserError when the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
