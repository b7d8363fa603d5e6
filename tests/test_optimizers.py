"""A step of Muon is orthogonal, and as large as --lr says, whatever the gradient."""

import pytest
import torch

from emaae.config import Config
from emaae.models import build_model
from emaae.optimizers import Muon, Optimizer, orthogonalise, warm_up


def parts(matrix):
    """The singular values of a matrix, and its nearest orthogonal matrix."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return s, u @ vt


def test_a_number_is_mapped_five_times_by_the_quintic():
    # 1 -> .7010 -> 1.1136 -> .7207 -> 1.0900 -> .6964 by 3.4445 s - 4.775 s^3 + 2.0315 s^5
    assert orthogonalise(torch.tensor([[5.0]])).item() == pytest.approx(0.6964, abs=1e-4)


@pytest.mark.parametrize("shape", [(6, 6), (6, 20), (20, 6), (1, 9)])
def test_an_orthogonal_matrix_is_unchanged_up_to_a_factor(shape):
    torch.manual_seed(0)
    _, q = parts(torch.randn(shape))
    found = orthogonalise(q)
    factor = (found * q).sum() / q.square().sum()
    assert 0.65 < factor < 1.2
    assert torch.allclose(found, factor * q, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (24, 90), (90, 24)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonalise(matrix)
    s, _ = parts(found)
    small = min(shape) == max(shape)  # a square one has a singular value near 0
    assert s.max() < 1.25
    assert s[-2 if small else -1] > (0.3 if small else 0.6)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    along = u.T @ found @ vt.T
    assert torch.allclose(along, along.diagonal().diag(), atol=1e-4)


def test_the_size_of_the_gradient_changes_nothing():
    torch.manual_seed(0)
    matrix = torch.randn(8, 15)
    expected = orthogonalise(matrix)
    for factor in (2.0**-60, 2.0**20):
        assert torch.equal(orthogonalise(factor * matrix), expected)
    assert not orthogonalise(0 * matrix).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vanishing_momentum_moves_nothing(dtype):
    torch.manual_seed(0)
    matrix = torch.randn(8, 15)
    for power in range(60, 150):  # 2^-149 is the smallest number there is
        assert orthogonalise((2.0**-power * matrix).to(dtype)).abs().max() < 1.25
    assert orthogonalise((2.0**-100 * matrix).to(dtype)).abs().max() < 1e-6


def test_weights_without_a_gradient_come_to_rest():
    weight = torch.nn.Parameter(torch.ones(4, 5))
    optimizer = Muon([weight], lr=1e-3)
    for step in range(1200):
        weight.grad = torch.full((4, 5), float(step < 3))
        before = weight.detach().clone()
        optimizer.step()
    assert torch.equal(weight, before)


def test_a_matrix_moves_as_torchs_own_muon_moves_it():
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.ones(12, 7)) for _ in range(2))
    knobs = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    optimizers = Muon([mine], bf16=True, **knobs), torch.optim.Muon([theirs], **knobs)
    for _ in range(4):
        mine.grad = torch.randn(12, 7)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(mine, theirs, atol=0.005)  # both are of bfloat16


def test_a_weight_is_a_matrix_with_a_row_for_each_output():
    torch.manual_seed(0)
    flat, conv = torch.nn.Parameter(torch.zeros(4, 15)), torch.nn.Parameter(torch.zeros(4, 5, 3))
    flat.grad = torch.randn(4, 15)
    conv.grad = flat.grad.view(4, 5, 3).clone()
    Muon([flat, conv], lr=0.01).step()
    assert torch.equal(flat.flatten(), conv.flatten())
    assert 0.006 < torch.linalg.matrix_norm(flat, 2) < 0.0125


def test_muon_moves_the_convolutions_and_adamw_the_rest_at_a_fortieth_of_its_rate():
    model = build_model(inner_size=16, n_encoder=2, n_decoder=2, norm="layer")
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = Optimizer(model, Config.from_mapping({"optimizer": "muon", "lr": 0.02}))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.5)
    assert optimizer.lr == 0.01
    for name, value in model.named_parameters():
        step = before[name] - value
        if value.ndim == 3:
            rows, columns = value.flatten(1).shape
            size = torch.linalg.matrix_norm(step.flatten(1), 2) / max(1, rows / columns) ** 0.5
            assert 0.006 < size < 0.0125, name
        else:  # the first step of AdamW is the rate, whatever the gradient
            assert torch.allclose(step, torch.tensor(0.00025), rtol=1e-3), name


def test_the_rate_rises_in_equal_steps():
    assert [warm_up(step, 3) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert warm_up(0, 0) == 1
