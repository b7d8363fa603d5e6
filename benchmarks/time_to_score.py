"""How much sooner does the recipe of the sweeps reach a score? `python -m benchmarks.time_to_score`

Compares the recipe of the sweeps ("ours") with a plain recipe: the step of reference.py, AdamW at a
constant learning rate of .001, float32, random batches, default settings of the heap. Model, loss,
alpha schedule and batch size are the same. Since our learning rate falls to 0, each number of
epochs needs a training of its own. The result is the time of our first training that reaches the
best score of all plain trainings.

The score has only the terms of reconstruction and sparsity (--target_persistence 0).

Epochs of all trainings take turns. Times are CPU seconds of one thread for training, without
validation. Each epoch appends a line of JSON to --out, which `--plot` reads.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import reference
from benchmarks.step import epoch_of, typical_splits
from benchmarks.timing import PRECISIONS, TURNS, interleaved, machine, show, spread, table
from emaae.config import Config
from emaae.data.demo import generate
from emaae.data.features import find_features, read_features
from emaae.data.split import Split, batches
from emaae.evaluation import evaluate
from emaae.models import CNNAutoEncoder, build_model
from emaae.system.devices import keep_freed_memory
from emaae.system.progress import progress
from emaae.training import TrainingState

# For both recipes. --alpha_max and --plain_alpha_max were chosen by pilot runs with one seed.
ALPHA = {"update": True, "penalty_scheduler": "log_lambda", "alpha": 0.01}
RECIPE = {"optimizer": "muon", "lr": 0.04, "lr_schedule": "linear", "lr_warm_up": 0.03}
RECIPE |= {"precision": "auto"}
SIZES = {"256": (256, 3, 3), "1024": (1024, 5, 3)}


def standardised(train: Split, val: Split) -> tuple[Split, Split]:
    """Both splits, standardised by mean and sd of the train split; constant channels become 0."""
    mean, sd = train.mean_and_sd()
    sd = torch.where(sd > 0, sd, 1.0)
    return tuple(
        Split(s.names, (s.frames - mean) / sd, s.offsets, s.channels) for s in (train, val)
    )


def generated(n_utterances: int) -> tuple[Split, Split]:
    """Train and validation split of generated speech; utterances have 4 s on average."""
    named = (
        [(u.name, u.features) for u in generate(name, n_utterances=n)]
        for name, n in (("train", n_utterances), ("val", 64))
    )
    return standardised(*map(Split.from_utterances, named))


def recorded(folder: str) -> tuple[Split, Split]:
    """Train and validation split of a feature tree; every eighth utterance is for validation."""
    files = find_features(folder, recursive=True)
    named = [(file.identity, read_features(file.path)) for file in files]
    held_out = named[7::8]
    del named[7::8]
    return standardised(Split.from_utterances(named), Split.from_utterances(held_out))


def plain(model: CNNAutoEncoder, train: Split, config: Config) -> Callable[[float], None]:
    """A function that trains one epoch at a given alpha by the plain recipe."""
    textbook = reference.Reference(config.inner_size, config.n_encoder, config.n_decoder)
    copy(model, textbook)  # the same initial weights
    optimizer = torch.optim.AdamW(textbook.parameters(), lr=0.001)
    epochs = itertools.count()

    def epoch(alpha: float) -> None:
        seed = [config.seed, next(epochs)]
        for x, mask in batches(train, reference.random_order(len(train), config.batch_sz, seed)):
            reference.step(textbook, optimizer, x, mask, alpha)
        copy(textbook, model)

    return epoch


def ours(model: CNNAutoEncoder, train: Split, config: Config) -> Callable[[float], None]:
    """A function that trains one epoch at a given alpha by the recipe of the sweeps."""
    return epoch_of(TrainingState.begin(model, config), train, config)


@torch.no_grad()
def copy(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy the weights of a model to another one with the same layers."""
    for theirs, own in zip(source.parameters(), target.parameters(), strict=True):
        own.copy_(theirs)


