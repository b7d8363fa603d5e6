"""The costs of an encoding, utterance by utterance, so that utterances can be resampled.

The definitions are those of `emaae.metrics` and `emaae.shift`; here their sums are kept apart for
each utterance. U utterances, D channels, C units, L lags.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis.kernels import form_of
from emaae.data.split import Split
from emaae.losses import LIVE_FRACTION
from emaae.metrics import MIN_VARIANCE, zero
from emaae.models import CNNAutoEncoder
from emaae.shift import CovarianceSums, Moments, SelfSimilaritySums, half_life_ms

# Resamples at a time: their self-similarities take (resamples, L, C).
BATCH_RESAMPLES = 100


class Codec(NamedTuple):
    """An encoder and a decoder, for one utterance at a time.

    encode: raw features (D, T) -> z (C, T) >= 0. decode: z -> features (D, T) in units of sd.
    standardise: raw features (D, T) -> the same units.
    """

    n_channels: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    standardise: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, model: CNNAutoEncoder) -> "Codec":
        """The codec of a trained model."""
        return cls(
            model.input_dim,
            lambda x: model.encode(x[None])[0],
            lambda z: model.standardise(model.decode(z[None]))[0],
            model.standardise,
        )

    def encoding(self, features: np.ndarray) -> np.ndarray:
        """The encoding (T, C) of features (T, 14)."""
        return self._apply(self.encode, features)

    def standardised(self, features: np.ndarray) -> np.ndarray:
        """The channels (T, D) of features (T, 14) that are encoded, in units of sd."""
        return self._apply(self.standardise, features)

    @torch.no_grad()
    def _apply(self, transform: Callable[[Tensor], Tensor], features: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(features[:, form_of(self.n_channels).columns])
        return transform(x.T).T.contiguous().numpy()


class UtteranceSums(NamedTuple):
    """Sums over each utterance of a split, float64; see `measure`.

    n_frames (U,), fired (U, C): frames on which a unit is not 0, error (U,): squared, x and xx
    (U, D): of the input and its square. Self-similarity over lags, each utterance centred on its
    own mean: products and energy (U, L, C), of the input (U, L, D). covariance: of the whole split.
    """

    covariance: CovarianceSums
    n_frames: np.ndarray
    fired: np.ndarray
    error: np.ndarray
    x: np.ndarray
    xx: np.ndarray
    products: np.ndarray
    energy: np.ndarray
    input_products: np.ndarray
    input_energy: np.ndarray

    def costs(self, counts: np.ndarray, copies_once: bool = False) -> dict[str, np.ndarray]:
        """live_sparsity, fvu, persistence_within, dead (B,) of B resamples.

        counts (B, U): how often each utterance is in a resample; one of ones is the split itself.
        distinct units and the participation ratio are those of the whole split.
        copies_once: live_sparsity and persistence are of distinct units, copies counting once.
        """
        once = self.covariance.copy_weights().numpy()
        weights = once if copies_once else np.ones_like(once)
        n = counts @ self.n_frames
        fired = counts @ self.fired
        with np.errstate(divide="ignore", invalid="ignore"):
            live_sparsity = 1 - (fired @ weights) / ((fired > 0) @ weights * n)
            variance = (counts @ self.xx) / n[:, None] - ((counts @ self.x) / n[:, None]) ** 2
            total = variance.sum(1)
            fvu = np.where(total >= MIN_VARIANCE, counts @ self.error / (n * total), np.nan)
            even = np.ones(self.x.shape[1])
            persistence = [
                _half_lives(some, self.products, self.energy, weights)
                / _half_lives(some, self.input_products, self.input_energy, even)
                for some in np.split(counts, range(BATCH_RESAMPLES, len(n), BATCH_RESAMPLES))
            ]
        return {
            "live_sparsity": live_sparsity,
            "fvu": fvu,
            "persistence": np.concatenate(persistence),
            "dead": 1 - (fired > 0).sum(1) / fired.shape[1],
            "distinct": np.full(len(n), once.sum()),
            "participation": np.full(len(n), self.covariance.participation_ratio()),
        }


def _half_lives(
    counts: np.ndarray, products: np.ndarray, energy: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Half-life in ms (B,) of the weighted mean self-similarity over the channels that vary."""
    products = np.tensordot(counts, products, 1)
    energy = np.tensordot(counts, energy, 1)
    vary = energy[:, 0] > LIVE_FRACTION * energy[:, 0].max(1, keepdims=True)
    counted = np.where(vary[:, None] & (energy > 0), weights, 0)
    similarity = products / np.where(energy > 0, energy, 1)
    curves = (counted * similarity).sum(2) / counted.sum(2)
    return np.array([half_life_ms(curve.tolist()) for curve in curves])


@torch.no_grad()
def measure(codec: Codec, split: Split) -> UtteranceSums:
    """Measure a codec on every utterance of a split."""
    rows, moments, outer = [], Moments(), zero()
    for i in range(len(split)):
        z, x = codec.encode(split[i].T), codec.standardise(split[i].T)
        error = (codec.decode(z) - x).square().sum()
        within, within_x = SelfSimilaritySums(), SelfSimilaritySums()
        within.add_within(z)
        within_x.add_within(x)
        moments.add(z)
        outer = outer + (z @ z.T).double()
        x = x.double()
        sums = (z.shape[1], (z > 0).sum(1), error, x.sum(1), x.square().sum(1))
        similar = (within.products, within.energy, within_x.products, within_x.energy)
        rows.append([np.asarray(value, dtype=np.float64) for value in (*sums, *similar)])
    covariance, vary = CovarianceSums(), (moments.variance > 0).double()
    covariance.products = outer - moments.n_frames * torch.outer(moments.mean, moments.mean)
    covariance.products *= torch.outer(vary, vary)
    return UtteranceSums(covariance, *(np.stack(column) for column in zip(*rows)))
