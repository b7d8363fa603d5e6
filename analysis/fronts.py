"""Pareto fronts of two costs, and their hypervolume.

A point is (fvu, 1 - sparsity), both better when lower. Points with an undefined value are left out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

# What a run that explains nothing and one that is never silent cost: (fvu, 1 - sparsity).
REFERENCE = (1.0, 1.0)


def pareto_front(points: ArrayLike) -> np.ndarray:
    """The points (n, 2) that no other point beats in both costs, each once, by rising fvu."""
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    front: list[np.ndarray] = []
    for point in sorted(points[np.isfinite(points).all(1)], key=tuple):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return np.array(front).reshape(-1, 2)


def hypervolume(points: ArrayLike, reference: Sequence[float] = REFERENCE) -> float:
    """The area that points (n, 2) dominate below the reference (Zitzler & Thiele 1999), 0 to 1.

    Higher is better; points that are worse than the reference in either cost count nothing.
    """
    front = pareto_front(points)
    front = front[(front < reference).all(1)]
    # Slabs of rising fvu: each adds what lies between its cost and the one before.
    above = [reference[1], *front[:-1, 1]]
    return float(sum((reference[0] - x) * (top - y) for (x, y), top in zip(front, above)))


def fvu_at(points: ArrayLike, sparsity: float) -> float:
    """The front's fvu at a sparsity, linear between its points; NaN where the front does not reach.

    points: (n, 2) of (fvu, 1 - sparsity).
    """
    front = pareto_front(points)
    reached = 1 - front[:, 1]
    # A sparsity comes from a count of zeros: .9 may be 1e-16 off.
    if not len(front) or not reached.min() - 1e-9 <= sparsity <= reached.max() + 1e-9:
        return float("nan")
    return float(np.interp(sparsity, reached, front[:, 0]))
