"""The points of a sweep as a table: in a terminal that is redrawn, and as CSV."""

import csv
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emaae.runs import read
from emaae.sweeps.space import Sweep


@dataclass(frozen=True)
class Row:
    """One point: its number from 1, what varies, how it stands, and the folder of its run."""

    point: int
    config: Mapping[str, Any]
    state: str  # running, finished, early_stopped, diverged, stopped, failed, interrupted
    epoch: int | None
    score: float | None
    seconds: float | None
    run: str | None


class Screen:
    """What a person sees while a sweep runs: a table that is redrawn, or lines as things happen."""

    def __init__(self, sweep: Sweep, n_points: int):
        self.sweep, self.n_points = sweep, n_points
        self.live = sys.stdout is not None and sys.stdout.isatty()
        self._drawn = 0

    def say(self, line: str) -> None:
        """A line that stays."""
        self._wipe()
        print(line, flush=True)

    def happened(self, line: str) -> None:
        """Something that the table shows too: a line only where there is no table."""
        if not self.live:
            print(line, flush=True)

    def draw(self, rows: Sequence[Row]) -> None:
        """The table in place of the last one, cut to the terminal; for a live screen."""
        width, height = shutil.get_terminal_size()
        over = sum(row.state != "running" for row in rows)
        head = f"{self.sweep.name}: {over} of {self.n_points} points"
        # What runs now is never cut; what ended longest ago is.
        room = max(1, height - 4)
        running = [row for row in rows if row.state == "running"]
        ended = [row for row in rows if row.state != "running"]
        shown = sorted([*ended[max(0, len(ended) + len(running) - room) :], *running], key=_point)
        lines = [head, *table(self.sweep, shown)] if shown else [head]
        self._wipe()
        print("\n".join(line[: width - 1] for line in lines), flush=True)
        self._drawn = len(lines)

    def _wipe(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")
            self._drawn = 0


def _point(row: Row) -> int:
    return row.point


def ranked(sweep: Sweep, rows: Sequence[Row]) -> list[Row]:
    """Rows with the best score first and those without one last."""
    sign = 1 if sweep.goal == "minimize" else -1
    return sorted(rows, key=lambda row: (row.score is None, sign * (row.score or 0), row.point))


def table(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """A line of names and one for each row."""
    varying = [p.name for p in sweep.varying]
    cells = [["point", *varying, "epoch", sweep.metric, "status"]]
    for row in rows:
        values = [text(row.config.get(name)) for name in varying]
        cells.append([f"{row.point:04d}", *values, text(row.epoch), text(row.score), row.state])
    return aligned(cells)


def over_seeds(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """Mean and standard deviation of the score over the seeds of each setting, the best first."""
    varying = [p.name for p in sweep.varying if p.name != "seed"]
    settings: dict[tuple, list[float]] = {}
    for row in rows:
        if row.score is not None:
            key = tuple(text(row.config.get(name)) for name in varying)
            settings.setdefault(key, []).append(row.score)
    sign = 1 if sweep.goal == "minimize" else -1
    cells = [[*varying, "seeds", f"mean {sweep.metric}", "sd"]]
    for key, scores in sorted(settings.items(), key=lambda s: sign * statistics.fmean(s[1])):
        sd = statistics.stdev(scores) if len(scores) > 1 else None
        cells.append([*key, str(len(scores)), text(statistics.fmean(scores)), text(sd)])
    return aligned(cells)


# Of a run's metrics, beside the score: what it gives up for it, on validation.
MEASURED = ("select/fvu", "select/live_sparsity", "select/persistence_within")


def write_csv(path: Path, sweep: Sweep, rows: Sequence[Row], runs: Path) -> None:
    """All rows with every parameter and what a run gives up, written beside and then renamed."""
    names = [p.name for p in sweep.parameters]
    measured = [name for name in MEASURED if name != sweep.metric]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(
            ["point", *names, "status", "epoch", sweep.metric, *measured, "seconds", "run"]
        )
        for row in rows:
            values = [row.config.get(name) for name in names]
            where = str(runs / row.run) if row.run else None
            found = read.metrics(runs / row.run) if row.run else {}
            values += [row.state, row.epoch, row.score, *(found.get(name) for name in measured)]
            out.writerow([row.point, *values, row.seconds, where])
    beside.replace(path)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines, columns to the right but the last one to the left."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  ".join([c.rjust(w) for c, w in zip(row[:-1], widths)] + [row[-1]]).rstrip()
        for row in cells
    ]


def text(value: Any) -> str:
    """A value as a table shows it; four digits of a number, a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
