"""Metrics: values computed by hand, degenerate encodings, no effect of padding and batches."""

import math

import pytest
import torch

from emaae.metrics import (
    DENSITY_EDGES,
    ReconstructionSums,
    SparsitySums,
    density_histogram,
    score,
)


def reconstruction(x, y, mask=None, channels=("TDX", "TDY", "pitch")) -> dict[str, float]:
    sums = ReconstructionSums()
    sums.add(x, y, torch.ones(x.shape[0], 1, x.shape[2]) if mask is None else mask)
    return sums.compute(channels[: x.shape[1]])


def sparsity(z, mask=None) -> dict[str, float]:
    sums = SparsitySums()
    sums.add(z, torch.ones(z.shape[0], 1, z.shape[2]) if mask is None else mask)
    return sums.compute()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))


def test_an_exact_reconstruction_has_fvu_zero_and_r_one(x):
    row = reconstruction(x, x)
    assert row["fvu"] == 0
    assert row["r/TDX"] == row["r_articulators"] == pytest.approx(1)


def test_the_mean_has_fvu_one_and_an_undefined_r(x):
    row = reconstruction(x, x.mean((0, 2))[None, :, None].expand_as(x))
    assert row["fvu"] == pytest.approx(1)
    assert row["fvu/TDY"] == pytest.approx(1)
    assert math.isnan(row["r/TDX"])
    assert math.isnan(row["r_articulators"])


def test_twice_the_mean_minus_x_has_fvu_four(x):
    mean = x.mean((0, 2))[None, :, None]
    assert reconstruction(x, 2 * mean - x)["fvu"] == pytest.approx(4)


def test_r_of_a_falling_line_is_minus_one(x):
    row = reconstruction(x, -2 * x + 3)
    assert [row["r/TDX"], row["r/TDY"], row["r/pitch"]] == pytest.approx([-1, -1, -1])


def test_r_articulators_leaves_out_loudness_and_pitch(x):
    y = x.clone()
    y[:, 2] = -y[:, 2]
    assert reconstruction(x, y)["r_articulators"] == pytest.approx(1)


def test_fvu_is_pooled_over_frames():
    mask = torch.tensor([[[1.0, 0, 0]], [[1, 1, 1]]])
    x = torch.tensor([[[1.0, 7, 7]], [[0, 0, 0]]])
    y = torch.tensor([[[0.0, 5, 9]], [[0, 0, 0]]])
    row = reconstruction(x, y, mask)
    assert row["fvu"] == pytest.approx(1 / 0.75)  # sum (y - x)^2 = 1, sum (x - 1/4)^2 = .75


@pytest.mark.parametrize("level", [0.0, 2.0, 117.3, -1e4])
def test_a_constant_channel_is_undefined_and_leaves_others_unchanged(x, level):
    x[:, 1] = level
    row = reconstruction(x, x + 0.1)
    assert math.isnan(row["fvu/TDY"])
    assert math.isnan(row["r/TDY"])
    assert row["r_articulators"] == pytest.approx(1)


def test_the_fvu_of_channels_that_are_all_constant_is_undefined():
    x = torch.full((1, 3, 997), 100.1)
    assert math.isnan(reconstruction(x, x + 0.1)["fvu"])


def test_sparsity_is_the_fraction_of_exact_zeros():
    assert sparsity(torch.zeros(1, 4, 5))["sparsity"] == 1
    assert sparsity(torch.ones(1, 4, 5))["sparsity"] == 0
    z = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 0]]])
    row = sparsity(z, torch.tensor([[[1.0, 1, 0, 0]]]))
    assert row["sparsity"] == 3 / 4
    assert row["l0"] == 0.5


def test_padding_counts_in_no_sparsity_metric():
    z = torch.rand(2, 6, 8) - 0.5
    z[z < 0] = 0
    mask = torch.tensor([[[1.0] * 8], [[1.0] * 5 + [0.0] * 3]])
    parts = SparsitySums()
    parts.add(z[:1], mask[:1])
    parts.add(z[1:, :, :5], mask[1:, :, :5])
    assert parts.compute() == pytest.approx(sparsity(z, mask))


