"""The loss: (1 - alpha) * (mse + beta * slow) + alpha * penalty (+ weight penalty).

mse, slow and penalty are ratios of sums over real frames. The sums are computed apart from the
ratios, so that the same code measures a batch and a whole split: add up the sums, divide once.

Shapes: x, y (batch, D, time) raw input and reconstruction; z (batch, C, time) encoding;
mask (batch, 1, time) in {0, 1}; sd (D,) the train split's standard deviations.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from emaae.config import Config
from emaae.metrics import zero
from emaae.models import CNNAutoEncoder, Output
from emaae.system.distributed import sum_over_processes

# A unit is live when its variance exceeds this fraction of the largest variance of all units.
LIVE_FRACTION = 1e-8


def live_units(variance: Tensor) -> Tensor:
    """Which units are live, bool (C,), from their variances (C,) up to a common factor."""
    largest = variance.amax().clamp(min=torch.finfo(torch.float32).tiny)
    return variance > LIVE_FRACTION * largest


class Penalty(NamedTuple):
    """A sparsity or slowness penalty on the encoding.

    sums: (z, mask) -> per-unit sums (..., C), which add up over batches.
    value: (sums, n_frames, unit_norms) -> the scalar penalty; unit_norms (C,) are the L2 norms of
        the first decoder layer's weights for each unit.
    pressure: (D, C) -> the factor by which alpha / (1 - alpha) becomes `lambda_eff`; by default
        D / C, that of a mean over units.
    """

    sums: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    pressure: Callable[[int, int], float] = operator.truediv


def _abs_sums(z: Tensor, mask: Tensor) -> Tensor:
    return (z.abs() * mask).sum((0, 2))


def _l1(sums: Tensor, n_frames: Tensor, unit_norms: Tensor) -> Tensor:
    return sums.sum() / (sums.shape[-1] * n_frames)


def _l1_decoder_norm(sums: Tensor, n_frames: Tensor, unit_norms: Tensor) -> Tensor:
    return (sums * unit_norms).sum() / n_frames


def _change_energy(z: Tensor, mask: Tensor) -> Tensor:
    pairs = mask[..., 1:] * mask[..., :-1]
    return ((z[..., 1:] - z[..., :-1]).square() * pairs).sum((0, 2))


def _tv_sums(z: Tensor, mask: Tensor) -> Tensor:
    # float64: the variance is a difference of two nearly equal sums.
    z = z.double()
    moments = [(z * mask).sum((0, 2)), (z.square() * mask).sum((0, 2))]
    return torch.stack([_change_energy(z, mask), *moments])


def _tv(sums: Tensor, n_frames: Tensor, unit_norms: Tensor) -> Tensor:
    change, total, square = sums
    return _slowness(change, square - total.square() / n_frames)


def _tvu_sums(z: Tensor, mask: Tensor) -> Tensor:
    z = z.double()
    total, n_frames = (z * mask).sum(2), mask.sum(2).clamp(min=1)
    spread = (z.square() * mask).sum(2) - total.square() / n_frames
    return torch.stack([_change_energy(z, mask), spread.sum(0)])


def _tvu(sums: Tensor, n_frames: Tensor, unit_norms: Tensor) -> Tensor:
    return _slowness(*sums)


def _slowness(change: Tensor, spread: Tensor) -> Tensor:
    """Mean over live units of change (C,) / spread (C,), both sums of squares."""
    live = live_units(spread)
    # Other units count as 0 / 1: a division by zero would make every gradient NaN.
    ratio = torch.where(live, change, 0.0) / torch.where(live, spread, 1.0)
    return ratio.sum() / live.sum().clamp(min=1)


PENALTIES = {
    # Mean |z| over units and frames.
    "l1": Penalty(_abs_sums, _l1),
    # Mean over frames of sum_c |z_c| ||W_c||. Plain L1 falls when z shrinks and the decoder weights
    # grow; this penalty does not change when z is scaled by s and the decoder weights by 1 / s.
    "l1_decoder_norm": Penalty(_abs_sums, _l1_decoder_norm, lambda n_inputs, n_units: n_inputs),
    # Slowness (Wiskott & Sejnowski 2002): mean over live units of sum (z_t+1 - z_t)^2 /
    # sum (z_t - mean)^2. 0 if all units are constant, 4 (1 - 1/T) for a unit that alternates +-1.
    "tv": Penalty(_tv_sums, _tv),
    # The same with the mean of each utterance: a constant offset of an utterance, such as that of
    # its speaker, does not make a unit slow.
    "tvu": Penalty(_tvu_sums, _tvu),
}


def weight_penalty(weights: list[Tensor]) -> Tensor:
    """(||W||_F - 1)^2, where W is all convolution weights together; a scalar with a gradient."""
    norms = torch.stack([torch.linalg.vector_norm(w) for w in weights])
    return (torch.linalg.vector_norm(norms) - 1).square()


class LossSums(NamedTuple):
    """Sums over no, one or more batches, from which the loss follows."""

    error: Tensor = zero()  # squared error in units of sd, over real frames and channels
    penalty: Tensor = zero()  # per-unit sums of the penalty (..., C)
    slow: Tensor = zero()  # per-unit sums of the slowness (..., C); empty without it
    n_frames: Tensor = zero()  # real frames

    def plus(self, batch: "LossSums") -> "LossSums":
        """These sums and those of one more batch: float64, detached."""
        return LossSums(*(total + one.detach().double() for total, one in zip(self, batch)))

    def pooled(self) -> "LossSums":
        """Sums over all processes, differentiable."""
        return LossSums(*map(sum_over_processes, self))


class LossTerms(NamedTuple):
    """The loss and its unweighted terms, scalars; slow is None when --slow_coefficient is 0."""

    loss: Tensor
    mse: Tensor
    penalty: Tensor
    slow: Tensor | None = None

    def row(self) -> dict[str, float]:
        """The terms by name, as they are logged."""
        terms = self._asdict().items()
        return {name: float(term.detach()) for name, term in terms if term is not None}


def batch_sums(
    config: Config, model: CNNAutoEncoder, x: Tensor, out: Output, mask: Tensor
) -> LossSums:
    """The sums of one batch: raw features x, the output of the model, and the mask."""
    error = (((out.y - x) / model.sd[:, None]).square() * mask).sum()
    penalty, slow = PENALTIES[config.sparse_loss].sums(out.z, mask), mask.new_empty(0)
    if config.slow_coefficient:
        slow = PENALTIES[config.slow_loss].sums(out.z, mask)
    return LossSums(error, penalty, slow, mask.sum())


def loss_terms(config: Config, model: CNNAutoEncoder, sums: LossSums, alpha: float) -> LossTerms:
    """The loss from the sums of one or more batches; alpha, 0..1, replaces config.alpha."""
    loss = mse = sums.error / (model.input_dim * sums.n_frames)
    norms, slow = model.unit_norms(), None
    penalty = PENALTIES[config.sparse_loss].value(sums.penalty, sums.n_frames, norms)
    if config.slow_coefficient:
        slow = PENALTIES[config.slow_loss].value(sums.slow, sums.n_frames, norms)
        loss = mse + config.slow_coefficient * slow
    loss = (1 - alpha) * loss + alpha * penalty
    if config.weight_penalty:
        loss = loss + weight_penalty(model.conv_weights())
    return LossTerms(loss, mse, penalty, slow)


def pressure(config: Config, model: CNNAutoEncoder) -> float:
    """The factor by which alpha / (1 - alpha) becomes `lambda_eff`, see `schedules.lambda_eff`."""
    return PENALTIES[config.sparse_loss].pressure(model.input_dim, model.inner_size)
