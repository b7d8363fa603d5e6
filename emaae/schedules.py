"""Alpha, the weight of the sparsity penalty, and the fraction that top k keeps, for each epoch.

Open-loop schedules are functions of t, the number of epochs since the schedule began, so a resumed
run has nothing to restore. The two adaptive schedules have a state of one or two numbers, which the
checkpoint contains.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

# Decay per epoch of the moving average of GECO's constraint, which covers the last few epochs.
GECO_DECAY = 0.5
GECO_MU_MAX = 1e6


@dataclass(frozen=True)
class Ramp:
    """The parameters of the open-loop schedules.

    start: alpha at t = 0 (`alpha`), where the schedule does not start at 0.
    end: alpha at the end of the ramp (`alpha_max`). n_epochs: length of the ramp (`alpha_epochs`).
    period: length of a cycle in epochs. rise: fraction of a cycle in which alpha rises.
    """

    start: float
    end: float
    n_epochs: int
    period: int = 2
    rise: float = 0.5

    def progress(self, t: int) -> float:
        """Fraction of the ramp that has passed at epoch t, 0..1; always 1 if n_epochs <= 1."""
        return min(1.0, t / self.n_epochs) if self.n_epochs > 1 else 1.0


def constant(t: int, ramp: Ramp) -> float:
    """`start` in every epoch."""
    return ramp.start


def step(t: int, ramp: Ramp) -> float:
    """Equal steps from `start` that reach `end` at t = n_epochs - 1."""
    if ramp.n_epochs <= 1:
        return ramp.end
    return min(ramp.end, ramp.start + t * (ramp.end - ramp.start) / (ramp.n_epochs - 1))


def step_original(t: int, ramp: Ramp) -> float:
    """Steps of 1 / (n_epochs - 1) from `start` up to alpha = 1; `end` is ignored.

    At alpha = 1 the reconstruction has no weight and the model is destroyed. Only for comparison
    with published runs.
    """
    if ramp.n_epochs <= 1:
        return 1.0
    return min(1.0, ramp.start + t / (ramp.n_epochs - 1))


def linear(t: int, ramp: Ramp) -> float:
    """From 0 to `end`, linearly."""
    return ramp.end * ramp.progress(t)


def cosine(t: int, ramp: Ramp) -> float:
    """From 0 to `end` along half a cosine."""
    return ramp.end / 2 * (1 - math.cos(math.pi * ramp.progress(t)))


def exponential(t: int, ramp: Ramp) -> float:
    """From `start` to `end`; alpha grows by the same factor every epoch."""
    return ramp.start * (ramp.end / ramp.start) ** ramp.progress(t)


def log_lambda(t: int, ramp: Ramp) -> float:
    """From `start` to `end`; lambda = alpha / (1 - alpha) grows by the same factor every epoch."""
    first, last = ramp.start / (1 - ramp.start), ramp.end / (1 - ramp.end)
    ratio = first * (last / first) ** ramp.progress(t)
    return ratio / (1 + ratio)


def cyclical(t: int, ramp: Ramp) -> float:
    """Rises from 0 to `end` in the first fraction `rise` of each period, then stays at `end`."""
    if ramp.n_epochs <= 1:
        return ramp.end
    return ramp.end * min(1.0, (t % ramp.period) / (ramp.rise * ramp.period))


OPEN_LOOP: dict[str, Callable[[int, Ramp], float]] = {
    f.__name__: f
    for f in (constant, step, step_original, linear, cosine, exponential, log_lambda, cyclical)
}
ADAPTIVE = ("target_sparsity", "geco")
SCHEDULES = (*OPEN_LOOP, *ADAPTIVE)


@dataclass
class AlphaSchedule:
    """Alpha of the next epoch, for any schedule of `SCHEDULES`.

    target_sparsity is an integral controller: alpha grows while the encoding is less sparse than
    the target. geco (Rezende & Viola 2018, "Taming VAEs") minimises the penalty subject to mse <=
    epsilon: a multiplier mu grows while the moving average of mse - epsilon is above 0.

    state: empty for open-loop schedules; for adaptive ones the floats that a resumed run needs
    besides t.
    """

    name: str
    ramp: Ramp
    target: float = 0.9  # of target_sparsity, fraction of zeros
    gain: float = 0.1  # of target_sparsity, alpha per unit of sparsity and epoch
    epsilon: float = 0.05  # of geco, upper bound of the mse on standardised channels
    rate: float = 0.5  # of geco
    state: dict[str, float] = field(default_factory=dict)

    def alpha(self, t: int) -> float:
        """Alpha at epoch t of the schedule, 0..1."""
        if self.name == "target_sparsity":
            return self.state.get("alpha", self.ramp.start)
        if self.name == "geco":
            return 1 / (1 + self._mu())
        return OPEN_LOOP[self.name](t, self.ramp)

    def observe(self, mse: float, sparsity: float) -> None:
        """Update the state from the mse and sparsity of a training epoch; ignore NaN and inf."""
        if self.name == "target_sparsity" and math.isfinite(sparsity):
            alpha = self.alpha(0) + self.gain * (self.target - sparsity)
            self.state["alpha"] = min(self.ramp.end, max(0.0, alpha))
        elif self.name == "geco" and math.isfinite(mse):
            error = mse - self.epsilon
            average = self.state.get("constraint", error)
            average = GECO_DECAY * average + (1 - GECO_DECAY) * error
            # The exponent is bounded so that one very bad epoch cannot overflow.
            mu = self._mu() * math.exp(min(50.0, self.rate * average))
            floor = (1 - self.ramp.end) / self.ramp.end  # keeps alpha <= end
            self.state = {"constraint": average, "mu": min(GECO_MU_MAX, max(floor, mu))}

    def _mu(self) -> float:
        """The weight of the mse relative to the penalty, so alpha = 1 / (1 + mu)."""
        return self.state.get("mu", (1 - self.ramp.start) / self.ramp.start)


def k_fraction(epoch: int, n_epochs: int, end: float) -> float:
    """Fraction of values that a top k activation keeps, 0..1: falls linearly from .5 to `end`.

    It reaches `end` after two thirds of the epochs; an end above .5 applies from the first epoch.
    """
    progress = min(1.0, 1.5 * epoch / n_epochs)
    return end + (1 - progress) * max(0.0, 0.5 - end)


def lambda_eff(alpha: float, pressure: float) -> float:
    """The effective weight of the penalty: alpha / (1 - alpha) * pressure; infinite at alpha = 1.

    It is the weight lambda in sum_d (y_d - x_d)^2 + lambda sum_c |z_c| per frame. pressure: D / C
    for penalties that are means over the C units, D for sums over the units; D: input channels.
    Alpha .25, D 13, C 1024 give .00423177.
    """
    return alpha / (1 - alpha) * pressure if alpha < 1 else math.inf
