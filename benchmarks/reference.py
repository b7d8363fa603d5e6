"""What are we compared with? The textbook training step: padded random batches, nn.Conv1d, float32.

A stack of convolutions and ReLUs of the same widths and kernels as ours, a masked loss, AdamW as it
comes. It is used here only.
"""

import numpy as np
import torch
from torch import Tensor, nn

from emaae.data import Split
from emaae.models import stack_kernels, stack_widths


class Reference(nn.Module):
    """The autoencoder as one would write it first; x (batch, 13, time) standardised."""

    def __init__(self, inner_size: int, n_encoder: int, n_decoder: int):
        super().__init__()
        inward = [13, *stack_widths(inner_size, n_encoder)]
        outward = [*reversed(stack_widths(inner_size, n_decoder)), 13]
        inward = [13, *inward] if n_encoder == 5 else inward
        outward = [inner_size, *outward] if n_decoder == 5 else outward
        self.encoder = nn.Sequential(*_blocks(inward, n_encoder), nn.ReLU())
        self.decoder = nn.Sequential(*_blocks(outward, n_decoder))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.decoder(z), z


def _blocks(widths: list[int], n_blocks: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i, kernel in enumerate(stack_kernels(n_blocks)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Conv1d(widths[i], widths[i + 1], kernel, padding=kernel // 2))
    return layers


def random_batches(split: Split, batch_sz: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Every utterance once, in random batches padded to their longest: x and mask."""
    order = np.random.default_rng(seed).permutation(len(split))
    found = []
    for i in range(0, len(order), batch_sz):
        utterances = [split[int(j)] for j in order[i : i + batch_sz]]
        x = nn.utils.rnn.pad_sequence(utterances, batch_first=True).transpose(1, 2)
        mask = torch.zeros(len(utterances), 1, x.shape[2])
        for row, utterance in zip(mask, utterances):
            row[:, : len(utterance)] = 1
        found.append((x.contiguous(), mask))
    return found


def step(model: Reference, optimizer: torch.optim.Optimizer, x: Tensor, mask: Tensor) -> None:
    """One step on one batch."""
    optimizer.zero_grad()
    y, z = model(x)
    n_frames = mask.sum()
    mse = ((y - x).square() * mask).sum() / (x.shape[1] * n_frames)
    penalty = (z.abs() * mask).sum() / (z.shape[1] * n_frames)
    (0.75 * mse + 0.25 * penalty).backward()
    optimizer.step()
