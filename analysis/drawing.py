"""Figures, described once: panels of lines and images, whichever library draws them.

`analysis.panels` fills these from runs, `analysis.paper` draws them with matplotlib and
`analysis.interactive` with plotly.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.colours import COLOURS, INK, SCHEDULE_COLOURS
from emaae.system.errors import UserError

# Plotly's names, and matplotlib's for the same.
DASHES: dict[str, Any] = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.",
    "longdashdot": (0, (5, 1, 1, 1, 1, 1)), "longdash": (0, (9, 2)),
}  # fmt: skip
MARKERS = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v",
    "star": "*", "x": "X", "cross": "P", "triangle-right": ">", "triangle-left": "<",
    "hexagon": "h",
}  # fmt: skip


class Missing(UserError):
    """The runs lack what a figure needs."""


class Style(NamedTuple):
    """How a setting is told from the others: by colour and, again, by dash or marker."""

    color: str
    dash: str = "solid"
    marker: str = "circle"


INPUT = Style(INK, "dash")


class Axis(NamedTuple):
    """label; log: logarithmic; range: from, to (None: as the data have it); ticks: position, text.

    whole: ticks are whole numbers.
    """

    label: str = ""
    log: bool = False
    range: tuple[float | None, float | None] = (None, None)
    ticks: Sequence[tuple[float, str]] | None = None
    whole: bool = False


class Line(NamedTuple):
    """Points (n,) joined by a line, or not (`points`), or both (`markers`: a few on the line).

    low, high: a band around the line, or bars at points. step: "vh" or "hvh", as plotly has them.
    open: hollow markers. runs: positions of the runs that it shows. kind: a mean over seeds, or
    each of them, which pages alone draw. text: what the pointer says.
    """

    x: np.ndarray
    y: np.ndarray
    style: Style
    label: str = ""
    points: bool = False
    markers: bool = False
    width: float = 1.4
    size: float = 5.0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    step: str = ""
    open: bool = False
    runs: tuple[int, ...] = ()
    kind: Literal["", "mean", "each"] = ""
    text: str = ""


class Image(NamedTuple):
    """z (rows, columns), from x and y over their width and height, the first row at the top.

    label: what the colours mean, beside their bar. They go from 0 to `high`; signed: from -`high`.
    """

    z: np.ndarray
    x: tuple[float, float]
    y: tuple[float, float]
    label: str
    high: float = 1.0
    signed: bool = False


class Text(NamedTuple):
    """text at x and y in data; without x it stands to the right of the panel."""

    text: str
    y: float
    x: float | None = None


class Panel(NamedTuple):
    """Axes and what is in them. levels: where lines are drawn across; marks: upright ones.

    equal: a picture, in one scale, without axes.
    """

    x: Axis
    y: Axis
    items: Sequence[Line | Image]
    title: str = ""
    levels: Sequence[float] = ()
    marks: Sequence[float] = ()
    texts: Sequence[Text] = ()
    equal: bool = False

    @property
    def lines(self) -> list[Line]:
        """Its lines, without those of single seeds."""
        return [item for item in self.items if isinstance(item, Line) and item.kind != "each"]

    @property
    def images(self) -> list[Image]:
        """Its images."""
        return [item for item in self.items if isinstance(item, Image)]

    @property
    def axes(self) -> dict[Literal["x", "y"], Axis]:
        """Both axes by name, as their values need them, see `fitted`."""
        lines = [item for item in self.items if isinstance(item, Line)]
        heights = [v for one in lines for v in (one.y, one.low, one.high) if v is not None]
        return {"x": fitted(self.x, [one.x for one in lines]), "y": fitted(self.y, heights)}


class Drawing(NamedTuple):
    """Panels in rows; shorter rows are empty at their end.

    widths, heights: shares of columns and rows. legend: one for all, below; else each panel with
    labels has its own on paper. All images are in one colour scale.
    """

    rows: Sequence[Sequence[Panel]]
    title: str = ""
    widths: Sequence[float] | None = None
    heights: Sequence[float] | None = None
    share_x: bool = False
    legend: bool = False

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row]


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style for each label of `groups`; at least thirty differ, as lines and as points.

    Where both schedules and something else vary, a schedule is a colour and the rest a dash; each
    combination has a marker.
    """
    parts = [label.partition(", ")[::2] for label in labels]
    schedules, rests = (list(dict.fromkeys(part)) for part in zip(*parts))
    by_schedule = len(schedules) > 1 or len(rests) == 1
    named = by_schedule and set(schedules) <= set(SCHEDULE_COLOURS)
    crossed = len(schedules) > 1 and len(rests) > 1
    dashes, markers = list(DASHES), list(MARKERS)
    found = {}
    for i, (label, (schedule, rest)) in enumerate(zip(labels, parts)):
        color, dash = (schedules.index(schedule), rests.index(rest)) if crossed else (i, i)
        found[label] = Style(
            SCHEDULE_COLOURS[schedule] if named else COLOURS[color % len(COLOURS)],
            dashes[dash % len(dashes)],
            markers[i % len(markers)],
        )
    return found


