"""The search space of a sweep: distributions, parameters, points."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from emaae.system.errors import UserError

# ---- distributions


class Distribution(NamedTuple):
    """One of W&B's distributions: its keys, and its quantile function."""

    required: tuple[str, ...]
    optional: Mapping[str, float]  # their default values
    # (u, values of the keys) -> the value below which a fraction u of the draws lies
    quantile: Callable[[float, Mapping[str, Any]], Any]


def _between(u: float, low: float, high: float) -> float:
    return low + u * (high - low)


def _log_uniform(u: float, p: Mapping[str, Any]) -> float:
    return math.exp(_between(u, math.log(p["min"]), math.log(p["max"])))


def _normal(u: float, p: Mapping[str, Any]) -> float:
    return statistics.NormalDist().inv_cdf(u) * p["sigma"] + p["mu"]


def _beta(u: float, p: Mapping[str, Any]) -> float:
    from scipy import stats  # takes a second to import

    return float(stats.beta.ppf(u, p["a"], p["b"]))


def _int_uniform(u: float, p: Mapping[str, Any]) -> int:
    return min(p["max"], p["min"] + math.floor(u * (p["max"] - p["min"] + 1)))


def _choice(u: float, p: Mapping[str, Any]) -> Any:
    equal = [1 / len(p["values"])] * len(p["values"])
    reached = itertools.accumulate(p.get("probabilities", equal))
    return next((v for v, c in zip(p["values"], reached) if u < c), p["values"][-1])


def _quantised(distribution: Distribution) -> Distribution:
    """A distribution rounded to multiples of q."""

    def rounded(u: float, p: Mapping[str, Any]) -> float:
        return round(distribution.quantile(u, p) / p["q"]) * p["q"]

    return Distribution(distribution.required, {**distribution.optional, "q": 1}, rounded)


RANGE_KEYS = ("min", "max")
_NORMAL_DEFAULTS = {"mu": 0, "sigma": 1}
DISTRIBUTIONS: dict[str, Distribution] = {
    "constant": Distribution(("value",), {}, lambda u, p: p["value"]),
    "categorical": Distribution(("values",), {}, _choice),
    "categorical_w_probabilities": Distribution(("values", "probabilities"), {}, _choice),
    "int_uniform": Distribution(RANGE_KEYS, {}, _int_uniform),
    "uniform": Distribution(RANGE_KEYS, {}, lambda u, p: _between(u, p["min"], p["max"])),
    # min and max are exponents of e in (inv_)log_uniform, values in (inv_)log_uniform_values.
    "log_uniform": Distribution(
        RANGE_KEYS, {}, lambda u, p: math.exp(_between(u, p["min"], p["max"]))
    ),
    # log(1/x) is uniform from min to max: log(x) is uniform from -max to -min.
    "inv_log_uniform": Distribution(
        RANGE_KEYS, {}, lambda u, p: math.exp(_between(u, -p["max"], -p["min"]))
    ),
    "log_uniform_values": Distribution(RANGE_KEYS, {}, _log_uniform),
    # log(1/x) is uniform from log(1/max) to log(1/min): log(x) is as in log_uniform_values.
    "inv_log_uniform_values": Distribution(RANGE_KEYS, {}, _log_uniform),
    "normal": Distribution((), _NORMAL_DEFAULTS, _normal),
    "log_normal": Distribution((), _NORMAL_DEFAULTS, lambda u, p: math.exp(_normal(u, p))),
    "beta": Distribution((), {"a": 1, "b": 1}, _beta),
}
for _name in ("uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta"):
    DISTRIBUTIONS[f"q_{_name}"] = _quantised(DISTRIBUTIONS[_name])


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sweep: a name and a distribution."""

    name: str
    distribution: str
    spec: Mapping[str, Any]

    @property
    def varies(self) -> bool:
        """Whether runs can differ in this parameter."""
        return len(self.extremes()) > 1

    def quantile(self, u: float) -> Any:
        """The value below which a fraction u of the draws lies, 0 < u < 1."""
        return DISTRIBUTIONS[self.distribution].quantile(u, self.spec)

    def grid_size(self) -> int:
        """The number of values in a grid."""
        p = self.spec
        if self.distribution == "int_uniform":
            return p["max"] - p["min"] + 1
        if self.distribution == "q_uniform":
            return math.ceil(min((p["max"] - p["min"]) / p["q"], 1e18))
        return len(p.get("values", [None]))

    def grid(self) -> list[Any]:
        """The values in a grid, in W&B's order; [] for a distribution that a grid cannot have."""
        p = self.spec
        if self.distribution == "int_uniform":
            return list(range(p["min"], p["max"] + 1))
        if self.distribution == "q_uniform":
            return np.arange(p["min"], p["max"], p["q"]).tolist()  # without max, as in W&B
        return self.extremes() if self.distribution in ("constant", "categorical") else []

    def extremes(self) -> list[Any]:
        """Values to check instead of all: every choice, or the ends of a range and one inside."""
        if "values" in self.spec:
            return list(self.spec["values"])
        if self.distribution == "constant":
            return [self.spec["value"]]
        end = 0.0 if "min" in self.spec else 0.001
        # 0.382 rarely gives a whole number.
        return [self.quantile(u) for u in (end, 1 - end, 0.382)]


def as_wandb_passes(value: Any) -> Any:
    """A value as W&B passes it to a run: 1.0 becomes 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [as_wandb_passes(v) for v in value]
    if isinstance(value, dict):
        return {k: as_wandb_passes(v) for k, v in value.items()}
    return value


def combinations(choices: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """All combinations of one value for each name; the last name varies fastest."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, map(as_wandb_passes, values)))


# ---- the sweep


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file, with defaults filled in."""

    path: str
    name: str
    program: str
    method: str  # grid, random or bayes
    metric: str
    goal: str  # minimize or maximize
    parameters: tuple[Parameter, ...]  # in W&B's order
    command: tuple[str, ...]
    run_cap: int | None
    early_terminate: Mapping[str, Any] | None

    @property
    def varying(self) -> tuple[Parameter, ...]:
        """The parameters in which runs differ."""
        return tuple(p for p in self.parameters if p.varies)

    @property
    def sign(self) -> int:
        """1 or -1; the metric times this is lower for better runs."""
        return 1 if self.goal == "minimize" else -1

    def grid(self) -> list[dict[str, Any]]:
        """All points in W&B's order, the last name varying fastest; equal points are merged."""
        points = combinations({p.name: p.grid() for p in self.parameters})
        return list({repr(point): point for point in points}.values())

    def n_points(self) -> int:
        """The number of points. Raises UserError for a search without run_cap."""
        if self.method == "grid":
            return len(self.grid()[: self.run_cap])
        if self.run_cap is None:
            raise UserError(
                f"{self.path}: method {self.method} without run_cap never ends; add `run_cap: 20` "
                "or as many runs as you can afford"
            )
        return self.run_cap

    def definition(self) -> dict[str, Any]:
        """The parts that must stay the same when a sweep is continued, as plain values."""
        plain = asdict(self) | {"command": list(self.command)}
        del plain["path"], plain["parameters"]
        for p in self.parameters:
            plain[f"parameters.{p.name}"] = {"distribution": p.distribution} | dict(p.spec)
        return plain
