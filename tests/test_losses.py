"""The loss and its terms: values computed by hand, invariances, gradients."""

import pytest
import torch

from emaae.config import Config
from emaae.losses import (
    PENALTIES,
    LossSums,
    batch_sums,
    live_units,
    loss_terms,
    pressure,
    weight_penalty,
)
from emaae.models import CNNAutoEncoder, Output


def ones(*lengths: int) -> torch.Tensor:
    """A mask (batch, 1, time) for utterances of these lengths."""
    time = torch.arange(max(lengths))
    return (time < torch.tensor(lengths)[:, None]).float()[:, None]


def penalty(name: str, z: torch.Tensor, mask: torch.Tensor, norms=None) -> float:
    norms = torch.ones(z.shape[1]) if norms is None else norms
    return float(PENALTIES[name].value(PENALTIES[name].sums(z, mask), mask.sum(), norms).detach())


def small_model(**changes) -> CNNAutoEncoder:
    torch.manual_seed(0)
    return CNNAutoEncoder(**{"inner_size": 24, "n_encoder": 2, "n_decoder": 2} | changes)


def terms(config: Config, model, x, mask, alpha: float, out=None):
    out = model(x, mask) if out is None else out
    return loss_terms(config, model, batch_sums(config, model, x, out, mask), alpha)


def test_mse_is_pooled_over_frames_and_not_over_utterances():
    model = small_model(input_dim=1)
    mask = ones(1, 3)
    x = torch.zeros(2, 1, 3)
    y = torch.tensor([[[1.0, 9, 9]], [[0, 0, 0]]])  # 9: padding, which must not count
    out = Output(y, torch.zeros(2, 24, 3))
    assert float(terms(Config(), model, x, mask, 0.0, out).mse) == pytest.approx(0.25)


def test_mse_is_in_units_of_the_training_sd():
    model = small_model(input_dim=1)
    model.normalise(torch.tensor([150.0]), torch.tensor([20.0]))
    x, y = torch.full((1, 1, 4), 150.0), torch.full((1, 1, 4), 190.0)
    out = Output(y, torch.zeros(1, 24, 4))
    assert float(terms(Config(), model, x, ones(4), 0.0, out).mse) == pytest.approx(4.0)


@pytest.mark.parametrize(("alpha", "loss"), [(0.0, 4.0), (0.25, 0.75 * 4 + 0.25 * 3), (1.0, 3.0)])
def test_alpha_takes_weight_from_the_reconstruction_and_gives_it_to_the_penalty(alpha, loss):
    x, out = torch.zeros(1, 13, 4), Output(torch.full((1, 13, 4), 2.0), torch.full((1, 24, 4), 3.0))
    found = terms(Config(), small_model(), x, ones(4), alpha, out)
    assert (float(found.mse), float(found.penalty)) == (4, 3)
    assert float(found.loss) == pytest.approx(loss)


def test_l1_is_the_mean_over_units_and_real_frames():
    z = torch.tensor([[[1.0, 2, 50], [0, -3, 50]]])
    assert penalty("l1", z, ones(2)[..., :2].new_tensor([[[1, 1, 0]]])) == pytest.approx(6 / 4)


def test_l1_decoder_norm_does_not_change_when_scale_moves_from_encoder_to_decoder():
    z, norms = torch.rand(2, 5, 7), torch.rand(5)
    mask = ones(7, 4)
    before = penalty("l1_decoder_norm", z, mask, norms)
    assert penalty("l1_decoder_norm", z * 8, mask, norms / 8) == pytest.approx(before, rel=1e-6)
    assert penalty("l1", z * 8, mask) == pytest.approx(8 * penalty("l1", z, mask), rel=1e-6)


def test_l1_decoder_norm_is_a_sum_over_units_and_a_mean_over_frames():
    z, norms = torch.tensor([[[1.0, 2], [0, 3]]]), torch.tensor([2.0, 5])
    assert penalty("l1_decoder_norm", z, ones(2), norms) == pytest.approx(
        (1 * 2 + 2 * 2 + 3 * 5) / 2
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("l1", 13 / 24), ("tv", 13 / 24), ("tvu", 13 / 24), ("l1_decoder_norm", 13)],
)
def test_the_pressure_of_alpha_is_per_unit_for_means_over_units(name, expected):
    assert pressure(Config(sparse_loss=name), small_model()) == pytest.approx(expected)


def test_l1_decoder_norm_of_a_model_does_not_change_when_its_scale_moves():
    model, x, mask = small_model(), torch.randn(2, 13, 40), ones(40, 25)
    config = Config(sparse_loss="l1_decoder_norm")
    before = terms(config, model, x, mask, 0.5).row()
    with torch.no_grad():
        model.encoder[-1].conv.weight *= 4
        model.encoder[-1].conv.bias *= 4
        model.decoder[0].conv.weight /= 4
    assert terms(config, model, x, mask, 0.5).row() == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-24])
def test_a_unit_that_the_decoder_ignores_leaves_the_gradient_finite(size):
    model, x, mask = small_model(), torch.randn(1, 13, 20), ones(20)
    with torch.no_grad():
        model.decoder[0].conv.weight[:, 3] = size
    config = Config(sparse_loss="l1_decoder_norm", weight_penalty=True)
    terms(config, model, x, mask, 0.5).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_l1_decoder_norm_uses_the_norms_of_the_weights_that_read_each_unit():
    model = small_model()
    weight = model.decoder[0].conv.weight
    assert weight.shape == (16, 24, 3)
    assert torch.allclose(model.unit_norms()[5], weight[:, 5].norm(), rtol=1e-6)