def fitted(axis: Axis, values: Sequence[np.ndarray]) -> Axis:
    """The axis, with limits and ticks where the libraries' own are bad for these values.

    Limits if all values are equal and not 0. Ticks at few whole numbers, and on a
    logarithmic axis, where spans of little more than a decade get some between powers of ten.
    """
    known = np.concatenate([*values, np.empty(0)])
    known = known[np.isfinite(known) & ((known > 0) | (not axis.log))]
    if axis.ticks is not None or not len(known):
        return axis
    low, high = float(known.min()), float(known.max())
    if axis.range == (None, None) and high and high - low <= 1e-6 * abs(high):
        axis = axis._replace(range=(low - 0.1 * abs(low), high + 0.1 * abs(high)))
    low, high = (new if new is not None else old for new, old in zip(axis.range, (low, high)))
    if axis.log and high >= 3 * low:
        by_span = ((10, (1, 1.5, 2, 3, 5, 7)), (300, (1, 2, 5)), (math.inf, (1,)))
        subs = next(some for span, some in by_span if high <= span * low)
        first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2
        powers = range(first, last, 1 + (last - first) // 12)
        ticks = [float(f"{sub}e{power}") for power in powers for sub in subs]
        ticks = [tick for tick in ticks if low / 2 <= tick <= high * 2]
    elif axis.log:
        ticks = [*MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high)]
    elif axis.whole and high - low < 8:
        ticks = [*np.arange(math.ceil(low), math.floor(high) + 1)]
    else:
        return axis
    return axis._replace(ticks=[(tick, f"{tick:g}") for tick in ticks])


def in_grid(panels: Sequence[Panel], columns: int, **more: Any) -> Drawing:
    """Panels that share their axes' names, which stand at the margins alone."""
    found = []
    for i, panel in enumerate(panels):
        bare: dict[str, Any] = {"label": "", "ticks": ()} if panel.images else {"label": ""}
        if i % columns:
            panel = panel._replace(y=panel.y._replace(**bare))
        if i + columns < len(panels):
            panel = panel._replace(x=panel.x._replace(**bare))
        found.append(panel)
    return Drawing([found[i : i + columns] for i in range(0, len(found), columns)], **more)


def described(drawing: Drawing) -> str:
    """A text in place of the drawing, for screen readers."""
    parts = [drawing.title]
    for panel in drawing.panels[:16]:
        axes = " against ".join(label for label in (panel.y.label, panel.x.label) if label)
        parts.append(": ".join(part for part in (panel.title, axes) if part))
        if panel.equal:
            continue
        for image in panel.images:
            row, column = np.unravel_index(np.abs(image.z).argmax(), image.z.shape)
            if name := dict(panel.y.ticks or ()).get(row + 0.5):  # ticks are in the middle of rows
                parts.append(f"strongest in {name}, {image.z[row, column]:.3g}")
        names = dict(panel.x.ticks or ())
        for line in panel.lines[:12]:
            known = np.isfinite(line.y)
            points = [
                f"{y:.3g} at {names.get(round(x), f'{x:.3g}')}"
                for x, y in zip(line.x[known], line.y[known])
            ]
            span = ", ".join(points) if line.points else " to ".join(points[:1] + points[1:][-1:])
            parts.append(f"{line.label}: {span}" if line.label and span else span)
    return "; ".join(part for part in parts if part)
