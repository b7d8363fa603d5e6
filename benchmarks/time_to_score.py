"""How much sooner does the recipe of the sweeps reach a score? `python -m benchmarks.time_to_score`

The plain recipe (the textbook step of reference.py, AdamW .001 at a constant rate, float32, random
batches, the heap as it comes) against ours: the same model, loss, schedule of alpha and batch size.
Their epochs take turns. Since the rate of ours falls to 0, each number of epochs is a training of
its own; what counts is the shortest one that reaches the best score of all epochs of the plain one.

The score is that of reconstruction and sparsity alone, --target_persistence 0.

Times are of training, without validation: CPU seconds of one thread, which others on the machine
cannot take away. One line of JSON per epoch goes to --out, as they come; `--plot` reads it again.
"""

import argparse
import contextlib
import io
import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import reference
from benchmarks.step import Silent, typical_splits
from benchmarks.timing import PRECISIONS, TURNS, interleaved, machine, show, table
from emaae.config import Config
from emaae.data import Split, batches
from emaae.data.demo import generate
from emaae.data.features import find_features, read_features
from emaae.evaluation import evaluate
from emaae.models import build_model
from emaae.system.devices import keep_heap
from emaae.system.progress import progress
from emaae.training import State, train_epoch

# Both ramp alpha up to where pilots of one seed scored best.
ALPHA = {"update": True, "penalty_scheduler": "log_lambda", "alpha": 0.01}
RECIPE = {"optimizer": "muon", "lr": 0.04, "lr_schedule": "linear", "lr_warm_up": 0.03}
RECIPE |= {"precision": "auto"}
SIZES = {"256": (256, 3, 3), "1024": (1024, 5, 3)}


def standardised(train: Split, val: Split) -> tuple[Split, Split]:
    """Both in units of the training split's standard deviations, channels that never move at 0."""
    mean, sd = train.moments()
    sd = torch.where(sd > 0, sd, 1.0)
    return tuple(
        Split(s.names, (s.frames - mean) / sd, s.offsets, s.channels) for s in (train, val)
    )


def generated(n_utterances: int) -> tuple[Split, Split]:
    """Generated speech, four seconds an utterance."""
    named = (
        [(u.name, u.features) for u in generate(name, n_utterances=n)]
        for name, n in (("train", n_utterances), ("val", 64))
    )
    return standardised(*map(Split.from_utterances, named))


def recorded(folder: str) -> tuple[Split, Split]:
    """A feature tree, every eighth utterance of which is for validation."""
    files = find_features(folder, recursive=True)
    named = [(file.identity, read_features(file.path)) for file in files]
    held_out = named[7::8]
    kept = [pair for i, pair in enumerate(named) if i % 8 != 7]
    return standardised(Split.from_utterances(kept), Split.from_utterances(held_out))


class Training(ABC):
    """One training: `next` is an epoch, and gives its row."""

    def __init__(self, train: Split, val: Split, config: Config):
        self.train, self.val, self.config = train, val, config
        self.seconds, self.done = 0.0, 0
        torch.manual_seed(config.seed)
        self.model = build_model(**config.architecture)

    @abstractmethod
    def epoch(self, alpha: float) -> None:
        """Train one epoch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        schedule = self.config.schedule()
        while self.done < self.config.epochs:
            alpha = schedule.alpha(self.done)
            self.settle()
            began, wall = time.process_time(), time.perf_counter()
            self.epoch(alpha)
            self.seconds += time.process_time() - began
            wall = time.perf_counter() - wall
            self.done += 1
            row = evaluate(self.model, self.val, self.config, alpha)
            kept = {name: row[name] for name in ("score", "fvu", "sparsity", "dead")}
            yield {"epoch": self.done, "seconds": self.seconds, "alpha": alpha, "wall": wall} | kept


class Plain(Training):
    """The plain recipe."""

    settle = staticmethod(reference.heap_as_it_comes)

    def __init__(self, train: Split, val: Split, config: Config):
        super().__init__(train, val, config)
        size = (config.inner_size, config.n_encoder, config.n_decoder)
        self.textbook = reference.Reference(*size)
        copy(self.model, self.textbook)  # the same weights to begin with
        self.optimizer = torch.optim.AdamW(self.textbook.parameters(), lr=0.001)

    def epoch(self, alpha: float) -> None:
        """Random batches."""
        seed = [self.config.seed, self.done]
        order = reference.random_order(len(self.train), self.config.batch_sz, seed)
        for x, mask in batches(self.train, order):
            reference.step(self.textbook, self.optimizer, x, mask, alpha)
        copy(self.textbook, self.model)


class Ours(Training):
    """The recipe of the sweeps."""

    settle = staticmethod(keep_heap)

    def __init__(self, train: Split, val: Split, config: Config):
        super().__init__(train, val, config)
        self.state = State.begin(self.model, config)

    def epoch(self, alpha: float) -> None:
        """As `train.py` does it."""
        with contextlib.redirect_stdout(io.StringIO()):
            train_epoch(self.state, self.train, alpha, self.config, Silent())
        self.state.end_epoch()


@torch.no_grad()
def copy(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Weights of one model into another of the same layers."""
    for theirs, own in zip(source.parameters(), target.parameters(), strict=True):
        own.copy_(theirs)


