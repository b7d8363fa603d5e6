"""Promote and pull from the folder of a local sweep: the lowest score, whole files, checked."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import emaae
from emaae.__main__ import main
from emaae.models import CNNAutoEncoder
from emaae.runs import checkpoint, read
from emaae.system.errors import UserError
from emaae.system.files import write_json
from emaae.tracking import client, download
from emaae.tracking import models as tracking
from emaae.tracking.models import promote, pull


def write_run(sweep, name, score, status="finished"):
    """A run's folder as train.py leaves it, with a model of its own."""
    run = sweep / "runs" / name
    run.mkdir(parents=True)
    torch.manual_seed(int(name))
    model = CNNAutoEncoder(13, 8, 2, 2)
    checkpoint.save(run / "best.pth", model.state_dict())
    write_json(run / "model_config.json", model.architecture())
    write_json(run / "config.json", {})
    write_json(run / "metrics.json", {"status": status, "select/score": score})
    return model


@pytest.fixture
def sweep(tmp_path):
    """Three good runs and three that cannot be chosen; the best is 0001."""
    models = {
        name: write_run(tmp_path, name, score, status)
        for name, score, status in [
            ("0000", 0.5, "finished"),
            ("0001", 0.2, "early_stopped"),
            ("0002", 0.3, "finished"),
            ("0003", 0.1, "diverged"),
            ("0004", None, "finished"),
            ("0005", 0.01, "preempted"),
        ]
    }
    (tmp_path / "runs" / "0006").mkdir()
    return tmp_path, models


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_the_lowest_score_of_the_runs_that_ended_well_is_promoted(sweep):
    folder, models = sweep
    best = promote(str(folder))
    assert (best.run, best.score) == ("0001", 0.2)
    assert same(emaae.load_model(folder), models["0001"])
    assert same(emaae.load_model(best.ref), models["0001"])


def test_scores_of_two_kinds_are_not_compared(sweep):
    folder, _ = sweep
    write_json(folder / "runs/0002/config.json", {"target_persistence": 0.9})
    with pytest.raises(UserError, match="are not comparable: their targets are .* persistence 0.9"):
        promote(str(folder))


def of_data(name):
    return {"data": {split: {"fingerprint": f"{name}{split}"} for split in ("train", "val")}}


def test_scores_of_different_data_are_not_compared(sweep):
    folder, _ = sweep
    for name in ("0000", "0001", "0002"):
        write_json(folder / "runs" / name / "config.json", of_data("real"))
    assert promote(str(folder)).run == "0001"
    write_json(folder / "runs/0001/config.json", of_data("demo"))
    with pytest.raises(UserError, match="not comparable: they are on different data .*2 of data"):
        promote(str(folder))


def test_the_test_split_does_not_change_the_data_fingerprint():
    config = of_data("real")
    with_test = {"data": config["data"] | {"test": {"fingerprint": "x"}}}
    assert (
        read.data_fingerprint(config)
        == read.data_fingerprint(with_test)
        != read.data_fingerprint(of_data("demo"))
    )
    assert len(read.data_fingerprint(config)) == 8
    assert read.data_fingerprint({}) == read.data_fingerprint({"data": {"test": {}}}) == ""


def test_scores_of_two_kinds_on_wandb_are_not_compared(monkeypatch):
    kept = {"status": "finished", "sha256": "0"}
    there = {"a": kept | {"score": 0.2, "aim": "fvu, 0.9 zeros"}, "b": kept | {"score": 0.1}}
    api = SimpleNamespace(
        artifact=lambda name: SimpleNamespace(metadata=there[name.split("-")[1].split(":")[0]])
    )
    monkeypatch.setattr(client, "public_api", lambda: api)
    runs = [SimpleNamespace(entity="e", project="p", id=name) for name in there]
    monkeypatch.setattr(client, "runs", lambda path: [run for run in runs if run.id in there])
    with pytest.raises(UserError, match="runs in e/p are not comparable: .* .an earlier score"):
        tracking._best_on_wandb("e/p")
    del there["b"]
    assert tracking._best_on_wandb("e/p")[1] == "a"


