"""Drawings on paper: matplotlib, in the widths of a journal's columns."""

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from analysis.colours import SIGNED, SILENCE_TO_PEAK, SOFT
from analysis.drawing import DASHES, MARKERS, Drawing, Image, Line, Panel
from analysis.programs import writing

ONE, TWO = 3.5, 7.2  # columns of a journal, in inches: 89 and 183 mm
STYLE = "analysis.paper"  # paper.mplstyle
# The same runs give the same file, whenever it is drawn.
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
LETTER, HANDLE = 0.058, 0.45  # inches of a letter at 7 points, and of the line beside a label
MAX_INTERVALS = 5  # between numbers along x, which may have five digits
STEPS = {"vh": "pre", "hvh": "mid"}


def draw(drawing: Drawing, width: float = TWO, height: float = 2.5) -> Figure:
    """The drawing as a figure; width in inches, height in inches of a row."""
    rows, columns = len(drawing.rows), max(map(len, drawing.rows))
    # All images are in one colour scale, whose bar is beside the last of them.
    last = next((panel for panel in drawing.panels[::-1] if panel.images), None)
    with matplotlib.style.context(STYLE):
        figure = Figure(layout="constrained")
        grid = figure.subplots(
            rows,
            columns,
            squeeze=False,
            sharex="col" if drawing.share_x else False,
            width_ratios=drawing.widths,
            height_ratios=drawing.heights,
        )
        for axes, panels in zip(grid, drawing.rows):
            for place, panel in zip(axes, panels):
                fill(place, panel)
                if panel is last:
                    bar = place.inset_axes((1 + 0.012 * columns, 0, 0.012 * columns, 1))
                    figure.colorbar(place.images[0], bar, label=panel.images[0].label)
                if not drawing.legend and any(line.label for line in panel.lines):
                    # There is no room for a legend inside a panel of traces.
                    outside = {"loc": "lower right", "bbox_to_anchor": (1, 0.97), "ncols": 2}
                    place.legend(handlelength=1.6, **(outside if panel.texts else {}))
            for empty in axes[len(panels) :]:
                empty.set_visible(False)
        if drawing.title:
            figure.suptitle(drawing.title)
        below = _legend(figure, width) if drawing.legend else 0.0
        figure.set_size_inches(width, height * rows + below)
    return figure


def fill(axes: Axes, panel: Panel) -> None:
    """Draw a panel on axes."""
    for item in panel.items:
        if isinstance(item, Image):
            _image(axes, item)
        elif item.kind != "each":
            _line(axes, item)
    dotted: dict[str, Any] = {"color": SOFT, "lw": 0.6, "ls": ":", "zorder": 0}
    for level in panel.levels:
        axes.axhline(level, **dotted)
    for mark in panel.marks:
        axes.axvline(mark, **dotted)
    for name, axis in panel.axes.items():
        side = getattr(axes, f"{name}axis")
        side.set_label_text(axis.label)
        if axis.log:
            axes.set(**{f"{name}scale": "log"})
            side.set_minor_locator(matplotlib.ticker.NullLocator())
        bounds = getattr(axes, f"get_{name}lim")()  # which ticks may widen
        if axis.ticks is not None:
            side.set_ticks([at for at, _ in axis.ticks], [text for _, text in axis.ticks])
        elif axis.whole:
            axes.locator_params(axis=name, integer=True)
        elif name == "x" and not axis.log:
            axes.locator_params(axis="x", nbins=MAX_INTERVALS)
        limits = [new if new is not None else old for new, old in zip(axis.range, bounds)]
        if not axis.log or limits[0] > 0:
            axes.set(**{f"{name}lim": limits})
    tile = bool(panel.images) and panel.y.ticks is not None  # one of many, in small type
    if panel.images:
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(True)
    if tile:
        axes.tick_params(labelsize=5, length=1.5)
    if panel.y.ticks == ():
        axes.spines["left"].set_visible(False)
    for text, y, x in panel.texts:
        if x is None:
            axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center")
        else:
            axes.text(x, y, text, fontsize=6, color=SOFT, clip_on=True)
    if panel.equal:
        axes.set_aspect("equal")
        axes.axis("off")
    axes.set_title(panel.title, fontsize=6 if tile else 8)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the path's suffix: pdf, svg or png. Raises UserError."""
    path = Path(path)
    with writing(path), matplotlib.style.context(STYLE):
        figure.savefig(path, metadata=UNDATED[path.suffix[1:]])


def _line(axes: Axes, line: Line) -> None:
    style, x, y, step = line.style, line.x, line.y, STEPS.get(line.step)
    known = axes.get_legend_handles_labels()[1]  # a setting is in the legend once
    label = None if line.label in known else line.label or None
    drawn: dict[str, Any] = {"color": style.color, "label": label, "lw": line.width}
    drawn["ls"] = "none" if line.points else DASHES[style.dash]
    if line.points or line.markers:
        drawn |= {"marker": MARKERS[style.marker], "ms": line.size if line.points else 3.5}
        drawn |= {"mfc": "none"} if line.open else {"mew": 0}
        drawn |= {"alpha": 0.85} if line.points else {"markevery": math.ceil(len(x) / 8)}
    axes.plot(x, y, drawstyle=f"steps-{step}" if step else "default", **drawn)
    if line.low is not None and line.high is not None:
        if line.points:
            axes.vlines(x, line.low, line.high, color=style.color, lw=1, alpha=0.6)
        else:
            band: dict[str, Any] = {"color": style.color, "alpha": 0.18, "lw": 0, "step": step}
            axes.fill_between(x, line.low, line.high, **band)


def _image(axes: Axes, image: Image) -> None:
    axes.imshow(
        image.z,
        cmap=LinearSegmentedColormap.from_list("", SIGNED if image.signed else SILENCE_TO_PEAK),
        vmin=-image.high if image.signed else 0,
        vmax=image.high,
        aspect="auto",
        extent=(*image.x, *image.y),
        interpolation="nearest",
        origin="lower",
    )


def _legend(figure: Figure, width: float) -> float:
    """One legend of all axes below them; returns the inches that it takes."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    if len(entries) < 2:
        return 0.0
    letters = int((width - HANDLE) / LETTER)
    labels = [textwrap.fill(label, letters) for label in entries]
    longest = min(letters, max(map(len, entries)))
    columns = min(int(width / (HANDLE + LETTER * longest)), len(entries))
    figure.legend(entries.values(), labels, loc="outside lower center", ncols=columns)
    return 0.17 * math.ceil(sum(1 + label.count("\n") for label in labels) / columns)
