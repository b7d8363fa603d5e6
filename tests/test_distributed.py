"""Two processes train the same as one process, and always end together."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import train_together
import yaml
from conftest import ROOT, environment_of, program, small_run
from train_together import CASES, split_of

import train
from emaae.data.split import batches
from emaae.system import distributed
from emaae.system.errors import UserError
from emaae.system.signals import Interrupted

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict]:
    """The result of `train_together` in each of two processes."""
    folder = tmp_path_factory.mktemp("together")
    script = str(ROOT / "tests" / "train_together.py")
    done = program(*TORCHRUN, script, str(folder), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def close(one: list[dict], other: list[dict], within: float) -> None:
    """Rows of metrics are equal, number by number, undefined ones too."""
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert set(a) == set(b)
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=within, abs=within, nan_ok=True), name


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_have_the_losses_and_weights_of_one(together, case):
    """12 steps; the last batch of each epoch is one utterance, so one process has none."""
    one, two = train_together.train(*case), together[0]["cases"][case]
    weights = one["weights"]
    for name in ("train/loss", "train/mse", "train/penalty"):
        assert [row[name] for row in two["rows"]] == pytest.approx(
            [row[name] for row in one["rows"]], rel=1e-5
        )
    # A bias before batch normalisation is taken away by it: its gradient is rounding, which Adam
    # scales up to a step, and the running mean goes with it.
    normed = {name.removesuffix("running_mean") for name in weights if "running_mean" in name}
    free = {block.replace("norm.", "conv.bias") for block in normed}
    free |= {f"{block}running_mean" for block in normed}
    for name in set(weights) - free:
        assert torch.allclose(weights[name], two["weights"][name], atol=1e-5), name
    if not normed:
        close(one["rows"], two["rows"], 1e-5)


def test_all_processes_end_with_the_same_weights_to_the_last_bit(together):
    for case in CASES:
        weights, others = (rank["cases"][case]["weights"] for rank in together)
        for name, weight in weights.items():
            assert torch.equal(weight, others[name]), name


def test_a_signal_to_one_process_stops_all_after_the_same_batch(together):
    stopped = [rank["stopped"] for rank in together]
    assert stopped == [(3, 2), (3, 2)]


def test_an_interrupted_training_of_two_processes_equals_an_uninterrupted_one(together):
    rows = [rank["continued"]["rows"] for rank in together]
    whole = together[0]["cases"][CASES[0]]["rows"]
    assert rows[0] == rows[1] == whole[3:]


@pytest.mark.parametrize(
    ("error", "tells"), [(UserError("wrong"), [1]), (Interrupted(), [0])], ids=["mistake", "signal"]
)
def test_the_first_process_that_fails_prints_a_shared_error_and_the_main_process_an_interruption(
    monkeypatch, error, tells
):
    store, told = dist.HashStore(), []
    for rank in (1, 0, 2):
        monkeypatch.setattr(distributed._Group, "rank", rank)
        if distributed._is_first_to_fail(store, error):
            told.append(rank)
    assert told == tells


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_utterance_of_a_batch_goes_to_one_process(monkeypatch, size):
    order = [np.arange(5), np.arange(5, 6)]
    monkeypatch.setattr(distributed._Group, "size", size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(distributed._Group, "rank", rank)
        shares.append(distributed.local_share(order))
    for i, batch in enumerate(order):
        parts = [share[i] for share in shares]
        assert sorted(np.concatenate(parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_without_utterances_has_no_frames():
    split = split_of(5, 7, seed=0)
    (x, mask), (empty, nothing) = batches(split, [np.array([1]), np.array([], int)])
    assert x.shape == (1, 13, 7)
    assert mask.sum() == 7
    assert empty.shape[:2] == (0, 13)
    assert nothing.sum() == 0


def test_an_error_in_one_process_ends_all_with_one_line(small, tmp_path):
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    done = program(*TORCHRUN, str(ROOT / "train.py"), *small, "--run_name=taken")
    assert done.returncode == 1  # torchrun's own
    said = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    (line,) = said
    assert "taken exists already: give another --run_name" in line
    assert "exitcode  : 2" in done.stderr
    assert "Traceback" not in done.stderr[: done.stderr.index(line)]
    assert all(line.startswith("packed ") for line in done.stdout.splitlines())  # no epoch


@pytest.fixture(scope="module")
def swept(trees, tmp_path_factory):
    """A sweep of one run of two processes, told to stop after its second epoch, and resumed.

    Returns its folder, the exit status of the first runner, and the output of both.
    """
    place = tmp_path_factory.mktemp("swept")
    content = yaml.safe_load((ROOT / "sweeps" / "large.yaml").read_text())
    content["parameters"] = {"alpha": {"values": [0.2]}, "epochs": {"value": 40}}
    (place / "large.yaml").write_text(yaml.safe_dump(content))
    (place / "train.py").symlink_to(ROOT / "train.py")
    flags = [f for f in small_run(trees, place) if not f.startswith(DECIDED)]
    command = ("-m", "emaae", "sweep", "large.yaml", "--out", "out", "--jobs=1", "--", *flags)
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    runner = subprocess.Popen(
        [sys.executable, *command], cwd=place, env=environment_of(**paths), stdout=subprocess.PIPE
    )
    history = place / "out" / "runs" / "0001" / "history.jsonl"
    deadline = time.monotonic() + 120
    while not (history.exists() and len(history.read_text().splitlines()) >= 2):
        assert runner.poll() is None, runner.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    runner.send_signal(signal.SIGTERM)
    runner.communicate(timeout=60)
    folder = place / "out" / "runs" / "0001"
    preempted = json.loads((folder / "metrics.json").read_text())["status"]
    done = program(*command, cwd=place, **paths)
    assert done.returncode == 0, done.stdout + (place / "out/logs/0001.txt").read_text()
    return place / "out", preempted


# Said by the sweep, or of no matter to it.
DECIDED = ("--alpha", "--epochs", "--out_dir", "--wandb")


@pytest.mark.slow
def test_a_sweep_of_torchruns_stops_and_is_resumed(swept):
    folder, preempted = swept
    assert preempted == "preempted"
    log = (folder / "logs" / "0001.txt").read_text()
    assert log.count("train.py: interrupted") == 1
    assert log.count("continuing after") == 1
    assert [path.name for path in (folder / "runs").iterdir()] == ["0001"]


@pytest.mark.slow
def test_a_run_of_two_processes_leaves_the_same_files_as_a_run_of_one(swept, trees, tmp_path):
    folder = swept[0] / "runs" / "0001"
    flags = [f for f in small_run(trees, tmp_path) if not f.startswith(("--alpha", "--epochs"))]
    assert train.main([*flags, "--alpha=0.2", "--epochs=40", "--run_name=one"]) == 0
    rows, metrics = zip(
        *(
            (
                [json.loads(line) for line in (at / "history.jsonl").read_text().splitlines()],
                json.loads((at / "metrics.json").read_text()),
            )
            for at in (tmp_path / "one", folder)
        )
    )
    close(*rows, 1e-4)
    close([metrics[0]], [metrics[1]], 1e-4)
    left = [{path.name for path in at.iterdir()} for at in (tmp_path / "one", folder)]
    # The one was neither interrupted nor told to W&B.
    assert left[1] - left[0] == {"last.previous.pt", "wandb", "wandb.json"}
    assert left[0] <= left[1]


@pytest.mark.slow
def test_only_the_first_process_has_a_wandb_run(swept):
    (run,) = (swept[0] / "runs" / "0001" / "wandb").glob("offline-run-*")
    assert json.loads((swept[0] / "runs" / "0001" / "wandb.json").read_text())["pending"] == ["run"]
    assert run.name.endswith(json.loads((swept[0] / "runs/0001/wandb.json").read_text())["id"])
    log = (swept[0] / "logs" / "0001.txt").read_text()
    assert log.count("W&B offline") == 2  # begun and gone on with
    assert not math.isnan(json.loads((swept[0] / "runs/0001/metrics.json").read_text())["test/fvu"])
