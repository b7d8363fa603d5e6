"""Pareto fronts of two costs, their hypervolume, and those of each schedule.

A point is (fvu, 1 - sparsity), both better when lower. Points with an undefined value are left out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from analysis.runs import GOOD, Run, grouped, split_of

# The worst point, of an encoding that explains nothing and is never 0: (fvu, 1 - sparsity).
REFERENCE = (1.0, 1.0)
SPARSITIES = (0.8, 0.9, 0.95)
# The columns of a table of fronts.
FRONT_HEADS = ("schedule", "runs", "hypervolume", *(f"fvu at {s}" for s in SPARSITIES))


def pareto_front(points: ArrayLike) -> np.ndarray:
    """The points (n, 2) that no other point beats in both costs, each once, by rising fvu."""
    by_fvu = np.unique(np.asarray(points, dtype=float).reshape(-1, 2), axis=0)
    by_fvu = by_fvu[np.isfinite(by_fvu).all(1)]
    least_before = np.minimum.accumulate([np.inf, *by_fvu[:, 1]])[:-1]
    return by_fvu[by_fvu[:, 1] < least_before]


def hypervolume(points: ArrayLike) -> float:
    """The area that points (n, 2) dominate below `REFERENCE` (Zitzler & Thiele 1999), 0 to 1.

    Higher is better; points that are worse than the reference in either cost count nothing.
    """
    front = pareto_front(points)
    fvu, dense = front[(front < REFERENCE).all(1)].T
    # Each point in the order of rising fvu adds a rectangle, up to the point before it.
    return float(((REFERENCE[0] - fvu) * -np.diff(dense, prepend=REFERENCE[1])).sum())


def fvu_at(points: ArrayLike, sparsity: float) -> float:
    """The fvu of the front of points (n, 2) at a sparsity, linear between them; NaN beyond it."""
    front = pareto_front(points)
    reached = 1 - front[:, 1]
    # A sparsity comes from a count of zeros: .9 may be 1e-16 off.
    if not len(front) or not reached.min() - 1e-9 <= sparsity <= reached.max() + 1e-9:
        return float("nan")
    return float(np.interp(sparsity, reached, front[:, 0]))


def costs(runs: Sequence[Run], split: str) -> np.ndarray:
    """The points (n, 2) of the runs that ended well and have both values."""
    ended = [run for run in runs if run.status in GOOD]
    found = [(run.metric(f"{split}/fvu"), 1 - run.metric(f"{split}/sparsity")) for run in ended]
    points = np.reshape(found, (-1, 2))
    return points[np.isfinite(points).all(1)]


def front_row(name: str, points: np.ndarray) -> tuple:
    """A row of `FRONT_HEADS` for the front of these points; NaN where it does not reach."""
    at = (fvu_at(points, sparsity) for sparsity in SPARSITIES)
    return name, len(points), hypervolume(points), *at


def schedule_fronts(runs: Sequence[Run]) -> list[tuple]:
    """A row of `FRONT_HEADS` for each schedule that has points, the largest hypervolume first."""
    split = split_of(runs)
    members = grouped(runs, lambda run: run.schedule)
    rows = [front_row(name, costs(some, split)) for name, some in members.items()]
    return sorted((row for row in rows if row[1]), key=lambda row: -row[2])
