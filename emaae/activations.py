"""Activations at the end of the encoder: a ReLU, or a TopK, which keeps only the largest values."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from emaae.system.distributed import all_gather, sum_over_processes

# Weight of the newest batch in the running mean of the thresholds; the weight of batch n is 1 / n
# while that is larger.
THRESHOLD_MOMENTUM = 0.1


class ReLU(nn.ReLU):
    """max(0, h) for h (batch, unit, time)."""

    def forward(self, h: Tensor, mask: Tensor | None = None, training: bool = False) -> Tensor:
        return super().forward(h)


class TopK(nn.Module):
    """max(0, h) where s exceeds a threshold, zero elsewhere; s is h smoothed over time.

    In training the threshold is the (1 - k) quantile of s over the real frames of the batch, pooled
    over processes: a fraction k of the values exceeds it, fewer if there are ties. In evaluation it
    is the running mean of the training thresholds, so that the encoding of an utterance does not
    depend on the rest of its batch.

    Args:
        n_thresholds: the number of units for one threshold per unit, 1 for a common threshold.
        gate_frames: odd length in frames of the Hann window (sin^2, sum 1); 1 does not smooth.

    Attributes:
        k: fraction of the values that is kept in training, 0..1.
        threshold: buffer (n_thresholds,), the running mean.
        n_batches: buffer, the number of training batches so far.
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
        """h (batch, unit, time) smoothed over time; frames outside the utterance count as 0."""
        if self.gate_frames == 1:
            return h
        n = torch.arange(1, self.gate_frames + 1, device=h.device, dtype=h.dtype)
        window = torch.sin(torch.pi * n / (self.gate_frames + 1)).square()
        n_units = h.shape[1]
        taps = (window / window.sum()).expand(n_units, 1, -1)
        h = h if mask is None else h * mask
        return F.conv1d(h, taps, padding=self.gate_frames // 2, groups=n_units)

    def update_threshold(self, s: Tensor, mask: Tensor | None) -> Tensor:
        """The threshold (n_thresholds,) of a batch; also updates the running mean."""
        n_frames = torch.tensor(s.shape[0] * s.shape[2]) if mask is None else mask.sum()
        n_values = int(sum_over_processes(n_frames)) * (s.shape[1] // len(self.threshold))
        if mask is not None:
            s = s.masked_fill(mask == 0, -torch.inf)
        values = rearrange(s, "b c t -> c (b t)").reshape(len(self.threshold), -1)
        # The threshold is the largest value that is not kept.
        n_highest = min(round(self.k * n_values), n_values - 1) + 1
        highest = values.topk(min(n_highest, values.shape[1]), sorted=False).values
        highest = all_gather(F.pad(highest, (0, n_highest - highest.shape[1]), value=-torch.inf))
        threshold = highest.topk(n_highest, sorted=False).values.amin(1)
        self.n_batches += 1
        self.threshold.lerp_(
            threshold, self.n_batches.reciprocal().clamp(min=THRESHOLD_MOMENTUM).to(threshold)
        )
        return threshold


# For each --activation: (n_units, gate_frames) -> the last module of the encoder.
ACTIVATIONS = {
    "relu": lambda n_units, gate_frames: ReLU(),
    # Bussmann, Leask & Nanda (2024), "BatchTopK sparse autoencoders".
    "batch_topk": lambda n_units, gate_frames: TopK(1),
    # Each unit fires in a fraction k of the frames: lifetime sparsity (Makhzani & Frey 2015,
    # "Winner-take-all autoencoders"), feature choice (Ayonrinde 2024, "Adaptive sparse allocation
    # with mutual choice & feature choice sparse autoencoders").
    "feature_topk": TopK,
}
