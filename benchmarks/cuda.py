"""How fast is an epoch on a GPU? `python -m benchmarks.cuda` (needs a CUDA GPU)

The data are noise on the GPU, with the number and the lengths of the utterances of LibriSpeech's
train-clean-100. Prints seconds per epoch for each optimiser and precision, with and without
--deterministic, as a percentage of the speed of a large matrix product too, and the kernels that
take most of the time.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product

import torch

from benchmarks import corpus
from benchmarks.step import PRESETS, flops, ours
from benchmarks.timing import machine, table
from emaae.system.devices import make_deterministic, pick_device
from emaae.system.errors import UserError, reporting_errors


def seconds(work: Callable[[], object], turns: int) -> float:
    """Median duration of work() over `turns` calls, after one that is not counted."""
    durations = []
    for _ in range(turns + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations[1:])


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP per second of a large matrix product."""
    n = 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: torch.mm(a, b), 10)


def main() -> None:
    """Print the table and the kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--n", type=int, default=corpus.N_UTTERANCES, help="utterances (default: %(default)s)"
    )
    parser.add_argument("--inner_size", type=int, default=1024, help="units (default: 1024)")
    parser.add_argument("--turns", type=int, default=7, help="epochs of each (default: 7)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("this benchmark needs a CUDA GPU, and this machine has none")
    device = pick_device("cuda")
    print(f"{machine()}, {torch.cuda.get_device_name(device)}")
    split = corpus.noise(corpus.lengths(args.n)).to(device)
    frames, rows = len(split.frames), []
    peaks = {"fp32": peak(torch.float32, device), "bf16": peak(torch.bfloat16, device)}
    print(", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in peaks.items()))
    for deterministic in (False, True):  # in this order: it cannot be switched off
        if deterministic:
            make_deterministic()
        for preset, optimizer, precision in product(PRESETS, ("adamw", "muon"), peaks):
            torch.cuda.reset_peak_memory_stats()
            size = (args.inner_size, PRESETS[preset])
            epoch = ours(split, *size, precision=precision, optimizer=optimizer)
            took = seconds(epoch, args.turns)
            work = 3 * flops(*size) * frames
            gib = torch.cuda.max_memory_allocated() / 2**30
            what = f"{optimizer} {precision}" + (" deterministic" if deterministic else "")
            of_peak = f"{100 * work / peaks[precision] / took:.0f} %"
            rows.append([preset, what, f"{took:.2f}", of_peak, f"{gib:.1f}"])
    head = ["blocks", "", "s / epoch", "of the peak", "GiB"]
    print("\n" + table(head, rows))

    few = split.subset(range(min(len(split), 32 * 20)))
    epoch = ours(few, args.inner_size, PRESETS["5/3"], precision="bf16", optimizer="muon")
    epoch()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        epoch()
        torch.cuda.synchronize()
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=12))


if __name__ == "__main__":
    with reporting_errors("benchmarks.cuda"):
        sys.exit(main())
