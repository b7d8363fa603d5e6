"""No keys in files or arguments, and no undefined numbers in what a sweep optimises."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, small_run

import train
from emaae import training
from emaae.tracking import mirror

KEYS = {
    "WANDB_API_KEY": "feedfacecafe0123456789deadbeef0123456789",
    "AWS_SECRET_ACCESS_KEY": "SecretThatStandsNowhere/0123456789abcdef",
}


def arguments() -> set[str]:
    """The arguments of all processes, since W&B's process has a session of its own."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found |= set(file.read_bytes().decode(errors="replace").split("\0"))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc")
def test_no_key_gets_into_a_file_an_argument_or_the_output(trees, tmp_path):
    given = [f for f in small_run(trees, tmp_path) if not f.startswith(("--wandb", "--epochs"))]
    command = [sys.executable, "train.py", *given, "--epochs=1", "--wandb=offline"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | KEYS
    with open(tmp_path / "output.txt", "wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=env)
        told = set()
        while process.poll() is None:
            told |= arguments()
            time.sleep(0.05)
    assert process.returncode == 0, (tmp_path / "output.txt").read_text()
    assert any("wandb-core" in argument for argument in told)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for name, key in KEYS.items():
        assert not [argument for argument in told if key in argument], name
        assert not [path for path in files if key.encode() in path.read_bytes()], name


class Heard:
    """A W&B run that records its calls."""

    def __init__(self):
        self.rows, self.metadata, self.summary, self.starting_step = [], [], {}, 0
        self.config = SimpleNamespace(update=lambda *_, **__: None)
        self.id, self.entity, self.project, self.group, self.offline = "r", "e", "p", "", True
        self.settings = SimpleNamespace(sweep_id=None)
        self.tags = None

    def define_metric(self, *_, **__):
        pass

    def log(self, row):
        self.rows.append(row)

    def log_artifact(self, artifact, aliases):
        self.metadata.append(dict(artifact.metadata))

    def finish(self, exit_code):
        self.exit_code = exit_code


def undefined(value) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


@pytest.mark.parametrize("after", [0, 2])
def test_nothing_undefined_reaches_metrics_artifacts_or_a_sweep(
    trees, tmp_path, monkeypatch, after
):
    """A run that diverges in its first epoch, and one that diverges later."""
    heard = {}

    def start(config, folder):
        heard["run"] = Heard()
        return mirror.Mirror(folder, heard["run"])

    real = training.train_epoch

    def train_epoch(state, *arguments):
        if state.epoch == after:
            with torch.no_grad():
                next(state.model.parameters()).fill_(math.nan)
        return real(state, *arguments)

    monkeypatch.setattr(mirror, "start", start)
    monkeypatch.setattr(training, "train_epoch", train_epoch)
    assert train.main([*small_run(trees, tmp_path), "--run_name=r"]) == train.DIVERGED

    def strict(text):
        return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))

    metrics = strict((tmp_path / "r" / "metrics.json").read_text())
    rows = list(map(strict, (tmp_path / "r" / "history.jsonl").read_text().splitlines()))
    run = heard["run"]
    assert metrics["status"] == run.summary["status"] == "diverged"
    assert run.exit_code == 1
    assert [row["epoch"] for row in rows] == list(range(1, after + 2))
    assert rows[-1]["train/loss"] is None
    assert not [name for row in run.rows for name, value in row.items() if undefined(value)]
    assert not [name for entry in run.metadata for name, value in entry.items() if undefined(value)]
    scores = [row["select/score"] for row in run.rows if "select/score" in row]
    assert len(scores) == (1 if after else 0)
    assert scores == [metrics[name] for name in ("select/score",) if name in metrics]
    if after:
        state = torch.load(tmp_path / "r" / "best.pth", weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
