"""Sparse, semi-shift-invariant representations of how we articulate speech."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from emaae.models import CNNAutoEncoder

__version__ = "0.1.0"

if os.name != "posix":
    raise ImportError("emaae runs on Linux and macOS; on Windows use it in WSL")


def load_model(ref: "str | os.PathLike", device: "torch.device | str" = "cpu") -> "CNNAutoEncoder":
    """A trained model in evaluation mode, see `emaae.loading.load_model`."""
    # Imported here so that looking at the version or the command line need not wait for torch.
    from emaae.loading import load_model

    return load_model(ref, device)
