"""Timing on a shared machine.

Candidates take turns, so that other load affects all of them alike. Turns in which other processes
took more than a tenth of the CPU do not count. Results are medians and their ratios. With one
thread, CPU time is measured instead of wall time: other processes can slow it down, but the time
that they take does not count.
"""

import contextlib
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter

import torch

from emaae.system.devices import use_bf16

# The precisions that the CPU supports. Without support bfloat16 is emulated, a hundred times slower
# than float32. oneDNN is asked too, since ONEDNN_MAX_CPU_ISA can switch the support off.
PRECISIONS = {"float32": "fp32"}
if use_bf16("auto", torch.device("cpu")) and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    PRECISIONS["bfloat16"] = "bf16"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

TURNS = 7
SAY_EVERY_S = 10.0  # interval of the progress lines on stderr
DISTURBED = 0.1  # largest fraction of the machine's CPU time that other processes may take


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    turns: int = TURNS,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Median seconds of each candidate over `turns` undisturbed turns; the first turn is a warm-up.

    before: untimed preparations of candidates, called in every turn. If there are too few
    undisturbed turns among 3 * turns, the least disturbed ones count, and a line says how disturbed
    they were.
    """
    timings: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    last_line = -math.inf
    for turn in range(1 + 3 * turns):
        for name, run in candidates.items():
            if time.monotonic() - last_line > SAY_EVERY_S:
                last_line = time.monotonic()
                print(f"turn {turn} of {turns}: {name}", file=sys.stderr, flush=True)
            if before and name in before:
                before[name]()
            measured = _measured(run)
            if turn:
                timings[name].append(measured)
        n_quiet = min(sum(o <= DISTURBED for o, _ in measured) for measured in timings.values())
        if n_quiet >= turns:
            break
    best = {name: sorted(measured, key=itemgetter(0))[:turns] for name, measured in timings.items()}
    worst = max(others for measured in best.values() for others, _ in measured)
    if worst > DISTURBED:
        print(f"(disturbed: others took up to {100 * worst:.0f} % of the CPU)", flush=True)
    return {name: statistics.median(s for _, s in measured) for name, measured in best.items()}


def _measured(run: Callable[[], object]) -> tuple[float, float]:
    """For one call: fraction of the machine's CPU time that other processes took, and seconds."""
    busy, own, began = _busy(), time.process_time(), time.perf_counter()
    run()
    wall, own = time.perf_counter() - began, time.process_time() - own
    if torch.get_num_threads() == 1:
        return 0.0, own
    others = max(0.0, _busy() - busy - own) / (wall * (os.cpu_count() or 1))
    return others, wall


def _busy() -> float:
    """CPU seconds that all processes of the machine have used so far."""
    try:
        with open("/proc/stat") as file:
            user, nice, system = map(int, file.readline().split()[1:4])
    except OSError:
        return time.process_time()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """The date, and a description of the machine and the versions."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        name = next(line.split(":")[1].strip() for line in file if "model name" in line)
    lacks = "" if "bfloat16" in PRECISIONS else "; without bfloat16, which this CPU lacks"
    return (
        f"{time.strftime('%Y-%m-%d')}, {name}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}{lacks}"
    )


def spread(values: list[float], digits: int = 3) -> str:
    """Mean +- standard deviation as text; the mean alone for a single value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def show(head: list[str], rows: Iterable[list[str]]) -> None:
    """Print a Markdown table, each row as soon as it is known."""
    print(f"\n{table(head, [])}", flush=True)
    for row in rows:
        print(_line(row), flush=True)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Rows as a Markdown table."""
    return "\n".join([_line(head), "|" + "---|" * len(head), *map(_line, rows)])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
