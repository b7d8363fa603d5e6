"""Reading and writing the files of the original project.

In the original project each block, the last one included, is batch normalisation, convolution and
ReLU, and the input is not standardised. The tensor names correspond as follows:

    model.encoder.blockN.conv.NAME         encoder.N.conv.NAME      (decoder alike)
    model.encoder.blockN.batchnorm.NAME    encoder.N.norm.NAME

Such a model is `CNNAutoEncoder(norm="original")` with mean 0 and standard deviation 1.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emaae.command_line import read_knobs, read_model_config
from emaae.config import Config
from emaae.models import Block, CNNAutoEncoder, MaskedBatchNorm
from emaae.system.errors import UserError

ORIGINAL_NAME = re.compile(r"model\.(encoder|decoder)\.block(\d)\.(batchnorm|conv)\.(\w+)")
# Entries of their model_config.json besides the architecture; lr is `learning_rate` there.
SETTINGS = (
    "checkpoint", "epochs", "lr", "batch_sz", "optimizer", "autoencoder_loss", "sparse_loss",
    "penalty_scheduler", "weight_penalty", "alpha", "alpha_epochs", "update", "early_stop",
)  # fmt: skip
SIZES = ("model_type", "input_dim", "inner_size", "n_encoder", "n_decoder")
EPS = 1e-5  # of their batch normalisation, PyTorch's default


def from_original_names(state: Mapping[str, Any], input_dim: int) -> dict[str, Any]:
    """A state_dict of the original project with our names; any other state_dict unchanged."""
    theirs = {name for name in state if isinstance(name, str) and ORIGINAL_NAME.fullmatch(name)}
    if not theirs:
        return dict(state)
    ours = {"mean": torch.zeros(input_dim), "sd": torch.ones(input_dim)}
    for name, value in state.items():
        if name in theirs:
            name = ORIGINAL_NAME.sub(r"\1.\2.\3.\4", name).replace(".batchnorm.", ".norm.")
        ours[name] = value
    return ours


def settings_beside(weights: Path) -> dict[str, Any]:
    """The `SETTINGS` in the model_config.json beside a `.pth`. Raises UserError."""
    path = weights.parent / "model_config.json"
    found = {name: value for name, value in read_model_config(path).items() if value is not None}
    if "learning_rate" in found:
        found["lr"] = found["learning_rate"]
    return read_knobs(path, found, SETTINGS)


def model_config(model: CNNAutoEncoder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The original model_config.json for a model; settings: those known of `SETTINGS`."""
    known = vars(Config()) | dict(settings)
    theirs = {"learning_rate" if name == "lr" else name: known[name] for name in SETTINGS}
    sizes = {name: getattr(model, name) for name in SIZES}
    return sizes | theirs


def has_same_reconstructions(model: CNNAutoEncoder) -> bool:
    """Whether the reconstructions of the original class equal those of the model.

    True for models imported from the original project. For other norms the original class gives 0
    where ours is negative; for norm original its ReLU follows the raw scale, ours comes before it.
    """
    return model.norm == "original" and not model.mean.any()


@torch.no_grad()
def state_dict(model: CNNAutoEncoder) -> dict[str, Tensor]:
    """The weights with the names of the original project; encodings are the same up to rounding.

    The standardiser becomes part of the first batch normalisation, the raw scale part of the last
    convolution, batch normalisation after a convolution part of that convolution. Raises UserError
    for any norm but none, batch or original, and for any activation but relu.
    """
    if model.activation != "relu":
        raise UserError(
            f"activation {model.activation} cannot be expressed in the original format, whose "
            "encoding ends in a ReLU alone: expected a model of activation relu"
        )
    if model.norm not in ("none", "batch", "original"):
        raise UserError(
            f"norm {model.norm} cannot be expressed in the original format, which has batch "
            "normalisation before each convolution: expected a model of norm none, batch or "
            "original"
        )
    state = {}
    for stack in ("encoder", "decoder"):
        for i, block in enumerate(getattr(model, stack)):
            layers = _norm_before(model, block) | _folded_convolution(model, block)
            for name, tensor in layers.items():
                tensor = tensor.float() if tensor.is_floating_point() else tensor
                state[f"model.{stack}.block{i}.{name}"] = tensor.cpu().clone()
    return state


def _norm_before(model: CNNAutoEncoder, block: Block) -> dict[str, Tensor]:
    """Their batch normalisation before a convolution; the first one standardises raw features."""
    norm = MaskedBatchNorm(block.conv.in_channels, eps=0)  # the identity
    if block.norm_first and isinstance(block.norm, MaskedBatchNorm):
        norm = block.norm
    centre, spread = norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt()
    if block is model.encoder[0]:
        mean, sd = model.mean.double(), model.sd.double()
        centre, spread = mean + sd * centre.to(mean), sd * spread.to(sd)
    variance = (spread.square() - EPS).clamp(min=0)
    return {
        "batchnorm.weight": norm.weight * (variance + EPS).sqrt() / spread,
        "batchnorm.bias": norm.bias,
        "batchnorm.running_mean": centre,
        "batchnorm.running_var": variance,
        "batchnorm.num_batches_tracked": norm.num_batches_tracked,
    }


def _folded_convolution(model: CNNAutoEncoder, block: Block) -> dict[str, Tensor]:
    """The convolution, combined with the linear operations between it and the next ReLU."""
    assert block.conv.bias is not None
    weight, bias = block.conv.weight.double(), block.conv.bias.double()
    if isinstance(block.norm, MaskedBatchNorm) and not block.norm_first:
        norm = block.norm
        scale = norm.weight / (norm.running_var.double() + norm.eps).sqrt()
        weight = weight * scale[:, None, None]
        bias = (bias - norm.running_mean) * scale + norm.bias
    if block is model.decoder[-1]:
        weight, bias = weight * model.sd[:, None, None], bias * model.sd + model.mean
    return {"conv.weight": weight, "conv.bias": bias}
