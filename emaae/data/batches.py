"""The order in which utterances reach the model, and their batches."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from emaae.data.split import Split

# Lengths are jittered by this fraction before sorting: enough that an utterance meets new
# neighbours every epoch, little enough that padding stays small.
JITTER = 0.02


def training_order(lengths: np.ndarray, batch_sz: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of utterance indices, similar lengths together, in random order.

    A function of its arguments alone: a continued run sees the batches it would have seen.
    """
    random = np.random.default_rng([seed, epoch])
    keys = lengths * random.uniform(1 - JITTER, 1 + JITTER, len(lengths))
    batches = _cut(np.argsort(keys, kind="stable"), batch_sz)
    return [batches[i] for i in random.permutation(len(batches))]


def evaluation_order(lengths: np.ndarray, batch_sz: int) -> list[np.ndarray]:
    """Batches of utterance indices by length, longest first (so memory fails early or never)."""
    return _cut(np.argsort(-lengths, kind="stable"), batch_sz)


def _cut(order: np.ndarray, batch_sz: int) -> list[np.ndarray]:
    return [order[i : i + batch_sz] for i in range(0, len(order), batch_sz)]


def batches(split: Split, order: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
    """x (batch, D, time) in raw units, zero where padded, and its mask (batch, 1, time).

    A batch may be of no utterance. Frames are picked where they lie, and the order goes there once:
    a split on the GPU is never waited for. What lies in main memory is sent from pinned pages while
    the step before is computed.
    """
    if not order:
        return
    here, lengths, counts = split.frames.device, split.lengths, [len(batch) for batch in order]
    starts, sizes = (
        torch.from_numpy(of_all[np.concatenate(order)]).to(here).split(counts)
        for of_all in (split.offsets, lengths)
    )
    for batch, start, size in zip(order, starts, sizes):
        time = torch.arange(int(lengths[batch].max(initial=1)), device=here)
        real = time < size[:, None]
        frames = split.frames[torch.where(real, start[:, None] + time, 0)]
        mask = real[:, None].to(torch.float32)
        x = frames.transpose(1, 2) * mask
        if split.device != here:
            x, mask = (_sent(tensor, split.device) for tensor in (x, mask))
        yield x, mask


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
