"""Activations at the end of the encoder: which values are kept, and what does not change them."""

import numpy as np
import pytest
import torch
from conftest import speech
from test_training import Notes, split_of

from emaae import command_line
from emaae.activations import ACTIVATIONS, TopK
from emaae.config import KNOBS, Config
from emaae.corpus.encode import encode
from emaae.loading import load_model
from emaae.models import CNNAutoEncoder, build_model
from emaae.runs.checkpoint import export_original, save
from emaae.schedules import k_fraction
from emaae.system.errors import UserError
from emaae.system.files import write_json
from emaae.training import fit

H = torch.tensor([[[1.0, 5, 2, 8, 3, 7, 4, 6, 0, 9]]])
SPARSE = [name for name in ACTIVATIONS if name != "relu"]


def gate(n_thresholds=1, gate_frames=1, k=0.2) -> TopK:
    gate = TopK(n_thresholds, gate_frames)
    gate.k = k
    return gate


def model_of(activation, **more) -> CNNAutoEncoder:
    """A model with thresholds of a few batches and with biases that are not 0."""
    torch.manual_seed(0)
    model = CNNAutoEncoder(13, 24, 3, 2, activation=activation, **more)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    if model.top_k:
        model.top_k.k = 0.3
    for _ in range(3):
        model(torch.randn(4, 13, 50))
    return model.eval()


# ---- by hand


def test_the_largest_fifth_of_ten_values_is_kept():
    """8 and 9 lie above 7, the (1 - .2) quantile."""
    one = gate()
    z = one(H, training=True)
    assert z.tolist() == [[[0, 0, 0, 8, 0, 0, 0, 0, 0, 9]]]
    assert one.threshold.tolist() == [7]


def test_the_window_of_three_frames_is_a_quarter_a_half_and_a_quarter():
    impulse = torch.tensor([[[0.0, 0, 1, 0, 0]]])
    smooth = gate(gate_frames=3).smoothed(impulse, None)
    assert torch.allclose(smooth, torch.tensor([0, 0.25, 0.5, 0.25, 0]))
    ones = gate(gate_frames=9).smoothed(torch.ones(1, 1, 30), None)
    assert torch.allclose(ones[..., 4:26], torch.ones(22))


def test_smoothed_values_are_compared_with_the_threshold_and_raw_values_are_kept():
    """A single high frame is not kept; frames of a long rise are, with their own values."""
    h = torch.tensor([[[0.0, 0, 5, 0, 0, 3, 4, 3, 4, 3]]])
    z = gate(gate_frames=3, k=0.3)(h, training=True)
    assert z.tolist() == [[[0, 0, 0, 0, 0, 0, 4, 3, 4, 0]]]


def test_kept_values_are_never_negative():
    z = gate(k=0.8)(H - 5, training=True)
    assert z.tolist() == [[[0, 0, 0, 3, 0, 2, 0, 1, 0, 4]]]


def test_each_unit_has_its_own_threshold_or_all_units_share_one():
    h = torch.cat([H, 100 * H], 1)
    feature, batch = gate(2), gate(1)
    assert (feature(h, training=True) > 0).sum(2).tolist() == [[2, 2]]
    assert feature.threshold.tolist() == [7, 700]
    assert (batch(h, training=True) > 0).sum(2).tolist() == [[0, 4]]
    assert batch.threshold.tolist() == [500]


def test_equal_values_are_kept_or_dropped_together():
    assert gate(k=0.5)(torch.ones(1, 1, 8), training=True).count_nonzero() == 0


def test_thresholds_for_evaluation_follow_the_batches():
    """The mean of the first ten, then a tenth of each."""
    one = gate()
    assert one(H).count_nonzero() == 9
    for i in range(12):
        one(H + i, training=True)
    mean = 7 + sum(range(10)) / 10
    assert one.threshold.item() == pytest.approx(0.9 * (0.9 * mean + 1.7) + 1.8)


def test_the_fraction_falls_from_a_half_over_two_thirds_of_the_epochs():
    assert [k_fraction(t, 9, 0.2) for t in (0, 3, 6, 8)] == pytest.approx([0.5, 0.35, 0.2, 0.2])
    assert [k_fraction(t, 9, 0.7) for t in (0, 3, 8)] == [0.7, 0.7, 0.7]
    assert Config(target_sparsity=0.8, epochs=3).k_fraction_at(2) == pytest.approx(0.2)
    assert Config(k_fraction=0.1, epochs=3).k_fraction_at(2) == pytest.approx(0.1)


# ---- what must not matter


@pytest.mark.parametrize("n_thresholds", [1, 5])
def test_padding_is_not_counted(n_thresholds):
    h = torch.randn(3, 5, 40)
    mask = torch.stack([(torch.arange(40) < n).float()[None] for n in (40, 11, 25)])
    one, other = gate(n_thresholds, 9), gate(n_thresholds, 9)
    z = one(torch.where(mask > 0, h, 1e3), mask, training=True) * mask
    for i, n in enumerate((40, 11, 25)):
        # The threshold is the largest value that is not kept; rounding must not keep it.
        other.threshold.copy_(one.threshold + 1e-6)
        assert torch.allclose(z[i, :, :n], other(h[i : i + 1, :, :n])[0], atol=1e-6)
    kept = (one.smoothed(h, mask) > one.threshold[:, None]) & (mask > 0)
    assert int(kept.sum()) == n_thresholds * round(0.2 * 5 * 76 / n_thresholds)


