"""Figures, described once: panels of lines and images, whichever library draws them.

`analysis.panels` fills these from runs, `analysis.paper` draws them with matplotlib and
`analysis.interactive` with plotly.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from analysis.colours import COLOURS, INK, SCHEDULE_COLOURS
from emaae.system.errors import UserError

# Plotly's names, and matplotlib's for the same.
DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdashdot": (0, (5, 1, 1, 1, 1, 1)),
    "longdash": (0, (9, 2)),
}
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle-up": "^",
    "diamond": "D",
    "triangle-down": "v",
    "star": "*",
    "x": "X",
    "cross": "P",
    "triangle-right": ">",
    "triangle-left": "<",
    "hexagon": "h",
}


class Missing(UserError):
    """The runs lack what a figure needs."""


class Look(NamedTuple):
    """How a setting is told from the others: by colour and, again, by dash or marker."""

    color: str
    dash: str = "solid"
    marker: str = "circle"


INPUT = Look(INK, "dash")


@dataclass(frozen=True)
class Axis:
    """label; log: logarithmic; range: from, to (None: as the data have it); ticks: position, text.

    whole: ticks are whole numbers.
    """

    label: str = ""
    log: bool = False
    range: tuple[float | None, float | None] = (None, None)
    ticks: Sequence[tuple[float, str]] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Line:
    """Points (n,) joined by a line, or not (`points`), or both (a line with a few markers).

    low, high: a band around the line, or bars at points. runs: positions of the runs that it
    shows. kind: a mean over seeds, or each of them, which pages alone draw. text: what the pointer
    says at each point. step: "vh" and "hvh" as plotly has them. markers: a few, on a line.
    """

    x: np.ndarray
    y: np.ndarray
    look: Look
    label: str = ""
    points: bool = False
    width: float = 1.4
    size: float = 5.0
    opacity: float = 1.0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    step: str = ""
    open: bool = False
    markers: bool = False
    runs: tuple[int, ...] = ()
    kind: Literal["", "mean", "each"] = ""
    text: Sequence[str] = ()


@dataclass(frozen=True)
class Image:
    """z (rows, columns), from x and y over their width and height, the first row at the top.

    signed: colours are symmetric about 0, up to `most` both ways; else white is 0.
    """

    z: np.ndarray
    x: tuple[float, float]
    y: tuple[float, float]
    most: float = 1.0
    signed: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes and what is in them. levels: where lines are drawn across; marks: upright ones.

    notes: texts beside the panel at a height in data, e.g. r. note: one text, in its middle.
    above: the label and the scale of a second x axis, on paper alone. equal: a picture,
    in one scale, without axes.
    """

    x: Axis
    y: Axis
    items: Sequence[Line | Image]
    title: str = ""
    levels: Sequence[float] = ()
    marks: Sequence[float] = ()
    notes: Sequence[tuple[float, str]] = ()
    note: str = ""
    above: tuple[str, float] | None = None
    equal: bool = False

    @property
    def lines(self) -> list[Line]:
        """Its lines but those of single seeds."""
        return [item for item in self.items if isinstance(item, Line) and item.kind != "each"]

    @property
    def images(self) -> list[Image]:
        """Its images."""
        return [item for item in self.items if isinstance(item, Image)]


