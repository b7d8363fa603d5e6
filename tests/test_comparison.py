"""Fronts at equal sparsity: costs equal those of the program, and resampling is correct."""

import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_run, stir
from forked import forked
from test_training import split_of

import train
from analysis import brain, comparison
from analysis.baselines import BASELINES, baseline
from analysis.comparison import (
    Point,
    at,
    costs_at,
    number,
    over_seeds,
    resampled,
    rows,
    settings,
)
from analysis.costs import Codec, measure
from analysis.runs import Run
from emaae.config import Config
from emaae.data.demo import write_tree
from emaae.evaluation import evaluate
from emaae.models import CNNAutoEncoder
from emaae.shift import shift_tolerance
from emaae.system.errors import UserError

TRAIN, VAL = split_of(*[80] * 12), split_of(*[70] * 4, seed=1)
SPLITS = {"train": TRAIN, "val": VAL}
TEST = split_of(60, 75, 50, 90, seed=2)


@pytest.fixture(scope="module")
def model() -> CNNAutoEncoder:
    torch.manual_seed(0)
    model = CNNAutoEncoder(13, 24, 3, 2)
    stir(model, 0.1)
    model.normalise(*TRAIN.mean_and_sd())
    return model.eval().requires_grad_(False)


# ---- what is measured


def test_costs_of_the_split_are_those_that_the_program_logs(model):
    found = measure(Codec.of(model), TEST)
    costs = found.costs(np.ones((1, len(TEST))))
    logged = evaluate(model, TEST, Config(), 0.1)
    shift = shift_tolerance(model, TEST)[0]
    assert costs["fvu"][0] == pytest.approx(logged["fvu"], rel=1e-5)
    assert costs["live_sparsity"][0] == pytest.approx(logged["live_sparsity"], rel=1e-6)
    assert costs["dead"][0] == pytest.approx(logged["dead"])
    assert costs["persistence"][0] == pytest.approx(shift["shift/persistence_within"], rel=1e-5)
    assert costs["participation"][0] == pytest.approx(shift["shift/participation_ratio"], rel=1e-4)
    assert costs["distinct"][0] == pytest.approx(shift["shift/distinct_units"], rel=1e-6)


def test_copies_of_a_unit_count_once_if_asked(model):
    """Nine copies of a unit change only the metrics over all units."""
    codec, ones = Codec.of(model), np.ones((1, len(TEST)))
    plain = measure(codec, TEST)
    distinct = np.flatnonzero(plain.covariance.copy_weights().numpy() == 1)[0]

    def padded(x):
        z = codec.encode(x)
        return torch.cat([z, z[distinct].expand(9, -1)])

    more = measure(codec._replace(encode=padded, decode=lambda z: codec.decode(z[:24])), TEST)
    one, other = (m.costs(ones, copies_once=True) for m in (plain, more))
    for name in ("live_sparsity", "persistence", "fvu", "distinct"):
        assert one[name] == pytest.approx(other[name], rel=1e-5), name
    assert plain.costs(ones)["live_sparsity"] != pytest.approx(more.costs(ones)["live_sparsity"])


def test_an_utterance_that_is_drawn_twice_counts_twice(model):
    doubled = TEST.subset(np.array([0, 0, 2, 3]))
    one = measure(Codec.of(model), TEST).costs(np.array([[2.0, 0, 1, 1]]))
    other = measure(Codec.of(model), doubled).costs(np.ones((1, 4)))
    for name in ("live_sparsity", "fvu", "persistence", "dead"):
        assert one[name] == pytest.approx(other[name], rel=1e-9), name


def test_each_resample_has_as_many_utterances_and_the_first_is_the_split():
    counts = resampled(7, 50)
    assert counts.shape == (51, 7)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 7).all()
    assert (resampled(7, 50) == counts).all()


# ---- fronts


def test_settings_are_named_by_the_knobs_that_differ():
    """alpha_epochs is not in the name if it follows from the schedule."""

    def run(schedule, slow, seed, **knobs):
        own = {"update": True, "penalty_scheduler": schedule, "schedule": schedule}
        config = vars(Config()) | own | {"slow_coefficient": slow, "seed": seed} | knobs
        return Run(str(seed), config, [], {"status": "finished"}, {}, "nowhere")

    ramps = [run("linear", slow, seed, alpha_epochs=20) for slow in (0, 0.1) for seed in (0, 1)]
    assert list(settings([*ramps, run("geco", 0, 0)])) == [
        "linear, slow_coefficient 0", "linear, slow_coefficient 0.1", "geco, slow_coefficient 0"
    ]  # fmt: skip


