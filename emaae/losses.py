"""What is minimised? (1 - alpha) * mse + alpha * penalty, plus the weight penalty when asked for.

Every term is a ratio of sums over real frames. The sums are kept apart from the ratio, so that a
batch and a whole split are measured by the same code: add the sums, divide once.

Shapes: x, y (batch, D, time) raw input and reconstruction; z (batch, C, time) encoding;
mask (batch, 1, time) in {0, 1}; sd (D,) the train split's standard deviations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from emaae.distributed import pooled
from emaae.models import CNNAutoEncoder, Output

# A unit is live when its variance exceeds this fraction of the most variable unit's.
LIVE = 1e-8


@dataclass(frozen=True)
class Penalty:
    """A sparsity or slowness penalty on the encoding.

    sums: (z, mask) -> per-unit sums (..., C), additive over batches.
    value: (sums, n_frames, unit_norms) -> the scalar penalty; unit_norms (C,) are the L2 norms of
        the first decoder layer's weights that read each unit.
    pressure: (D, C) -> the factor that turns alpha / (1 - alpha) into `lambda_eff`.
    """

    sums: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    pressure: Callable[[int, int], float]


def _abs_sums(z: Tensor, mask: Tensor) -> Tensor:
    return (z.abs() * mask).sum((0, 2))


def _l1(sums: Tensor, n_frames: Tensor, unit_norms: Tensor) -> Tensor:
    return sums.sum() / (sums.shape[-1] * n_frames)


def _l1_decoder_norm(sums: Tensor, n_frames: Tensor, unit_norms: Tensor) -> Tensor:
    return (sums * unit_norms).sum() / n_frames


def _tv_sums(z: Tensor, mask: Tensor) -> Tensor:
    # float64: the variance is a difference of two sums that may be nearly equal.
    z = z.double()
    pairs = mask[..., 1:] * mask[..., :-1]
    change = ((z[..., 1:] - z[..., :-1]).square() * pairs).sum((0, 2))
    return torch.stack([change, (z * mask).sum((0, 2)), (z.square() * mask).sum((0, 2))])


def _tv(sums: Tensor, n_frames: Tensor, unit_norms: Tensor) -> Tensor:
    change, total, square = sums
    spread = square - total.square() / n_frames
    largest = spread.detach().amax().clamp(min=torch.finfo(torch.float32).tiny)
    live = spread > LIVE * largest
    # Units that are not live count as 0 / 1: a division by zero would give every gradient NaN.
    ratio = torch.where(live, change, 0.0) / torch.where(live, spread, 1.0)
    return ratio.sum() / live.sum().clamp(min=1)


PENALTIES = {
    # Mean |z| over units and frames.
    "l1": Penalty(_abs_sums, _l1, lambda n_inputs, n_units: n_inputs / n_units),
    # Mean over frames of sum_c |z_c| ||W_c||: plain L1 can fall by shrinking z and growing the
    # decoder, this one is unchanged when the encoder is scaled by s and the decoder by 1 / s.
    "l1_decoder_norm": Penalty(_abs_sums, _l1_decoder_norm, lambda n_inputs, n_units: n_inputs),
    # Slowness (Wiskott & Sejnowski 2002): mean over live units of the energy of the change from
    # frame to frame over the variance. 0 for constant units, 4 (1 - 1/T) for alternating +-1.
    "tv": Penalty(_tv_sums, _tv, lambda n_inputs, n_units: n_inputs / n_units),
}


def weight_penalty(weights: list[Tensor]) -> Tensor:
    """(||W||_F - 1)^2 with W all convolution weights together; a scalar with a gradient."""
    norms = torch.stack([torch.linalg.vector_norm(w) for w in weights])
    return (torch.linalg.vector_norm(norms) - 1).square()


class Sums(NamedTuple):
    """What one batch adds to the loss of a split."""

    error: Tensor  # squared error in units of sd, over real frames and channels
    penalty: Tensor  # per-unit sums of the penalty (..., C)
    n_frames: Tensor  # real frames

    def plus(self, more: "Sums | None") -> "Sums":
        """Running total in float64, without the graph; it stays on the device."""
        mine = [value.detach().double() for value in self]
        return Sums(*(a if more is None else a + b for a, b in zip(mine, more or mine)))

    def pooled(self) -> "Sums":
        """Those of all processes, with the graph."""
        return Sums(*map(pooled, self))


class Terms(NamedTuple):
    """The loss and its unweighted terms, scalars."""

    loss: Tensor
    mse: Tensor
    penalty: Tensor


@dataclass(frozen=True)
class Objective:
    """The loss of a configuration.

    penalty: a name of `PENALTIES`; with_weights: add the weight penalty.
    """

    penalty: str
    with_weights: bool = False

    def sums(self, model: CNNAutoEncoder, x: Tensor, out: Output, mask: Tensor) -> Sums:
        """Measure one batch."""
        error = (((out.y - x) / model.sd[:, None]).square() * mask).sum()
        return Sums(error, PENALTIES[self.penalty].sums(out.z, mask), mask.sum())

    def terms(self, model: CNNAutoEncoder, sums: Sums, alpha: float) -> Terms:
        """The loss of a batch or of a total of many; alpha in 0..1."""
        mse = sums.error / (model.input_dim * sums.n_frames)
        penalty = PENALTIES[self.penalty].value(sums.penalty, sums.n_frames, model.unit_norms())
        loss = (1 - alpha) * mse + alpha * penalty
        if self.with_weights:
            loss = loss + weight_penalty(model.conv_weights())
        return Terms(loss, mse, penalty)

    def pressure(self, model: CNNAutoEncoder) -> float:
        """The factor between alpha / (1 - alpha) and `lambda_eff`, see `schedules.lambda_eff`."""
        return PENALTIES[self.penalty].pressure(model.input_dim, model.inner_size)