@pytest.mark.parametrize("activation", SPARSE)
def test_encoding_changes_no_threshold_and_does_not_depend_on_neighbours(activation):
    model = model_of(activation).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 13, 60)
    z = model.encode(x)
    model.decode(z)
    alone = torch.cat([model.encode(x[i : i + 1]) for i in range(4)])
    assert torch.allclose(z, alone, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert 0.5 < float((z == 0).float().mean()) < 0.95


@pytest.mark.parametrize("activation", SPARSE)
def test_encoding_in_windows_equals_encoding_the_whole_utterance(activation):
    """Checked where values are further from the threshold than rounding."""
    model = model_of(activation).double()
    x = np.delete(speech(120, 0), 12, axis=1).astype(np.float64)
    model.normalise(torch.from_numpy(x.mean(0)), torch.from_numpy(x.std(0)))
    with torch.no_grad():
        whole = model.encode(torch.from_numpy(x).T[None])[0].T.numpy()
    assert (whole > 0).any()
    for at_once in (1, 7, 50):
        np.testing.assert_allclose(encode(model, x, at_once), whole, atol=1e-6)


@pytest.mark.parametrize(("activation", "frames"), [("feature_topk", 9), ("batch_topk", 1)])
def test_the_receptive_field_includes_the_window(activation, frames):
    model = model_of(activation).double()
    assert model.receptive_field() == 9 + frames - 1
    x = torch.randn(1, 13, 81, dtype=torch.float64)
    moved = x.clone()
    moved[..., 40] += 50
    with torch.no_grad():
        reached = (model.encode(moved) - model.encode(x)).abs().sum((0, 1)).nonzero().ravel()
    assert reached.min() >= 40 - model.receptive_field() // 2
    assert reached.max() <= 40 + model.receptive_field() // 2
    model.top_k.gate_frames = 1
    assert model.receptive_field() == 9


def test_numbers_that_are_not_finite_are_not_hidden():
    h = H.clone()
    h[..., 3] = torch.nan
    assert gate()(h, training=True).isnan().any()


# ---- trained


@pytest.mark.parametrize("activation", SPARSE)
def test_training_and_evaluation_keep_the_fraction(activation):
    config = Config.from_mapping(
        {"inner_size": 32, "n_encoder": 3, "n_decoder": 2, "activation": activation}
        | {"epochs": 30, "batch_sz": 4, "alpha": 0, "k_fraction": 0.2, "optimizer": "muon"}
        | {"lr": 0.02, "lr_schedule": "linear"}
    )
    train, val = split_of(*[60] * 16), split_of(*[60] * 8, seed=1)
    torch.manual_seed(0)
    model, notes = build_model(**config.architecture), Notes()
    model.normalise(*train.mean_and_sd())
    fit(model, train, val, config, notes)
    rows = notes.rows
    assert [rows[0]["k_fraction"], rows[-1]["k_fraction"]] == pytest.approx([0.5, 0.2])
    assert rows[-1]["train/mse"] < rows[0]["train/mse"] / 2
    assert 0.78 < rows[-1]["train/sparsity"] < 0.9
    assert rows[-1]["val/sparsity"] == pytest.approx(rows[-1]["train/sparsity"], abs=0.06)


def test_patience_waits_until_the_fraction_has_fallen():
    own = {"activation": "feature_topk", "inner_size": 8, "n_encoder": 2, "n_decoder": 2}
    own |= {"early_stop": True, "patience": 1, "epochs": 12, "lr": 1e-9}
    config = Config.from_mapping(own)
    torch.manual_seed(0)
    model, notes = build_model(**config.architecture), Notes()
    fit(model, split_of(30, 30), split_of(20, 25, seed=1), config, notes)
    assert len(notes.rows) >= 9
    assert notes.rows[8]["k_fraction"] == pytest.approx(0.1)


# ---- kept, refused and said


@pytest.mark.parametrize("activation", SPARSE)
def test_a_loaded_model_has_its_thresholds(tmp_path, activation):
    model = model_of(activation, gate_frames=5)
    save(tmp_path / "best.pth", model.state_dict())
    write_json(tmp_path / "model_config.json", model.architecture())
    again, x = load_model(tmp_path), torch.randn(1, 13, 40)
    assert again.architecture() == model.architecture()
    assert torch.equal(again.encode(x), model.encode(x))


def test_a_model_config_without_an_activation_means_relu(tmp_path):
    model = model_of("relu")
    save(tmp_path / "best.pth", model.state_dict())
    known = {
        k: v for k, v in model.architecture().items() if k not in ("activation", "gate_frames")
    }
    write_json(tmp_path / "model_config.json", known)
    assert load_model(tmp_path).activation == "relu"
    given = {"checkpoint": str(tmp_path / "best.pth"), "activation": "feature_topk"}
    with pytest.raises(UserError, match="--activation feature_topk contradicts .* says relu"):
        command_line.config_from(given)


@pytest.mark.parametrize("activation", SPARSE)
def test_the_original_format_refuses_other_activations(tmp_path, activation):
    with pytest.raises(
        UserError, match=f"activation {activation} cannot be expressed in the original"
    ):
        export_original(model_of(activation), tmp_path / "o", {})


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="gate_frames must be odd and at least 1, got 2"):
        TopK(1, 2)
    with pytest.raises(ValueError, match="activation must be one of relu, .*, got 'top'"):
        CNNAutoEncoder(activation="top")


def test_the_choices_of_the_flag_are_all_activations():
    assert KNOBS["activation"].choices == tuple(ACTIVATIONS)