def trainings(args: argparse.Namespace, train: Split, val: Split, seed: int) -> dict:
    """Both recipes, each with each of its numbers of epochs: (way, epochs) -> rows."""
    inner_size, n_encoder, n_decoder = SIZES[args.size]
    given = {"inner_size": inner_size, "n_encoder": n_encoder, "n_decoder": n_decoder}
    given |= {"batch_sz": args.batch_sz, "seed": seed, "target_persistence": 0}
    theirs, own = {"alpha_max": args.plain_alpha_max}, RECIPE | {"alpha_max": args.alpha_max}
    ways = [("plain", Plain, n, theirs, 2 / 3) for n in args.plain_epochs]
    ways += [("ours", Ours, n, own, args.ramp) for n in args.our_epochs]
    found = {}
    for name, way, n, own, part in ways:
        ramp = {"epochs": n, "alpha_epochs": max(1, round(part * n))}
        found[name, n] = iter(way(train, val, Config.from_mapping(given | ALPHA | ramp | own)))
    return found


def measure(args: argparse.Namespace) -> None:
    """Train all, an epoch of each at a time, and append a line for each to --out."""
    train, val = recorded(args.features) if args.features else generated(args.n_utterances)
    print(
        f"{machine()}; {len(train)} + {len(val)} utterances, {len(train.frames)} + "
        f"{len(val.frames)} frames; {vars(args)}",
        flush=True,
    )
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        running = trainings(args, train, val, seed)
        total = sum(n for _, n in running)
        with open(args.out, "a") as out:
            turns = progress(take_turns(running), f"seed {seed}", total=total, unit="epochs")
            for (way, n), row in turns:
                row = {key: float(f"{value:.5g}") for key, value in row.items()}
                out.write(json.dumps({"way": way, "epochs": n, "seed": seed} | row) + "\n")
                out.flush()


def take_turns(
    running: dict[tuple, Iterator[dict[str, Any]]],
) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """The next row of each, until none has one."""
    while running:
        for key in list(running):
            row = next(running[key], None)
            if row is None:
                del running[key]
            else:
                yield key, row


# ---- what was found


def shares(turns: int) -> Iterator[list[str]]:
    """The rows of a table: what an optimiser costs of a step on a batch of LibriSpeech's."""
    _, split, _ = typical_splits()
    keep_heap()
    for name, (inner_size, *blocks) in SIZES.items():
        for label, precision in PRECISIONS.items():
            ways = {}
            for optimizer in ("adamw", "muon"):
                given = {"inner_size": inner_size, "optimizer": optimizer, "precision": precision}
                given |= dict(zip(("n_encoder", "n_decoder"), blocks))
                way = Ours(split, split, Config.from_mapping(given))
                way.epoch(0.25)  # which leaves gradients
                ways[optimizer, "all"] = partial(way.epoch, 0.25)
                ways[optimizer, "optimiser"] = partial(way.state.optimizer.step, 1.0)
            took = interleaved(ways, turns)
            for optimizer in ("adamw", "muon"):
                whole, part = took[optimizer, "all"], took[optimizer, "optimiser"]
                cells = [f"{1e3 * whole:.0f}", f"{1e3 * part:.1f}", f"{100 * part / whole:.1f} %"]
                yield [name, label, optimizer, *cells]


def reached(rows: list[dict[str, Any]], score: float) -> float | None:
    """Seconds after which the first of these trainings had this score; None when none had."""
    return min((row["seconds"] for row in rows if row["score"] <= score), default=None)


