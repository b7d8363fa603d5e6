"""Is training at least 2.9 times as fast as the textbook step on a CPU? `python -m benchmarks.step`

One epoch over utterances as long as LibriSpeech's: reference.py's step against ours in float32 and
in bfloat16, and both against the floor, the time that this machine's matrix products alone take.
"""

import argparse
import sys

import torch

from benchmarks import corpus, reference
from benchmarks.timing import interleaved, machine, table
from emaae.config import Config
from emaae.devices import keep_heap, pick_device, use_bf16
from emaae.losses import Objective
from emaae.models import build_model
from emaae.training import State, train_epoch

PRESETS = {"5/3": (5, 3), "3/3": (3, 3), "2/2": (2, 2)}


class Silent:
    """A run that keeps nothing."""

    def keep_last(self, state, *, now=False) -> None:
        """Nothing is kept."""


def ours(split, inner_size, blocks, precision):
    """One epoch of train_epoch; returns what does it."""
    config = Config.from_mapping(
        {
            "inner_size": inner_size,
            "n_encoder": blocks[0],
            "n_decoder": blocks[1],
            "precision": precision,
            "epochs": 10**6,
        }
    )
    torch.manual_seed(0)
    model = build_model(**config.architecture)
    state = State.begin(model, config)
    objective = Objective(config.sparse_loss)

    def epoch() -> None:
        train_epoch(state, split, objective, 0.25, config, Silent())
        state.batch, state.sums, state.active = 0, None, None

    return epoch


def textbook(split, inner_size, blocks):
    """One epoch of the reference."""
    torch.manual_seed(0)
    model = reference.Reference(inner_size, *blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    batches = reference.random_batches(split, 32, 0)

    def epoch() -> None:
        for x, mask in batches:
            reference.step(model, optimizer, x, mask)

    return epoch


def peak(dtype: torch.dtype) -> tuple:
    """A matrix product as large as the model's, and how many FLOPs it has."""
    a, b = torch.randn(1536, 1024).to(dtype), torch.randn(1024, 4096).to(dtype)
    return lambda: torch.mm(a, b), 2 * 1536 * 1024 * 4096


def flops(inner_size: int, blocks: tuple[int, int]) -> int:
    """Of training per frame: three times the forward pass, a multiply-add being two."""
    model = build_model(inner_size=inner_size, n_encoder=blocks[0], n_decoder=blocks[1])
    return 6 * sum(weight.numel() for weight in model.conv_weights())


def training(n: int, inner_size: int, turns: int) -> None:
    """The table of training steps."""
    (mm32, work), (mm16, _) = peak(torch.float32), peak(torch.bfloat16)
    peaks = interleaved({"fp32": mm32, "bf16": mm16}, turns=15)
    rate = {name: work / seconds for name, seconds in peaks.items()}
    print("matrix peak: " + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in rate.items()))
    split = corpus.split(n)
    frames = len(split.frames)
    rows = []
    for name, blocks in PRESETS.items():
        candidates = {"reference": textbook(split, inner_size, blocks)}
        candidates["float32"] = ours(split, inner_size, blocks, "fp32")
        if use_bf16("auto", torch.device("cpu")):
            candidates["bfloat16"] = ours(split, inner_size, blocks, "bf16")
        seconds = interleaved(candidates, turns)
        total = flops(inner_size, blocks) * frames
        for who, took in seconds.items():
            of = total / rate["bf16" if who == "bfloat16" else "fp32"] / took
            ratio, ms = seconds["reference"] / took, 1e6 * took / frames
            rows.append([name, who, f"{ms:.0f}", f"x {ratio:.2f}", f"{100 * of:.0f} %"])
            print(" | ".join(rows[-1]), flush=True)
    head = ["blocks", "step", "ms / 1000 frames", "against the reference", "of the peak"]
    print("\n" + table(head, rows) + "\n")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=64, help="utterances")
    parser.add_argument("--inner_size", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    print(machine())
    pick_device("cpu")
    keep_heap()
    sys.stderr = None  # no progress bars
    training(args.n, args.inner_size, args.turns)


if __name__ == "__main__":
    main()
