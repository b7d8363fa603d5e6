"""SIGKILL while a state is saved: the last complete state, or a newer one, can be loaded."""

import contextlib
import random
import time

import children
import torch

from emaae.runs import checkpoint


def state(epoch: int) -> dict:
    """A state of 4 MB, all of whose numbers are its epoch."""
    tensors = {f"w{i}": torch.full((100_000,), float(epoch)) for i in range(10)}
    empty = {"optimizer": []} | dict.fromkeys(("selection", "phase", "schedule"), {})
    empty |= dict.fromkeys(("sums", "active", "best"))
    return {"epoch": epoch, "batch": 0, "stopped": False, "model": tensors} | empty


def saving(folder, epoch):
    while True:
        epoch += 1
        checkpoint.save_last(folder, state(epoch))


def saved_at(path):
    """When a file was written; None between the two renames that replace it."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns


def test_a_state_always_loads_after_sigkill_while_saving(tmp_path, times, tell):
    moment, n_kills, epoch = random.Random(0), times(10, 200), 0
    checkpoint.save_last(tmp_path, state(0))
    halves = 0
    for _ in range(n_kills):
        before = saved_at(tmp_path / "last.pt")
        process = children.start(saving, tmp_path, epoch)
        while saved_at(tmp_path / "last.pt") in (before, None):
            time.sleep(0.001)
        time.sleep(moment.uniform(0, 0.05))
        process.kill()
        process.join()
        kept = checkpoint.load_last(tmp_path)
        assert kept["epoch"] > epoch
        epoch = kept["epoch"]
        assert all((tensor == epoch).all() for tensor in kept["model"].values())
        for half in tmp_path.glob(".*.tmp"):
            halves += 1
            half.unlink()
    tell(f"{n_kills} SIGKILLs while saving: 0 unloadable, {halves} in the middle of a file")
    assert halves > 0