@dataclass(frozen=True)
class Drawing:
    """Panels in rows; of rows that are shorter the rest stays empty.

    widths, heights: shares of columns and rows. legend: one for all, below; else each panel with
    labels has its own. bar: the label of a colour bar for all images, on paper alone.
    """

    rows: Sequence[Sequence[Panel]]
    title: str = ""
    widths: Sequence[float] | None = None
    heights: Sequence[float] | None = None
    share_x: bool = False
    legend: bool = False
    bar: str = ""

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row]


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each label of `groups`; at least thirty differ, as lines and as points.

    Where both schedules and something else vary, a schedule is a colour and the rest a dash; each
    combination has a marker.
    """
    parts = [label.partition(", ")[::2] for label in labels]
    schedules, rests = (list(dict.fromkeys(part[i] for part in parts)) for i in (0, 1))
    named = len(schedules) > 1 and all(schedule in SCHEDULE_COLOURS for schedule in schedules)
    crossed = len(schedules) > 1 and len(rests) > 1
    dashes, markers = list(DASHES), list(MARKERS)
    found = {}
    for i, (label, (schedule, rest)) in enumerate(zip(labels, parts)):
        row = schedules.index(schedule) if crossed else i
        color = SCHEDULE_COLOURS[schedule] if named else COLOURS[row % len(COLOURS)]
        # Colours that come again come in other styles.
        again = 0 if named else row // len(COLOURS)
        if crossed:
            column = rests.index(rest)
            dash, marker = column + again * len(rests), column + row * len(rests)
        else:
            dash = marker = i + 3 * again
        found[label] = Look(color, dashes[dash % len(dashes)], markers[marker % len(markers)])
    return found


def log_ticks(values: Iterable[float]) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis: spans of little more than a decade get some between powers."""
    found = [value for value in values if value > 0 and math.isfinite(value)]
    if not found:
        return []
    low, high = min(found), max(found)
    finest = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
    by_span = ((3, finest), (10, (1, 1.5, 2, 3, 5, 7)), (300, (1, 2, 5)), (math.inf, (1,)))
    subs = next(some for span, some in by_span if high <= span * low)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = [float(f"{sub}e{power}") for power in powers for sub in subs]
    return [(tick, f"{tick:g}") for tick in ticks if low / 2 <= tick <= high * 2]


def ranged(panel: Panel) -> Panel:
    """The panel with ticks where its axis is logarithmic: what both programs draw alike."""

    def ticked(axis: Axis, name: str) -> Axis:
        if not axis.log or axis.ticks is not None:
            return axis
        return replace(
            axis, ticks=log_ticks(v for line in panel.lines for v in getattr(line, name))
        )

    return replace(panel, x=ticked(panel.x, "x"), y=ticked(panel.y, "y"))


def in_grid(panels: Sequence[Panel], columns: int) -> list[Sequence[Panel]]:
    """Rows of so many panels that share their axes' names, which stand at the margins alone."""
    found = []
    for i, panel in enumerate(panels):
        x, y = (
            replace(axis, label="", ticks=() if panel.images else axis.ticks)
            for axis in (panel.x, panel.y)
        )
        if i % columns:
            panel = replace(panel, y=y)
        if i + columns < len(panels):
            panel = replace(panel, x=x)
        found.append(panel)
    return [found[i : i + columns] for i in range(0, len(found), columns)]


def described(drawing: Drawing) -> str:
    """A text that stands for the drawing where it cannot be seen."""
    parts = [drawing.title]
    for panel in drawing.panels[:16]:
        axes = " against ".join(label for label in (panel.y.label, panel.x.label) if label)
        parts.append(": ".join(part for part in (panel.title, axes) if part))
        for image in panel.images:
            if not np.isfinite(image.z).any():
                continue
            row, column = np.unravel_index(np.nanargmax(np.abs(image.z)), image.z.shape)
            name = dict(panel.y.ticks or ()).get(row + 0.5)  # ticks are in the middle of rows
            if name:
                parts.append(f"strongest in {name}, {image.z[row, column]:.3g}")
        for line in panel.lines[:12] if not panel.equal else ():
            known = np.isfinite(line.y)
            if not known.any():
                continue
            x, y = line.x[known], line.y[known]
            if line.points and panel.x.ticks:
                names = dict(panel.x.ticks)
                span = ", ".join(f"{names.get(round(at), at)} {v:.3g}" for at, v in zip(x, y))
            elif line.points:
                span = f"{len(y)} at {_range(x)}, {_range(y)}"
            else:
                span = f"{y[0]:.3g} at {x[0]:.3g} to {y[-1]:.3g} at {x[-1]:.3g}"
            parts.append(f"{line.label}: {span}" if line.label else span)
    return "; ".join(part for part in parts if part)


def _range(values: np.ndarray) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