@pytest.mark.parametrize("n_frames", [2, 4, 10, 100])
def test_tv_of_an_alternating_unit_is_four_times_one_minus_one_over_t(n_frames):
    z = torch.tensor([1.0, -1.0]).repeat(n_frames // 2)[None, None]
    assert penalty("tv", z, ones(n_frames)) == pytest.approx(4 * (1 - 1 / n_frames))


def test_tv_of_constants_is_zero_and_its_gradient_is_finite():
    z = torch.full((1, 3, 6), 2.0, requires_grad=True)
    value = PENALTIES["tv"].value(PENALTIES["tv"].sums(z, ones(6)), ones(6).sum(), torch.ones(3))
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(z.grad).all()


def test_tv_ignores_scale_dead_units_and_borders_of_utterances():
    torch.manual_seed(0)
    z, mask = torch.rand(2, 4, 30), ones(30, 20)
    before = penalty("tv", z, mask)
    assert penalty("tv", z * 100, mask) == pytest.approx(before, rel=1e-6)
    with_dead = torch.cat([z, torch.zeros(2, 3, 30)], 1)
    assert penalty("tv", with_dead, mask) == pytest.approx(before, rel=1e-6)
    garbage = torch.where(mask > 0, z, 77.0)
    assert penalty("tv", garbage, mask) == pytest.approx(before, rel=1e-6)


def test_slowness_within_utterances_ignores_differences_between_utterances():
    blip = torch.tensor([0.0, 1, 1, 0, 0, 0])[None, None]
    assert penalty("tv", blip, ones(6)) == pytest.approx(1.5)
    assert penalty("tvu", blip, ones(6)) == pytest.approx(1.5)
    two = torch.tensor([[[0.0, 1]], [[10, 11]]])
    assert penalty("tv", two, ones(2, 2)) == pytest.approx(2 / 101)
    assert penalty("tvu", two, ones(2, 2)) == 2.0
    offsets = torch.tensor([3.0, -40])[:, None, None]
    torch.manual_seed(0)
    z, mask = torch.rand(2, 4, 30), ones(30, 20)
    assert penalty("tvu", z + offsets, mask) == pytest.approx(penalty("tvu", z, mask), rel=1e-5)


def test_slowness_is_added_to_the_mse():
    model, x, mask = small_model(), torch.randn(2, 13, 40), ones(40, 25)
    plain = terms(Config(), model, x, mask, 0.3)
    slow = terms(Config(slow_loss="tvu", slow_coefficient=0.5), model, x, mask, 0.3)
    assert plain.slow is None
    assert slow.slow.item() == pytest.approx(penalty("tvu", model(x, mask).z, mask))
    assert slow.loss.item() == pytest.approx(plain.loss.item() + 0.7 * 0.5 * slow.slow.item())


def test_the_terms_of_a_loss_with_a_gradient_are_plain_numbers(recwarn):
    model, x = small_model(), torch.randn(2, 13, 40)
    row = terms(Config(), model, x, ones(40, 25), 0.3).row()
    assert all(type(value) is float for value in row.values())
    assert not recwarn


def test_units_are_live_by_their_share_of_the_largest_variance():
    assert live_units(torch.tensor([2.0, 1e-7, 1e-9, 0.0])).tolist() == [True, True, False, False]
    assert not live_units(torch.zeros(3)).any()


def test_tv_is_smaller_for_slower_units():
    time = torch.arange(200.0)
    slow, fast = torch.sin(time / 20)[None, None], torch.sin(time / 2)[None, None]
    assert penalty("tv", slow, ones(200)) < penalty("tv", fast, ones(200)) / 10


def test_the_weight_penalty_is_the_squared_distance_of_the_joint_norm_from_one():
    weights = [torch.tensor([[[3.0]]]), torch.tensor([[[4.0]]])]
    assert float(weight_penalty(weights)) == pytest.approx((5 - 1) ** 2)


def test_the_weight_penalty_has_a_gradient_in_every_convolution():
    model = small_model()
    weight_penalty(model.conv_weights()).backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in model.conv_weights())


@pytest.mark.parametrize("name", PENALTIES)
def test_alpha_reaches_the_gradient(name):
    model, x, mask = small_model(), torch.randn(2, 13, 40), ones(40, 25)

    def gradient(alpha: float) -> torch.Tensor:
        model.zero_grad()
        terms(Config(sparse_loss=name), model, x, mask, alpha).loss.backward()
        return model.encoder[0].conv.weight.grad.clone()

    none, half, most = gradient(0.0), gradient(0.5), gradient(0.9)
    assert not torch.allclose(none, half, rtol=1e-3)
    # The loss is linear in alpha, and so is its gradient.
    assert torch.allclose(none + (most - none) * (0.5 / 0.9), half, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_loss_of_a_split_does_not_depend_on_its_batches(name):
    model = small_model()
    slow = {"slow_loss": "tvu", "slow_coefficient": 0.2}
    config = Config(sparse_loss=name, weight_penalty=True, **slow)
    x, mask = torch.randn(3, 13, 40), ones(40, 25, 7)
    with torch.no_grad():
        whole = batch_sums(config, model, x, model(x, mask), mask)
        parts = LossSums()
        for i, length in enumerate((40, 25, 7)):
            xi, mi = x[i : i + 1, :, :length], mask[i : i + 1, :, :length]
            parts = parts.plus(batch_sums(config, model, xi, model(xi, mi), mi))
        expected = loss_terms(config, model, whole, 0.3).row()
        assert loss_terms(config, model, parts, 0.3).row() == pytest.approx(expected, rel=1e-5)