def test_l1_is_the_active_fraction_times_the_mean_of_active_values():
    z = torch.relu(torch.randn(2, 7, 30))
    row = sparsity(z)
    assert (1 - row["sparsity"]) * row["active_mean"] == pytest.approx(float(z.mean()), rel=1e-6)


def test_dead_is_the_fraction_of_units_that_never_fire():
    z = torch.ones(1, 4, 3)
    z[:, 2] = 0
    assert sparsity(z)["dead"] == 0.25


def test_hoyer_has_values_computed_by_hand():
    one_hot, uniform = torch.zeros(1, 4, 1), torch.ones(1, 4, 1)
    one_hot[0, 1] = 5
    counting = torch.tensor([1.0, 2, 3, 4])[None, :, None]
    assert sparsity(one_hot)["hoyer"] == pytest.approx(1)
    assert sparsity(uniform)["hoyer"] == pytest.approx(0, abs=1e-6)
    assert sparsity(counting)["hoyer"] == pytest.approx(0.17426, abs=1e-5)
    both = torch.cat([one_hot, torch.zeros(1, 4, 1)], 2)
    assert sparsity(both)["hoyer"] == pytest.approx(1), "silent frames have no Hoyer index"


def test_metrics_without_a_value_for_a_dead_encoding_are_undefined():
    row = sparsity(torch.zeros(1, 4, 5))
    assert row["dead"] == 1
    assert math.isnan(row["active_mean"])
    assert math.isnan(row["hoyer"])


def test_the_density_histogram_counts_each_living_unit_once():
    z = torch.zeros(1, 3, 100)
    z[0, 0] = 1  # always: log10 density 0, the last bin
    z[0, 1, :10] = 1  # one frame in ten: -1
    sums = SparsitySums()
    sums.add(z, torch.ones(1, 1, 100))
    counts = density_histogram(sums.density())
    assert sum(counts) == 2
    assert counts[-1] == 1
    assert counts[DENSITY_EDGES.index(-1.0)] == 1


def test_zeros_of_units_that_never_fire_do_not_make_an_encoding_sparse():
    z = torch.zeros(1, 4, 4)
    z[0, 0] = 1
    z[0, 1, :2] = 1
    row = sparsity(z)
    assert (row["sparsity"], row["live_sparsity"]) == (10 / 16, 2 / 8)
    padded = sparsity(torch.cat([z, torch.zeros(1, 60, 4)], 1))
    assert padded["sparsity"] > 0.9
    assert padded["live_sparsity"] == row["live_sparsity"]
    assert math.isnan(sparsity(torch.zeros(1, 4, 5))["live_sparsity"])


@pytest.mark.parametrize(
    ("fvu", "sparse", "persistence", "expected"),
    [
        (0.05, 0.9, 0.9, 0.05),
        (0.05, 0.45, 0.9, 0.55),
        (0.05, 0.9, 0.45, 0.55),
        (0.05, 0.95, 1.3, 0.05),  # more than enough is no better
        (1, math.nan, math.nan, 3),  # dead
        (0, 0, 1, 1),  # dense
        (0.01, 0.95, 0, 1.01),  # forgets everything at once
        (0.9, 0, math.nan, 2.9),  # constant
    ],
)
def test_the_score_of_every_degenerate_encoding_is_at_least_one(fvu, sparse, persistence, expected):
    assert score(fvu, sparse, persistence) == pytest.approx(expected)
    assert math.isnan(score(math.nan, sparse, persistence))


def test_without_a_target_persistence_the_score_is_of_sparsity_and_reconstruction():
    for persistence in (0.1, math.nan):
        found = score(0.05, 0.45, persistence, target_persistence=0)
        assert found == pytest.approx(0.55)
