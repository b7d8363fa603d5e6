"""What does a corpus of LibriSpeech's size take, and what grows faster than it? `python -m
benchmarks.full_size --dir DIR` makes one of generated speech in DIR, 4 GB, or uses what is there.

Each step is the program that a user would start, on an eighth of the speakers and on all of them:
wall and CPU seconds, peak memory of its largest process, what it leaves on the disk, and how many
times the eighth's CPU seconds all of them take. An epoch of 256 units, by the recipe of the sweeps.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.time_to_score import RECIPE
from benchmarks.timing import machine

SPLITS = ("train", "val", "test")
PARTS = {"eighth": 8, "all": 1}
HEAD = ("step", "part", "wall, s", "CPU, s", "peak memory, GiB", "disk, GB", "all / eighth")


def measured(argv: list[str], log: Path, **env: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in GiB of `python ARGV`, all its processes waited
    for. What it prints is added to a log."""
    began = time.perf_counter()
    with open(log, "a") as file:
        process = subprocess.Popen(
            [sys.executable, *argv], stdout=file, stderr=file, env=os.environ | env
        )
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(argv)} failed, see {log}")
    wall = time.perf_counter() - began
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def size_gb(folder: Path) -> float:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def part_of(corpus: Path, folder: Path, one_in: int) -> dict[str, Path]:
    """The splits with one speaker in so many, as links."""
    found = {}
    for split in SPLITS:
        found[split] = folder / split
        found[split].mkdir(parents=True)
        for speaker in sorted((corpus / split).iterdir())[::one_in]:
            (found[split] / speaker.name).symlink_to(speaker, target_is_directory=True)
    return found


def steps(trees: dict[str, Path], folder: Path) -> dict[str, tuple[list[str], Path | None]]:
    """What is run, in order, and where each leaves its files."""
    dirs = [f"--{split}_dir={trees[split]}" for split in SPLITS]
    knobs = {"inner_size": 256, "n_encoder": 3, "n_decoder": 3, "epochs": 1, "wandb": "disabled"}
    knobs |= RECIPE | {"out_dir": folder / "runs", "cache_dir": folder / "cache"}
    run = ["train.py", "--recursive", *dirs, *(f"--{name}={v}" for name, v in knobs.items())]
    encode = ["-m", "emaae", "encode", "--recursive", f"--features={trees['test']}"]
    encode += [f"--model={folder / 'runs/first'}"]
    return {
        "check": (["-m", "emaae", "check", "--recursive", *map(str, trees.values())], None),
        "first run": ([*run, "--run_name=first"], folder / "cache"),
        "second run": ([*run, "--run_name=second"], folder / "runs/second"),
        "encode test, sparse": (
            [*encode, "--format=sparse", f"--out={folder / 'sparse'}"],
            folder / "sparse",
        ),
        "encode test, float16": (
            [*encode, "--format=float16", f"--out={folder / 'float16'}"],
            folder / "float16",
        ),
    }


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, type=Path, help="on a disk with 10 GB")
    args = parser.parse_args()
    corpus, log = args.dir / "corpus", args.dir / "log.txt"
    print(machine() + "\n\n| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    seconds: dict[tuple[str, str], float] = {}

    def row(step: str, part: str, argv: list[str], leaves: Path | None) -> None:
        wall, cpu, peak = measured(argv, log)
        seconds[step, part] = cpu
        small = seconds.get((step, "eighth"))
        grown = f"x {cpu / small:.1f}" if part == "all" and small else ""
        disk = f"{size_gb(leaves):.2f}" if leaves else ""
        cells = [step, part, f"{wall:.0f}", f"{cpu:.0f}", f"{peak:.2f}", disk, grown]
        print("| " + " | ".join(cells) + " |", flush=True)

    if not (corpus / "test").is_dir():
        generate = ["-m", "emaae", "demo-data", f"--out={corpus}", "--like=librispeech-100h"]
        row("generate", "all", generate, corpus)
    for part, one_in in PARTS.items():
        folder = args.dir / part
        shutil.rmtree(folder, ignore_errors=True)
        trees = part_of(corpus, folder / "features", one_in)
        for step, (argv, leaves) in steps(trees, folder).items():
            row(step, part, argv, leaves)


if __name__ == "__main__":
    main()
