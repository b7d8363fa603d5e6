"""Fronts of two costs: values computed by hand, and invariances."""

import numpy as np
import pytest

from analysis.fronts import fvu_at, hypervolume, pareto_front

POINTS = [(0.2, 0.3), (0.5, 0.1), (0.6, 0.4)]


def test_a_point_that_another_beats_in_both_costs_is_not_on_the_front():
    assert pareto_front(POINTS).tolist() == [[0.2, 0.3], [0.5, 0.1]]
    assert pareto_front([(0.2, 0.3), (0.2, 0.4), (0.3, 0.3)]).tolist() == [[0.2, 0.3]]


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0),
        (POINTS[:1], 0.56),
        (POINTS[:2], 0.66),
        (POINTS, 0.66),
        ([(1.2, 0.1)], 0),
        ([(0.1, 1.2)], 0),
        ([(0, 0)], 1),
    ],
)
def test_the_hypervolume_is_the_area_below_the_reference(points, area):
    assert hypervolume(points) == pytest.approx(area)


def test_order_repetition_and_undefined_points_change_nothing():
    more = [*POINTS[::-1], *POINTS, (np.nan, 0.0), (0.0, np.nan)]
    assert pareto_front(more).tolist() == pareto_front(POINTS).tolist()
    assert hypervolume(more) == pytest.approx(0.66)


def test_fvu_at_a_sparsity_is_interpolated_along_the_front_and_undefined_beyond_it():
    assert fvu_at(POINTS, 0.7) == pytest.approx(0.2)
    assert fvu_at(POINTS, 0.8) == pytest.approx(0.35)
    assert fvu_at(POINTS, 0.9) == pytest.approx(0.5)
    assert np.isnan([fvu_at(POINTS, 0.69), fvu_at(POINTS, 0.91), fvu_at([], 0.8)]).all()
