"""A plain training step, with which the benchmarks compare that of emaae.

A stack of nn.Conv1d and ReLU with the widths and kernels of emaae's model, padded random batches,
a masked loss and AdamW with default settings, in float32. Only the benchmarks use it.
"""

import ctypes
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from emaae.data.split import Split
from emaae.models import stack_kernels, stack_widths


class Reference(nn.Module):
    """A plain autoencoder; x (batch, 13, time), standardised -> reconstruction, encoding."""

    def __init__(self, inner_size: int, n_encoder: int, n_decoder: int):
        super().__init__()
        inward = [13, *stack_widths(inner_size, n_encoder)]
        outward = [*reversed(stack_widths(inner_size, n_decoder)), 13]
        self.encoder = nn.Sequential(*_blocks(inward, n_encoder), nn.ReLU())
        self.decoder = nn.Sequential(*_blocks(outward, n_decoder))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.decoder(z), z


def _blocks(widths: list[int], n_blocks: int) -> list[nn.Module]:
    widths = [widths[0], *widths] if n_blocks == 5 else widths
    layers: list[nn.Module] = []
    for i, kernel in enumerate(stack_kernels(n_blocks)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Conv1d(widths[i], widths[i + 1], kernel, padding=kernel // 2))
    return layers


def random_order(n: int, batch_sz: int = 32, seed: int | Sequence[int] = 0) -> list[np.ndarray]:
    """Indices of n utterances in random batches."""
    order = np.random.default_rng(seed).permutation(n)
    return [order[i : i + batch_sz] for i in range(0, n, batch_sz)]


def padded(split: Split) -> tuple[Tensor, Tensor]:
    """All utterances of a split as one batch: x (U, D, time) and mask (U, 1, time)."""
    utterances = [split[i] for i in range(len(split))]
    x = nn.utils.rnn.pad_sequence(utterances, batch_first=True).transpose(1, 2).contiguous()
    mask = torch.arange(x.shape[2]) < torch.from_numpy(split.lengths)[:, None]
    return x, mask[:, None].float()


def loss(model: Reference, x: Tensor, mask: Tensor, alpha: float = 0.25) -> Tensor:
    """(1 - alpha) * mse + alpha * mean |z| over real frames."""
    y, z = model(x)
    n_frames = mask.sum()
    mse = ((y - x).square() * mask).sum() / (x.shape[1] * n_frames)
    penalty = (z.abs() * mask).sum() / (z.shape[1] * n_frames)
    return (1 - alpha) * mse + alpha * penalty


def step(
    model: Reference,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    mask: Tensor,
    alpha: float = 0.25,
) -> None:
    """One training step on one batch."""
    optimizer.zero_grad()
    loss(model, x, mask, alpha).backward()
    optimizer.step()


def heap_as_it_comes() -> None:
    """Undo `emaae.system.devices.keep_freed_memory`: return freed memory to the system.

    Sets the thresholds that the C library would adapt to by itself after a few steps.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # of malloc.h
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)
        libc.malloc_trim(0)
