"""The tables have the numbers of the runs, one observation a row, as R and pandas need them."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT
from synthetic_runs import CHANNELS, write_run, write_runs

from analysis import tables
from analysis.runs import read_runs
from emaae.system.errors import UserError

KEYS = ["run", "setting", "schedule", "seed"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_runs(folder, schedules=("linear", "cosine"), alphas=(0.3,), seeds=(0, 1), epochs=3)
    return folder


@pytest.fixture(scope="module")
def found(sweep):
    return tables.tables(read_runs(sweep))


def rows_of(table):
    return table.to_dict("records")


def read(path):
    return rows_of(pd.read_csv(path, dtype=str, keep_default_na=False))


def test_every_table_begins_with_the_run_and_its_setting(found):
    assert list(found) == ["runs", "history", "channels", "curves"]
    for table in found.values():
        assert list(table.columns[:4]) == KEYS
    assert found["runs"].setting.tolist() == ["linear", "linear", "cosine", "cosine"]
    assert found["runs"].seed.tolist() == [0, 1, 0, 1]


def test_runs_are_settings_and_the_numbers_of_the_selected_weights(sweep, found):
    run, row = read_runs(sweep)[0], rows_of(found["runs"])[0]
    assert row["config_alpha_max"] == 0.3
    assert row["select_score"] == run.metrics["select/score"]
    assert row["val_fvu"] == run.selected["val/fvu"]
    assert row["test_fvu"] == run.metrics["test/fvu"]
    assert row["shift_persistence"] == run.metrics["shift/persistence"]
    assert row["status"] == "finished"
    assert not any("/" in name or name.startswith("config_out") for name in row)


def test_the_history_has_a_row_per_run_and_epoch(sweep, found):
    rows = rows_of(found["history"])
    assert [(row["run"], row["epoch"]) for row in rows] == [
        (f"{i:04d}", epoch) for i in range(1, 5) for epoch in (1, 2, 3)
    ]
    first = read_runs(sweep)[0].history[0]
    assert rows[0]["val_mse"] == first["val/mse"]
    assert rows[0]["alpha"] == first["alpha"]  # of the epoch, not the setting
    assert not {f"val_r_{CHANNELS[0]}", "val_density_log10"} & set(rows[0])


def test_channels_have_a_row_per_split_and_channel(sweep, found):
    rows = [row for row in rows_of(found["channels"]) if row["run"] == "0001"]
    assert [(row["split"], row["channel"]) for row in rows] == [
        (split, name) for split in ("val", "test") for name in CHANNELS
    ]
    assert rows[-1]["r"] == read_runs(sweep)[0].metrics["test/r/pitch"]
    assert rows[0]["fvu"] == read_runs(sweep)[0].selected["val/fvu/TDX"]


def test_curves_have_a_row_per_point_and_series(sweep, found):
    rows = [row for row in rows_of(found["curves"]) if row["run"] == "0001"]
    curves = read_runs(sweep)[0].curves
    for name, axis in (("self_similarity", "lag_ms"), ("gain", "shift_ms"), ("lowpass", "cutoff")):
        for series in ("encoding", "input"):
            points = [
                (r["x"], r["value"]) for r in rows if (r["curve"], r["series"]) == (name, series)
            ]
            assert points == list(zip(curves[name][axis], curves[name][series]))
    density = [r for r in rows if r["curve"] == "density" and r["series"] == "test"]
    assert [r["x"] for r in density[:2]] == [-4.875, -4.625]  # the middles of bins from -5 on
    assert sum(r["value"] for r in density) == 16  # units


def test_curves_that_are_no_lists_are_left_out(tmp_path):
    folder = write_run(tmp_path / "a", epochs=1)
    curves = {"split": "test", "gain": {"shift_ms": [5, 10], "encoding": [1, None], "input": 3}}
    (folder / "curves.json").write_text(json.dumps(curves))
    metrics = json.loads((folder / "metrics.json").read_text()) | {"test/density_log10": 3}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    found = rows_of(tables.tables(read_runs(folder))["curves"])
    gain = [(row["series"], row["x"]) for row in found if row["curve"] == "gain"]
    assert gain == [("encoding", 5), ("encoding", 10)]
    assert {row["series"] for row in found if row["curve"] == "density"} == {"val"}


def test_undefined_values_are_empty_and_flags_are_readable_by_r(tmp_path):
    folder = write_run(tmp_path / "a", epochs=1)
    with open(folder / "history.jsonl", "a") as file:
        file.write('{"epoch": 2, "val/fvu": null}\n')
    tables.main([str(folder)])
    rows = read(folder / "tables" / "history.csv")
    assert rows[1]["val_fvu"] == rows[1]["val_mse"] == ""
    (run,) = read(folder / "tables" / "runs.csv")
    assert (run["config_update"], run["config_early_stop"]) == ("True", "False")
    assert run["config_alpha_period"] == ""


@pytest.mark.parametrize("format", tables.FORMATS)
def test_numbers_survive_csv_and_parquet(sweep, tmp_path, found, format):
    tables.main([str(sweep), "--out", str(tmp_path), "--format", format])
    for name, table in found.items():
        path = tmp_path / f"{name}.{format}"
        csv_has = {"dtype": {"run": str}, "float_precision": "round_trip"}
        again = pd.read_csv(path, **csv_has) if format == "csv" else pd.read_parquet(path)
        again, table = (one.astype(object).where(one.notna(), None) for one in (again, table))
        pd.testing.assert_frame_equal(again, table)


def test_a_column_of_words_and_numbers_is_text():
    table = tables.frame([{"k": "best"}, {"k": 3}, {"other": True}])
    assert table.k.tolist()[:2] == ["best", "3"]
    assert table.k.isna().tolist() == [False, False, True]


@pytest.mark.parametrize(("package", "name"), [("pandas", "analysis"), ("pyarrow", "parquet")])
def test_without_a_package_the_command_that_installs_it_is_named(
    sweep, monkeypatch, tmp_path, package, name
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install -r requirements-{name}.txt"):
        tables.main([str(sweep), "--format", "parquet", "--out", str(tmp_path)])
    assert (ROOT / f"requirements-{name}.txt").is_file()


def test_runs_without_curves_or_epochs_leave_out_those_tables(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"schedule": "linear"}))
    tables.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "no curves: no run has left any" in said
    assert "no history: no run has left any" in said
    (row,) = read(tmp_path / "tables" / "runs.csv")
    assert (row["schedule"], row["status"]) == ("linear", "unfinished")


def test_the_example_in_r_draws_its_picture(sweep, tmp_path):
    if not shutil.which("Rscript"):
        pytest.skip("R is not installed")
    known = subprocess.run(["Rscript", "-e", "library(ggplot2)"], capture_output=True)
    if known.returncode:
        pytest.skip("ggplot2 is not installed")
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    example = page.split("```r\n")[1].split("```")[0]
    tables.main([str(sweep), "--out", str(tmp_path / "runs" / "demo" / "tables")])
    done = subprocess.run(
        ["Rscript", "-"], input=example, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mse_against_alpha.pdf").stat().st_size > 4_000
