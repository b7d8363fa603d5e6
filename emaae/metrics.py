"""Metrics of reconstruction and sparsity, and the score.

Sums over real frames are collected batch by batch on the device and divided once, so no metric
depends on padding, batch size or file order. Undefined values are NaN.

Shapes: x, y (batch, D, time); z (batch, C, time); mask (batch, 1, time) in {0, 1}.
"""

import math

import torch
from torch import Tensor

from emaae.data.features import ARTICULATORS

# Below this variance, in units of the train split's variance, correlation and fvu are undefined.
MIN_VARIANCE = 1e-12
# Edges of the density histogram, log10 of the fraction of frames on which a unit fires.
DENSITY_EDGES = [round(-5 + 0.25 * i, 2) for i in range(21)]


def zero() -> Tensor:
    """A float64 zero to start a sum; the first addition sets its shape and device."""
    return torch.zeros((), dtype=torch.float64)


class ReconstructionSums:
    """Second moments of input and reconstruction per channel, in units of the train split's sd."""

    def __init__(self) -> None:
        self.n_frames = zero()
        self.moments = zero()  # (6, D): x, y, xx, yy, xy, (y - x)^2

    def add(self, x: Tensor, y: Tensor, mask: Tensor) -> None:
        """Add one batch of standardised x and y."""
        x, y = x.double(), y.double()
        products = torch.stack([x, y, x * x, y * y, x * y, (y - x).square()])
        self.moments = self.moments + (products * mask).sum((1, 3))
        self.n_frames = self.n_frames + mask.sum().double()

    def compute(self, channels: tuple[str, ...]) -> dict[str, float]:
        """fvu, r_articulators, and fvu/<channel>, r/<channel> for each of the D channel names."""
        n = self.n_frames
        x, y, xx, yy, xy, error = self.moments
        var_x, var_y = xx / n - (x / n).square(), yy / n - (y / n).square()
        # By rounding, the variance of a constant is up to this fraction of its mean square.
        moves_x = var_x >= MIN_VARIANCE * (xx / n).clamp(min=1)
        moves_y = var_y >= MIN_VARIANCE * (yy / n).clamp(min=1)
        r = (xy / n - x * y / n**2) / (var_x * var_y).sqrt()
        r = torch.where(moves_x & moves_y, r.clamp(-1, 1), math.nan)
        fvu = torch.where(moves_x, error / (n * var_x), math.nan)
        total = var_x[moves_x].sum()
        row = {
            "fvu": error.sum() / (n * total) if total >= MIN_VARIANCE else torch.tensor(math.nan),
            "r_articulators": r[[name in ARTICULATORS for name in channels]].nanmean(),
        }
        row |= {f"fvu/{name}": value for name, value in zip(channels, fvu)}
        row |= {f"r/{name}": value for name, value in zip(channels, r)}
        return {name: float(value) for name, value in row.items()}


class SparsitySums:
    """Sums for how many units fire, how often and how strongly."""

    def __init__(self) -> None:
        self.n_frames = zero()
        self.active = zero()  # (C,) number of frames in which each unit is not zero
        self.magnitude = zero()  # sum of |z|
        self.hoyer = zero()  # sum over the frames with an active unit ...
        self.n_hoyer = zero()  # ... and the number of these frames

    def add(self, z: Tensor, mask: Tensor) -> None:
        """Add one batch of encodings."""
        z = z.abs() * mask
        l1, l2 = z.sum(1), z.square().sum(1).sqrt()
        root = math.sqrt(z.shape[1])
        fires = l2 > 0
        per_frame = (root - l1 / torch.where(fires, l2, 1.0)) / max(root - 1, 1e-12)
        self.hoyer = self.hoyer + torch.where(fires, per_frame, 0.0).double().sum()
        self.n_hoyer = self.n_hoyer + fires.double().sum()
        self.active = self.active + (z > 0).sum((0, 2)).double()
        self.magnitude = self.magnitude + l1.double().sum()
        self.n_frames = self.n_frames + mask.sum().double()

    def density(self) -> Tensor:
        """Fraction of frames in which each unit fires (C,), 0..1."""
        return self.active / self.n_frames

    def compute(self) -> dict[str, float]:
        """sparsity, live_sparsity, l0, active_mean, dead and hoyer, see docs/metrics.md."""
        n_units, n_frames = len(self.active), float(self.n_frames)
        n_live, n_active = int((self.active > 0).sum()), float(self.active.sum())
        sparsity = 1 - n_active / (n_units * n_frames)
        n_hoyer = float(self.n_hoyer)
        return {
            "sparsity": sparsity,
            "live_sparsity": 1 - n_active / (n_live * n_frames) if n_live else math.nan,
            "l0": n_units * (1 - sparsity),
            "active_mean": float(self.magnitude) / n_active if n_active else math.nan,
            "dead": 1 - n_live / n_units,
            "hoyer": float(self.hoyer) / n_hoyer if n_hoyer and n_units > 1 else math.nan,
        }


def density_histogram(density: Tensor) -> list[int]:
    """Number of units in each bin of `DENSITY_EDGES`, from the density (C,) of the units.

    Dead units are not counted; densities below the first edge count in the first bin.
    """
    log = density[density > 0].log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1])
    counts, _ = torch.histogram(
        log.float().cpu(), bins=len(DENSITY_EDGES) - 1, range=(DENSITY_EDGES[0], DENSITY_EDGES[-1])
    )
    return counts.int().tolist()


def score(
    fvu: float,
    live_sparsity: float,
    persistence_within: float,
    target_sparsity: float = 0.9,
    target_persistence: float = 0.9,
) -> float:
    """J = fvu + max(0, s* - live_sparsity) / s* + max(0, p* - persistence_within) / p*.

    Lower is better. s* > 0 and p* >= 0 are the targets; p* = 0 leaves the last term out. NaN for
    live_sparsity or persistence_within, as in a dead or constant encoding, counts as 0. So each
    degenerate solution (no reconstruction, no zeros, no tolerance to shifts) scores at least 1.

    The loss cannot compare models of different alpha: it is smallest for a dead model at alpha 1.
    """
    targets = ((live_sparsity, target_sparsity), (persistence_within, target_persistence))
    return fvu + sum(
        max(0.0, target - (0.0 if math.isnan(value) else value)) / target
        for value, target in targets
        if target
    )
