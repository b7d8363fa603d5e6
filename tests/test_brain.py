"""The worked example on simulated responses: its parts by hand, and the notebook as a whole."""

import json

import numpy as np
import pytest
from conftest import ROOT
from synthetic_runs import write_run

from analysis import brain
from analysis.runs import read_runs
from analysis.tables import frame
from emaae.data.phones import Gesture
from emaae.system.errors import UserError


@pytest.fixture(scope="module")
def told():
    return brain.stories(5, utterances=3, scale=0.6)


def test_the_haemodynamic_response_has_its_peak_at_five_seconds_and_an_undershoot():
    t = np.arange(0, 32, 0.02)
    response = brain.haemodynamic(t)
    assert t[response.argmax()] == pytest.approx(5, abs=0.1)
    # By hand: 5^5 e^-5 / 120 - 5^15 e^-5 / 15! / 6
    assert response[250] == pytest.approx(0.17547 - 2.62e-5, rel=1e-3)
    assert 14 < t[response.argmin()] < 17
    assert brain.haemodynamic(np.array([-1.0, 0.0])).tolist() == [0, 0]


def test_gestures_that_pull_up_and_down_are_separate_columns():
    gestures = [Gesture("TDX", "a", 1.0, 0.5, 0.0, 0.1), Gesture("TDX", "b", -1.0, 1.0, 0.06, 0.2)]
    found = brain.activations(gestures, 12)
    assert found[:, 0].tolist() == [0.5] * 5 + [0] * 7
    assert found[:, 1].tolist() == [0] * 3 + [1.0] * 7 + [0] * 2
    assert not found[:, 2:].any()


def test_stories_are_utterances_with_gaps(told):
    for one in told:
        ends = one.onsets_s + [len(x) / 50 for x in one.features]
        assert (one.onsets_s[1:] - ends[:-1]) == pytest.approx([brain.GAP_S] * 2)
        assert len(one.gestures) == round(ends[-1] * 50)
        assert one.tr_times_s[:2].tolist() == [0.5, 1.5]


def test_the_true_gestures_explain_the_responses_and_shifted_gestures_do_not(
    told,
):
    many = [*told, *brain.stories(9, utterances=4, scale=1.0)[5:]]
    y = brain.responses(many, seed=0)
    shape = brain.haemodynamic(np.arange(0, 32, 0.02))
    x = []
    for one in many:
        signal = np.apply_along_axis(lambda g: np.convolve(g, shape)[: len(g)], 0, one.gestures)
        at = np.round(one.tr_times_s * 50).astype(int)
        x.append(brain.zscored(signal[at]))
    best = brain.explained(x, y).mean()
    assert 0.3 < best < 1 / (1 + brain.NOISE) + 0.05
    wrong = [np.roll(one, len(one) // 2, axis=0) for one in x]
    assert brain.explained(wrong, y).mean() < 0.05


def test_responses_are_the_same_for_the_same_seed(told):
    first, again, other = (brain.responses(told[:1], seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert first.mean(0) == pytest.approx(0, abs=1e-5)


def test_for_each_seed_the_run_nearest_to_the_sparsity_is_used(tmp_path):
    for seed, live in ((0, 0.5), (0, 0.8), (1, 0.99)):
        folder = write_run(tmp_path / f"{seed}-{live}", seed=seed, epochs=1)
        row = json.loads((folder / "history.jsonl").read_text()) | {"val/live_sparsity": live}
        (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    for weights in ("final", "selected"):
        chosen = brain.nearest(read_runs(tmp_path), 0.85, weights)
        assert {seed: run.name for seed, run in chosen.items()} == {0: "0-0.8", 1: "1-0.99"}


def test_the_table_and_the_figure_have_the_mean_of_the_seeds():
    rows = frame(
        [
            {"input": "x", "seed": s, "jitter_s": j, "live_sparsity": 0.8, "r2": 0.1 * s + j}
            for s in (0, 1)
            for j in (0.0, 0.5)
        ]
    )
    assert "| x | 0.80 | 0.050 (0.000 to 0.100) | 0.550 (0.500 to 0.600) |" in brain.table(rows)
    ((panel,),) = brain.drawing(rows).rows
    (line,) = panel.lines
    # By hand: the sd of errors of sd 500 ms that are cut at 476 ms.
    assert line.x == pytest.approx([0, 348], abs=1)
    assert line.y == pytest.approx([0.05, 0.55])
    assert panel.levels == (0.5,)


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    write_run(tmp_path / "m", epochs=1, model=True)
    cells = json.loads((ROOT / "docs" / "brain.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code[0] = code[0].replace("runs/demo", f"{tmp_path}/m").replace("STORIES = 10", "STORIES = 4")
    assert "STORIES = 4" in code[0]
    monkeypatch.setattr(brain, "UTTERANCES", 2)
    monkeypatch.setattr(brain.stories, "__defaults__", (4, 2, 0.5))
    names: dict = {}
    for cell in code:
        exec(cell, names)
    assert set(names["r2"]) == {"raw features", "encoding", "null: the wrong time"}
    assert all(np.isfinite(values).all() for values in names["r2"].values())
    assert not any(cell.get("outputs") for cell in cells), "outputs are not kept"


def test_the_program_compares_runs_and_writes_a_table_and_a_figure(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"{seed}", seed=seed, epochs=2, model=True)
    monkeypatch.setattr(brain.stories, "__defaults__", (4, 2, 0.5))
    monkeypatch.setattr(brain, "JITTERS_S", (0.0, 0.5))
    out = tmp_path / "out"
    command = [str(tmp_path / "runs"), "--stories=4", "--weights=selected", "--out", str(out)]
    with pytest.warns(UserWarning, match="cosine, seed 0: the nearest run to 0.85 zeros has 0.93"):
        brain.main(command)
    said = capsys.readouterr().out
    assert "Simulated responses; 50% of their variance can be explained." in said
    for name in ("raw features", "untrained", "cosine", f"{brain.NULL}cosine"):
        assert f"| {name} |" in said
    assert len((out / "brain.csv").read_text().splitlines()) == 1 + 4 * 2 * 2
    assert (out / "brain.png").stat().st_size > 10_000


def test_too_few_stories_print_one_line(tmp_path):
    with pytest.raises(UserError, match="--stories must be at least 4, got 3"):
        brain.main([str(tmp_path), "--stories", "3"])