def test_runs_may_be_chosen_by_a_knob_whose_value_is_valid_only_with_others():
    schedules = ("linear", "cosine")
    runs = [Run(s, {"penalty_scheduler": s}, [], {}, {}, "nowhere") for s in schedules]
    assert comparison.with_knobs(runs, ["penalty_scheduler=cosine"]) == runs[1:]


def points(*rows):
    """Points of (live_sparsity, fvu, persistence) with one resample, equal to the split."""
    keys = ("live_sparsity", "fvu", "persistence")
    return [whole(2, **dict(zip(keys, row))) for row in rows]


def whole(n, **costs):
    """A point with all costs on n resamples; costs that are not given are 0."""
    given = dict.fromkeys(comparison.COSTS, 0.0) | costs
    return Point(None, {name: np.full(n, value) for name, value in given.items()})


def test_a_dead_encoding_is_never_the_nearest():
    dead, far = points((np.nan, 1, np.nan), (0.1, 0.1, 1))
    assert comparison.nearest(0.9, [dead, far]) is far


def test_a_front_is_interpolated_and_never_extrapolated():
    found = points((0.9, 0.04, 0.6), (0.8, 0.02, 1.0))
    assert at(0.85, found, "fvu") == pytest.approx([0.03, 0.03])
    assert at(0.9, found, "fvu") == pytest.approx([0.04, 0.04])
    assert np.isnan(at(np.array([0.79, 0.91]), found, "fvu")).all()


@pytest.mark.parametrize("n_dead", range(6))
def test_dead_encodings_are_not_on_a_front(n_dead):
    found = points((0.7, 0.02, 1.0), (0.9, 0.04, 0.6), *[(np.nan, 1, np.nan)] * n_dead)
    assert at(0.9, found, "fvu") == pytest.approx([0.04, 0.04])
    assert np.isnan(at(np.array([0.69, 0.91, 0.95]), found, "fvu")).all()


def test_the_mean_leaves_out_seeds_that_do_not_reach_the_sparsity():
    front = {
        0: points((0.8, 0.02, 1.0), (0.9, 0.04, 0.6)),
        1: points((0.8, 0.1, 1), (0.82, 0.2, 1)),
    }
    fvu = costs_at(0.85, front)["fvu"]
    assert over_seeds(fvu).mean == pytest.approx(0.03)
    (line,) = rows({"a": front}, 0.85, "a", {})
    assert line["seeds"] == "1/2"
    assert line["times_reference"].mean == pytest.approx(1)


def test_an_interval_holds_the_mean_and_grows_with_the_seeds_spread():
    random = np.random.default_rng(0)
    narrow = over_seeds(1 + 0.01 * random.normal(size=(5, 401)))
    wide = over_seeds(np.arange(5.0)[:, None] + 0.01 * random.normal(size=(5, 401)))
    assert narrow.low < narrow.mean < narrow.high
    assert narrow.high - narrow.low < 0.1 < 1 < wide.high - wide.low


def test_a_ratio_is_paired_by_utterance():
    """Utterances that are hard for both say nothing about which is better."""
    hard = np.random.default_rng(0).uniform(1, 5, 201)
    one = {0: [whole(201, live_sparsity=s, fvu=hard, persistence=hard) for s in (0.8, 0.9)]}
    two = {0: [p._replace(costs={**p.costs, "fvu": 2 * hard}) for p in one[0]]}
    line = rows({"one": one, "two": two}, 0.85, "one", {})[1]
    assert line["times_reference"] == pytest.approx((2, 2, 2))
    assert line["fvu"].high > 1.5 * line["fvu"].low


def test_numbers_are_three_digits_long():
    assert [number(x) for x in (0.00284, 0.5, 0.9996, 13.04, 0.0, -0.012)] == [
        ".00284", ".500", "1.00", "13.0", "0", "-.0120"
    ]  # fmt: skip


# ---- baselines


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "nmf" else n for n in BASELINES]
)
def test_a_baseline_has_the_sparsity_that_it_was_asked_for(model, name):
    low, high = (
        measure(code, TRAIN).costs(np.ones((1, len(TRAIN))))
        for code in baseline(name, model, SPLITS, (0.8, 0.95), seed=0)
    )
    assert low["live_sparsity"][0] == pytest.approx(0.8, abs=0.03)
    assert high["live_sparsity"][0] == pytest.approx(0.95, abs=0.02)
    assert 0 < low["fvu"][0] < high["fvu"][0] < 1.05
    assert low["persistence"][0] > 0