def summary(rows: list[dict[str, Any]]) -> str:
    """Two Markdown tables: how much sooner, and the scores at equal time; means over seeds."""
    by_seed = [[row for row in rows if row["seed"] == n] for n in sorted({r["seed"] for r in rows})]
    sooner, equal = [], {}
    for of_seed in by_seed:
        theirs = [row for row in of_seed if row["way"] == "plain"]
        own = [row for row in of_seed if row["way"] == "ours"]
        best = min(theirs, key=lambda row: row["score"])
        ours = reached(own, best["score"])
        ratio = "never" if ours is None else f"x {best['seconds'] / ours:.1f}"
        sooner.append(
            [
                str(best["seed"]),
                f"{best['score']:.4f}",
                str(best["epoch"]),
                f"{best['seconds']:.0f}",
            ]
            + ["" if ours is None else f"{ours:.0f}", ratio]
        )
        for n in sorted({row["epochs"] for row in own}):
            # The best epoch is what a run keeps.
            row = min((r for r in own if r["epochs"] == n), key=lambda r: r["score"])
            spent = max(r["seconds"] for r in own if r["epochs"] == n)
            until = [r["score"] for r in theirs if r["seconds"] <= spent]
            equal.setdefault(n, []).append(row | {"spent": spent, "plain": min(until, default=1)})
    head = ["seed", "best score of the plain recipe", "after epochs", "s", "ours, s", "sooner"]
    names = ("spent", "plain", "score", "fvu", "sparsity", "dead")
    means = [
        [str(n), *(spread([row[name] for row in found]) for name in names)]
        for n, found in equal.items()
    ]
    head2 = ["epochs of ours", "s", "score of the plain", "score of ours", "fvu", "zeros", "dead"]
    return f"{table(head, sooner)}\n\n{table(head2, means)}"


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    digits = 0 if max(values) > 10 else 3
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def plot(files: list[str], path: str) -> None:
    """A row of two panels for each file: the best score so far against time and against epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(files),
        2,
        figsize=(9, 3 * len(files)),
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for (by_time, by_epoch), file in zip(axes, files):
        rows = read(file)
        for axis, x in ((by_time, "seconds"), (by_epoch, "epoch")):
            for way, colour in (("plain", "0.45"), ("ours", "C0")):
                runs = {(r["epochs"], r["seed"]) for r in rows if r["way"] == way}
                for i, run in enumerate(sorted(runs)):
                    own = [r for r in rows if r["way"] == way and (r["epochs"], r["seed"]) == run]
                    best = np.minimum.accumulate([r["score"] for r in own])
                    label = {"plain": "the plain recipe", "ours": "ours"}[way] if i == 0 else None
                    axis.plot([r[x] for r in own], best, color=colour, lw=1, alpha=0.7, label=label)
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3, which="both", lw=0.5)
        by_time.set(ylabel="best val/score so far", title=Path(file).stem, xlabel="CPU seconds")
        by_epoch.set(xlabel="epochs")
        by_time.legend(frameon=False)
    figure.savefig(path, dpi=130)
    print(path)


def read(file: str) -> list[dict[str, Any]]:
    """The rows in a file that --out wrote."""
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def main() -> None:
    """Train and print the tables, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser.add_argument("--size", choices=SIZES, default="256", help="units (default: %(default)s)")
    parser.add_argument("--features", help="feature tree (default: generated speech)")
    parser.add_argument("--n_utterances", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--batch_sz", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--plain_epochs", type=numbers, default=[15, 60, 120])
    parser.add_argument("--our_epochs", type=numbers, default=[4, 8, 16, 30])
    parser.add_argument(
        "--plain_alpha_max", type=float, default=0.65, help="(default: %(default)s)"
    )
    parser.add_argument("--alpha_max", type=float, default=0.5, help="(default: %(default)s)")
    help_ramp = "part of our epochs in which alpha rises, 2/3 of the plain's (default: 2/3)"
    parser.add_argument("--ramp", type=float, default=2 / 3, help=help_ramp)
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--out", default="time_to_score.jsonl", help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=TURNS, help="of --share (default: 7)")
    parser.add_argument("--share", action="store_true", help="what the optimiser costs, and end")
    parser.add_argument("--plot", metavar="PNG", help="draw --out, or the files given, and end")
    parser.add_argument("files", nargs="*", help="more files of --out, for --plot")
    args = parser.parse_args()
    if args.plot:
        plot(args.files or [args.out], args.plot)
        return
    if args.share:
        print(machine())
        head = ["units", "precision", "optimiser", "step, ms", "its part, ms", "share"]
        show(head, shares(args.turns))
        return
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # CPU seconds of one thread
    measure(args)
    print(summary(read(args.out)))


if __name__ == "__main__":
    main()
