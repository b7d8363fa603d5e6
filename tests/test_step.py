"""The fast step is the plain one: utterance by utterance, no padding, no mask, in float64."""

import itertools

import pytest
import torch
from test_training import split_of
from torch.nn import functional as F

from emaae.config import Config
from emaae.data import batches
from emaae.devices import use_bf16
from emaae.losses import Objective
from emaae.models import FrameNorm, MaskedBatchNorm, build_model
from emaae.training import State, train_epoch

PRESETS = list(itertools.product((768, 1024), (2, 3, 4, 5), (2, 3, 4, 5)))
SPLIT = split_of(41, 38, 40, 9, seed=3)


def plain(model, utterances, alpha):
    """The loss, layer by layer over a list of utterances (D, T)."""

    def through(blocks, hs):
        for block in blocks:
            hs = [
                F.conv1d(h[None], block.conv.weight, block.conv.bias, padding="same")[0] for h in hs
            ]
            if not block.linear:
                hs = [F.relu(h) for h in norm(block.norm, hs)]
        return hs

    def norm(layer, hs):
        if layer is None:
            return hs
        frames = torch.cat(hs, 1)
        axis = {MaskedBatchNorm: 1, FrameNorm: 0}[type(layer)]
        mean = frames.mean(axis, keepdim=True)
        var = frames.var(axis, keepdim=True, correction=0)
        frames = (frames - mean) / (var + layer.eps).sqrt()
        frames = frames * layer.weight[:, None] + layer.bias[:, None]
        return frames.split([h.shape[1] for h in hs], 1)

    xs = [(u - model.mean[:, None]) / model.sd[:, None] for u in utterances]
    zs = through(model.encoder, xs)
    ys = through(model.decoder, zs)
    x, y, z = (torch.cat(parts, 1) for parts in (xs, ys, zs))
    return (1 - alpha) * (y - x).square().mean() + alpha * z.abs().mean()


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}")
def test_loss_and_gradients_of_a_masked_batch_are_those_of_the_plain_way(preset, norm):
    inner, n_encoder, n_decoder = preset
    torch.manual_seed(inner + 10 * n_encoder + n_decoder)
    # Narrow: the same kinds of layers, in a fraction of the time.
    model = build_model(inner_size=inner // 32, n_encoder=n_encoder, n_decoder=n_decoder, norm=norm)
    model.normalise(*SPLIT.moments())
    with torch.no_grad():
        for block in (*model.encoder, *model.decoder):
            # Away from zero no unit's ReLU opens in one precision and is closed in the other.
            block.conv.bias.add_(0.3)
    ((x, mask),) = batches(SPLIT, [torch.arange(len(SPLIT)).numpy()])
    objective = Objective("l1")
    model.train()
    fast = objective.terms(model, objective.sums(model, x, model(x, mask), mask), 0.25).loss
    fast_gradients = torch.autograd.grad(fast, list(model.parameters()))
    model.double()
    slow = plain(model, [SPLIT[i].T.double() for i in range(len(SPLIT))], 0.25)
    slow_gradients = torch.autograd.grad(slow, list(model.parameters()))
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)
    for a, b in zip(fast_gradients, slow_gradients):
        assert torch.allclose(a.double(), b, atol=1e-5, rtol=1e-4), (a - b).abs().max()


class Silent:
    def keep_last(self, state, *, now=False):
        pass


def trained(precision, epochs=12):
    config = Config.from_mapping(
        {"inner_size": 32, "n_encoder": 3, "n_decoder": 2, "lr": 0.005, "precision": precision}
    )
    torch.manual_seed(0)
    model = build_model(**config.architecture)
    model.normalise(*SPLIT.moments())
    state, rows = State.begin(model, config), []
    for _ in range(epochs):
        rows.append(train_epoch(state, SPLIT, Objective("l1"), 0.1, config, Silent()))
        state.batch, state.sums, state.active = 0, None, None
        state.epoch += 1
    return model, rows


def test_bfloat16_learns_the_same_and_its_weights_stay_float32():
    (model, rows), (_, rows32) = trained("bf16"), trained("fp32")
    assert rows != rows32
    assert rows[-1]["loss"] == pytest.approx(rows32[-1]["loss"], rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.encode(SPLIT[0].T[None]).dtype == torch.float32
    assert 0 < rows[-1]["sparsity"] < 1


def test_auto_is_bfloat16_where_the_hardware_has_it(monkeypatch):
    cpu = torch.device("cpu")
    assert not use_bf16("fp32", cpu)
    assert use_bf16("bf16", cpu)
    for has in (True, False):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        assert use_bf16("auto", cpu) == has
