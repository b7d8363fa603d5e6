"""Figures show the content of runs, name what is missing, and have the format of a paper."""

import contextlib
import io
import math
import shutil
from dataclasses import replace

import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic_runs import write_run, write_runs

from analysis import figures, interactive, kernels, model_panels, panels, paper
from analysis.colours import SCHEDULE_COLOURS
from analysis.drawing import (
    Axis,
    Drawing,
    Image,
    Line,
    Missing,
    Panel,
    Style,
    described,
    fitted,
    styles,
)
from analysis.runs import Run, read_runs
from emaae.system.errors import UserError


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two schedules, two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    schedules = ("linear", "cosine")
    write_runs(folder, schedules=schedules, alphas=(0.5,), seeds=(0, 1), epochs=4, model=True)
    return folder


def of(schedule="linear", seed=0, name="a", metrics=None, **columns) -> Run:
    """A run with these columns of history."""
    config = {"schedule": schedule, "update": True, "penalty_scheduler": schedule, "seed": seed}
    n = len(next(iter(columns.values()), ()))
    history = [{"epoch": i + 1} | {k: v[i] for k, v in columns.items()} for i in range(n)]
    metrics = {"status": "finished"} | (metrics or {})
    return Run(name, config, history, metrics, {}, "nowhere")


def test_every_figure_of_a_sweep_is_drawn(sweep, tmp_path, capsys):
    figures.main([str(sweep), "--out", str(tmp_path), "--format", "svg"])
    drawn = {path.stem for path in tmp_path.glob("*.svg")}
    assert drawn == set(figures.FIGURES)
    assert "no " not in capsys.readouterr().out.replace(str(tmp_path), "")
    for path in tmp_path.glob("*.svg"):
        assert "<text" in path.read_text(), path  # not outlines of letters


def test_text_in_a_pdf_is_text_and_the_same_runs_give_the_same_file(sweep, tmp_path):
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        flags = [str(sweep), "--out", str(folder), "--only", "fvu_against_sparsity"]
        figures.main(flags)
        files.append((folder / "fvu_against_sparsity.pdf").read_bytes())
    assert b"/Type3" not in files[0]
    assert b"/FontFile2" in files[0]
    assert files[0] == files[1]


def test_figures_are_one_or_two_columns_wide(sweep):
    runs = read_runs(sweep)
    widths = {figures.draw(name, runs).get_figwidth() for name in ("losses", "alpha")}
    assert widths == {7.2}
    assert figures.draw("fvu_against_sparsity", runs).get_figwidth() == 3.5


def test_a_setting_is_the_mean_of_its_seeds_in_a_band_of_their_range():
    runs = [
        of(seed=0, **{"val/loss": [1.0, 0.5, 0.3]}),
        of(seed=1, **{"val/loss": [3.0, 1.5]}),
        of("cosine", **{"val/loss": [2.0, 2.0]}),
    ]
    panel = panels.over_epochs(runs, "val/loss", Axis("loss"))
    linear, cosine = panel.lines
    assert (linear.label, cosine.label) == ("linear", "cosine")
    assert linear.x.tolist() == [1, 2, 3]
    assert linear.y.tolist() == [2.0, 1.0, 0.3]  # the third epoch of one seed alone
    assert (linear.low.tolist(), linear.high.tolist()) == ([1, 0.5, 0.3], [3, 1.5, 0.3])
    assert cosine.low is None
    assert (linear.runs, cosine.runs) == ((0, 1), (2,))
    each = [line for line in panel.items if line.kind == "each"]
    assert [line.runs for line in each] == [(0,), (1,), (2,)]
    assert each[1].y.tolist() == [3.0, 1.5]


def test_runs_that_diverged_are_not_in_a_mean():
    runs = [
        of(seed=0, **{"val/loss": [1.0]}),
        of(seed=1, metrics={"status": "diverged"}, **{"val/loss": [9e9]}),
    ]
    panel = panels.over_epochs(runs, "val/loss", Axis())
    assert [line.y.tolist() for line in panel.lines] == [[1.0]]
    assert len(panel.items) == 3


