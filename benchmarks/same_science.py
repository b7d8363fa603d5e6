"""Do the faster settings learn the same? `python -m benchmarks.same_science`

Validation metrics of the selected epoch on the demo data, with several seeds for each setting:
float32 and bfloat16, batches of similar lengths and random batches. Two settings are equally good
if their means differ by less than the standard deviation over seeds.
"""

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.reference import random_order
from benchmarks.timing import PRECISIONS, machine, show, spread
from emaae import training
from emaae.config import Config
from emaae.data.load import load_splits
from emaae.data.split import training_order
from emaae.models import build_model
from emaae.system.devices import keep_freed_memory

METRICS = ("fvu", "sparsity", "score")


class Rows(training.Run):
    """A run that keeps its rows of metrics in memory."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def log(self, row, seconds) -> None:
        """Keep a row."""
        self.rows.append(row)


def at_random(lengths: np.ndarray, batch_sz: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Random batches, with the arguments of `training_order`."""
    return random_order(len(lengths), batch_sz, [seed, epoch])


def selected(config: Config, order: Callable) -> dict[str, float]:
    """Train, and return the validation metrics of the selected epoch."""
    splits, run = load_splits(config, wanted=("train", "val")), Rows()
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture)
    model.normalise(*splits["train"].mean_and_sd())
    training.training_order = order
    with contextlib.redirect_stdout(io.StringIO()):
        fitted = training.fit(model, splits["train"], splits["val"], config, run)
    row = run.rows[fitted.selection.epoch - 1]
    return {name: row[f"val/{name}"] for name in METRICS}


def row_of(args: argparse.Namespace, way: str, precision: str, order: Callable) -> list[str]:
    """Train one setting with every seed; returns its row of the table."""
    by_seed = []
    for seed in range(args.seeds):
        print(f"{way}: seed {seed}", file=sys.stderr, flush=True)
        knobs = {name: value for name, value in vars(args).items() if name != "seeds"}
        own = {"seed": seed, "precision": precision, "cache_dir": "none"}
        by_seed.append(selected(Config.from_mapping(knobs | own), order))
    return [way, *(spread([row[name] for row in by_seed], 4) for name in METRICS)]


def main() -> None:
    """Train every setting with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="(default: %(default)s)")
    parser.add_argument("--inner_size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--batch_sz", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.25, help="(default: %(default)s)")
    args = parser.parse_args()
    keep_freed_memory()
    ways = {
        "float32, similar lengths": ("fp32", training_order),
        "float32, at random": ("fp32", at_random),
        "bfloat16, similar lengths": ("bf16", training_order),
    }
    ways = {name: way for name, way in ways.items() if way[0] in PRECISIONS.values()}
    print(f"# The same science\n\n{machine()}; {vars(args)}\n", flush=True)
    began = time.perf_counter()
    head = ["way", *(f"val/{name}" for name in METRICS)]
    show(head, (row_of(args, way, *ways[way]) for way in ways))
    print(f"\n{time.perf_counter() - began:.0f} s, mean and standard deviation over seeds")


if __name__ == "__main__":
    main()
