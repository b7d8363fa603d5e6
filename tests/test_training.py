"""Training: learning, selection, early stopping, the phases of alpha, exact repetition."""

import math

import numpy as np
import pytest
import torch
from conftest import speech

from emaae import training
from emaae.config import Config
from emaae.data.split import Split
from emaae.evaluation import evaluate
from emaae.models import CNNAutoEncoder, build_model
from emaae.system.errors import UserError
from emaae.training import Phase, Selection, fit


class Notes:
    """A run that records its events."""

    def __init__(self):
        self.rows, self.best, self.last, self.drawn = [], [], [], []

    def log(self, row, seconds):
        assert seconds > 0
        self.rows.append(row)

    def save_best(self, model, selected):
        assert selected["select/epoch"] == self.rows[-1]["epoch"]
        self.best.append(model.encoder[0].conv.weight.detach().clone())

    def save_last(self, state, *, now=False):
        if now:
            self.last.append(state()["epoch"])

    def reconstruct(self, model, val, epoch):
        self.drawn.append(epoch)

    def column(self, name):
        return [row[name] for row in self.rows]


def split_of(*lengths: int, seed: int = 0) -> Split:
    return Split.from_utterances(
        (f"u{seed}-{i}", speech(n, seed=100 * seed + i)) for i, n in enumerate(lengths)
    )


def train(train_split=None, val_split=None, **knobs):
    """Fit a small model; returns what was fitted, the notes and the model."""
    knobs = {"reconstruction_every": 100} | knobs
    defaults = {"inner_size": 16, "n_encoder": 2, "n_decoder": 2, "epochs": 4, "batch_sz": 3}
    config = Config.from_mapping(defaults | {"alpha": 0.1} | knobs)
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture)
    train_split = train_split or split_of(40, 30, 20, 30, seed=1)
    model.normalise(*train_split.mean_and_sd())
    notes = Notes()
    fitted = fit(model, train_split, val_split or split_of(30, 12, seed=2), config, notes)
    return fitted, notes, model


def test_the_sparsity_of_training_is_that_of_the_whole_split():
    split = split_of(40, 30, 20, 30, seed=1)
    _, notes, model = train(split, lr=1e-12, lr_schedule="constant", epochs=1)
    row = evaluate(model, split, Config(), 0.1)
    assert notes.column("train/sparsity") == pytest.approx([row["sparsity"]], abs=1e-3)
    assert 0.1 < row["sparsity"] < 0.9


def scripted(monkeypatch, scores):
    """Let validation give these scores, one per epoch, the last one for ever."""
    real, calls = evaluate, iter(scores)
    last = [math.nan]

    def fake(*args):
        last[0] = next(calls, last[0])
        return real(*args) | {"score": last[0]}

    monkeypatch.setattr(training, "evaluate", fake)


def test_one_batch_is_overfitted():
    split = split_of(40, 40)
    _, notes, _ = train(
        split, split, epochs=300, alpha=0, inner_size=64, n_encoder=3, n_decoder=3, lr=3e-3
    )
    assert notes.rows[0]["val/fvu"] > 0.5
    assert notes.rows[-1]["val/fvu"] < 0.01


def test_a_larger_alpha_gives_a_sparser_and_worse_reconstruction():
    rows = [train(alpha=alpha, epochs=60)[1].rows[-1] for alpha in (0.0, 0.9)]
    assert rows[1]["val/sparsity"] > rows[0]["val/sparsity"] + 0.1
    assert rows[1]["val/fvu"] > rows[0]["val/fvu"]