def test_an_undefined_value_leaves_a_gap():
    runs = [of(**{"val/fvu": [1.0, None, 0.5]})]
    assert panels.over_epochs(runs, "val/fvu", Axis()).lines[0].x.tolist() == [1, 3]


def test_training_and_validation_loss_have_one_scale():
    runs = [of(**{"train/loss": [1.0, 0.1], "val/loss": [2.0, 0.5]})]
    training, validation = panels.losses(runs)
    assert training.y.range == validation.y.range == pytest.approx((0.1 / 1.1, 2.2))


def test_a_run_that_diverged_does_not_set_the_scale_of_the_losses():
    bad = of(metrics={"status": "diverged"}, **{"train/loss": [1e9], "val/loss": [1e10]})
    good = of(seed=1, **{"train/loss": [1.0], "val/loss": [2.0]})
    assert panels.losses([good, bad])[0].y.range == pytest.approx((1 / 1.1, 2.2))
    assert panels.losses([bad])[0].y.range == pytest.approx((1e9 / 1.1, 1.1e10))


def test_the_front_is_a_staircase_with_no_run_below_and_the_best_run_is_ringed():
    found = [(0.2, 0.7), (0.5, 0.9), (0.6, 0.6)]  # fvu, sparsity
    runs = [
        of(
            seed=i,
            alpha=[0],
            metrics={"select/epoch": 1, "select/score": f, "test/fvu": f, "test/sparsity": s},
        )
        for i, (f, s) in enumerate(found)
    ]
    front, *points, ring = panels.fvu_against_sparsity(runs).lines
    assert sorted((p.x[0], p.y[0]) for p in points) == sorted((s, f) for f, s in found)
    np.testing.assert_allclose(np.c_[front.x, front.y], [(0.7, 0.2), (0.9, 0.5)])
    assert front.label == "Pareto front, hypervolume 0.660"
    assert (ring.x[0], ring.y[0], ring.label) == (0.7, 0.2, "best: a")


def test_the_figure_of_a_front_of_one_run_says_so():
    run = of(alpha=[0], metrics={"select/epoch": 1, "test/fvu": 0.2, "test/sparsity": 0.7})
    panel = panels.fvu_against_sparsity([run])
    assert panel.title == "one run: a front needs several"
    assert len(panel.lines) == 1


def test_mse_is_drawn_over_the_alpha_of_each_epoch_and_of_the_selected_epoch():
    run = of(
        alpha=[0.1, 0.2], metrics={"select/epoch": 2, "select/alpha": 0.2}, **{"val/mse": [4, 3]}
    )
    line, end = panels.mse_along_epochs([run]).lines
    assert np.c_[line.x, line.y].tolist() == [[0.1, 4], [0.2, 3]]
    (point,) = panels.mse_across_runs([run]).lines
    assert (end.x[0], end.y[0]) == (point.x[0], point.y[0]) == (0.2, 3)


def test_mse_along_the_epochs_goes_on_with_the_seeds_that_do():
    short = of(alpha=[0.1], **{"val/mse": [4]})
    long = of(seed=1, alpha=[0.1, 0.3], **{"val/mse": [2, 1]})
    line, *_ = panels.mse_along_epochs([short, long]).lines
    assert np.c_[line.x, line.y].tolist() == [[0.1, 3], [0.3, 1]]
    failed = of(metrics={"status": "failed"}, alpha=[0.1], **{"val/mse": [4]})
    assert panels.mse_along_epochs([failed]).lines[0].y.tolist() == [4]


def test_every_run_is_in_the_figure_of_mse_along_epochs_under_its_name():
    fine = of(name="fine", alpha=[0.1, 0.2], **{"val/mse": [4, None]})
    bad = of(seed=1, name="bad", metrics={"status": "diverged"}, alpha=[0.1], **{"val/mse": [9]})
    items = panels.mse_along_epochs([fine, bad]).items
    each = [line for line in items if line.kind == "each" and not line.points]
    assert [(line.text, line.runs) for line in each] == [("fine", (0,)), ("bad", (1,))]
    mean, end, *_ = items
    assert (mean.runs, mean.y.tolist(), end.y.tolist()) == ((0,), [4], [4])


