"""Which implementation of a convolution is fastest? `python -m benchmarks.convolution`

Forward and backward pass of the two layers that take nearly all the time of a step, in five
implementations with the same result. The model uses the first, conv1d.
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
    """x (batch, in, time), w (out, in, kernel) -> (batch, out, time), as the other functions."""
    return F.conv1d(x, w, padding=w.shape[2] // 2)


def channels_last(x: Tensor, w: Tensor) -> Tensor:
    """A 2-D convolution of an image of height 1 in memory format channels_last."""
    x, w = (t[:, :, None].contiguous(memory_format=torch.channels_last) for t in (x, w))
    return F.conv2d(x, w, padding=(0, w.shape[3] // 2))[:, :, 0]


def one_row(x: Tensor, w: Tensor) -> Tensor:
    """A convolution of all utterances, concatenated with gaps of zeros between them."""
    gap, time = w.shape[2] // 2, x.shape[2]
    row = F.pad(x, (0, gap)).transpose(0, 1).flatten(1)[None]
    return conv1d(row, w)[0].unflatten(1, (-1, time + gap))[:, :, :time].transpose(0, 1)


def unfolded(x: Tensor, w: Tensor) -> Tensor:
    """One matrix product with the unfolded windows of all frames."""
    k = w.shape[2]
    windows = F.pad(x, (k // 2, k // 2)).unfold(2, k, 1)  # batch, in, time, kernel
    windows = windows.permute(0, 2, 1, 3).flatten(2)
    return (windows @ w.flatten(1).T).transpose(1, 2)


def shifted(x: Tensor, w: Tensor) -> Tensor:
    """The sum of one matrix product for each tap."""
    k, time = w.shape[2], x.shape[2]
    rows = F.pad(x, (k // 2, k // 2)).transpose(1, 2)
    return sum(rows[:, i : i + time] @ w[:, :, i].T for i in range(k)).transpose(1, 2)


WAYS = (conv1d, channels_last, one_row, unfolded, shifted)


def both_ways(
    way: Callable, x: Tensor, w: Tensor, gradient: Tensor
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that does the forward and backward pass and returns the gradients of x and w."""
    inputs = x.requires_grad_(), w.requires_grad_()
    return lambda: torch.autograd.grad(way(*inputs), inputs, gradient)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--turns", type=int, default=TURNS, help="timings of each (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=687, help="length of an utterance (default: %(default)s)"
    )
    args = parser.parse_args()
    keep_freed_memory()
    print(machine())
    head = ["layer", "precision", "as", "ms", "GFLOP/s", "against conv1d"]
    show(head, rows(args.frames, args.turns))


def rows(frames: int, turns: int) -> Iterator[list[str]]:
    """The rows of the table; those of a layer as soon as it has been measured."""
    for precision, (n_in, n_out, kernel) in product(PRECISIONS, LAYERS):
        dtype = DTYPES[precision]
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
            layer = [f"{n_in} -> {n_out}, kernel {kernel}", precision, name]
            rate = [f"{1e3 * took:.0f}", f"{work / took / 1e9:.0f}"]
            yield [*layer, *rate, f"x {seconds['conv1d'] / took:.2f}"]


if __name__ == "__main__":
    main()
