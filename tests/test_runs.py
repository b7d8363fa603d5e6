"""Reading runs with complete, broken, incomplete and missing files."""

import json

import numpy as np
import pytest
import torch
from synthetic_runs import write_run, write_runs

from analysis.runs import (
    best,
    groups,
    read_comparable,
    read_run,
    read_runs,
    split_of,
    varying,
)
from emaae.runs import read
from emaae.system.errors import UserError, last_error


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two schedules, two alphas, two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    write_runs(folder, schedules=("linear", "cosine"), alphas=(0.3, 0.5), seeds=(0, 1), epochs=4)
    return folder


def test_a_run_is_read_from_its_files(tmp_path):
    folder = write_run(tmp_path / "first", epochs=4)
    (run,) = read_runs(folder)
    assert (run.name, run.schedule, run.status) == ("first", "cosine", "finished")
    assert run.config["alpha_max"] == 0.5
    assert run.column("epoch").tolist() == [1, 2, 3, 4]
    assert run.selected["val/score"] == run.score == run.column("val/score").min()
    assert run.curves["self_similarity"]["lag_ms"][:2] == [0, 20]
    (kept,) = run.reconstructions()
    assert kept.truth.shape == kept.prediction.shape == (60, 13)
    assert kept.name == "103-1240-0000"


def test_reconstructions_are_those_of_the_last_epoch_with_complete_files(tmp_path):
    folder = write_run(tmp_path / "a", epochs=4)
    kept = next((folder / "reconstructions").rglob("*.npz"))
    with np.load(kept) as found:
        whole = dict(found)

    def keep(epoch: str, name: str, **other) -> None:
        (folder / "reconstructions" / f"epoch-{epoch}").mkdir()
        path = folder / "reconstructions" / f"epoch-{epoch}" / "x.npz"
        np.savez(path, **whole | {"name": name} | other)

    keep("0002", "before")
    keep("0004.old", "copy")
    assert [one.name for one in read_run(folder).reconstructions()] == ["103-1240-0000"]
    keep("10000", "last")
    truth = whole["truth"]
    keep("10001", "other channels", channels=whole["channels"][::-1])
    keep("10002", "fewer channels", channels=whole["channels"][:3])
    keep("10003", "one frame alone", truth=truth[0])
    keep("10004", "no array", truth=np.float32(1))
    keep("10005", "no frame", truth=truth[:0], prediction=truth[:0])
    keep("10006", "words", truth=np.full(truth.shape, "a"))
    keep("10007", "another length", truth=truth[:-1])
    (last,) = read_run(folder).reconstructions()
    assert (last.name, last.truth.dtype) == ("last", np.float32)


def test_a_number_that_is_too_large_does_not_count(tmp_path):
    folder = write_run(tmp_path / "a", epochs=2)
    metrics = json.loads((folder / "metrics.json").read_text()) | {"select/score": 10**400}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert np.isnan(read_run(folder).score)


def test_a_sweep_an_out_dir_and_a_run_are_all_read(sweep):
    names = [f"{i:04d}" for i in range(1, 9)]
    assert [run.name for run in read_runs(sweep)] == names
    assert [run.name for run in read_runs(sweep / "runs")] == names
    assert [run.name for run in read_runs(str(sweep / "runs" / "0003"))] == ["0003"]


def test_runs_of_several_sweeps_are_told_apart_by_the_folder_of_the_sweep(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name / "runs" / "0001", epochs=2)
    write_run(tmp_path / "two" / "runs" / "0002", epochs=2)
    runs = read_runs(tmp_path / "one", tmp_path / "two")
    assert [run.name for run in runs] == ["one/0001", "two/0001", "0002"]
    twice = read_runs(
        tmp_path / "two", tmp_path / "two" / "runs", tmp_path / "two" / "runs" / "0001"
    )
    assert [run.name for run in twice] == ["0001", "0002"]


def test_equal_names_in_other_folders_are_told_apart_by_what_differs(tmp_path):
    for name in ("a/play/runs", "b/play/runs", "outA", "outB"):
        write_run(tmp_path / name / "0001", epochs=2)
    refs = [tmp_path / "a/play", tmp_path / "b/play"]
    assert [run.name for run in read_runs(*refs)] == ["a/play/0001", "b/play/0001"]
    refs = [tmp_path / "outA", tmp_path / "outB"]
    assert [run.name for run in read_runs(*refs)] == ["outA/0001", "outB/0001"]


def test_a_knob_without_a_value_is_not_in_the_name_of_a_setting(tmp_path):
    for name, k in (("a", None), ("b", 0.1)):
        path = write_run(tmp_path / name, epochs=2) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"k_fraction": k}))
    assert list(groups(read_runs(tmp_path))) == ["cosine", "cosine, k_fraction 0.1"]


def test_final_metrics_are_those_of_runs_that_cannot_be_resumed(tmp_path):
    folder = write_run(tmp_path / "a", epochs=2)
    metrics = json.loads((folder / "metrics.json").read_text())
    for status in ("finished", "early_stopped", "diverged", "preempted", "failed"):
        (folder / "metrics.json").write_text(json.dumps(metrics | {"status": status}))
        is_final = status not in ("preempted", "failed")
        assert ("select/score" in read.final_metrics(folder)) == is_final