def test_a_row_holds_every_metric_and_its_terms_add_up():
    _, notes, model = train(alpha=0.3)
    row = notes.rows[-1]
    names = "loss mse fvu penalty sparsity l0 dead score r_articulators active_mean hoyer"
    assert all(f"val/{name}" in row for name in names.split())
    assert all(f"{kind}/{c}" in row for kind in ("val/fvu", "val/r") for c in ("TDX", "pitch"))
    assert row["epoch"] == 4
    assert row["lambda_eff"] == pytest.approx(0.3 / 0.7 * 13 / 16)
    for split in ("train", "val"):
        expected = 0.7 * row[f"{split}/mse"] + 0.3 * row[f"{split}/penalty"]
        assert row[f"{split}/loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "knobs",
    [
        {"sparse_loss": "l1_decoder_norm"},
        {"sparse_loss": "tv"},
        {"slow_coefficient": 0.3},
        {"slow_coefficient": 0.3, "slow_loss": "tvu"},
        {"weight_penalty": True},
        {"activation": "batch_topk"},
        {"activation": "feature_topk"},
        {"activation": "feature_topk", "gate_frames": 3},
        {"activation": "feature_topk", "k_fraction": 0.3},
        {"norm": "layer"},
        {"norm": "batch"},
        {"optimizer": "adam"},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"optimizer": "muon"},
        {"optimizer": "muon", "weight_decay": 0.1},
        {"weight_decay": 0.1},
        {"lr_schedule": "linear"},
        {"lr_schedule": "cosine"},
        {"lr_warm_up": 0.5},
        {"lr": 1e-4},
        {"batch_sz": 1},
        {"seed": 1},
        {"alpha": 0.2},
        {"n_encoder": 3},
        {"n_decoder": 5},
        {"update": True},
        {"update": True, "alpha_max": 0.5},
        {"update": True, "alpha_epochs": 2},
        {"update": True, "penalty_scheduler": "cyclical", "alpha_period": 3},
        {"update": True, "penalty_scheduler": "cyclical", "alpha_rise": 0.9},
        {"update": True, "penalty_scheduler": "target_sparsity"},
        {"update": True, "penalty_scheduler": "target_sparsity", "alpha_gain": 0.5},
        {"update": True, "penalty_scheduler": "target_sparsity", "target_sparsity": 0.5},
        {"update": True, "penalty_scheduler": "geco"},
        {"update": True, "penalty_scheduler": "geco", "geco_epsilon": 0.5},
        {"update": True, "penalty_scheduler": "geco", "geco_rate": 0.1},
    ],
)
def test_every_knob_changes_the_result(knobs):
    kinds = ("update", "penalty_scheduler", "optimizer", "slow_coefficient", "activation")
    scheduled = {k: v for k, v in knobs.items() if k in kinds}
    plain = train(**(scheduled if len(knobs) > len(scheduled) else {}))[1].rows[-1]
    assert train(**knobs)[1].rows[-1]["train/mse"] != plain["train/mse"]


def rates(**knobs):
    """The rate of the last step of each epoch, as a fraction of --lr."""
    rows = train(lr=0.5e-3, batch_sz=2, **knobs)[1].rows
    return [row["lr"] / 0.5e-3 for row in rows]


def test_the_rate_rises_falls_and_is_logged():
    assert rates(epochs=3) == [1, 1, 1]
    # Two steps an epoch; the first of eight steps is 1/2 of the rate, then seven are left.
    falling = rates(lr_schedule="linear", lr_warm_up=1 / 8)
    assert falling == pytest.approx([1, 5 / 7, 3 / 7, 1 / 7])
    falling = rates(lr_schedule="cosine", epochs=2)
    assert falling == pytest.approx([(1 + 0.5**0.5) / 2, (1 - 0.5**0.5) / 2])
    assert rates(lr_warm_up=0.5, epochs=2) == pytest.approx([2 / 3, 1])


def test_with_early_stopping_the_rate_falls_where_the_run_would_have_stopped(monkeypatch):
    scripted(monkeypatch, [2.0, 1.0, 1.5])  # never better than epoch 2
    knobs = {"early_stop": True, "patience": 3, "epochs": 50, "lr_schedule": "linear"}
    assert rates(**knobs) == pytest.approx([1] * 5 + [5 / 6, 3 / 6, 1 / 6])
    scripted(monkeypatch, [2.0, 1.0, 1.5])
    fitted, notes, _ = train(update=True, alpha_epochs=2, alpha_max=0.6, **knobs)
    # Alpha's schedule first, then its patience, then the rate falls.
    assert notes.column("alpha") == pytest.approx([0.1] * 5 + [0.1, 0.6] + [0.6] * 6)
    assert fitted.status == "early_stopped"


def phases(scores, n_falling=0, started=None, **knobs):
    """What happens after each epoch by its score: alpha's schedule, the rate's decay, the end."""
    config = Config.from_mapping({"early_stop": True, "patience": 2, "epochs": 50} | knobs)
    phase, selection, told = Phase(started, length=3), Selection(), []
    for epoch, score in enumerate(scores, 1):
        selection.update(score, epoch, 0.1)
        over = phase.advance(epoch, selection, config, k_falls=epoch < n_falling)
        told.append((phase.started, phase.falling, over))
    return told


