"""How is something timed on a machine that others use too?

Candidates take turns, so that all of them meet the same disturbances; a turn in which other
processes took more than a tenth of the CPU is dropped; what counts are medians and their ratios.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

MAX_TURNS = 60


def interleaved(
    candidates: Mapping[str, Callable[[], None]], turns: int = 7, disturbed: float = 0.1
) -> dict[str, float]:
    """Median seconds of each candidate over `turns` undisturbed turns; the first call of each is
    not counted."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    dropped = 0
    for turn in range(MAX_TURNS):
        for name, run in candidates.items():
            if len(seconds[name]) >= turns:
                continue
            before, own, began = _busy(), time.process_time(), time.perf_counter()
            run()
            took = time.perf_counter() - began
            others = (_busy() - before) - (time.process_time() - own)
            # After half of the turns a machine that is never quiet is taken as it is.
            if others > disturbed * took * (os.cpu_count() or 1) and turn < MAX_TURNS // 2:
                dropped += 1
                continue
            seconds[name].append(took)
        if all(len(found) >= turns for found in seconds.values()):
            break
    if dropped:
        print(f"({dropped} disturbed turns dropped)", flush=True)
    return {name: statistics.median(found) for name, found in seconds.items()}


def _busy() -> float:
    """CPU seconds that all processes together have used."""
    try:
        with open("/proc/stat") as file:
            user, nice, system = map(int, file.readline().split()[1:4])
    except OSError:
        return time.process_time()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
