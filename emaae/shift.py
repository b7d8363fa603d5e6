"""How tolerant an encoding is to small shifts in time, and how much signal it keeps.

A stride-1 convolutional encoder E commutes with shifts by whole frames. So the change of the
encoding under such a shift equals its change over that many frames: its self-similarity measures
the tolerance. Shifts by fractions of a frame, and smoothing over time, are measured directly. A
small change alone does not make an encoding good. Read it together with the participation ratio
(does the encoding vary only along one slow direction?), the noise gain (would noise hide the
differences that carry the signal?) and the fvu.

Utterances go through the model one by one, without padding. Sums over a split are in float64 and
divided once. All metrics of a constant or dead encoding are NaN.

Shapes: x (D, T) input in units of the train split's sd; z (C, T) encoding; both of one utterance.
Shifts and lags are in frames of 20 ms, cutoffs in fractions of the Nyquist frequency, 25 Hz.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from emaae.data.features import FRAME_RATE_HZ
from emaae.data.split import Split
from emaae.filters import apply_filters, decode_filtered, windowed_sinc
from emaae.losses import live_units
from emaae.metrics import zero
from emaae.models import CNNAutoEncoder
from emaae.system.progress import progress

FRAME_MS = 1000 / FRAME_RATE_HZ
LAGS = tuple(range(26))
SHIFTS = (0.25, 0.5, 1.0, 2.0)
CUTOFFS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.6, 0.8)
SHIFT_TAPS, LOWPASS_TAPS = 33, 101
# Name, standardised input x (D, T) and encoding z (C, T) of an utterance.
Encoded = tuple[str, Tensor, Tensor]
# Standard deviation of the noise on a unit, relative to the unit's own standard deviation.
NOISE_SD = 0.1
# Rounding in float32 gives a constant a variance of up to this fraction of its mean square.
ROUNDING = 1e-12
# Units with a higher correlation are copies of each other.
COPY_CORRELATION = 0.9
# Every epoch measures one utterance in 16 of a split, at least 8 and at most 32, and decodes the
# first N_NOISY of them with noise. This takes less than a tenth of the time of a validation.
SAMPLE_ONE_IN, SAMPLE_MIN, SAMPLE_MAX = 16, 8, 32
N_NOISY = 6
# `persistence_null`: the number of random projections, and of frames for their thresholds at most.
NULL_UNITS, NULL_FRAMES = 64, 50_000


# ---- sums over a split


class Moments:
    """Mean and variance of each of C channels."""

    def __init__(self) -> None:
        self.n_frames = 0
        self.total = zero()
        self.squares = zero()

    def add(self, z: Tensor) -> None:
        """Add z (C, T)."""
        z = z.double()
        self.n_frames += z.shape[1]
        self.total = self.total + z.sum(1)
        self.squares = self.squares + z.square().sum(1)

    @property
    def mean(self) -> Tensor:
        """Mean of each channel (C,), float64."""
        return self.total / self.n_frames

    @property
    def variance(self) -> Tensor:
        """Variance of each channel (C,), float64; exactly 0 for a constant."""
        square = self.squares / self.n_frames
        variance = square - self.mean.square()
        return torch.where(variance > ROUNDING * square, variance, 0.0)

    @property
    def live(self) -> Tensor:
        """Which channels are live, bool (C,), see `losses.live_units`."""
        return live_units(self.variance)

    def centre(self, z: Tensor) -> Tensor:
        """z (C, T) minus its mean over the split; a constant channel becomes exactly 0."""
        return torch.where(self.variance[:, None] > 0, z - self.mean[:, None].to(z), 0.0)


class SelfSimilaritySums:
    """Sums for the similarity of each channel to itself k frames later, for each lag k of `LAGS`.

    S_c(k) = sum (z_t - mu)(z_t+k - mu) / (1/2 sum [(z_t - mu)^2 + (z_t+k - mu)^2]) over all pairs
    of frames t, t + k within one utterance: 1 for k = 0, -1 for a sinusoid of period 2 k.
    """

    def __init__(self) -> None:
        self.products = zero()  # (lag, C), the numerator
        self.energy = zero()  # (lag, C), the denominator

    def add(self, z: Tensor) -> None:
        """Add z (C, T), already centred on its mean over the split."""
        squares, n_frames = z.square(), z.shape[1]
        products, energy = [], []
        for lag in LAGS:
            early, late = slice(0, max(0, n_frames - lag)), slice(lag, None)
            products.append(torch.linalg.vecdot(z[:, early], z[:, late]))
            energy.append((squares[:, early].sum(1) + squares[:, late].sum(1)) / 2)
        self.products = self.products + torch.stack(products).double()
        self.energy = self.energy + torch.stack(energy).double()

    def add_within(self, z: Tensor) -> None:
        """Add z (C, T) of an utterance, after centring it on its mean over the utterance."""
        self.add(z - z.mean(1, keepdim=True))

    def curve(self, weights: Tensor) -> list[float]:
        """Similarity at each lag, -1..1: weighted mean over channels, weights (C,) or a bool mask.

        NaN at lags that no utterance is long enough for.
        """
        weights = torch.where(self.energy > 0, weights.double(), 0.0)  # (lag, C)
        similarity = torch.where(weights > 0, self.products / self.energy, 0.0)
        return ((weights * similarity).sum(1) / weights.sum(1)).tolist()


def half_life_ms(curve: Sequence[float]) -> float:
    """The lag in ms at which a self-similarity curve over the lags 0, 1, 2, ... first falls to 1/2.

    Interpolates linearly between lags. A curve that stays above 1/2 gives its last lag: for `LAGS`,
    500 means 500 or more. NaN when the curve is NaN before it falls to 1/2.
    """
    for k, value in enumerate(curve):
        if math.isnan(value):
            return math.nan
        if value <= 0.5:
            return FRAME_MS * (k - (0.5 - value) / (curve[k - 1] - value))
    return FRAME_MS * (len(curve) - 1)


class CovarianceSums:
    """Sums of products of channels, for the participation ratio and for finding copies."""

    def __init__(self) -> None:
        self.products = zero()  # (C, C)

    def add(self, z: Tensor) -> None:
        """Add z (C, T), already centred on its mean over the split."""
        self.products = self.products + (z @ z.T).double()

    def participation_ratio(self) -> float:
        """tr(S)^2 / ||S||_F^2 of the covariance S: 1 to C; K for K uncorrelated, equal directions.

        Equals (sum of eigenvalues)^2 / (sum of squared eigenvalues).
        """
        return float(self.products.trace() ** 2 / self.products.square().sum())

    def copy_weights(self) -> Tensor:
        """Weight of each unit (C,), 0 to 1, so that the units of a group of copies sum to 1.

        1 / the number of units whose correlation with this unit exceeds .9, itself included; 0 for
        a constant unit.
        """
        sd = self.products.diagonal().sqrt()
        n_alike = (self.products > COPY_CORRELATION * torch.outer(sd, sd)).sum(1)
        return torch.where(n_alike > 0, 1 / n_alike, 0.0)


class ChangeSums:
    """Sums for the energy of F changes of a signal, relative to the energy of the centred signal.

    If a change is y - x for a signal x, the result is the fvu of y.
    """

    def __init__(self) -> None:
        self.change = zero()  # (F,)
        self.energy = zero()

    def add(self, change: Tensor, centred: Tensor) -> None:
        """Add changes (F, C, T) of an utterance, and the utterance centred (C, T)."""
        self.change = self.change + change.square().sum((1, 2)).double()
        self.energy = self.energy + centred.square().sum().double()

    def compute(self) -> Tensor:
        """The ratios (F,), float64, >= 0; NaN for a constant signal, or when nothing was added."""
        return torch.where(self.energy > 0, self.change / self.energy, math.nan)


# ---- the metrics


class EncodingSums:
    """Sums for the metrics of an encoding that are logged every epoch.

    The constructor takes the utterances (name, x, z) of a split, for their means; then pass each
    of them to `add`. x and z are not centred. n_noisy: the first so many are decoded with noise.
    """

    def __init__(self, model: CNNAutoEncoder, first_pass: Iterable[Encoded], n_noisy: int) -> None:
        self.model, self.n_noisy_left = model, n_noisy
        self.x, self.z, self.fired = Moments(), Moments(), zero()
        for _, x, z in first_pass:
            self.x.add(x)
            self.z.add(z)
            self.fired = self.fired + (z > 0).sum(1).double()
        self.similarity = SelfSimilaritySums()
        self.within, self.within_x = SelfSimilaritySums(), SelfSimilaritySums()
        self.covariance = CovarianceSums()
        self.fvu = ChangeSums()  # without noise, with noise

    def add(self, name: str, x: Tensor, z: Tensor) -> None:
        """Add an utterance, x (D, T) and z (C, T)."""
        centred = self.z.centre(z)
        self.similarity.add(centred)
        self.within.add_within(z)
        self.within_x.add_within(x)
        self.covariance.add(centred)
        if self.n_noisy_left:
            self.n_noisy_left -= 1
            self._add_noise(name, x, z)

    def _add_noise(self, name: str, x: Tensor, z: Tensor) -> None:
        # Seeded by the name, on the CPU: the noise of an utterance depends on no order or device.
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode(errors="replace")))
        noise = torch.randn(z.shape, generator=generator)
        # Scaled to a power of exactly 1, so that chance does not change the result.
        noise /= noise.square().mean(1, keepdim=True).sqrt()
        noise = NOISE_SD * self.z.variance.sqrt()[:, None].to(z) * noise.to(z)
        y = self.model.standardise(self.model.decode(torch.stack([z, z + noise])))
        self.fvu.add((y - x).double(), self.x.centre(x).double())

    def live_sparsity(self) -> float:
        """Fraction of zeros among the units that fire at all, 0..1; NaN when no unit fires."""
        n_fire = int((self.fired > 0).sum())
        return 1 - float(self.fired.sum()) / (n_fire * self.z.n_frames) if n_fire else math.nan

    def compute(self) -> dict[str, float]:
        """The metrics by name, see docs/metrics.md; NaN when no unit is live."""
        curve = self.similarity.curve(self.z.live)
        clean, noisy = self.fvu.compute().tolist()
        row = {
            "self_similarity_20ms": curve[1],
            "self_similarity_80ms": curve[4],
            "persistence_within": persistence(self.within, self.within_x),
            "participation_ratio": self.covariance.participation_ratio(),
            "distinct_units": float(self.covariance.copy_weights().sum()),
            "noise_gain": (noisy - clean) / NOISE_SD**2,
        }
        return row if self.z.live.any() else dict.fromkeys(row, math.nan)


def persistence(z: SelfSimilaritySums, x: SelfSimilaritySums) -> float:
    """Half-life of an encoding / half-life of its input, each from the mean over live channels.

    z, x: sums for encoding and input.
    """
    z_ms, x_ms = (half_life_ms(sums.curve(live_units(sums.energy[0]))) for sums in (z, x))
    return z_ms / x_ms


def persistence_null(model: CNNAutoEncoder, split: Split, sparsity: float) -> float:
    """`persistence` within utterances of a sparse code without training, a baseline.

    Each of its units is relu(a random projection of the frame - a threshold). sparsity: fraction of
    zeros of each unit, which sets its threshold, 0..1; for NaN or 1 the result is NaN.
    """
    if not sparsity < 1:
        return math.nan
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(NULL_UNITS, model.input_dim, generator=generator).to(model.mean)
    frames = model.standardise(split.frames[:: 1 + len(split.frames) // NULL_FRAMES].T.to(weights))
    thresholds = torch.quantile(weights @ frames, sparsity, dim=1, keepdim=True)
    sums, input_sums = SelfSimilaritySums(), SelfSimilaritySums()
    for _, raw in _utterances(model, split):
        x = model.standardise(raw)
        sums.add_within((weights @ x - thresholds).relu())
        input_sums.add_within(x)
    return persistence(sums, input_sums)


def sample(split: Split) -> Split:
    """One utterance in 16, 8 to 32 in all, evenly spread over the lengths, the shortest first.

    The same utterances in every call.
    """
    n = min(len(split), max(SAMPLE_MIN, min(SAMPLE_MAX, len(split) // SAMPLE_ONE_IN)))
    by_length = np.lexsort((np.array(split.names), split.lengths))
    return split.subset(by_length[np.linspace(0, len(split) - 1, n).round().astype(int)])


@torch.no_grad()
def epoch_metrics(model: CNNAutoEncoder, split: Split) -> dict[str, float]:
    """The metrics that are logged every epoch (`EncodingSums`); split: a `sample` of a split."""
    encoded = list(_encoded(model, split))
    sums = EncodingSums(model, encoded, N_NOISY)
    for name, x, z in encoded:
        sums.add(name, x, z)
    return sums.compute()


@torch.no_grad()
def shift_tolerance(
    model: CNNAutoEncoder, split: Split
) -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
    """All metrics of this module on a whole split, and the curves behind them.

    docs/metrics.md describes the metrics. The curves are self-similarity against lag, gain against
    shift, and fvu after smoothing against cutoff, each for the encoding and for the input.
    """
    shifts = torch.stack([windowed_sinc(SHIFT_TAPS, delay=shift) for shift in SHIFTS])
    half = SHIFTS.index(0.5)
    smoothing = torch.stack([windowed_sinc(LOWPASS_TAPS, cutoff) for cutoff in CUTOFFS])
    # Frames this close to the ends are left out: the encoder pads with zeros, the shift repeats the
    # outer frames.
    margin = model.receptive_field() // 2 + SHIFT_TAPS // 2

    sums = EncodingSums(model, _encoded(model, split), n_noisy=len(split))
    similarity_x, covariance_x = SelfSimilaritySums(), CovarianceSums()
    moved_z, moved_x, inequivariance = ChangeSums(), ChangeSums(), ChangeSums()
    smooth_z, smooth_x = ChangeSums(), ChangeSums()
    utterances = progress(
        _utterances(model, split), "shift tolerance", total=len(split), unit="utterances"
    )
    for name, raw in utterances:
        shifted = apply_filters(raw, shifts)
        x, x_shifted = model.standardise(raw), model.standardise(shifted)
        both = model.encode(torch.cat([raw[None], shifted]))
        z, z_shifted = both[0], both[1:]
        centred_x, centred_z = sums.x.centre(x), sums.z.centre(z)
        sums.add(name, x, z)
        similarity_x.add(centred_x)
        covariance_x.add(centred_x)
        smooth_z.add(decode_filtered(model, z, smoothing) - x, centred_x)
        smooth_x.add(apply_filters(x, smoothing) - x, centred_x)
        inside = slice(margin, x.shape[1] - margin)  # empty for a short utterance
        followed = z_shifted[[half]] - apply_filters(z, shifts[[half]])
        moved_z.add((z_shifted - z)[..., inside], centred_z[:, inside])
        moved_x.add((x_shifted - x)[..., inside], centred_x[:, inside])
        inequivariance.add(followed[..., inside], centred_z[:, inside])

    live = sums.z.live
    # Variance of each unit times the squared norm of the decoder weights that read it.
    weights = torch.where(live, sums.z.variance * model.unit_norms().double().square(), 0.0)
    similarity, input_similarity = sums.similarity.curve(live), similarity_x.curve(sums.x.live)
    half_life, input_half_life = half_life_ms(similarity), half_life_ms(input_similarity)
    weighted_half_life = half_life_ms(sums.similarity.curve(weights))
    gain = (moved_z.compute() / moved_x.compute()).sqrt()
    fvu_z, fvu_x = smooth_z.compute(), smooth_x.compute()
    encoding = {f"shift/{key}": value for key, value in sums.compute().items()} | {
        "shift/half_life_ms": half_life,
        "shift/persistence": half_life / input_half_life,
        "shift/persistence_weighted": weighted_half_life / input_half_life,
        "shift/persistence_null": persistence_null(model, split, sums.live_sparsity()),
        "shift/gain_10ms": float(gain[half]),
        "shift/equivariance_error": float(inequivariance.compute()),
        "lowpass/gain_0.2": float((fvu_x / fvu_z)[CUTOFFS.index(0.2)]),
        "lowpass/auc_ratio": float(fvu_z.mean() / fvu_x.mean()),
    }
    if not live.any():
        encoding = dict.fromkeys(encoding, math.nan)
        fvu_z = torch.full_like(fvu_z, math.nan)
    row = encoding | {
        "shift/input_half_life_ms": input_half_life,
        "shift/input_self_similarity_20ms": input_similarity[1],
        "shift/input_self_similarity_80ms": input_similarity[4],
        "shift/input_participation_ratio": covariance_x.participation_ratio(),
    }
    lag_ms, shift_ms = [FRAME_MS * k for k in LAGS], [FRAME_MS * tau for tau in SHIFTS]
    curves = {
        "self_similarity": {"lag_ms": lag_ms, "encoding": similarity, "input": input_similarity},
        "gain": {"shift_ms": shift_ms, "encoding": gain.tolist(), "input": [1.0] * len(SHIFTS)},
        "lowpass": {"cutoff": [*CUTOFFS], "encoding": fvu_z.tolist(), "input": fvu_x.tolist()},
    }
    return row, curves


def _encoded(model: CNNAutoEncoder, split: Split) -> Iterator[Encoded]:
    for name, raw in _utterances(model, split):
        yield name, model.standardise(raw), model.encode(raw[None])[0]


def _utterances(model: CNNAutoEncoder, split: Split) -> Iterator[tuple[str, Tensor]]:
    """Name and raw features (D, T) of each utterance, in the precision of the model."""
    for i, name in enumerate(split.names):
        yield name, split[i].T.to(model.mean.dtype)