def test_alpha_is_constant_then_its_ramp_ends_then_the_rate_falls_then_training_ends():
    held, ramp = [(None, None, False)] * 2, [(3, None, False)]
    told = phases([1.0] * 10, lr_schedule="linear")
    assert told == held + ramp * 5 + [(3, 8, False)] * 2 + [(3, 8, True)]
    assert phases([1.0] * 8) == held + ramp * 5 + [(3, None, True)]
    assert phases([1.0] * 6, started=0)[4:] == [(0, None, True)] * 2
    assert phases([1.0] * 9, 8, started=0)[7:] == [(0, None, False), (0, None, True)]
    assert not any(over for *_, over in phases([1.0] * 20, early_stop=False))
    assert phases([1.0] * 4, epochs=4, lr_schedule="linear")[2:] == [(None, None, False)] * 2


def test_with_early_stopping_and_few_epochs_the_rate_has_fallen_at_their_end(monkeypatch):
    scripted(monkeypatch, range(100, 0, -1))  # better and better
    knobs = {"early_stop": True, "patience": 3, "lr_schedule": "linear"}
    assert rates(epochs=5, **knobs) == pytest.approx([1, 1, 5 / 6, 3 / 6, 1 / 6])
    assert train(epochs=2, **knobs)[0].status == "finished"


def test_two_calls_give_the_same_numbers():
    assert train()[1].rows == train()[1].rows


def test_the_best_weights_are_a_copy_of_the_best_epoch(monkeypatch):
    scripted(monkeypatch, [3.0, 1.0, 2.0, 1.0])
    fitted, notes, model = train()
    assert (fitted.selection.score, fitted.selection.epoch) == (1.0, 2)
    assert len(notes.best) == 2
    best = fitted.best["encoder.0.conv.weight"]
    assert torch.equal(best, notes.best[-1])
    assert not torch.equal(best, model.encoder[0].conv.weight)


def test_nan_never_wins_and_an_equal_score_is_not_better():
    selection = Selection()
    assert not selection.update(math.nan, 1, 0.1)
    assert selection.update(1.0, 2, 0.1)
    assert not selection.update(math.nan, 3, 0.1)
    assert not selection.update(1.0, 4, 0.1)
    assert (selection.score, selection.epoch, selection.waited) == (1.0, 2, 2)


def test_early_stopping_waits_for_its_patience(monkeypatch):
    scripted(monkeypatch, [3.0, 2.0, 2.0, 2.5, 1.9, 2.0])
    fitted, notes, _ = train(early_stop=True, patience=3, epochs=50)
    assert fitted.status == "early_stopped"
    assert len(notes.rows) == 5 + 3
    assert fitted.selection.epoch == 5
    assert notes.last == [8]


def test_without_early_stopping_all_epochs_are_run(monkeypatch):
    scripted(monkeypatch, [1.0])
    fitted, notes, _ = train(epochs=7, patience=2)
    assert fitted.status == "finished"
    assert len(notes.rows) == 7


def test_the_schedule_starts_where_the_first_phase_stops_and_is_not_cut_short(monkeypatch):
    scripted(monkeypatch, [2.0, 1.0, 1.5])  # never better than epoch 2
    fitted, notes, _ = train(
        early_stop=True, update=True, patience=3, alpha_epochs=6, alpha_max=0.6, epochs=50
    )
    ramp = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert notes.column("alpha") == pytest.approx([0.1] * 5 + ramp + [0.6] * 3)
    assert fitted.status == "early_stopped"


def test_without_early_stopping_the_schedule_runs_over_all_epochs():
    alphas = train(update=True, epochs=5, alpha_max=0.5)[1].column("alpha")
    assert alphas == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_the_original_step_is_warned_about():
    with pytest.warns(UserWarning, match="step_original raises alpha to 1"):
        _, notes, _ = train(update=True, penalty_scheduler="step_original", epochs=3)
    assert notes.column("alpha") == pytest.approx([0.1, 0.6, 1.0])
    assert notes.column("lambda_eff")[-1] == math.inf


def test_an_adaptive_schedule_follows_the_training_sparsity():
    _, notes, _ = train(update=True, penalty_scheduler="target_sparsity", alpha_gain=0.5, epochs=4)
    alphas, sparsity = notes.column("alpha"), notes.column("train/sparsity")
    for t in range(3):
        assert alphas[t + 1] == pytest.approx(max(0, alphas[t] + 0.5 * (0.9 - sparsity[t])))


@pytest.mark.parametrize("alpha_epochs", [None, 1])
def test_one_epoch_works(alpha_epochs):
    _, notes, _ = train(epochs=1, update=True, alpha_epochs=alpha_epochs)
    assert len(notes.rows) == 1
    assert notes.drawn == [1]