def test_curves_are_drawn_beside_those_of_the_input(sweep):
    runs = read_runs(sweep)
    for show, name in ((panels.self_similarity, "self_similarity"), (panels.lowpass, "lowpass")):
        lines = {line.label: line for line in show(runs).lines}
        np.testing.assert_allclose(lines["input"].y, runs[0].curves[name]["input"])
        seeds = [run.curves[name]["encoding"] for run in runs[:2]]
        np.testing.assert_allclose(lines["linear"].y, np.mean(seeds, 0))


def test_channels_are_points_without_a_line(sweep):
    for line in panels.articulators(read_runs(sweep)).lines:
        assert line.points
        assert len(line.x) == 13


def test_the_reconstruction_is_that_of_the_selected_weights(sweep):
    run = read_runs(sweep)[0]
    (kept,) = run.reconstructions()
    rows = model_panels.reconstruction(model_panels.autoencode(run)[0]).panels
    x = torch.from_numpy(kept.truth).T[None]
    with torch.no_grad():
        y = run.model()(x).y[0]
    for row, predicted, true in zip(rows, y, x[0]):
        np.testing.assert_allclose(row.items[0].y, predicted, atol=1e-6)
        np.testing.assert_array_equal(row.items[1].y, true)
    assert [row.y.label for row in rows[-2:]] == ["LLY z", "pitch Hz"]


def test_the_correlation_with_a_constant_is_undefined_in_both_figures_of_an_utterance(sweep):
    found, z = model_panels.autoencode(read_runs(sweep)[0])
    found = replace(found, prediction=np.zeros_like(found.prediction))
    for show in (model_panels.reconstruction(found), model_panels.encodings(found, z)):
        texts = [text.text for panel in show.panels for text in panel.texts]
        assert texts
        assert all(text.endswith("r = undefined") for text in texts)


def test_kernels_and_primitives_are_on_one_scale_about_zero(sweep):
    model, units = read_runs(sweep)[0].model(), np.arange(6)
    primitives = model_panels.primitives(kernels.primitives(model, units), units)
    for found, width in ((model_panels.first_kernels(model, 6), 3), (primitives, 5)):
        images = [panel.items[0] for panel in found]
        assert {image.z.shape for image in images} == {(13, width)}
        assert {image.high for image in images} == {max(np.abs(i.z).max() for i in images)}
        assert all(image.signed for image in images)


def test_if_there_are_more_runs_than_panels_the_lowest_scores_are_drawn():
    loss = {"train/loss": [1.0], "val/loss": [1.0]}
    scores = (0.3, None, 0.1, 0.2)
    runs = [
        of(seed=i, name=f"r{i}", metrics={"select/score": score}, **loss)
        for i, score in enumerate(scores)
    ]
    titles = [panel.title for panel in panels.losses_by_run(runs, max_runs=3)]
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
    found = styles(labels).values()
    assert len({(style.color, style.dash) for style in found}) == 30
    assert len({(style.color, style.marker) for style in found}) == 30


def test_schedules_have_colours_and_other_knobs_dashes_and_both_have_markers():
    found = styles([f"{s}, alpha_max {a}" for s in ("linear", "cosine") for a in (0.3, 0.6)])
    linear, stronger, cosine, _ = found.values()
    assert linear.color == stronger.color != cosine.color
    assert linear.dash == cosine.dash != stronger.dash
    assert len({style.marker for style in found.values()}) == 4


def test_a_schedule_has_its_colour_alone_and_beside_runs_without_a_config():
    assert styles(["cosine"])["cosine"].color == SCHEDULE_COLOURS["cosine"]
    assert styles(["unknown", "cosine"])["cosine"].color == SCHEDULE_COLOURS["cosine"]


