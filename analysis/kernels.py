"""Kernels of one model, the primitives of its decoder, and features through it."""

import numpy as np
import torch
from torch import Tensor

from emaae.data.features import CHANNELS
from emaae.data.reading import FrameFormat
from emaae.models import CNNAutoEncoder, build_model


def form_of(n_channels: int) -> FrameFormat:
    """Which columns of features a model of so many channels reads: 14, or 13 without loudness."""
    return FrameFormat(keep_loudness=n_channels == len(CHANNELS))


def untrained(model: CNNAutoEncoder, seed: int, mean: Tensor, sd: Tensor) -> CNNAutoEncoder:
    """Random weights in the architecture of a model; mean, sd (D,): for `normalise`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = build_model(**model.architecture())
    fresh.normalise(mean, sd)
    return fresh.eval()


@torch.no_grad()
def autoencode(model: CNNAutoEncoder, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruction (T, D) in raw units and encoding (T, C) of raw features (T, D)."""
    y, z = model(torch.as_tensor(features).T[None])
    return y[0].T.numpy(), z[0].T.numpy()


def busiest_units(model: CNNAutoEncoder, z: np.ndarray, n: int) -> np.ndarray:
    """The n units that put most into the reconstruction of z (T, C), the first the most.

    By mean activation times the norm of the decoder weights that read the unit, which is the same
    however the two share the scale. Units that never fire are left out.
    """
    weight = z.mean(0) * model.unit_norms().detach().numpy()
    order = np.argsort(-weight, kind="stable")[:n]
    return order[weight[order] > 0]


def first_kernels(model: CNNAutoEncoder, n: int) -> np.ndarray:
    """The n kernels (n, D, k) of the encoder's first layer with the largest norm."""
    weight = model.encoder[0].conv.weight.detach()
    order = torch.linalg.vector_norm(weight, dim=(1, 2)).argsort(descending=True, stable=True)
    return weight[order[:n]].numpy()


@torch.no_grad()
def primitives(model: CNNAutoEncoder, units: np.ndarray) -> np.ndarray:
    """The contribution of each unit to the output (n, D, W), in units of the channels' sd.

    The decoder's response to an impulse of height 1 in one unit, minus its response to zeros, for
    the W frames of its receptive field.
    """
    field = model.decoder_receptive_field()
    # Long enough for the padding at either end to reach nothing that is kept.
    z = torch.zeros(len(units) + 1, model.inner_size, 3 * field)
    z[torch.arange(len(units)), torch.as_tensor(units), 3 * field // 2] = 1
    y = model.standardise(model.decode(z))
    return (y[:-1] - y[-1:])[:, :, field : 2 * field].numpy()