def test_a_network_that_is_lost_during_a_download_prints_one_line(monkeypatch, tmp_path):
    def lost(root):
        raise Exception("Connection refused")  # wandb has such errors

    artifact = SimpleNamespace(name="m:v0", version="v0", metadata={"sha256": "0"}, download=lost)
    api = SimpleNamespace(artifact=lambda name: artifact)
    monkeypatch.setattr(client, "public_api", lambda: api)
    for ask in (lambda: pull("e/p/r", tmp_path / "mine"), lambda: download._download_artifact("m")):
        with pytest.raises(UserError, match="m:v0 could not be downloaded .*Connection refused"):
            ask()
    assert not (tmp_path / "mine").exists()


def test_promoting_again_changes_nothing_and_a_better_run_takes_over(sweep):
    folder, _ = sweep
    promote(str(folder))
    before = os.stat(folder / "best" / "best.pth").st_ino
    promote(str(folder))
    assert os.stat(folder / "best" / "best.pth").st_ino == before
    better = write_run(folder, "0007", 0.05)
    assert promote(str(folder)).run == "0007"
    assert same(emaae.load_model(folder), better)
    left = sorted(p.name for p in folder.iterdir() if p.name != ".promote.lock")
    assert left == ["best", "runs"]


@pytest.mark.parametrize("name", ["history.jsonl", "notes.txt"])
def test_a_folder_best_that_is_no_promoted_model_is_not_replaced(sweep, name):
    folder, _ = sweep
    (folder / "best").mkdir()
    (folder / "best" / name).write_text("")
    with pytest.raises(UserError, match="best is not a model that was promoted, .*: rename it"):
        promote(str(folder))
    assert os.listdir(folder / "best") == [name]


def test_a_model_that_was_pulled_beside_runs_is_not_one_of_them(sweep):
    runs = sweep[0] / "runs"
    promote(str(runs))
    pull(str(runs), runs / "mine")
    assert not {"best", "mine"} & {run.name for run in read.run_folders(runs)}
    assert promote(str(runs)).run == "0001"


def test_a_reference_to_wandb_is_never_a_local_folder(sweep, monkeypatch):
    def artifact(name):
        raise ValueError("not there")

    monkeypatch.setattr(client, "public_api", lambda: SimpleNamespace(artifact=artifact))
    folder, _ = sweep
    monkeypatch.chdir(folder.parent.parent)
    ref = f"{folder.parent.name}/{folder.name}"
    pull(ref, folder / "mine")
    with pytest.raises(UserError, match=f"{ref} names no model on W&B"):
        emaae.load_model(f"wandb:{ref}")


def test_promotions_at_the_same_moment_agree_and_leave_a_whole_model(sweep):
    folder, models = sweep
    with ThreadPoolExecutor(8) as pool:
        chosen = list(pool.map(promote, [str(folder)] * 16))
        assert {best.run for best in chosen} == {"0001"}
        better = write_run(folder, "0007", 0.05)
        chosen = list(pool.map(promote, [str(folder)] * 16))
    assert {best.run for best in chosen} == {"0007"}
    assert same(emaae.load_model(folder), better)


def test_a_sweep_whose_folder_cannot_be_written_prints_one_line(sweep):
    folder, _ = sweep
    (folder / ".promote.lock").mkdir()
    with pytest.raises(UserError, match=r"best cannot be written \("):
        promote(str(folder))


def test_pull_copies_the_promoted_model_with_its_other_files(sweep, tmp_path):
    folder, models = sweep
    promote(str(folder))
    pull(str(folder), tmp_path / "mine")
    assert sorted(os.listdir(tmp_path / "mine")) == [
        "MODEL_CARD.md",
        "best.pth",
        "decoder.pt2",
        "encoder.pt2",
        "metrics.json",
        "model_config.json",
    ]
    assert same(emaae.load_model(tmp_path / "mine"), models["0001"])


def test_curves_of_another_model_are_removed(sweep, tmp_path):
    folder, _ = sweep
    with_curves, without = folder / "runs" / "0001", folder / "runs" / "0002"
    (with_curves / "curves.json").write_text('{"split": "test"}')
    promote(str(folder))
    for source, expected in ((folder, True), (without, False), (with_curves, True)):
        pull(str(source), tmp_path / "mine")
        assert (tmp_path / "mine" / "curves.json").is_file() == expected