def test_a_unit_by_label_is_its_mean_in_the_label_over_its_overall_mean():
    z, labels = np.array([0.0, 0, 3, 3, 0, 0]), np.array(["a", "a", "b", "b", "c", "b"])
    panel = model_panels.by_label(z, labels)
    assert [text for _, text in panel.x.ticks] == ["b", "a", "c"]
    assert panel.lines[0].y.tolist() == [2, 0, 0]  # means 2, 0, 0 over 1


# ---- both programs draw the same


def drawn_twice(panel):
    drawing = Drawing([[panel]])
    return paper.draw(drawing).axes[0], interactive.draw(drawing)


def test_paper_and_page_draw_the_same_lines_on_the_same_axes():
    style = styles(["linear"])["linear"]
    x, y = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.2, 0.1])
    line = Line(x, y, style, "<linear>", low=y / 2, high=y * 2)
    single = Line(x, y, style, "one seed", kind="each")
    panel = Panel(Axis("epoch"), Axis("loss", log=True, range=(0.05, 1)), [line, single])
    axes, figure = drawn_twice(panel)
    band, trace, each = figure.data
    np.testing.assert_allclose(axes.lines[0].get_xydata(), np.c_[trace.x, trace.y], rtol=1e-6)
    assert axes.lines[0].get_color() == trace.line.color == style.color
    assert len(axes.lines) == 1, "single seeds are for pages"
    assert (trace.visible, each.visible) == (True, False)
    assert (axes.get_xlabel(), figure.layout.xaxis.title.text) == ("epoch", "epoch")
    assert axes.get_yscale() == figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.range == pytest.approx(np.log10(axes.get_ylim()))
    shown = [tick for tick in axes.get_yticks() if 0.05 <= tick <= 1]
    assert shown == [tick for tick in figure.layout.yaxis.tickvals if 0.05 <= tick <= 1]
    assert trace.name == "&lt;linear&gt;"
    np.testing.assert_allclose(band.y, [*(y * 2), *(y[::-1] / 2)], rtol=1e-6)


def test_paper_and_page_draw_the_same_image_with_its_first_row_at_the_top():
    image = Image(np.array([[0.0, 1.0], [2.0, 3.0]]), (0, 4), (0, 2), "activation", high=3)
    axes, figure = drawn_twice(Panel(Axis("s"), Axis("unit"), [image], "a title"))
    (heatmap,) = figure.data
    (title,) = figure.layout.annotations
    assert axes.get_title(loc="left") == title.text == "a title"
    assert (title.xref, title.yref) == ("x domain", "y domain")
    np.testing.assert_array_equal(axes.images[0].get_array(), heatmap.z)
    assert axes.yaxis_inverted()
    assert figure.layout.yaxis.autorange == "reversed"
    assert (heatmap.x0, heatmap.dx, heatmap.y0) == (1, 2, 0.5)
    assert axes.get_xlim() == (0, 4)
    (bar,) = axes.child_axes
    scale = figure.layout.coloraxis
    assert bar.get_ylabel() == scale.colorbar.title.text == "activation"
    assert bar.get_ylim() == (scale.cmin, scale.cmax) == (0, 3)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.03, 0.06], ["0.03", "0.035", "0.04", "0.045", "0.05", "0.055", "0.06"]),
        ([0.77, 0.78], ["0.77", "0.772", "0.774", "0.776", "0.778", "0.78"]),
        ([0.1, 10], ["0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20"]),
        ([1e-5, 1], ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
        ([0.1, 1e30], ["10", "10000", "1e+07", "1e+10", "1e+13"]),
    ],
)
def test_logarithmic_axes_have_a_few_ticks(values, ticks):
    found = fitted(Axis(log=True), [np.array([math.nan, -1, 0, *values])])
    assert [text for _, text in found.ticks][: len(ticks)] == ticks
    assert fitted(Axis(log=True), [np.array([math.nan, -1, 0])]) == Axis(log=True)


