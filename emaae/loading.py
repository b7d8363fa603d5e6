"""Loading a model from a run, a sweep or W&B."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from emaae.models import CNNAutoEncoder
from emaae.runs.checkpoint import load_model_file
from emaae.system.errors import UserError
from emaae.system.files import is_data
from emaae.tracking.models import pull


def load_model(ref: str | os.PathLike, device: torch.device | str = "cpu") -> CNNAutoEncoder:
    """A trained model in evaluation mode, with its normaliser.

    ref: see `model_file`. Raises UserError.
    """
    with model_file(ref) as path:
        return load_model_file(path).to(device)


@contextlib.contextmanager
def model_file(ref: str | os.PathLike) -> Iterator[Path]:
    """The path of the `.pth` for `ref`, with its model_config.json in the same folder.

    ref: a `.pth`; a run's folder, or any folder with a single `.pth`; the folder of a local sweep
    whose best model was promoted; or `wandb:` followed by an argument of `python -m emaae pull`,
    such as `wandb:ENTITY/PROJECT/NAME:ALIAS`: these files are deleted when the context ends.
    Raises UserError.
    """
    if str(ref).startswith("wandb:"):
        with tempfile.TemporaryDirectory() as folder:
            yield pull(str(ref), Path(folder)) / "best.pth"
        return
    path = Path(ref).expanduser()
    if os.path.isdir(path):
        known = [path / "best" / "best.pth", path / "best.pth"]
        others = [p for p in path.glob("*.pth") if is_data(p.name)]
        known += others if len(others) == 1 else []
        path = next((p for p in known if p.is_file()), path / "best.pth")
    if not os.path.isfile(path):
        raise UserError(
            f"no model at {ref}: expected a .pth file, a run's folder with best.pth in it, a "
            "sweep's folder after `python -m emaae promote`, or wandb:ENTITY/PROJECT/NAME:ALIAS"
        )
    settings = path.parent / "model_config.json"
    if not os.path.isfile(settings):
        raise UserError(f"{settings} is missing: a model needs its model_config.json beside it")
    yield path
