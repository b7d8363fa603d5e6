"""Alpha as a function of the epoch: hand values, ends, and the adaptive schedules."""

import math

import pytest

from emaae.schedules import OPEN_LOOP, SCHEDULES, AlphaSchedule, Ramp, lambda_eff


@pytest.mark.parametrize(
    ("name", "ramp", "expected"),
    [
        ("constant", Ramp(0.25, 0.95, 8), [0.25, 0.25, 0.25]),
        ("step", Ramp(0.25, 0.95, 8), [0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 0.95]),
        ("step_original", Ramp(0.25, 0.95, 7), [0.25, 0.4167, 0.5833, 0.75, 0.9167, 1, 1]),
        ("linear", Ramp(0.25, 0.6, 4), [0, 0.15, 0.3, 0.45, 0.6, 0.6]),
        ("cosine", Ramp(0.25, 0.6, 4), [0, 0.0879, 0.3, 0.5121, 0.6, 0.6]),
        ("exponential", Ramp(0.01, 0.64, 3), [0.01, 0.04, 0.16, 0.64, 0.64]),
        ("log_lambda", Ramp(0.01 / 1.01, 0.5, 4), [0.0099, 0.03065, 0.09091, 0.24025, 0.5]),
        ("cyclical", Ramp(0.25, 0.6, 16, period=4, rise=0.5), [0, 0.3, 0.6, 0.6, 0, 0.3]),
    ],
)
def test_schedules_have_values_computed_by_hand(name, ramp, expected):
    alphas = [OPEN_LOOP[name](t, ramp) for t in range(len(expected))]
    assert alphas == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("name", OPEN_LOOP)
@pytest.mark.parametrize("width", [0, 1])
def test_a_ramp_of_one_epoch_is_constant_at_its_end(name, width):
    ramp = Ramp(0.25, 0.6, width)
    end = {"constant": 0.25, "step_original": 1.0}.get(name, 0.6)
    assert [OPEN_LOOP[name](t, ramp) for t in range(4)] == pytest.approx([end] * 4)


@pytest.mark.parametrize("name", [n for n in OPEN_LOOP if n not in ("constant", "cyclical")])
def test_ramps_rise_and_stay_at_their_end(name):
    ramp = Ramp(0.1, 0.7, 10)
    alphas = [OPEN_LOOP[name](t, ramp) for t in range(30)]
    assert alphas == sorted(alphas)
    assert alphas[-1] == pytest.approx(1.0 if name == "step_original" else 0.7)


def test_target_sparsity_integrates_the_missing_sparsity():
    schedule = AlphaSchedule("target_sparsity", Ramp(0.5, 0.95, 10), target=0.9, gain=0.1)
    for sparsity, alpha in ((0.8, 0.51), (0.95, 0.505)):
        schedule.observe(mse=1.0, sparsity=sparsity)
        assert schedule.alpha(0) == pytest.approx(alpha)


@pytest.mark.parametrize(("start", "sparsity", "bound"), [(0.94, 0.0, 0.95), (0.01, 1.0, 0.0)])
def test_target_sparsity_stays_between_zero_and_its_end(start, sparsity, bound):
    schedule = AlphaSchedule("target_sparsity", Ramp(start, 0.95, 10), target=0.9, gain=1)
    schedule.observe(mse=1.0, sparsity=sparsity)
    assert schedule.alpha(0) == bound


def test_geco_multiplies_by_the_exponential_of_the_constraint():
    schedule = AlphaSchedule("geco", Ramp(0.5, 0.95, 10), epsilon=0.05, rate=0.5)
    schedule.observe(mse=0.25, sparsity=0.5)  # mu 1, constraint .2
    assert 1 / schedule.alpha(0) - 1 == pytest.approx(1.10517, abs=1e-5)


@pytest.mark.parametrize(("mse", "alpha"), [(1e9, 1e-6), (-1e9, 0.95)])
def test_geco_stays_finite_and_below_its_end(mse, alpha):
    schedule = AlphaSchedule("geco", Ramp(0.5, 0.95, 10))
    schedule.observe(mse=mse, sparsity=0.5)
    assert schedule.alpha(0) == pytest.approx(alpha)


def test_geco_follows_the_moving_average_of_the_constraint():
    schedule = AlphaSchedule("geco", Ramp(0.5, 0.95, 10), epsilon=0.1, rate=0.5)
    schedule.observe(mse=0.3, sparsity=0.5)  # constraint .2, mu 1 -> exp(.1)
    assert schedule.alpha(0) == pytest.approx(1 / (1 + 1.10517), abs=1e-6)
    schedule.observe(mse=0.1, sparsity=0.5)  # constraint 0, its average .1
    assert schedule.alpha(0) == pytest.approx(1 / (1 + math.exp(0.1 + 0.05)))


def test_geco_lowers_alpha_while_the_reconstruction_is_too_bad_and_raises_it_after():
    schedule = AlphaSchedule("geco", Ramp(0.5, 0.95, 10), epsilon=0.05)
    alphas = [schedule.alpha(0)]
    for mse in (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        schedule.observe(mse, sparsity=0.5)
        alphas.append(schedule.alpha(0))
    assert alphas[0] == 0.5
    assert alphas[2] < alphas[1] < alphas[0]
    assert alphas[-1] > alphas[-2]


def test_adaptive_schedules_ignore_numbers_that_are_not_finite():
    for name in ("target_sparsity", "geco"):
        schedule = AlphaSchedule(name, Ramp(0.5, 0.95, 10))
        schedule.observe(mse=math.nan, sparsity=math.nan)
        assert schedule.alpha(3) == 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_below_one_except_the_original(name):
    schedule = AlphaSchedule(name, Ramp(0.3, 0.9, 5))
    for t in range(40):
        limit = 1.0 if name == "step_original" else 0.9
        assert 0 <= schedule.alpha(t) <= limit + 1e-12
        schedule.observe(mse=0.0, sparsity=0.1)


@pytest.mark.parametrize("name", ["target_sparsity", "geco"])
def test_an_adaptive_schedule_continues_from_its_state(name):
    whole, first = (AlphaSchedule(name, Ramp(0.3, 0.9, 5)) for _ in range(2))
    news = [(0.5, 0.2), (0.1, 0.5), (0.01, 0.7), (0.3, 0.95)]
    for mse, sparsity in news:
        whole.observe(mse, sparsity)
    for mse, sparsity in news[:2]:
        first.observe(mse, sparsity)
    continued = AlphaSchedule(name, Ramp(0.3, 0.9, 5), state=dict(first.state))
    for mse, sparsity in news[2:]:
        continued.observe(mse, sparsity)
    assert continued.alpha(4) == whole.alpha(4)


def test_lambda_eff_is_the_pressure_that_alpha_really_applies():
    assert lambda_eff(0.25, 13 / 1024) == pytest.approx(0.00423177, abs=1e-8)
    assert lambda_eff(0.25, 13 / 768) == pytest.approx(0.00564236, abs=1e-8)
    assert lambda_eff(1.0, 13 / 768) == math.inf
