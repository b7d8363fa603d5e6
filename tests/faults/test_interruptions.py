"""A training that is interrupted at random equals an uninterrupted one, to the last bit."""

import os
import random
import shutil
import signal
import time

import children
import pytest
import torch
from conftest import small_run

from emaae.system.files import read_json

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGKILL")


def contents(run) -> tuple:
    weights = torch.load(run / "best.pth", weights_only=True)
    texts = [(run / name).read_bytes() for name in ("history.jsonl", "metrics.json")]
    return texts, {name: tensor.tolist() for name, tensor in weights.items()}


def finished(run) -> bool:
    path = run / "metrics.json"
    return path.is_file() and read_json(path)["status"] == "finished"


@pytest.mark.slow
def test_a_training_interrupted_at_random_is_the_same_to_the_last_bit(trees, tmp_path, times, tell):
    moment, n_wanted, epochs = random.Random(0), times(3, 30), times(30, 60)
    given = [f for f in small_run(trees, tmp_path) if not f.startswith("--epochs")]
    given += [f"--epochs={epochs}", "--resume", "--norm=batch"]
    process = children.start(children.training, [*given, "--run_name=whole"])
    process.join(200)
    assert process.exitcode == 0
    whole = contents(tmp_path / "whole")

    done, n_ended, run = [], 0, tmp_path / "often"
    while True:
        process = children.start(children.training, [*given, "--run_name=often"])
        if len(done) == n_wanted:
            process.join(200)
        else:
            while process.is_alive() and not (run / "history.jsonl").exists():
                time.sleep(0.005)
            process.join(moment.uniform(0.1, 0.6))
        if process.is_alive():
            number = moment.choice(SIGNALS)
            done.append(number)
            os.kill(process.pid, getattr(signal, number))
            process.join(60)
            # The signal may come when all is written and nothing is left to stop.
            if not finished(run):
                assert process.exitcode == (-9 if number == "SIGKILL" else 130)
                continue
        else:
            assert process.exitcode == 0
        assert finished(run)
        assert contents(run) == whole
        n_ended += 1
        if len(done) == n_wanted:
            break
        shutil.rmtree(run)
    said = ", ".join(f"{done.count(name)} {name}" for name in SIGNALS)
    tell(f"{n_wanted} interruptions ({said}) of {n_ended} runs: all equal to the last bit")