def test_pulling_a_model_to_its_own_folder_changes_nothing(sweep):
    folder, _ = sweep
    promote(str(folder))
    for ref, out in ((folder, folder / "best"), (folder / "best", folder / "best")):
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        pull(str(ref), out)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_that_cannot_be_written_is_named(sweep, tmp_path):
    (tmp_path / "mine" / "metrics.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine/metrics.json cannot be written \("):
        pull(str(sweep[0]), tmp_path / "mine")


def test_the_card_of_a_promoted_model_says_what_it_is_and_how_to_use_it(sweep, tmp_path):
    folder, models = sweep
    measured = {"test/fvu": 0.0625, "test/sparsity": 0.875, "shift/half_life_ms": None}
    measured |= {"status": "early_stopped", "select/score": 0.2, "select/alpha": 0.125}
    write_json(folder / "runs/0001/metrics.json", measured)
    promote(str(folder))
    pull(str(folder), tmp_path / "mine")
    card = (tmp_path / "mine" / "MODEL_CARD.md").read_text()
    assert card == (folder / "best" / "MODEL_CARD.md").read_text()
    assert "run 0001" in card.splitlines()[0]
    assert "2 encoder, 2 decoder" in card
    assert "| alpha | constant, 0.125 at the selected epoch |" in card
    assert "| `test/fvu` | 0.0625 |" in card
    assert "| `shift/half_life_ms` | undefined |" in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    snippet = snippet.replace('"FOLDER"', repr(str(folder / "best")))
    names = {"x": torch.randn(2, 13, 9)}
    exec(snippet, names)
    assert names["z"].shape == (2, 8, 9)
    assert torch.equal(names["z"], models["0001"].eval().encode(names["x"]))


def test_pull_takes_a_run_or_the_best_run_when_nothing_was_promoted(sweep, tmp_path):
    folder, models = sweep
    pull(str(folder), tmp_path / "best-of-sweep")
    pull(str(folder / "runs" / "0002"), tmp_path / "of-run")
    assert same(emaae.load_model(tmp_path / "best-of-sweep"), models["0001"])
    assert same(emaae.load_model(tmp_path / "of-run"), models["0002"])


def test_a_run_is_not_overwritten(sweep):
    folder, _ = sweep
    run = folder / "runs/0002"
    (run / "history.jsonl").write_text("")
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(UserError, match="is the folder of a run: name another"):
        pull(str(folder), run)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_model_that_was_changed_after_it_was_promoted_is_refused(sweep, tmp_path):
    folder, _ = sweep
    promote(str(folder))
    with open(folder / "best" / "best.pth", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="best.pth has sha256 .* the file was changed"):
        pull(str(folder), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    promote(str(folder))
    pull(str(folder), tmp_path / "mine")


def test_a_run_that_has_not_ended_has_no_model_yet(sweep, tmp_path):
    run = sweep[0] / "runs" / "0001"
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match="not the model of an ended run: it lacks metrics.json"):
        pull(str(run), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_folder_that_cannot_be_made_is_named(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file cannot be made \(File exists\): name another folder"
    ):
        pull(str(sweep[0]), tmp_path / "file")


def test_a_sweep_without_a_finished_run_is_refused(tmp_path):
    write_run(tmp_path, "0000", 0.1, "failed")
    write_run(tmp_path, "0001", 10**400)  # no number to compare
    with pytest.raises(UserError, match="holds no finished run with a score"):
        promote(str(tmp_path))


@pytest.mark.parametrize("ref", ["nowhere", "a/b/c/d", "a//b"])
def test_a_reference_that_is_neither_a_folder_nor_a_path_on_wandb_is_refused(ref):
    with pytest.raises(UserError, match="neither a folder here nor a path on W&B"):
        promote(ref)


def test_the_verbs_print_where_the_model_is(sweep, tmp_path, capsys):
    folder, _ = sweep
    assert main(["promote", str(folder)]) == 0
    assert main(["pull", str(folder), "--out", str(tmp_path / "mine")]) == 0
    out = capsys.readouterr().out
    assert "best: run 0001, score 0.2000" in out
    assert f"model: {tmp_path / 'mine' / 'best.pth'}" in out
    assert json.loads((folder / "best" / "promoted.json").read_text())["score"] == 0.2