def training(way: Callable, train: Split, val: Split, config: Config) -> Iterator[dict[str, Any]]:
    """Trains a model; yields a row of times and metrics after each epoch. way: plain or ours."""
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture)
    epoch, schedule, seconds = way(model, train, config), config.schedule(), 0.0
    heap = keep_freed_memory if way is ours else reference.heap_as_it_comes
    for done in range(config.epochs):
        alpha = schedule.alpha(done)
        heap()
        began, wall = time.process_time(), time.perf_counter()
        epoch(alpha)
        seconds += time.process_time() - began
        row = {"epoch": done + 1, "seconds": seconds, "alpha": alpha}
        row["wall"] = time.perf_counter() - wall
        measured = evaluate(model, val, config, alpha)
        yield row | {name: measured[name] for name in ("score", "fvu", "sparsity", "dead")}


def trainings(args: argparse.Namespace, train: Split, val: Split, seed: int) -> dict:
    """All trainings of a seed, not yet begun: (way, number of epochs) -> `training`."""
    inner_size, n_encoder, n_decoder = SIZES[args.size]
    given = {"inner_size": inner_size, "n_encoder": n_encoder, "n_decoder": n_decoder}
    given |= {"batch_sz": args.batch_sz, "seed": seed, "target_persistence": 0} | ALPHA
    theirs, own = {"alpha_max": args.plain_alpha_max}, RECIPE | {"alpha_max": args.alpha_max}
    ways = [(plain, n, theirs, 2 / 3) for n in args.plain_epochs]
    ways += [(ours, n, own, args.ramp) for n in args.our_epochs]
    prepared = {}
    for way, n, recipe, ramp_fraction in ways:
        ramp = {"epochs": n, "alpha_epochs": max(1, round(ramp_fraction * n))}
        config = Config.from_mapping(given | ramp | recipe)
        prepared[way.__name__, n] = training(way, train, val, config)
    return prepared


def measure(args: argparse.Namespace) -> None:
    """Do all trainings, which take turns after each epoch, and append their rows to --out."""
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
    """The next row of each training in turn, with its key, until all trainings have ended."""
    while running:
        for key in list(running):
            row = next(running[key], None)
            if row is None:
                del running[key]
            else:
                yield key, row


# ---- results


def shares(turns: int) -> Iterator[list[str]]:
    """The rows of a table: the optimiser's share of a step on a batch of LibriSpeech's lengths."""
    _, split, _ = typical_splits()
    keep_freed_memory()
    for name, (inner_size, n_encoder, n_decoder) in SIZES.items():
        for label, precision in PRECISIONS.items():
            ways = {}
            for optimizer in ("adamw", "muon"):
                given = {"inner_size": inner_size, "optimizer": optimizer, "precision": precision}
                given |= {"n_encoder": n_encoder, "n_decoder": n_decoder}
                config = Config.from_mapping(given)
                state = TrainingState.begin(build_model(**config.architecture), config)
                epoch = epoch_of(state, split, config)
                epoch()  # for the gradients
                ways[optimizer, "all"] = epoch
                ways[optimizer, "optimiser"] = partial(state.optimizer.step, 1.0)
            took = interleaved(ways, turns)
            for optimizer in ("adamw", "muon"):
                whole, part = took[optimizer, "all"], took[optimizer, "optimiser"]
                cells = [f"{1e3 * whole:.0f}", f"{1e3 * part:.1f}", f"{100 * part / whole:.1f} %"]
                yield [name, label, optimizer, *cells]


def reached(rows: list[dict[str, Any]], score: float) -> float | None:
    """Seconds until the first training reached this score or a lower one; None if none did."""
    return min((row["seconds"] for row in rows if row["score"] <= score), default=None)


