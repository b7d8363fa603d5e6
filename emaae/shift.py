"""How tolerant an encoding is to small shifts in time, and what is left of the signal in it.

A stride-1 convolutional encoder E follows a shift by whole frames exactly. How little such a shift
changes its encoding is therefore how similar the encoding is to itself some frames later. Shifts
by parts of a frame, and smoothing over time, are measured directly. That an encoding hardly changes
says nothing by itself: it is read with the participation ratio (is all of it one slow direction?),
the noise gain (would noise hide the differences that carry the signal?) and the fvu.

Utterances go through the model one by one, so padding cannot count. Sums over a split are in
float64 and divided once. For a constant or dead encoding all of this is undefined.

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
# Standard deviation of the noise, in units of each unit's own.
NOISE_SD = 0.1
# A constant has a variance up to this fraction of its mean square, by rounding in float32.
ROUNDING = 1e-12
# Units that correlate by more are copies of each other.
COPY_CORRELATION = 0.9
# One utterance in 16 of a split is measured every epoch, within these bounds, and some of them with
# noise, which decodes them twice: less than a tenth of the time of a validation.
SAMPLE_ONE_IN, SAMPLE_MIN, SAMPLE_MAX = 16, 8, 32
N_NOISY = 6
# The null, random projections: its units, and the frames that its thresholds are taken from.
NULL_UNITS, NULL_FRAMES = 64, 50_000


# ---- sums over a split


class Moments:
    """Mean and variance of each of C channels."""

    def __init__(self) -> None:
        self.n_frames = 0
        self.total = zero()
        self.squares = zero()

    def add(self, z: Tensor) -> None:
        """Count z (C, T)."""
        z = z.double()
        self.n_frames += z.shape[1]
        self.total = self.total + z.sum(1)
        self.squares = self.squares + z.square().sum(1)

    @property
    def mean(self) -> Tensor:
        """(C,) in float64."""
        return self.total / self.n_frames

    @property
    def variance(self) -> Tensor:
        """(C,) in float64; exactly 0 for a constant."""
        square = self.squares / self.n_frames
        variance = square - self.mean.square()
        return torch.where(variance > ROUNDING * square, variance, 0.0)

    @property
    def live(self) -> Tensor:
        """Which channels are live (C,), see `losses.live_units`."""
        return live_units(self.variance)

    def centre(self, z: Tensor) -> Tensor:
        """z (C, T) less its mean over the split; a constant is exactly 0."""
        return torch.where(self.variance[:, None] > 0, z - self.mean[:, None].to(z), 0.0)


class SelfSimilaritySums:
    """Sums for the similarity of each channel to itself some frames later.

    S_c(k) = sum (z_t - mu)(z_t+k - mu) / (1/2 sum [(z_t - mu)^2 + (z_t+k - mu)^2]) over the pairs
    of frames t, t + k within one utterance: 1 for k = 0, -1 for a period of 2 k. k is of `LAGS`.
    """

    def __init__(self) -> None:
        self.products = zero()  # (lag, C), the numerator
        self.energy = zero()  # (lag, C), the denominator

    def add(self, z: Tensor) -> None:
        """Count z (C, T), centred on its mean over the split."""
        squares, n_frames = z.square(), z.shape[1]
        products, energy = [], []
        for lag in LAGS:
            early, late = slice(0, max(0, n_frames - lag)), slice(lag, None)
            products.append(torch.linalg.vecdot(z[:, early], z[:, late]))
            energy.append((squares[:, early].sum(1) + squares[:, late].sum(1)) / 2)
        self.products = self.products + torch.stack(products).double()
        self.energy = self.energy + torch.stack(energy).double()

    def add_within(self, z: Tensor) -> None:
        """Count z (C, T), which is centred here on its mean over the utterance."""
        self.add(z - z.mean(1, keepdim=True))

    def curve(self, weights: Tensor) -> list[float]:
        """Similarity at each lag, -1..1: mean over channels with weights (C,), or of a subset.

        NaN where no pair is so far apart.
        """
        counts = torch.where(self.energy > 0, weights.double(), 0.0)
        similarity = torch.where(counts > 0, self.products / self.energy, 0.0)
        return ((counts * similarity).sum(1) / counts.sum(1)).tolist()


def half_life_ms(curve: Sequence[float]) -> float:
    """The lag in ms at which a self-similarity over the lags 0, 1, 2, ... first falls to 1/2.

    Interpolates linearly between lags. A curve that stays above 1/2 gives its last lag: 500 means
    500 or more. NaN when the curve is undefined before it falls.
    """
    for k, value in enumerate(curve):
        if math.isnan(value):
            return math.nan
        if value <= 0.5:
            return FRAME_MS * (k - (0.5 - value) / (curve[k - 1] - value))
    return FRAME_MS * (len(curve) - 1)


class CovarianceSums:
    """Sums for the number of directions of the encoding, and for which units are copies."""

    def __init__(self) -> None:
        self.products = zero()  # (C, C)

    def add(self, z: Tensor) -> None:
        """Count z (C, T), centred on its mean over the split."""
        self.products = self.products + (z @ z.T).double()

    def participation_ratio(self) -> float:
        """tr(S)^2 / ||S||_F^2 of the covariance S: 1 to C, K for K equal independent directions.

        This is (sum of eigenvalues)^2 / (sum of their squares), without the eigenvalues.
        """
        return float(self.products.trace() ** 2 / self.products.square().sum())

    def copy_weights(self) -> Tensor:
        """Weights (C,) by which copies count once together, 0 to 1.

        1 / the number of units that correlate with this one by more than .9, itself included; 0 for
        a constant.
        """
        sd = self.products.diagonal().sqrt()
        n_alike = (self.products > COPY_CORRELATION * torch.outer(sd, sd)).sum(1)
        return torch.where(n_alike > 0, 1 / n_alike, 0.0)


class ChangeSums:
    """Energy of one or more changes of a signal, as a fraction of the signal's variance.

    If the change is y - x, this is the fvu of y.
    """

    def __init__(self) -> None:
        self.change = zero()  # (F,)
        self.energy = zero()

    def add(self, change: Tensor, centred: Tensor) -> None:
        """Count changes (F, C, T) of a signal whose centred form is `centred` (C, T)."""
        self.change = self.change + change.square().sum((1, 2)).double()
        self.energy = self.energy + centred.square().sum().double()

    def compute(self) -> Tensor:
        """(F,) in float64, >= 0; NaN for a constant signal, or when nothing was counted."""
        return torch.where(self.energy > 0, self.change / self.energy, math.nan)


# ---- the metrics


class EncodingSums:
    """Sums for the measures of an encoding that are logged every epoch.

    It is made from a first pass over the utterances (name, x, z) of a split; then `add` each of
    them once more. x and z are not centred. n_noisy: how many utterances to decode with noise.
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
        """Count an utterance."""
        centred = self.z.centre(z)
        self.similarity.add(centred)
        self.within.add_within(z)
        self.within_x.add_within(x)
        self.covariance.add(centred)
        if self.n_noisy_left:
            self.n_noisy_left -= 1
            self._add_noise(name, x, z)

    def _add_noise(self, name: str, x: Tensor, z: Tensor) -> None:
        # Drawn by name, on the CPU: the same for each utterance in any order and on any device.
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode(errors="replace")))
        noise = torch.randn(z.shape, generator=generator)
        # exactly unit power, so that chance does not change its energy
        noise /= noise.square().mean(1, keepdim=True).sqrt()
        noise = NOISE_SD * self.z.variance.sqrt()[:, None].to(z) * noise.to(z)
        y = self.model.standardise(self.model.decode(torch.stack([z, z + noise])))
        self.fvu.add((y - x).double(), self.x.centre(x).double())

    def live_sparsity(self) -> float:
        """Fraction of zeros among the units that fire at all, 0..1; NaN when none does."""
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
    """Half-life of an encoding over that of its input, both of the mean over live channels.

    z, x: sums of utterances, each centred on its own mean.
    """
    z_ms, x_ms = (half_life_ms(sums.curve(live_units(sums.energy[0]))) for sums in (z, x))
    return z_ms / x_ms