def test_runs_that_failed_are_in_the_mean_only_if_all_failed():
    def means(*statuses):
        runs = [of(seed=i, metrics={"status": s}, alpha=[i]) for i, s in enumerate(statuses)]
        items = panels.over_epochs(runs, "alpha", Axis()).items
        return [line.runs for line in items if line.kind == "mean"]

    assert means("finished", "diverged", "failed") == [(0,)]
    assert means("diverged", "failed") == [(0, 1)]


def test_a_single_value_is_in_the_middle_of_its_axis():
    for axis in (Axis(), Axis(log=True)):
        assert fitted(axis, [np.array([0.5, 0.5])]).range == pytest.approx((0.45, 0.55))
    assert fitted(Axis(range=(0, None)), [np.array([0.5])]).range == (0, None)
    for values in ([0.5, 0.6], [0.0, 0.0], []):
        assert fitted(Axis(), [np.array(values)]) == Axis()


def test_each_of_few_epochs_has_a_tick():
    found = fitted(Axis("epoch", whole=True), [np.arange(1, 4)])
    assert [text for _, text in found.ticks] == ["1", "2", "3"]
    assert fitted(Axis("epoch", whole=True), [np.arange(1, 46)]).ticks is None


def test_a_drawing_is_described_in_words():
    style = styles(["linear"])["linear"]
    line = Line(np.array([1, 2]), np.array([0.5, 0.25]), style, "linear")
    point = Line(np.array([0.9]), np.array([0.1]), style, "best", points=True)
    panel = Panel(Axis("epoch"), Axis("loss"), [line, point], "training")
    expected = "training: loss against epoch; linear: 0.5 at 1 to 0.25 at 2; best: 0.1 at 0.9"
    assert described(Drawing([[panel]])) == expected


def test_the_words_of_an_image_name_the_channel_of_its_largest_value():
    (tile,) = model_panels.primitives(np.eye(13)[None, :, :5] * -1, [1])
    assert "strongest in TDX, -1" in described(Drawing([[tile]]))


def test_single_seeds_are_not_in_the_legend_if_their_settings_are():
    style, x = styles(["linear"])["linear"], np.array([1.0, 2.0])
    means = [Line(x, x, style, f"setting {i}", kind="mean") for i in range(2)]
    seeds = [Line(x, x, style, f"setting 0, {i}", kind="each") for i in range(30)]
    figure = interactive.draw(Drawing([[Panel(Axis(), Axis(), [*means, *seeds])]]))
    assert figure.layout.showlegend


@pytest.mark.parametrize("width", [paper.ONE, paper.TWO])
@pytest.mark.parametrize("n_letters", [15, 19, 26, 38, 62, 139])
def test_a_legend_on_paper_is_below_the_axes_and_within_the_figure(width, n_letters):
    x, labels = np.array([1.0, 2.0]), [("mouth " * 30)[: n_letters - 1] + str(i) for i in range(9)]
    lines = [Line(x, x, style, label) for label, style in styles(labels).items()]
    figure = paper.draw(Drawing([[Panel(Axis(), Axis(), lines)]], legend=True), width)
    figure.savefig(io.BytesIO())
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert 0 <= box.y0 < box.y1 < figure.axes[0].get_window_extent().y0


def test_a_setting_of_several_points_is_in_the_legend_of_its_panel_once(sweep):
    figure = paper.draw(Drawing([[panels.fvu_against_sparsity(read_runs(sweep))]]))
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(set(texts)) == len(texts) == 4  # two schedules, the front, the best


