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
    """One of W&B's distributions: the keys it takes, and its inverse cumulative distribution.

    `at(u, p)` is the value below which a fraction u (0..1) of the draws lies; p holds the keys.
    """

    needs: tuple[str, ...]
    takes: Mapping[str, float]  # optional keys and their defaults
    at: Callable[[float, Mapping[str, Any]], Any]


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


def _with_quantised(
    name: str, needs: tuple[str, ...], takes: Mapping[str, float], at: Callable
) -> dict:
    """A distribution, and the same rounded to multiples of q."""

    def rounded(u: float, p: Mapping[str, Any]) -> float:
        return round(at(u, p) / p["q"]) * p["q"]

    return {
        name: Distribution(needs, takes, at),
        f"q_{name}": Distribution(needs, {**takes, "q": 1}, rounded),
    }


RANGE_KEYS = ("min", "max")
_NORMAL_DEFAULTS = {"mu": 0, "sigma": 1}
DISTRIBUTIONS: dict[str, Distribution] = {
    "constant": Distribution(("value",), {}, lambda u, p: p["value"]),
    "categorical": Distribution(("values",), {}, _choice),
    "categorical_w_probabilities": Distribution(("values", "probabilities"), {}, _choice),
    "int_uniform": Distribution(RANGE_KEYS, {}, _int_uniform),
    **_with_quantised("uniform", RANGE_KEYS, {}, lambda u, p: _between(u, p["min"], p["max"])),
    # min and max are exponents of e here, values in the one after it
    **_with_quantised(
        "log_uniform", RANGE_KEYS, {}, lambda u, p: math.exp(_between(u, p["min"], p["max"]))
    ),
    **_with_quantised("log_uniform_values", RANGE_KEYS, {}, _log_uniform),
    # log(1/x) is uniform: the same draws as log_uniform
    "inv_log_uniform": Distribution(
        RANGE_KEYS, {}, lambda u, p: math.exp(_between(u, -p["max"], -p["min"]))
    ),
    "inv_log_uniform_values": Distribution(RANGE_KEYS, {}, _log_uniform),
    **_with_quantised("normal", (), _NORMAL_DEFAULTS, _normal),
    **_with_quantised("log_normal", (), _NORMAL_DEFAULTS, lambda u, p: math.exp(_normal(u, p))),
    **_with_quantised("beta", (), {"a": 1, "b": 1}, _beta),
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sweep: a name and a distribution."""

    name: str
    distribution: str
    spec: Mapping[str, Any]

    @property
    def varies(self) -> bool:
        """Whether runs can differ in it."""
        return len(self.extremes()) > 1

    def quantile(self, u: float) -> Any:
        """The value below which a fraction u of the draws lies, 0 < u < 1."""
        return as_wandb_passes(DISTRIBUTIONS[self.distribution].at(u, self.spec))

    def grid_size(self) -> int:
        """How many values a grid takes of it."""
        p = self.spec
        if self.distribution == "int_uniform":
            return p["max"] - p["min"] + 1
        if self.distribution == "q_uniform":
            return math.ceil(min((p["max"] - p["min"]) / p["q"], 1e18))
        return len(p.get("values", [None]))

    def grid(self) -> list[Any] | None:
        """All values in W&B's order; None when a grid cannot hold this distribution."""
        p = self.spec
        if self.distribution == "constant":
            return [p["value"]]
        if self.distribution == "categorical":
            return list(p["values"])
        if self.distribution == "int_uniform":
            return list(range(p["min"], p["max"] + 1))
        if self.distribution == "q_uniform":
            return np.arange(p["min"], p["max"], p["q"]).tolist()  # without max, as W&B has it
        return None

    def extremes(self) -> list[Any]:
        """Values that Config must accept if it is to accept all: every choice, or both ends."""
        if "values" in self.spec:
            return list(self.spec["values"])
        if self.distribution == "constant":
            return [self.spec["value"]]
        bounded = "min" in self.spec
        return [self.quantile(0.0 if bounded else 0.001), self.quantile(1.0 if bounded else 0.999)]


def as_wandb_passes(value: Any) -> Any:
    """A value as it reaches a run: on its way through W&B 1.0 becomes 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [as_wandb_passes(v) for v in value]
    if isinstance(value, dict):
        return {k: as_wandb_passes(v) for k, v in value.items()}
    return value


def combinations(choices: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of a value for each name; the last name varies fastest."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, map(as_wandb_passes, values)))


# ---- the meaning


@dataclass(frozen=True)
class Sweep:
    """What a sweep file means."""

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
        """All points in W&B's order: the last name varies fastest, and equal points are one."""
        points = combinations({p.name: p.grid() or [] for p in self.parameters})
        return list({repr(point): point for point in points}.values())

    def n_points(self) -> int:
        """How many runs there will be. Raises UserError when they would never end."""
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
