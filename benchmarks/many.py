"""How many runs should one device train at a time? `python -m benchmarks.many`

Compares several processes that train at the same time, each with its share of the cores, with one
process on all cores, in total epochs per second. The result is for `python -m emaae sweep --jobs`.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier

import torch

from benchmarks import corpus
from benchmarks.step import ours
from benchmarks.timing import PRECISIONS, TURNS, machine, show
from emaae.system.devices import keep_freed_memory

SIZES = ((1024, (5, 3)), (128, (3, 3)))


def train(barrier: Barrier, threads: int, size: tuple, precision: str, device: str, epochs: int):
    """Train `epochs` epochs between every two barriers, at the same time as other processes."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    split = corpus.noise(corpus.lengths(64)).to(torch.device(device))
    epoch = ours(split, *size, precision=precision)
    epoch()
    while True:
        barrier.wait()
        for _ in range(epochs):
            epoch()
        if device != "cpu":
            torch.cuda.synchronize()
        barrier.wait()


class Team:
    """n processes that train at the same time."""

    def __init__(self, n: int, size: tuple, precision: str, device: str, epochs: int):
        spawn = multiprocessing.get_context("spawn")
        self.barrier = spawn.Barrier(n + 1)
        threads = max(1, (os.cpu_count() or 1) // n)
        arguments = (self.barrier, threads, size, precision, device, epochs)
        self.processes = [spawn.Process(target=train, args=arguments) for _ in range(n)]
        for process in self.processes:
            process.start()

    def seconds(self) -> float:
        """Duration of one turn: until the last process has finished its epochs."""
        self.barrier.wait()
        began = time.perf_counter()
        self.barrier.wait()
        return time.perf_counter() - began

    def end(self) -> None:
        """Kill the processes, which wait for the next turn."""
        for process in self.processes:
            process.kill()
            process.join()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    help_jobs = "numbers of processes, compared with the first of them (default: 1,2)"
    parser.add_argument("--jobs", default="1,2", help=help_jobs)
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--precision", default="fp32", help="(default: %(default)s)")
    help_turns = "timings of each (default: %(default)s)"
    parser.add_argument("--turns", type=int, default=TURNS, help=help_turns)
    args = parser.parse_args()
    if args.device == "cpu" and args.precision == "bf16" and "bfloat16" not in PRECISIONS:
        parser.error("--precision bf16: this CPU lacks bfloat16; use fp32")
    counts = [int(n) for n in args.jobs.split(",")]
    print(machine())
    head = ["model", "processes", "epochs of 64 utterances / s", "against the first"]
    show(head, rows(args, counts))


def rows(args: argparse.Namespace, counts: list[int]) -> Iterator[list[str]]:
    """The rows of the table; those of a model size as soon as it has been measured."""
    for size in SIZES:
        inner_size, blocks = size
        epochs = 1 if inner_size > 512 else 20
        teams = {n: Team(n, size, args.precision, args.device, epochs) for n in counts}
        took: dict[int, list[float]] = {n: [] for n in counts}
        for turn in range(args.turns + 1):
            for n, team in teams.items():
                what = f"turn {turn} of {args.turns}: {inner_size} units, {n} process(es)"
                print(what, file=sys.stderr, flush=True)
                seconds = team.seconds()
                if turn:
                    took[n].append(seconds)
        for team in teams.values():
            team.end()
        rate = {n: n * epochs / statistics.median(took[n]) for n in counts}
        for n in counts:
            label = [f"{blocks[0]}/{blocks[1]}, {inner_size} units", str(n)]
            yield [*label, f"{rate[n]:.2f}", f"x {rate[n] / rate[counts[0]]:.2f}"]


if __name__ == "__main__":
    main()
