"""Train with every penalty, norm and activation, and Muon, in all processes of torchrun.

`test_distributed.py` starts it, and trains the same in one process.
"""

import contextlib
import copy
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from emaae.activations import ACTIVATIONS
from emaae.config import Config
from emaae.data.split import Split
from emaae.losses import PENALTIES
from emaae.models import NORMS, build_model
from emaae.system import distributed
from emaae.system.signals import Interrupted, handle_signals
from emaae.training import Run, fit

CASES = [(penalty, norm, "adamw", "relu") for penalty in PENALTIES for norm in NORMS]
CASES += [("l1", norm, "muon", "relu") for norm in ("none", "batch")]
CASES += [("l1", "none", "adamw", name) for name in ACTIVATIONS if name != "relu"]
# 12 steps. The last batch of each epoch is of one utterance: one process has none of it.
KNOBS = {"inner_size": 16, "n_encoder": 2, "n_decoder": 2, "epochs": 4, "batch_sz": 3}
KNOBS |= {"alpha": 0.3, "weight_penalty": True, "precision": "fp32"}
KNOBS |= {"slow_coefficient": 0.1, "slow_loss": "tvu", "lr_schedule": "linear", "lr_warm_up": 0.1}


def split_of(*lengths: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    features = (random.normal(size=(n, 14)).cumsum(0) for n in lengths)
    return Split.from_utterances(
        (f"u{i}", walk.astype(np.float32)) for i, walk in enumerate(features)
    )


class Notes(Run):
    """A run that records its rows; if asked, one of its processes is told to stop."""

    def __init__(self, stop_after: int | None = None):
        self.rows, self.left, self.last = [], stop_after, None

    def log(self, row, seconds):
        self.rows.append(row)

    def save_last(self, state, *, now=False):
        if self.left is not None:
            self.left -= 1
            if self.left == 0 and not distributed.is_main_process():
                signal.raise_signal(signal.SIGTERM)
        if now:
            self.last = copy.deepcopy(state())


def train(
    penalty: str,
    norm: str,
    optimizer: str,
    activation: str,
    notes: Notes | None = None,
    last: dict | None = None,
) -> dict:
    own = {"sparse_loss": penalty, "norm": norm, "optimizer": optimizer, "activation": activation}
    config = Config.from_mapping(KNOBS | own)
    # Weights begin as those of the first process, whatever they are in the others.
    torch.manual_seed(0 if distributed.is_main_process() else 1)
    model = build_model(**config.architecture)
    data, val = split_of(40, 25, 60, 8, 31, 50, 12, seed=1), split_of(30, 12, 9, seed=2)
    model.normalise(*data.mean_and_sd())
    notes = notes or Notes()
    fit(model, data, val, config, notes, last)
    return {"rows": notes.rows, "weights": model.state_dict()}


def main(folder: str) -> None:
    found = {"cases": {case: train(*case) for case in CASES}}
    # An epoch keeps its state after each of its three batches and at its end.
    notes = Notes(stop_after=3 * 4 + 2)
    with contextlib.suppress(Interrupted), handle_signals():
        train(*CASES[0], notes)
    found["stopped"] = notes.last["epoch"], notes.last["batch"]
    found["continued"] = train(*CASES[0], last=notes.last)
    torch.save(found, Path(folder, f"{distributed._Group.rank}.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.process_group():
        sys.exit(main(sys.argv[1]))  # as train.py, so that gloo's threads cannot abort the end
