"""How long does a run on many files take to start? `python -m benchmarks.data_start`

Makes a feature tree of random numbers, with the number of utterances of LibriSpeech's
train-clean-100 and half their durations. Measures, alternately and without imports:

npz      listing the tree, reading every file, concatenating the frames
first    the first start until the first batch: files are read, checked, digested and packed
second   a later start until the first batch, from the packed copy
"""

import argparse
import contextlib
import gc
import io
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import corpus
from emaae.config import Config
from emaae.data.features import FRAME_RATE_HZ, find_features, read_features
from emaae.data.load import load_splits
from emaae.data.split import batches, training_order
from emaae.system.cpus import n_cpus
from emaae.system.progress import progress

SPEAKERS, CHAPTERS = 251, 585  # of train-clean-100


def make_tree(root: Path, n_utterances: int, scale: float) -> int:
    """Write features and times in LibriSpeech's layout; returns the number of frames."""
    lengths = np.maximum(1, corpus.lengths(n_utterances) * scale).astype(int)
    noise = np.random.default_rng(0).standard_normal(
        (lengths.max() + n_utterances, 14), dtype=np.float32
    )
    for i in progress(range(n_utterances), "writing", unit="utterances"):
        chapter = i % CHAPTERS
        speaker = chapter % SPEAKERS
        folder = root / str(speaker) / str(1000 + chapter)
        folder.mkdir(parents=True, exist_ok=True)
        name, n = f"{speaker}-{1000 + chapter}-{i // CHAPTERS:04d}", lengths[i]
        np.savez(folder / f"{name}.npz", features=noise[i : i + n])
        times = np.tile(np.float32([0, n / FRAME_RATE_HZ]), (n, 1))
        np.savez(folder / f"{name}_times.npz", times=times)
    return int(lengths.sum())


def read_npz(root: Path) -> np.ndarray:
    """All frames (N, 14) of a tree, file by file."""
    return np.concatenate([read_features(file.path) for file in find_features(root, True)])


def start(root: Path, cache: Path) -> None:
    """Do what a run does with its data until the first batch."""
    given = {"train_dir": str(root), "val_dir": str(root), "recursive": True}
    config = Config.from_mapping(given | {"cache_dir": str(cache)})
    with contextlib.redirect_stdout(io.StringIO()):
        train = load_splits(config, wanted=("train",))["train"]
    train.fingerprint()
    train.mean_and_sd()
    next(batches(train, training_order(train.lengths, config.batch_sz, 0, 0)))


def measure(root: Path, cache: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat; the three take turns, so that other load affects all alike."""
    start_run = partial(start, root, cache)
    ways = {"npz": partial(read_npz, root), "first": start_run, "second": start_run}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Make the tree, measure, print medians and ranges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n_utterances", type=int, default=28_539, help="(default: %(default)s)")
    parser.add_argument(
        "--scale", type=float, default=0.5, help="factor on the durations (default: .5)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--dir", help="folder for about a gigabyte of files (default: that for temporary files)"
    )
    args = parser.parse_args()
    gc.freeze()  # as train.py does
    with tempfile.TemporaryDirectory(prefix="data-start-", dir=args.dir) as folder:
        root, cache = Path(folder, "train"), Path(folder, "cache")
        frames = make_tree(root, args.n_utterances, args.scale)
        print(
            f"{args.n_utterances} utterances, {frames / 1e6:.2f} M frames, {n_cpus()} CPUs, "
            f"{torch.get_num_threads()} threads, median of {args.repeats} (lowest to highest)"
        )
        seconds = measure(root, cache, args.repeats)
    npz = statistics.median(seconds["npz"])
    for name, durations in seconds.items():
        median = statistics.median(durations)
        span = f"({min(durations):.3f} to {max(durations):.3f})"
        print(f"{name:<8}{median:>8.3f} s  {span}{npz / median:>8.1f} x npz")


if __name__ == "__main__":
    main()
