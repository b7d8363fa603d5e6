"""Figures show what the runs hold, say what they lack, and are fit for a paper."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from synthetic_runs import write_run, write_runs

from analysis import figures, panels
from analysis.panels import Missing
from analysis.runs import Run, read_runs
from emaae.models import build_model
from emaae.system.errors import UserError
from emaae.system.files import read_json


def give_model(folder):
    """Random weights, as a run leaves them."""
    torch.manual_seed(0)
    config = read_json(folder / "config.json")
    model = build_model(inner_size=16, n_encoder=2, n_decoder=2)
    torch.save(model.state_dict(), folder / "best.pth")
    (folder / "model_config.json").write_text(json.dumps(config | model.architecture()))
    return model


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two schedules, two seeds; the first run has a model."""
    folder = tmp_path_factory.mktemp("sweep")
    runs = write_runs(folder, schedules=("linear", "cosine"), alphas=(0.5,), seeds=(0, 1), epochs=4)
    for run in runs:
        give_model(run)
    return folder


def of(schedule="linear", seed=0, name="a", metrics=None, **columns) -> Run:
    """A run with these columns of history."""
    config = {"schedule": schedule, "update": True, "penalty_scheduler": schedule, "seed": seed}
    n = len(next(iter(columns.values()), ()))
    history = [{"epoch": i + 1} | {k: v[i] for k, v in columns.items()} for i in range(n)]
    return Run(name, config, history, metrics or {}, {}, "finished", "nowhere")


def named(**columns):
    return {name.replace("__", "/"): values for name, values in columns.items()}


def axes(*shape):
    return Figure().subplots(*shape)


def test_every_figure_of_a_sweep_is_drawn(sweep, tmp_path, capsys):
    assert figures.main([str(sweep), "--out", str(tmp_path), "--format", "svg"]) == 0
    drawn = {path.stem for path in tmp_path.glob("*.svg")}
    assert drawn == set(figures.FIGURES)
    assert "no " not in capsys.readouterr().out.replace(str(tmp_path), "")
    for path in tmp_path.glob("*.svg"):
        assert "<text" in path.read_text(), path  # not outlines of letters


def test_text_in_a_pdf_is_text_and_the_same_runs_give_the_same_file(sweep, tmp_path):
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        flags = [str(sweep), "--out", str(folder), "--only", "fvu_against_sparsity"]
        assert figures.main(flags) == 0
        files.append((folder / "fvu_against_sparsity.pdf").read_bytes())
    assert b"/Type3" not in files[0]
    assert b"/FontFile2" in files[0]
    assert files[0] == files[1]


def test_figures_are_one_or_two_columns_wide(sweep):
    runs = read_runs(sweep)
    widths = {figures.draw(name, runs).get_figwidth() for name in ("losses", "alpha")}
    assert widths == {7.2}
    assert figures.draw("fvu_against_sparsity", runs).get_figwidth() == 3.5


def test_seeds_of_a_setting_are_their_mean_in_a_band_of_their_range():
    runs = [
        of(seed=0, **named(val__loss=[1.0, 0.5, 0.3])),
        of(seed=1, **named(val__loss=[3.0, 1.5])),
        of("cosine", **named(val__loss=[2.0, 2.0])),
    ]
    ax = panels.over_epochs(axes(), runs, "val/loss")
    linear, cosine = ax.lines
    assert (linear.get_label(), cosine.get_label()) == ("linear", "cosine")
    assert linear.get_xdata().tolist() == [1, 2, 3]
    assert linear.get_ydata().tolist() == [2.0, 1.0, 0.3]  # the third epoch of one seed alone
    (band,) = ax.collections
    low_high = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(1, 1), (1, 3), (2, 0.5), (2, 1.5), (3, 0.3)} <= low_high


def test_an_undefined_value_leaves_a_gap():
    ax = panels.over_epochs(axes(), [of(**named(val__fvu=[1.0, None, 0.5]))], "val/fvu")
    assert ax.lines[0].get_xdata().tolist() == [1, 3]


def test_the_front_is_the_staircase_below_which_no_run_is():
    found = [(0.2, 0.7), (0.5, 0.9), (0.6, 0.6)]  # fvu, sparsity
    runs = [
        of(seed=i, alpha=[0], metrics={"select/epoch": 1, "test/fvu": f, "test/sparsity": s})
        for i, (f, s) in enumerate(found)
    ]
    ax = panels.fvu_against_sparsity(axes(), runs)
    points, front = ax.lines
    assert sorted(zip(*points.get_data())) == sorted((s, f) for f, s in found)
    np.testing.assert_allclose(front.get_xydata(), [(0.7, 0.2), (0.9, 0.5)])
    assert front.get_label() == "Pareto front, hypervolume 0.660"


def test_within_a_run_mse_is_drawn_at_the_alpha_of_its_epoch():
    run = of(
        alpha=[0.1, 0.2], metrics={"select/epoch": 2, "select/alpha": 0.2}, **{"val/mse": [4, 3]}
    )
    within, across = panels.mse_against_alpha(axes(1, 2), [run])
    line, _, ring = within.lines
    assert line.get_xydata().tolist() == [[0.1, 4], [0.2, 3]]
    assert ring.get_xydata().tolist() == across.lines[0].get_xydata().tolist() == [[0.2, 3]]