def test_the_copy_of_a_model_is_not_a_run_but_one_that_failed_at_its_start_is(tmp_path):
    write_run(tmp_path / "a", epochs=2)
    for name, files in (("best", ("metrics.json", "best.pth")), ("failed", ("metrics.json",))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    assert [run.name for run in read_runs(tmp_path)] == ["a", "failed"]


def test_a_setting_is_named_by_what_differs_and_the_seed_does_not_count(sweep):
    runs = read_runs(sweep)
    assert varying(runs) == ["schedule", "alpha_max", "seed"]
    assert {name: len(some) for name, some in groups(runs).items()} == {
        "linear, alpha_max 0.3": 2,
        "linear, alpha_max 0.5": 2,
        "cosine, alpha_max 0.3": 2,
        "cosine, alpha_max 0.5": 2,
    }
    assert varying(runs[:1]) == []
    assert list(groups(runs[:1])) == ["linear"]


def test_the_location_of_a_run_is_not_a_setting(tmp_path):
    for name in ("a", "b"):
        folder = write_run(tmp_path / name, epochs=2)
        config = json.loads((folder / "config.json").read_text())
        config |= {"out_dir": name, "run_name": name, "train_dir": name}
        (folder / "config.json").write_text(json.dumps(config))
    assert varying(read_runs(tmp_path)) == []


def test_the_best_run_ended_well_and_has_the_lowest_score(sweep, tmp_path):
    runs = read_runs(sweep)
    assert best(runs).score == min(run.score for run in runs)
    folder = write_run(tmp_path / "a", epochs=2)
    (folder / "metrics.json").write_text('{"select/score": 0.1, "status": "diverged"}')
    assert best(read_runs(folder)) is None


def test_runs_are_compared_on_the_test_split_when_all_that_ended_well_have_it(tmp_path):
    write_run(tmp_path / "a", epochs=2)
    interrupted = write_run(tmp_path / "b", epochs=2)
    (interrupted / "metrics.json").write_text('{"select/epoch": 2, "status": "preempted"}')
    one, other = read_runs(tmp_path)
    assert split_of([one, other]) == "test"
    assert one.metric("test/fvu") == one.metrics["test/fvu"]
    assert other.metric("val/fvu") == other.history[1]["val/fvu"]
    write_run(tmp_path / "c", epochs=2, test=False)
    assert split_of(read_runs(tmp_path)) == "val"
    assert split_of([]) == "val"


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a", epochs=3)
    with open(folder / "history.jsonl", "a") as file:
        file.write('{"epoch": 4, "val/lo')
    assert read_run(folder).column("epoch").tolist() == [1, 2, 3]


def test_an_undefined_or_missing_value_is_nan_in_a_column(tmp_path):
    folder = write_run(tmp_path / "a", epochs=1)
    with open(folder / "history.jsonl", "a") as file:
        file.write('{"epoch": 2, "val/fvu": null}\n{"epoch": 3}\n')
    column = read_run(folder).column("val/fvu")
    assert np.isfinite(column[0])
    assert np.isnan(column[1:]).all()


@pytest.mark.parametrize("content", [None, "", "[1", "[1, 2]", '"text"', "\0\0"])
@pytest.mark.parametrize(
    "name", ["config.json", "history.jsonl", "metrics.json", "curves.json", "npz"]
)
def test_a_missing_or_broken_file_is_read_as_empty(tmp_path, name, content):
    folder = write_run(tmp_path / "a", epochs=2)
    path = folder / name
    if name == "npz":
        path = folder / "reconstructions" / "epoch-0002" / "103-1240-0000.npz"
    path.unlink()
    if content is not None:
        path.write_text(content)
    (run,) = read_runs(tmp_path)
    empty = {
        "config.json": run.config,
        "history.jsonl": run.history,
        "metrics.json": run.metrics,
        "curves.json": run.curves,
        "npz": run.reconstructions(),
    }
    assert not empty.pop(name)
    assert all(empty.values())
    assert run.model() is None
    assert run.status == ("unfinished" if name == "metrics.json" else "finished")
    assert run.schedule == ("unknown" if name == "config.json" else "cosine")
    assert varying([run]) == []
    assert sum(map(len, groups([run]).values())) == 1


def test_the_reason_of_a_failed_run_is_the_last_line_that_it_printed(tmp_path):
    folder = write_run(tmp_path / "runs" / "0001", epochs=2)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "0001.txt").write_text("epoch 1\ntrain.py: error: no memory\n\n")
    assert read_run(folder).last_error == "train.py: error: no memory"


def test_what_torchrun_reports_after_an_error_is_not_why_a_run_failed(tmp_path):
    log = tmp_path / "0001.txt"
    log.write_text("epoch 1\ntrain.py: error: no memory\ntrain.py FAILED\n=======\n")
    assert last_error(log) == "train.py: error: no memory"


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run: expected the folder of a run"):
        read_runs(tmp_path)


def test_a_reference_that_is_neither_a_folder_nor_a_path_on_wandb_is_refused():
    with pytest.raises(UserError, match="neither a folder here nor a path on W&B"):
        read_runs("nowhere")


def test_the_model_takes_the_features_that_were_kept(tmp_path):
    run = read_run(write_run(tmp_path / "a", epochs=2, model=True))
    (kept,) = run.reconstructions()
    assert run.model().encode(torch.as_tensor(kept.truth).T[None]).shape == (1, 16, len(kept.truth))


def test_runs_of_other_data_are_left_out_by_name(tmp_path):
    for name in ("a", "b", "c", "old"):
        folder = write_run(tmp_path / name, epochs=1)
        config = json.loads((folder / "config.json").read_text())
        if name == "c":
            config["data"]["train"] = config["data"]["train"] | {"fingerprint": "1" * 32}
        if name == "old":
            del config["data"]
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="left out 1 of 4 runs, which learnt from other.*: c$"):
        runs = read_comparable(tmp_path)
    assert [run.name for run in runs] == ["a", "b", "old"]
