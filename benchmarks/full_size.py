"""What does a corpus of LibriSpeech's size cost? `python -m benchmarks.full_size --dir DIR`

Generates a corpus in DIR (4 GB) unless it is there. Runs the programs that a user would run, on an
eighth of the speakers and on all of them. For each it prints wall and CPU seconds, the peak memory
of its largest process, the disk space of its files, and the ratio of the CPU seconds for all
speakers to those for an eighth: far above 8 means that the cost grows faster than the corpus. A run
trains 256 units for one epoch by the recipe of the sweeps.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.time_to_score import RECIPE
from benchmarks.timing import machine, show
from emaae.data.features import SPLITS

PARTS = {"eighth": 8, "all": 1}
HEAD = ["step", "part", "wall, s", "CPU, s", "peak memory, GiB", "disk, GB", "all / eighth"]


def measured(argv: list[str], log: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in GiB of `python ARGV`, with its subprocesses.

    Its output is appended to a log.
    """
    began = time.perf_counter()
    with open(log, "a") as file:
        process = subprocess.Popen([sys.executable, *argv], stdout=file, stderr=file)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(argv)} failed, see {log}")
    wall = time.perf_counter() - began
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def size_gb(folder: Path) -> float:
    """Size of all files below a folder in GB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def part_of(corpus: Path, folder: Path, one_in: int) -> dict[str, Path]:
    """Trees of the splits with every `one_in`-th speaker, as links: split -> folder."""
    trees = {}
    for split in SPLITS:
        trees[split] = folder / split
        trees[split].mkdir(parents=True)
        for speaker in sorted((corpus / split).iterdir())[::one_in]:
            (trees[split] / speaker.name).symlink_to(speaker, target_is_directory=True)
    return trees


def steps(trees: dict[str, Path], folder: Path) -> dict[str, tuple[list[str], Path | None]]:
    """The steps in order: name -> arguments of python, and the folder of the files it leaves."""
    dirs = [f"--{split}_dir={trees[split]}" for split in SPLITS]
    knobs = {"inner_size": 256, "n_encoder": 3, "n_decoder": 3, "epochs": 1, "wandb": "disabled"}
    knobs |= RECIPE | {"out_dir": folder / "runs", "cache_dir": folder / "cache"}
    run = ["train.py", "--recursive", *dirs, *(f"--{name}={v}" for name, v in knobs.items())]
    encode = ["-m", "emaae", "encode", "--recursive", f"--features={trees['test']}"]
    encode += [f"--model={folder / 'runs/first'}"]
    in_order: dict[str, tuple[list[str], Path | None]] = {
        "check": (["-m", "emaae", "check", "--recursive", *map(str, trees.values())], None),
        "first run": ([*run, "--run_name=first"], folder / "cache"),
        "second run": ([*run, "--run_name=second"], folder / "runs/second"),
    }
    for form in ("sparse", "float16"):
        out = folder / form
        in_order[f"encode test, {form}"] = ([*encode, f"--format={form}", f"--out={out}"], out)
    return in_order


def todo(folder: Path) -> Iterator[tuple[str, str, list[str], Path | None]]:
    """All steps in order: name, part, arguments of python, folder of the files it leaves."""
    corpus = folder / "corpus"
    if not (corpus / "test").is_dir():
        generate = ["-m", "emaae", "demo-data", f"--out={corpus}", "--like=librispeech-100h"]
        yield "generate", "all", generate, corpus
    for part, one_in in PARTS.items():
        shutil.rmtree(folder / part, ignore_errors=True)
        trees = part_of(corpus, folder / part / "features", one_in)
        for step, (argv, leaves) in steps(trees, folder / part).items():
            yield step, part, argv, leaves


def rows(folder: Path) -> Iterator[list[str]]:
    """The rows of the table, each as soon as its step has run."""
    cpu_of_eighth: dict[str, float] = {}
    for step, part, argv, leaves in todo(folder):
        wall, cpu, peak = measured(argv, folder / "log.txt")
        ratio = f"x {cpu / cpu_of_eighth[step]:.1f}" if step in cpu_of_eighth else ""
        if part == "eighth":
            cpu_of_eighth[step] = cpu
        disk = f"{size_gb(leaves):.2f}" if leaves else ""
        yield [step, part, f"{wall:.0f}", f"{cpu:.0f}", f"{peak:.2f}", disk, ratio]


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dir", required=True, type=Path, help="folder of all files, on a disk with 10 GB free"
    )
    args = parser.parse_args()
    print(machine())
    show(HEAD, rows(args.dir))


if __name__ == "__main__":
    main()
