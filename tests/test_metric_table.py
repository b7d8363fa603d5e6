"""The table of metrics is complete and agrees with runs, sweep files and documentation."""

import json

import pytest
from conftest import ROOT
from forked import forked

from analysis import summary
from emaae.metric_table import (
    BY_NAME,
    RUN_METRICS,
    SHIFT_METRICS,
    SPLIT_METRICS,
    SUMMARY,
    SUMMARY_AT_END,
    logged_each_epoch,
    tables,
)


def test_each_name_is_there_once():
    for metrics in (SPLIT_METRICS, (*RUN_METRICS, *SHIFT_METRICS)):
        names = [name for metric in metrics for name in metric.each_name()]
        assert len(names) == len(set(names))


def test_every_metric_has_a_description_and_a_range():
    for metric in (*SPLIT_METRICS, *RUN_METRICS, *SHIFT_METRICS):
        assert metric.short_description
        assert metric.meaning
        assert metric.better in ("lower", "higher", "")
        assert metric.summary in ("yes", "")


def test_metrics_in_short_tables_are_logged():
    names = [*(f"test/{name}" for name in SUMMARY), *SUMMARY_AT_END]
    names += [name.replace("*", "test") for name in summary.COLUMNS.values()]
    assert set(names) <= set(BY_NAME)
    split_metrics = "fvu, r_articulators, sparsity, live_sparsity, l0, dead, score"
    assert ", ".join(SUMMARY) == split_metrics
    assert SUMMARY_AT_END[:2] == ("shift/persistence", "shift/persistence_within")


def test_metrics_are_logged_when_the_table_says_so():
    assert logged_each_epoch("val/fvu/pitch")
    assert logged_each_epoch("alpha")
    assert not logged_each_epoch("test/fvu")
    assert not logged_each_epoch("shift/persistence")


EVERY_EPOCH = "is logged every epoch"


@pytest.mark.parametrize(
    ("name", "goal", "says"),
    [
        ("shift/persistence", "maximize", ""),
        ("shift/persistence", "minimize", "is better when higher; write maximize"),
        ("test/fvu", "minimize", "warning: metric.name: selects on the test split"),
        ("val/noise_gain", "minimize", f"warning: metric.name: val/noise_gain {EVERY_EPOCH}"),
        ("val/fvu/pitch", "minimize", f"warning: metric.name: val/fvu/pitch {EVERY_EPOCH}"),
        ("val/density_log10", "minimize", "metric.name: 'val/density_log10' is not logged by runs"),
        ("val/fuv", "minimize", "'val/fuv' is not logged by runs; use select/score; did you mean"),
    ],
)
def test_a_sweep_may_optimise_a_metric_that_is_a_number_in_its_direction(
    tmp_path, name, goal, says
):
    path = tmp_path / "s.yaml"
    parameters = "parameters: {alpha: {values: [0.1, 0.2]}}"
    path.write_text(f"method: grid\nmetric: {{name: {name}, goal: {goal}}}\n{parameters}\n")
    done = forked("-m", "emaae", "lint", str(path))
    assert says in done.stdout
    assert bool(done.stdout.strip()) == bool(says)


def test_the_documentation_has_the_tables():
    page = (ROOT / "docs" / "metrics.md").read_text()
    for table in tables():
        assert table in page, "print the tables by `python -m emaae.metric_table`"


def test_metrics_that_a_run_logs_are_in_the_table(tmp_path):
    flags = ("--epochs=1", "--inner_size=8", "--n_encoder=2", "--n_decoder=2", "--wandb=disabled")
    forked("train.py", *flags, f"--out_dir={tmp_path}", "--run_name=r")
    row = json.loads((tmp_path / "r" / "history.jsonl").read_text())
    final = json.loads((tmp_path / "r" / "metrics.json").read_text())
    final.pop("status")
    assert set(row) | set(final) <= set(BY_NAME)
    assert all(map(logged_each_epoch, row))
    assert not any(map(logged_each_epoch, final))
