"""Activations at the end of the encoder: a ReLU, or one that keeps only the largest values."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from emaae.system.distributed import all_gather, sum_over_processes

# Weight of a batch in the running mean of the thresholds, once there were 1 / THRESHOLD_MOMENTUM
# batches.
THRESHOLD_MOMENTUM = 0.1


class ReLU(nn.ReLU):
    """max(0, h) for h (batch, unit, time)."""

    def forward(self, h: Tensor, mask: Tensor | None = None, training: bool = False) -> Tensor:
        return super().forward(h)


class TopK(nn.Module):
    """max(0, h) where s exceeds a threshold, zero elsewhere; s is h smoothed over time.

    In training the threshold is the (1 - k) quantile of s over the real frames of all processes'
    batch: a fraction k of the values lies above it, fewer when some are equal. Otherwise it is the
    running mean of those thresholds, so that an encoding does not depend on its neighbours.

    Args:
        n_thresholds: the number of units for a threshold of each, or 1 for one of all units.
        gate_frames: odd length in frames of the Hann window (sin^2, sum 1); 1 does not smooth.

    Attributes:
        k: fraction of the values that are kept while learning, 0..1.
        threshold: buffer (n_thresholds,).
        n_batches: buffer, the number of batches in its running mean.
    """

    threshold: Tensor
    n_batches: Tensor

    def __init__(self, n_thresholds: int, gate_frames: int = 1):
        super().__init__()
        if gate_frames < 1 or gate_frames % 2 == 0:
            raise ValueError(f"gate_frames must be odd and at least 1, got {gate_frames}")
        self.gate_frames, self.k = gate_frames, 0.5
        self.register_buffer("threshold", torch.zeros(n_thresholds))
        self.register_buffer("n_batches", torch.tensor(0))

    def forward(self, h: Tensor, mask: Tensor | None = None, training: bool = False) -> Tensor:
        with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
            s = self.smoothed(h.detach().to(self.threshold.dtype), mask)
            threshold = self.update_threshold(s, mask) if training else self.threshold
            above = s > threshold[:, None]
        return F.relu(h) * above

    def smoothed(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """h (batch, unit, time) smoothed over time; frames outside an utterance count as 0."""
        if self.gate_frames == 1:
            return h
        n = torch.arange(1, self.gate_frames + 1, device=h.device, dtype=h.dtype)
        window = torch.sin(torch.pi * n / (self.gate_frames + 1)).square()
        n_units = h.shape[1]
        taps = (window / window.sum()).expand(n_units, 1, -1)
        h = h if mask is None else h * mask
        return F.conv1d(h, taps, padding=self.gate_frames // 2, groups=n_units)

    def update_threshold(self, s: Tensor, mask: Tensor | None) -> Tensor:
        """The threshold (n_thresholds,) of a batch, which the running mean takes up too."""
        n_frames = torch.tensor(s.shape[0] * s.shape[2]) if mask is None else mask.sum()
        n_values = int(sum_over_processes(n_frames)) * (s.shape[1] // len(self.threshold))
        if mask is not None:
            s = s.masked_fill(mask == 0, -torch.inf)
        values = rearrange(s, "b c t -> c (b t)").reshape(len(self.threshold), -1)
        # The threshold is the largest value of those that are not kept.
        n_highest = min(round(self.k * n_values), n_values - 1) + 1
        highest = values.topk(min(n_highest, values.shape[1]), sorted=False).values
        highest = all_gather(F.pad(highest, (0, n_highest - highest.shape[1]), value=-torch.inf))
        threshold = highest.topk(n_highest, sorted=False).values.amin(1)
        self.n_batches += 1
        self.threshold.lerp_(
            threshold, self.n_batches.reciprocal().clamp(min=THRESHOLD_MOMENTUM).to(threshold)
        )
        return threshold


# By --activation: (n_units, gate_frames) -> the last module of the encoder.
ACTIVATIONS = {
    "relu": lambda n_units, gate_frames: ReLU(),
    # Bussmann, Leask & Nanda (2024), "BatchTopK sparse autoencoders".
    "batch_topk": lambda n_units, gate_frames: TopK(1),
    # Each unit fires in a fraction k of the frames: lifetime sparsity (Makhzani & Frey 2015,
    # "Winner-take-all autoencoders"), feature choice (Ayonrinde 2024, "Adaptive sparse allocation
    # with mutual choice & feature choice sparse autoencoders"). The gate is smooth in time.
    "feature_topk": TopK,
}