@pytest.mark.parametrize("n_panels", [1, 2])
@pytest.mark.parametrize(("low", "high"), [(0.895, 0.9149), (0.80615, 0.80649), (0.9164, 0.9183)])
def test_numbers_along_x_do_not_overlap(n_panels, low, high):
    x = np.linspace(low, high, 10)
    panel = Panel(Axis(), Axis(), [Line(x, x, Style("k"))])
    figure = paper.draw(Drawing([[panel] * n_panels]), paper.TWO if n_panels > 1 else paper.ONE)
    with matplotlib.style.context(paper.STYLE):
        FigureCanvasAgg(figure).draw()
        for axes in figure.axes:
            left, right = axes.get_xlim()
            labels = [
                one for one in axes.get_xticklabels() if left <= one.get_position()[0] <= right
            ]
            boxes = [one.get_window_extent() for one in labels]
            assert len(boxes) > 1
            assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))


@pytest.mark.parametrize(("n", "n_labels"), [(13, 13), (31, 1)])
def test_points_of_one_schedule_are_told_apart_while_they_can_be(n, n_labels):
    runs = [
        replace(of(name=str(i), metrics={"x": i, "y": i}), config={"schedule": "linear", "lr": i})
        for i in range(n)
    ]
    assert len({line.label for line in panels.points(runs, "x", "y")}) == n_labels


def test_long_names_over_losses_differ_where_their_ends_do():
    name = "target_sparsity-a0.25-i1024-e5d3-s0-20260131-120000"
    names = [name, f"{'a-study-of-alpha-' * 4}/0001", f"{'a-study-of-alpha-' * 4}/0002"]
    runs = [of(name=one, **{"train/loss": [1.0]}) for one in names]
    titles = [panel.title for panel in panels.losses_by_run(runs)]
    assert len(set(titles)) == 3
    assert titles[0].replace("\n", "") == name
    assert all(len(line) <= 26 for title in titles for line in title.split("\n"))
    assert all(title.count("\n") <= 2 for title in titles)


def test_a_run_that_has_just_begun_does_not_hide_those_that_failed():
    failed = of(metrics={"status": "failed"}, **{"train/loss": [1.0], "val/loss": [1.0]})
    begun = of(name="b", seed=1, metrics={"status": "unfinished"})
    assert len(panels.losses([failed, begun])[0].lines) == 1


def test_a_seed_that_failed_does_not_cut_the_mean_of_the_others(tmp_path):
    folders = write_runs(tmp_path, schedules=("cosine",), alphas=(0.5,), epochs=6)
    history = folders[0] / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(True)[:2]))
    (folders[0] / "metrics.json").write_text('{"status": "failed"}')
    mean, *_ = panels.mse_along_epochs(read_runs(tmp_path)).items
    assert len(mean.x) == 6


# ---- what is missing


def test_what_is_missing_is_named_and_the_rest_is_drawn(tmp_path, capsys):
    folder = write_run(tmp_path / "a", epochs=2, curves=False, test=False)
    lacking = {
        "shift_tolerance": "no run has the curve self_similarity (curves.json)",
        "sparsity_against_persistence": "no run has both shift/persistence and val/sparsity",
        "kernels": "run a has no model (best.pth) that can be loaded",
        "losses_by_run": "fewer than two runs have finished an epoch",
    }
    figures.main([str(folder), "--only", *lacking, "losses"])
    said = capsys.readouterr().out
    for name, why in lacking.items():
        assert f"no {name}: {why}" in said
        assert not (folder / "figures" / f"{name}.pdf").exists()
    assert (folder / "figures" / "losses.pdf").stat().st_size > 5_000


@pytest.mark.parametrize(
    "name", ["config.json", "history.jsonl", "metrics.json", "curves.json", "best.pth"]
)
def test_a_broken_file_leaves_out_only_the_figures_that_need_it(sweep, tmp_path, name):
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


def test_runs_that_never_trained_print_one_line(tmp_path):
    (tmp_path / "metrics.json").write_text('{"status": "failed"}')
    with pytest.raises(UserError, match="nothing could be drawn of .*: expected runs that trained"):
        figures.main([str(tmp_path), "--only", "losses", "alpha"])


def test_a_figure_of_a_notebook_says_what_it_lacks():
    with pytest.raises(Missing, match="no run has logged val/loss"):
        panels.losses([of(**{"train/loss": [1.0]})])