def summary(rows: list[dict[str, Any]]) -> str:
    """Two Markdown tables: time to the best score for each seed; scores at equal time, means."""
    by_seed = [[row for row in rows if row["seed"] == n] for n in sorted({r["seed"] for r in rows})]
    sooner, equal = [], {}
    for of_seed in by_seed:
        theirs = [row for row in of_seed if row["way"] == "plain"]
        own = [row for row in of_seed if row["way"] == "ours"]
        best = min(theirs, key=lambda row: row["score"])
        after = reached(own, best["score"])
        ratio = (
            ["", "never"] if after is None else [f"{after:.0f}", f"x {best['seconds'] / after:.1f}"]
        )
        cells = [str(best["seed"]), f"{best['score']:.4f}", str(best["epoch"])]
        sooner.append([*cells, f"{best['seconds']:.0f}", *ratio])
        for n in sorted({row["epochs"] for row in own}):
            # The best epoch counts, as in a run.
            row = min((r for r in own if r["epochs"] == n), key=lambda r: r["score"])
            spent = max(r["seconds"] for r in own if r["epochs"] == n)
            until = [r["score"] for r in theirs if r["seconds"] <= spent]
            equal.setdefault(n, []).append(row | {"spent": spent, "plain": min(until, default=1)})
    head = ["seed", "best score of the plain recipe", "after epochs", "s", "ours, s", "sooner"]
    names = ("spent", "plain", "score", "fvu", "sparsity", "dead")
    means = []
    for n, found in equal.items():
        columns = [[row[name] for row in found] for name in names]
        means.append([str(n), *(spread(c, 0 if max(c) > 10 else 3) for c in columns)])
    head2 = ["epochs of ours", "s", "score of the plain", "score of ours", "fvu", "zeros", "dead"]
    return f"{table(head, sooner)}\n\n{table(head2, means)}"


def plot(files: list[str], path: str) -> None:
    """A row of two panels for each file: the best score so far against time and against epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = {"figsize": (9, 3 * len(files)), "layout": "constrained"}
    figure, axes = pyplot.subplots(len(files), 2, sharey="row", squeeze=False, **size)
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
    """Train and print the tables, or draw the results of earlier measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser.add_argument("--size", choices=SIZES, default="256", help="units (default: %(default)s)")
    parser.add_argument("--features", help="feature tree (default: generated speech)")
    help_n = "generated utterances for training (default: %(default)s)"
    parser.add_argument("--n_utterances", type=int, default=512, help=help_n)
    parser.add_argument("--batch_sz", type=int, default=16, help="(default: %(default)s)")
    for flag, default in (("--plain_epochs", [15, 60, 120]), ("--our_epochs", [4, 8, 16, 30])):
        help_epochs = f"epochs of each training (default: {','.join(map(str, default))})"
        parser.add_argument(flag, type=numbers, default=default, help=help_epochs, metavar="N,N")
    parser.add_argument(
        "--plain_alpha_max", type=float, default=0.65, help="(default: %(default)s)"
    )
    parser.add_argument("--alpha_max", type=float, default=0.5, help="(default: %(default)s)")
    help_ramp = (
        "fraction of our epochs in which alpha rises; 2/3 in the plain recipe (default: 2/3)"
    )
    parser.add_argument("--ramp", type=float, default=2 / 3, help=help_ramp)
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--out", default="time_to_score.jsonl", help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=TURNS, help="timings of --share (default: 7)")
    help_share = "only measure the optimiser's share of a step"
    parser.add_argument("--share", action="store_true", help=help_share)
    help_plot = "only draw FILES, or the file of --out if there are none"
    parser.add_argument("--plot", metavar="PNG", help=help_plot)
    parser.add_argument("files", nargs="*", help="files of earlier --out, for --plot")
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
        torch.set_num_threads(1)  # times are CPU seconds of one thread
    measure(args)
    print(summary(read(args.out)))


if __name__ == "__main__":
    main()
