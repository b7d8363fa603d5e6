"""The tables of a comparison: means over seeds, fronts of schedules."""

import statistics

import pytest
from synthetic_runs import write_runs

from analysis.runs import read_runs
from analysis.summary import fronts, main, settings
from emaae.system.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    write_runs(folder, schedules=("cosine", "linear"), alphas=(0.3, 0.5), epochs=4)
    return folder


def test_a_setting_is_a_line_with_the_mean_over_its_seeds(folder):
    runs = read_runs(folder)
    lines = settings(runs).splitlines()
    assert len(lines) == 2 + 4
    line = next(line for line in lines if line.startswith("| linear, alpha_max 0.5 |"))
    mine = [r for r in runs if r.schedule == "linear" and r.config["alpha_max"] == 0.5]
    fvu = [run.metric("test/fvu") for run in mine]
    assert line.split("|")[2].strip() == f"{len(mine)}/{len(mine)}"
    assert line.split("|")[3].split()[0] == f"{sum(fvu) / len(fvu):.3g}"
    assert line.split("|")[3].split()[2] == f"{statistics.stdev(fvu):.2g}"
    assert "±" not in settings(mine[:1])


def test_a_schedule_is_a_line_with_its_front(folder, capsys):
    lines = fronts(read_runs(folder)).splitlines()
    assert {line.split("|")[1].strip() for line in lines[2:]} == {"cosine", "linear"}
    volumes = [float(line.split("|")[3]) for line in lines[2:]]
    assert volumes == sorted(volumes, reverse=True)
    assert 0 < volumes[0] < 1
    main([str(folder)])
    said = capsys.readouterr().out
    assert "\n".join(lines) in said
    # Beside numbers of the test split, the score says of which split it is.
    assert said.startswith("On the test split; validation scores ask for fvu, 0.9 zeros")
    assert "| validation score |" in said


def test_without_a_run_that_ended_well_the_summary_says_so(tmp_path):
    write_runs(tmp_path / "sweep", schedules=("constant",), alphas=(0.3,), epochs=2)
    for path in tmp_path.glob("sweep/runs/*/metrics.json"):
        path.unlink()
    with pytest.raises(UserError, match="none of 3 runs has ended well"):
        main([str(tmp_path / "sweep")])
