"""Which way to convolve is fastest? `python -m benchmarks.convolution`

Forward and backward of the two layers that are nearly all of a step, in several formulations that
give the same numbers. The model uses the first.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import DTYPES, PRECISIONS, TURNS, interleaved, machine, show
from emaae.system.devices import keep_freed_memory

LAYERS = ((512, 1024, 3), (1024, 512, 5))  # in, out, kernel


def conv1d(x: Tensor, w: Tensor) -> Tensor:
    """x (batch, in, time), w (out, in, kernel) -> (batch, out, time); so do all."""
    return F.conv1d(x, w, padding=w.shape[2] // 2)


def channels_last(x: Tensor, w: Tensor) -> Tensor:
    """As an image of height 1 whose channels lie next to each other."""
    x, w = (t[:, :, None].contiguous(memory_format=torch.channels_last) for t in (x, w))
    return F.conv2d(x, w, padding=(0, w.shape[3] // 2))[:, :, 0]


def one_row(x: Tensor, w: Tensor) -> Tensor:
    """All utterances end to end in one row, with gaps of the kernel's reach."""
    gap, time = w.shape[2] // 2, x.shape[2]
    row = F.pad(x, (0, gap)).transpose(0, 1).flatten(1)[None]
    return conv1d(row, w)[0].unflatten(1, (-1, time + gap))[:, :, :time].transpose(0, 1)


def unfolded(x: Tensor, w: Tensor) -> Tensor:
    """One product with every frame's neighbourhood written out."""
    k = w.shape[2]
    near = F.pad(x, (k // 2, k // 2)).unfold(2, k, 1)  # batch, in, time, kernel
    near = near.permute(0, 2, 1, 3).flatten(2)
    return (near @ w.flatten(1).T).transpose(1, 2)


def shifted(x: Tensor, w: Tensor) -> Tensor:
    """One product for each tap, added up."""
    k, time = w.shape[2], x.shape[2]
    rows = F.pad(x, (k // 2, k // 2)).transpose(1, 2)
    return sum(rows[:, i : i + time] @ w[:, :, i].T for i in range(k)).transpose(1, 2)


WAYS = (conv1d, channels_last, one_row, unfolded, shifted)


def both_ways(
    way: Callable, x: Tensor, w: Tensor, gradient: Tensor
) -> Callable[[], tuple[Tensor, Tensor]]:
    """What computes forward and backward, and gives the gradients of x and w."""
    both = x.requires_grad_(), w.requires_grad_()
    return lambda: torch.autograd.grad(way(*both), both, gradient)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=TURNS, help="(default: %(default)s)")
    parser.add_argument("--frames", type=int, default=687, help="(default: %(default)s)")
    args = parser.parse_args()
    keep_freed_memory()
    print(machine())
    head = ["layer", "precision", "as", "ms", "GFLOP/s", "against conv1d"]
    show(head, rows(args.frames, args.turns))


def rows(frames: int, turns: int) -> Iterator[list[str]]:
    """The table, each layer when it was measured."""
    for name_of, (n_in, n_out, kernel) in product(PRECISIONS, LAYERS):
        dtype = DTYPES[name_of]
        torch.manual_seed(0)
        x, gradient = (torch.randn(32, n, frames, dtype=dtype) for n in (n_in, n_out))
        w = (torch.randn(n_out, n_in, kernel) / (n_in * kernel) ** 0.5).to(dtype)
        ways = {way.__name__: both_ways(way, x, w, gradient) for way in WAYS}
        expected = ways["conv1d"]()
        for way in ways.values():
            for a, b in zip(way(), expected):
                assert (a - b).norm() < 0.02 * b.norm()
        seconds = interleaved(ways, turns)
        work = 6 * w.numel() * 32 * frames
        for name, took in seconds.items():
            layer = [f"{n_in} -> {n_out}, kernel {kernel}", name_of, name]
            rate = [f"{1e3 * took:.0f}", f"{work / took / 1e9:.0f}"]
            yield [*layer, *rate, f"x {seconds['conv1d'] / took:.2f}"]


if __name__ == "__main__":
    main()