def test_curves_stand_beside_those_of_the_input(sweep):
    runs = read_runs(sweep)
    left, right = panels.shift_tolerance(axes(1, 2), runs)
    for ax, name in ((left, "self_similarity"), (right, "lowpass")):
        lines = {line.get_label(): line for line in ax.lines}
        baseline = runs[0].curves[name]["input"]
        np.testing.assert_allclose(lines["input"].get_ydata(), baseline)
        seeds = [run.curves[name]["encoding"] for run in runs[:2]]
        np.testing.assert_allclose(lines["linear"].get_ydata(), np.mean(seeds, 0))


def test_the_reconstruction_is_that_of_the_selected_weights(sweep):
    run = read_runs(sweep)[0]
    (name,) = run.features()
    rows = panels.reconstruction(axes(13, 1), run)
    x = torch.from_numpy(run.features()[name]).T[None]
    with torch.no_grad():
        y = run.model()(x).y[0]
    for row, predicted, true in zip(rows, y, x[0]):
        np.testing.assert_allclose(row.lines[0].get_ydata(), predicted, atol=1e-6)
        np.testing.assert_array_equal(row.lines[1].get_ydata(), true)
    assert [row.get_ylabel() for row in rows[-2:]] == ["LLY\nz", "pitch\nHz"]


def test_kernels_and_primitives_are_on_one_scale_about_zero(sweep):
    run = read_runs(sweep)[0]
    for draw, width in ((panels.kernels, 3), (panels.decoder_primitives, 5)):
        shown = [ax.images[0] for ax in draw(axes(2, 3), run).flat]
        assert {image.get_array().shape for image in shown} == {(13, width)}
        (low, high), *others = [image.get_clim() for image in shown]
        assert low == -high
        assert set(others) == {(low, high)}
        assert high == max(np.abs(image.get_array()).max() for image in shown)


def test_of_more_runs_than_panels_those_with_the_lowest_scores_are_drawn():
    loss = {"train/loss": [1.0], "val/loss": [1.0]}
    scores = (0.3, None, 0.1, 0.2)
    runs = [
        of(seed=i, name=f"r{i}", metrics={"select/score": score}, **loss)
        for i, score in enumerate(scores)
    ]
    grid = panels.losses_by_run(axes(1, 3).reshape(1, 3), runs)
    titles = [ax.get_title(loc="left").split()[0] for ax in grid.flat]
    assert titles == ["r2", "r3", "r0"]


@pytest.mark.parametrize(
    "labels",
    [
        [f"s{i}" for i in range(30)],
        [f"constant, alpha {i}" for i in range(30)],
        [f"s{i}, alpha_max {j}" for i in range(10) for j in (0.3, 0.6, 0.9)],
    ],
)
def test_thirty_settings_look_different_as_lines_and_as_points(labels):
    looks = panels.looks(labels)
    assert len({(look.color, look.style) for look in looks.values()}) == 30
    assert len({(look.color, look.marker) for look in looks.values()}) == 30


def test_a_schedule_is_a_colour_and_what_else_varies_a_style():
    looks = panels.looks([f"{s}, alpha_max {a}" for s in ("linear", "cosine") for a in (0.3, 0.6)])
    linear, stronger, cosine, _ = looks.values()
    assert linear.color == stronger.color != cosine.color
    assert linear.style == cosine.style != stronger.style


def test_what_is_missing_is_said_and_the_rest_is_drawn(tmp_path, capsys):
    folder = write_run(tmp_path / "a", epochs=2, curves=False, test=False)
    lacking = {
        "shift_tolerance": "no run has the curve self_similarity (curves.json)",
        "sparsity_against_persistence": "no run has both shift/persistence and val/sparsity",
        "kernels": "a has no model (best.pth) that can be loaded",
        "losses_by_run": "fewer than two runs have finished an epoch",
    }
    assert figures.main([str(folder), "--only", *lacking, "losses"]) == 0
    said = capsys.readouterr().out
    for name, why in lacking.items():
        assert f"no {name}: {why}" in said
        assert not (folder / "figures" / f"{name}.pdf").exists()
    assert (folder / "figures" / "losses.pdf").stat().st_size > 5_000


@pytest.mark.parametrize(
    "name", ["config.json", "history.jsonl", "metrics.json", "curves.json", "best.pth"]
)
def test_a_broken_file_leaves_out_a_figure_and_no_more(sweep, tmp_path, name):
    folder = shutil.copytree(sweep / "runs" / "0001", tmp_path / "a")
    (folder / name).write_text('{"epoch": 1, "val/mse": null}\n')
    drawn = set()
    for figure in ("alpha", "mse_against_alpha", "shift_tolerance", "encodings"):
        with contextlib.suppress(Missing):
            figures.draw(figure, read_runs(folder))
            drawn.add(figure)
    lost = {
        "history.jsonl": {"alpha"},
        "curves.json": {"shift_tolerance"},
        "best.pth": {"encodings"},
    }
    assert drawn == {"alpha", "mse_against_alpha", "shift_tolerance", "encodings"} - lost.get(
        name, set()
    )


def test_runs_that_never_trained_are_a_mistake_in_one_line(tmp_path):
    (tmp_path / "metrics.json").write_text('{"status": "failed"}')
    with pytest.raises(UserError, match="nothing could be drawn of .*: expected runs that trained"):
        figures.main([str(tmp_path), "--only", "losses", "alpha"])


def test_a_figure_of_a_notebook_says_what_it_lacks():
    with pytest.raises(Missing, match="no run has logged val/loss"):
        panels.losses(axes(1, 2), [of(**{"train/loss": [1.0]})])
