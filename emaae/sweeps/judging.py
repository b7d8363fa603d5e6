"""The score of a run, at its end and while it runs."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from emaae.runs import read
from emaae.sweeps.space import Sweep


def outcome_of(folder: Path, sweep: Sweep) -> tuple[str, float | None]:
    """The outcome of a run and its score, from metrics.json or else its best epoch.

    outcome: finished, early_stopped (these have a score), diverged, interrupted, or failed, also if
    status or score is missing.
    """
    metrics = read.metrics(folder)
    status = metrics.get("status")
    if status == "diverged":
        return status, None
    if status == "preempted":
        return "interrupted", None
    values = metric_values([metrics], sweep.metric)
    score = best(values or metric_values(read.history(folder), sweep.metric), sweep)
    return (status, score) if status in read.GOOD and score is not None else ("failed", None)


def metric_values(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The finite values of a metric in a history, epoch by epoch."""
    return [float(row[name]) for row in history if read.is_finite(row.get(name))]


def best(values: Sequence[float], sweep: Sweep) -> float | None:
    """The best of some values of a sweep's metric; None if there are none."""
    return min(values, key=lambda value: sweep.sign * value, default=None)


# ---- early termination


def hyperband_epochs(spec: Mapping[str, Any], longest: int) -> list[int]:
    """The epochs ("bands") after which hyperband compares runs.

    longest: where bands that grow from min_iter end; max_iter gives its own bands.
    """
    eta = spec.get("eta", 3)
    if "max_iter" in spec:
        bands = (spec["max_iter"] / eta**i for i in range(1, int(spec["s"]) + 1))
        return sorted(map(int, takewhile(lambda band: band >= 1, bands)))
    found = [spec["min_iter"]]
    while found[-1] * eta <= longest:
        found.append(found[-1] * eta)
    return [int(band) for band in found]


def should_stop_early(
    values: Sequence[float], curves: Mapping[str, Sequence[float]], sweep: Sweep
) -> bool:
    """Whether hyperband stops a run that is not among the best 1/eta at the last band it passed.

    values: the sweep's metric of this run after each epoch; curves: those of all runs. With
    `strict` the value at the band is compared, without it the best value so far, as in W&B.
    """
    spec = sweep.early_terminate or {}
    passed = [band for band in hyperband_epochs(spec, len(values)) if band <= len(values)]
    if not passed:
        return False
    band, sign = passed[-1], sweep.sign
    at_band = sorted(sign * other[band - 1] for other in curves.values() if len(other) >= band)
    threshold = at_band[int(len(at_band) / spec.get("eta", 3))]
    mine = sign * values[band - 1] if spec.get("strict", True) else min(sign * v for v in values)
    return mine > threshold
