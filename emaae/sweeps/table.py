"""The points of a sweep as a table: in a terminal that is redrawn, and as CSV."""

import csv
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from emaae.runs import read
from emaae.sweeps.queue import Attempt
from emaae.sweeps.space import Sweep


class Screen:
    """The display of a running sweep: a table that is redrawn, or lines as things happen."""

    def __init__(self, sweep: Sweep, n_points: int):
        self.sweep, self.n_points = sweep, n_points
        self.live = sys.stdout is not None and sys.stdout.isatty()
        self._drawn = 0

    def print_line(self, line: str) -> None:
        """A line that stays."""
        self._erase()
        print(line, flush=True)

    def log_event(self, line: str) -> None:
        """Something that the table shows too: a line only where there is no table."""
        if not self.live:
            print(line, flush=True)

    def draw(self, ended: Sequence[Attempt], running: Sequence[Attempt]) -> None:
        """The table in place of the last one, cut to the terminal; for a live screen."""
        width, height = shutil.get_terminal_size()
        # Running points are never cut.
        cut = max(0, len(ended) + len(running) - max(1, height - 4))
        shown = sorted([*ended[cut:], *running], key=attrgetter("point"))
        head = f"{self.sweep.name}: {len(ended)} of {self.n_points} points"
        lines = [head, *table(self.sweep, shown)]
        self._erase()
        print("\n".join(line[: width - 1] for line in lines), flush=True)
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")
            self._drawn = 0


def ranked(sweep: Sweep, attempts: Sequence[Attempt]) -> list[Attempt]:
    """Attempts with the best score first and those without one last."""
    return sorted(attempts, key=lambda a: (a.score is None, sweep.sign * (a.score or 0), a.point))


def table(sweep: Sweep, attempts: Sequence[Attempt]) -> list[str]:
    """A line of names and one for each attempt; points are numbered from 1."""
    varying = [p.name for p in sweep.varying]
    cells = [["point", *varying, "epoch", sweep.metric, "status"]]
    for a in attempts:
        values = [format_value(a.config.get(name)) for name in varying]
        cells.append(
            [f"{a.point + 1:04d}", *values, format_value(a.epoch), format_value(a.score), a.state]
        )
    return align_columns(cells)


def mean_over_seeds(sweep: Sweep, attempts: Sequence[Attempt]) -> list[str]:
    """Mean and standard deviation of the score over the seeds of each setting, the best first."""
    varying = [p.name for p in sweep.varying if p.name != "seed"]
    settings: dict[tuple, list[float]] = {}
    for a in attempts:
        if a.score is not None:
            key = tuple(format_value(a.config.get(name)) for name in varying)
            settings.setdefault(key, []).append(a.score)
    cells = [[*varying, "seeds", f"mean {sweep.metric}", "sd"]]
    for key, scores in sorted(settings.items(), key=lambda s: sweep.sign * statistics.fmean(s[1])):
        sd = statistics.stdev(scores) if len(scores) > 1 else None
        cells.append(
            [*key, str(len(scores)), format_value(statistics.fmean(scores)), format_value(sd)]
        )
    return align_columns(cells)


# Metrics of a run beside its score, on validation.
CSV_METRICS = ("select/fvu", "select/live_sparsity", "select/persistence_within")


def write_csv(path: Path, sweep: Sweep, attempts: Sequence[Attempt], runs: Path) -> None:
    """All points with every parameter and what a run gives up, written beside and then renamed."""
    names = [p.name for p in sweep.parameters]
    measured = [name for name in CSV_METRICS if name != sweep.metric]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(
            ["point", *names, "status", "epoch", sweep.metric, *measured, "seconds", "run"]
        )
        for a in attempts:
            values = [a.config.get(name) for name in names]
            found = read.metrics(runs / a.run) if a.run else {}
            values += [a.state, a.epoch, a.score, *(found.get(name) for name in measured)]
            out.writerow([a.point + 1, *values, a.seconds, runs / a.run if a.run else None])
    beside.replace(path)


def align_columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines, columns to the right but the last one to the left."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  ".join([c.rjust(w) for c, w in zip(row[:-1], widths)] + [row[-1]]).rstrip()
        for row in cells
    ]


def format_value(value: Any) -> str:
    """A value as a table shows it; four digits of a number, a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
