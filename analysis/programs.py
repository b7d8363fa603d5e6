"""Shared parts of the programs of this package, `python -m analysis.NAME`."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emaae.system.errors import ArgumentParser, UserError, reporting_errors

RUNS = "a run, a sweep or an --out_dir here, or ENTITY/PROJECT[/SWEEP] on W&B"
MODELS = (
    "models: a run's folder, a sweep's after promote, a .pth beside its model_config.json, "
    "wandb:ENTITY/PROJECT/NAME:ALIAS"
)
DATA = "a tree with train, val and test; probes need one of demo-data (default: the demo data)"

WEIGHTS = "those after the last epoch, or those with the best score (default: final)"

# Arguments that several programs have.
SHARED: dict[str, dict[str, Any]] = {
    "ref": {"metavar": "REF", "help": RUNS},
    "refs": {"nargs": "+", "metavar": "REF", "help": f"{RUNS}; several are put together"},
    "models": {"nargs": "+", "metavar": "REF", "help": MODELS},
    "--data": {"type": Path, "metavar": "DIR", "help": DATA},
    "--weights": {"choices": ("final", "selected"), "default": "final", "help": WEIGHTS},
}


def program(name: str, description: str | None, *shared: str) -> argparse.ArgumentParser:
    """The parser of a program, with some `SHARED` arguments; its help begins with description."""
    parser = ArgumentParser(
        prog=f"python -m analysis.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for argument in shared:
        parser.add_argument(argument, **SHARED[argument])
    return parser


def run_program(name: str, main: Callable[[], None]) -> None:
    """Run the main function of a program; a `UserError` is one line and exit status 2."""
    with reporting_errors(f"python -m analysis.{name}"):
        main()


def fraction(text: str) -> float:
    """An argument between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, such as 0.9, got {text}")
    return value


def folder_of(ref: str) -> Path:
    """The folder that REF names, or the current one for runs on W&B."""
    return Path(ref) if os.path.isdir(ref) else Path()


def named(path: Path, suffix: str) -> Path:
    """The path that --out gives. Raises UserError unless it has this suffix."""
    if path.suffix != suffix:
        raise UserError(f"--out must name a {suffix} file, got {path}")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that the block writes; raises UserError if that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): name another --out"
        ) from None