def test_smoothing_makes_a_projection_persistent(model):
    ones = np.ones((1, len(TEST)))
    plain, smooth = (
        measure(baseline(name, model, SPLITS, (0.85,), 0)[0], TEST).costs(ones)
        for name in ("one frame", "smoothed")
    )
    assert smooth["persistence"][0] > plain["persistence"][0]


def test_a_baseline_leaves_the_model_alone(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    baseline("untrained", model, SPLITS, (0.8,), 0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ---- the program


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Generated speech, and runs of two settings with two alphas on it."""
    root = tmp_path_factory.mktemp("comparison")
    write_tree(root / "speech", n_utterances=4, scale=0.15)
    trees = {split: root / "speech" / split for split in ("train", "val", "test")}
    flags = [*small_run(trees, root / "runs"), "--recursive"]
    for slow in (0, 0.5):
        for alpha in (0.05, 0.6):
            own = [f"--run_name={slow}-{alpha}", f"--alpha={alpha}", f"--slow_coefficient={slow}"]
            assert train.main([*flags, *own]) == 0
    return root


def test_a_table_for_each_sparsity_a_file_and_a_figure(swept, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "BASELINE_SEEDS", (0, 1))
    runs, speech, out = str(swept / "runs"), str(swept / "speech"), swept / "out"
    more = ("--at", "0.5", "0.55", "--resamples", "20", "--baselines", "--probe", "--out", str(out))
    comparison.main([runs, "--data", speech, *more])
    said = capsys.readouterr().out
    assert "reference: slow_coefficient 0\n" in said
    for words in ("sparsity of live units: 0.5", "| slow_coefficient 0.5 |", "| nmf |", "gesture"):
        assert words in said
    lines = pd.read_csv(out / "comparison.csv")
    assert len(lines) == 2 * (2 + len(BASELINES))
    assert set(lines.live_sparsity) == {0.5, 0.55}
    assert (out / "comparison.png").stat().st_size > 10_000


def test_runs_are_chosen_by_their_knobs_and_weights(swept, capsys):
    runs, speech = str(swept / "runs"), str(swept / "speech")
    comparison.main(
        [runs, "--data", speech, "--where", "slow_coefficient=0.5", "--weights", "selected"]
        + ["--resamples", "5"]
    )
    said = capsys.readouterr().out
    assert "selected weights" in said
    assert said.count("constant |") == 2


def test_a_sparsity_that_no_front_reaches_is_reported_with_the_range_of_the_fronts(swept, capsys):
    comparison.main(
        [str(swept / "runs"), "--data", str(swept / "speech"), "--at", "0.999", "--resamples", "5"]
    )
    said = capsys.readouterr().out
    assert re.search(r"no front reaches this sparsity: runs have 0\.\d+ to 0\.\d+", said)


def test_runs_with_and_without_loudness_are_not_compared(swept, tmp_path):
    shutil.copytree(swept / "runs", tmp_path / "runs")
    config = next((tmp_path / "runs").glob("0-*")) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"keep_loudness": True}))
    with pytest.raises(UserError, match="some runs read loudness and others do not"):
        comparison.main([str(tmp_path / "runs"), "--data", str(swept / "speech")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "x"], "--reference must be one of slow_coefficient 0; "),
        (["--where", "slow=1"], "--where needs NAME=VALUE"),
        (["--at", "1.5"], "must be above 0 and below 1, such as 0.9, got 1.5"),
        (["--resamples", "0"], "--resamples must be at least 1, got 0"),
        (["--where", "alpha=0.9"], "no run there with alpha=0.9 has ended well"),
    ],
)
def test_usage_errors_print_one_line(swept, words, message):
    data = ["--data", str(swept / "speech")]
    done = forked("-m", "analysis.comparison", str(swept / "runs"), *data, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "usage:" not in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_final_weights_are_reported(swept, tmp_path):
    shutil.copytree(swept / "runs", tmp_path / "runs")
    for path in tmp_path.glob("runs/*/last*.pt"):
        path.unlink()
    done = forked(
        "-m", "analysis.comparison", str(tmp_path / "runs"), "--data", str(swept / "speech")
    )
    assert done.returncode == 2
    assert "has no final weights that can be loaded" in done.stderr


@pytest.mark.parametrize("program", [comparison, brain])
def test_without_pandas_nothing_is_measured_first(tmp_path, monkeypatch, program):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="this needs pandas.*requirements-analysis.txt"):
        program.main([str(tmp_path / "no runs"), "--out", str(tmp_path)])