def persistence_null(model: CNNAutoEncoder, split: Split, sparsity: float) -> float:
    """`persistence` within utterances of random projections that are as sparse as the encoding.

    Each unit projects single frames, and is 0 below its own threshold. sparsity: fraction of zeros
    of each unit, 0..1; for NaN and 1 the result is NaN.
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
    """One utterance in 16, 8 to 32 in all, spread evenly over the lengths; always the same."""
    n = min(len(split), max(SAMPLE_MIN, min(SAMPLE_MAX, len(split) // SAMPLE_ONE_IN)))
    by_length = np.lexsort((np.array(split.names), split.lengths))
    return split.subset(by_length[np.linspace(0, len(split) - 1, n).round().astype(int)])


@torch.no_grad()
def epoch_metrics(model: CNNAutoEncoder, split: Split) -> dict[str, float]:
    """The measures of a `sample` of a split that are logged every epoch, `EncodingSums.compute`."""
    encoded = list(_encoded(model, split))
    found = EncodingSums(model, encoded, N_NOISY)
    for name, x, z in encoded:
        found.add(name, x, z)
    return found.compute()


@torch.no_grad()
def shift_tolerance(
    model: CNNAutoEncoder, split: Split
) -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
    """Every metric of this module on a whole split, and the curves of which they are points.

    docs/metrics.md says what each metric means. The curves are self-similarity by lag, gain by
    shift, and the fvu after smoothing by cutoff, each for the encoding and for the input.
    """
    shifts = torch.stack([windowed_sinc(SHIFT_TAPS, delay=shift) for shift in SHIFTS])
    half = SHIFTS.index(0.5)
    smoothing = torch.stack([windowed_sinc(LOWPASS_TAPS, cutoff) for cutoff in CUTOFFS])
    # Nearer the ends, zero padding of the encoder would be compared with frames held by the shift.
    margin = model.receptive_field() // 2 + SHIFT_TAPS // 2

    found = EncodingSums(model, _encoded(model, split), n_noisy=len(split))
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
        centred_x, centred_z = found.x.centre(x), found.z.centre(z)
        found.add(name, x, z)
        similarity_x.add(centred_x)
        covariance_x.add(centred_x)
        smooth_z.add(decode_filtered(model, z, smoothing) - x, centred_x)
        smooth_x.add(apply_filters(x, smoothing) - x, centred_x)
        inside = slice(margin, x.shape[1] - margin)  # nothing, if the utterance is short
        followed = z_shifted[[half]] - apply_filters(z, shifts[[half]])
        moved_z.add((z_shifted - z)[..., inside], centred_z[:, inside])
        moved_x.add((x_shifted - x)[..., inside], centred_x[:, inside])
        inequivariance.add(followed[..., inside], centred_z[:, inside])

    live = found.z.live
    # How much of each unit the decoder reads.
    weights = torch.where(live, found.z.variance * model.unit_norms().double().square(), 0.0)
    similarity, input_similarity = found.similarity.curve(live), similarity_x.curve(found.x.live)
    half_life, input_half_life = half_life_ms(similarity), half_life_ms(input_similarity)
    weighted_half_life = half_life_ms(found.similarity.curve(weights))
    gain = (moved_z.compute() / moved_x.compute()).sqrt()
    fvu_z, fvu_x = smooth_z.compute(), smooth_x.compute()
    encoding = {f"shift/{key}": value for key, value in found.compute().items()} | {
        "shift/half_life_ms": half_life,
        "shift/persistence": half_life / input_half_life,
        "shift/persistence_weighted": weighted_half_life / input_half_life,
        "shift/persistence_null": persistence_null(model, split, found.live_sparsity()),
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