def test_one_utterance_shorter_than_the_receptive_field_works():
    split = split_of(1)
    val = split_of(6, seed=2)
    fitted, notes, _ = train(split, val, n_encoder=5, n_decoder=5, norm="batch", batch_sz=64)
    assert all(math.isfinite(row["train/loss"]) for row in notes.rows)
    assert fitted.selection.epoch > 0


def test_a_constant_validation_split_is_refused_before_the_first_epoch():
    with pytest.raises(UserError, match=r"validation split never moves \(1 frame\(s\), 1 utt"):
        train(val_split=split_of(1))


def test_reconstructions_are_due_at_the_first_the_last_and_about_ten_between():
    assert train(epochs=43, reconstruction_every=None)[1].drawn == [1, *range(4, 43, 4), 43]
    assert train(epochs=5, reconstruction_every=3)[1].drawn == [1, 3, 5]


def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_best(monkeypatch):
    real = training.train_epoch
    diverge_at = 2

    def fake(state, *args):
        measured = real(state, *args)
        return measured | ({"loss": math.nan} if state.epoch == diverge_at else {})

    monkeypatch.setattr(training, "train_epoch", fake)
    fitted, notes, _ = train(epochs=10)
    assert fitted.status == "diverged"
    assert len(notes.rows) == 3
    assert fitted.selection.epoch in (1, 2)
    assert all(torch.isfinite(w).all() for w in fitted.best.values())


def test_when_no_score_is_finite_nothing_is_selected(monkeypatch):
    scripted(monkeypatch, [math.nan])
    fitted, notes, _ = train()
    assert fitted.best is None
    assert fitted.selection.epoch == 0
    assert notes.best == []


def test_training_updates_batch_statistics_and_meets_new_neighbours(monkeypatch):
    orders = []
    real = training.training_order
    monkeypatch.setattr(
        training, "training_order", lambda *a: orders.append(real(*a)) or orders[-1]
    )
    _, _, model = train(split_of(*[30] * 12), norm="batch")
    assert (model.encoder[0].norm.running_mean != 0).all()
    assert len({str(order) for order in orders}) == 4


def test_the_targets_enter_the_score():
    row = train(target_sparsity=0.5, target_persistence=2)[1].rows[-1]
    lacks = max(0, 0.5 - row["val/live_sparsity"]) / 0.5
    lacks += max(0, 2 - row["val/persistence_within"]) / 2
    assert row["val/score"] == pytest.approx(row["val/fvu"] + lacks)


def test_the_order_of_files_and_the_batch_size_change_no_metric():
    pairs = [(f"u{i}", speech(n, seed=i)) for i, n in enumerate((50, 7, 33, 20))]
    torch.manual_seed(0)
    model = CNNAutoEncoder(13, 24, 3, 3, norm="layer")
    split = Split.from_utterances(pairs)
    model.normalise(*split.mean_and_sd())

    def row(split, batch_sz, penalty):
        return evaluate(model, split, Config(sparse_loss=penalty, batch_sz=batch_sz), 0.3)

    for penalty in ("l1", "l1_decoder_norm", "tv"):
        first = row(split, 4, penalty)
        second = row(Split.from_utterances(pairs[::-1]), 1, penalty)
        assert first.pop("density_log10") == second.pop("density_log10")
        for name, value in first.items():
            assert second[name] == pytest.approx(value, rel=2e-5, abs=1e-6, nan_ok=True), name


def test_evaluation_leaves_the_mode_and_the_weights_alone():
    model, split = CNNAutoEncoder(13, 24, 2, 2, norm="batch").train(), split_of(30)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, split, Config(), 0.3)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_utterances_that_are_reconstructed_have_the_median_length_and_are_always_the_same():
    from emaae.runs.reconstructions import indices_of_median_length

    split = split_of(10, 200, 50, 60, 55, 400)
    assert indices_of_median_length(split) == indices_of_median_length(split) == [2, 3, 4]
    assert indices_of_median_length(split_of(10)) == [0]


def test_r_of_a_reconstruction_is_pearsons():
    from emaae.runs.reconstructions import Reconstruction

    truth = speech(50, seed=3)[:, :3]
    prediction = np.stack([truth[:, 0], -2 * truth[:, 1] + 3, np.ones(50)], 1)
    r = Reconstruction("x", ("a", "b", "c"), truth, prediction).correlations()
    assert r[:2] == pytest.approx([1, -1])
    assert math.isnan(r[2])
