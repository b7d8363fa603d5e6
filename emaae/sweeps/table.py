"""The points of a sweep as a table: redrawn in a terminal, and as CSV."""

import csv
import io
import shutil
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from emaae.runs import read
from emaae.sweeps.queue import Attempt
from emaae.sweeps.space import Sweep
from emaae.system.files import write_bytes
from emaae.system.progress import align_columns


class Screen:
    """The display of a running sweep: a table redrawn in a terminal, else a line for each event."""

    def __init__(self, sweep: Sweep, n_points: int):
        self.sweep, self.n_points = sweep, n_points
        self.live = sys.stdout is not None and sys.stdout.isatty()
        self._drawn = 0

    def print_line(self, line: str) -> None:
        """Replace the table by a line that stays."""
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")
            self._drawn = 0
        print(line, flush=True)

    def log_event(self, line: str) -> None:
        """Print an event, unless the live table shows it."""
        if not self.live:
            print(line, flush=True)

    def draw(self, ended: Sequence[Attempt], running: Sequence[Attempt]) -> None:
        """Redraw the table, without the first ended points if it is higher than the terminal."""
        width, height = shutil.get_terminal_size()
        # Running points are always shown.
        n_hidden = max(0, len(ended) + len(running) - max(1, height - 4))
        shown = sorted([*ended[n_hidden:], *running], key=attrgetter("point"))
        head = f"{self.sweep.name}: {len(ended)} of {self.n_points} points"
        lines = [head, *table(self.sweep, shown)]
        self.print_line("\n".join(line[: width - 1] for line in lines))
        self._drawn = len(lines)


def ranked(sweep: Sweep, attempts: Sequence[Attempt]) -> list[Attempt]:
    """Attempts, the best score first, those without a score last."""
    return sorted(attempts, key=lambda a: (a.score is None, sweep.sign * (a.score or 0), a.point))


def table(sweep: Sweep, attempts: Sequence[Attempt]) -> list[str]:
    """A heading, and a line for each attempt; points are numbered from 1."""
    varying = [p.name for p in sweep.varying]
    cells = [["point", *varying, "epoch", sweep.metric, "status"]]
    for a in attempts:
        values = [a.config.get(name) for name in varying]
        row = [f"{a.point + 1:04d}", *values, a.epoch, a.score, a.state]
        cells.append([format_value(value) for value in row])
    return align_columns(cells)


def mean_over_seeds(sweep: Sweep, attempts: Sequence[Attempt]) -> list[str]:
    """Mean and standard deviation of the score over the seeds of each setting, the best first."""
    varying = [p.name for p in sweep.varying if p.name != "seed"]
    settings: dict[str, tuple[list, list[float]]] = {}  # values and scores
    for a in attempts:
        if a.score is not None:
            values = [a.config.get(name) for name in varying]
            settings.setdefault(repr(values), (values, []))[1].append(a.score)
    cells = [[*varying, "seeds", f"mean {sweep.metric}", "sd"]]
    for values, scores in sorted(settings.values(), key=lambda s: sweep.sign * fmean(s[1])):
        sd = stdev(scores) if len(scores) > 1 else None
        cells.append([format_value(v) for v in (*values, len(scores), fmean(scores), sd)])
    return align_columns(cells)


# Validation metrics in table.csv besides the score.
CSV_METRICS = ("select/fvu", "select/live_sparsity", "select/persistence_within")


def write_csv(path: Path, sweep: Sweep, attempts: Sequence[Attempt], runs: Path) -> None:
    """Write parameters, status and metrics of each point, whole or not at all. Raises UserError."""
    names = [p.name for p in sweep.parameters]
    measured = [name for name in CSV_METRICS if name != sweep.metric]
    text = io.StringIO()
    out = csv.writer(text)
    out.writerow(["point", *names, "status", "epoch", sweep.metric, *measured, "seconds", "run"])
    for a in attempts:
        values = [a.config.get(name) for name in names]
        found = read.metrics(runs / a.run) if a.run else {}
        values += [a.state, a.epoch, a.score, *(found.get(name) for name in measured)]
        out.writerow([a.point + 1, *values, a.seconds, runs / a.run if a.run else None])
    write_bytes(path, text.getvalue().encode())


def format_value(value: Any) -> str:
    """A value as a table shows it: four digits of a number, a dash for None."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
