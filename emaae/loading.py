"""Models of runs, sweeps and W&B, by reference."""

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
    """The `.pth` that `ref` means, which lies beside its model_config.json.

    ref: a `.pth`; a run's folder, or another with one `.pth` in it; the folder of a local sweep
    whose best model was promoted; or `wandb:` and what `python -m emaae pull` takes, such as
    `wandb:ENTITY/PROJECT/NAME:ALIAS`, which is there as long as the context is. Raises UserError.
    """
    if str(ref).startswith("wandb:"):
        with tempfile.TemporaryDirectory() as folder:
            yield pull(str(ref).removeprefix("wandb:"), Path(folder)) / "best.pth"
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
    beside = path.parent / "model_config.json"
    if not os.path.isfile(beside):
        raise UserError(f"{beside} is missing: a model needs the model_config.json beside it")
    yield path
