"""Drawings on paper: matplotlib, in the widths of a journal's columns."""

import math
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from analysis.colours import SIGNED, SILENCE_TO_PEAK, SOFT
from analysis.drawing import DASHES, MARKERS, Axis, Drawing, Image, Line, Panel, ranged
from analysis.programs import writing

ONE, TWO = 3.5, 7.2  # columns of a journal, in inches: 89 and 183 mm
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "savefig.dpi": 300,
    # A run may be called anything.
    "text.parse_math": False,
    # Text as text, in fonts that journals take and editors can change.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "emaae",
}
# The same runs give the same file, whenever it is drawn.
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
STEPS = {"vh": "pre", "hvh": "mid"}
MAPS = {
    signed: LinearSegmentedColormap.from_list("", colours)
    for signed, colours in ((True, SIGNED), (False, SILENCE_TO_PEAK))
}


def draw(drawing: Drawing, width: float = TWO, height: float = 2.5) -> Figure:
    """The drawing as a figure; width in inches, height in inches of a row."""
    rows, columns = len(drawing.rows), max(map(len, drawing.rows))
    with matplotlib.rc_context(STYLE):
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
                fill(place, ranged(panel))
                if not drawing.legend and any(line.label for line in panel.lines):
                    # Traces leave no room for one among them.
                    outside = {"loc": "lower right", "bbox_to_anchor": (1, 0.97), "ncols": 2}
                    place.legend(handlelength=1.6, **(outside if panel.notes else {}))
            for empty in axes[len(panels) :]:
                empty.set_visible(False)
        if drawing.bar:
            shown = next(image for axes in grid.flat for image in axes.images)
            bar = figure.colorbar(shown, ax=list(grid.flat), shrink=0.5, aspect=30, pad=0.01)
            bar.set_label(drawing.bar)
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
    for level in panel.levels:
        axes.axhline(level, color=SOFT, lw=0.6, ls=":", zorder=0)
    for mark in panel.marks:
        axes.axvline(mark, color=SOFT, lw=0.6, ls=":", zorder=0)
    _axis(axes, "x", panel.x)
    _axis(axes, "y", panel.y)
    tile = bool(panel.images) and panel.y.ticks is not None  # one of many, in small type
    if panel.images:
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(True)
        if tile:
            axes.tick_params(labelsize=5, length=1.5)
    if panel.y.ticks == ():
        axes.spines["left"].set_visible(False)
    for height, text in panel.notes:
        axes.annotate(text, (1.01, height), xycoords=("axes fraction", "data"), va="center")
    if panel.equal:
        axes.set_aspect("equal")
        axes.axis("off")
    if panel.note:
        axes.annotate(panel.note, (0.5, 0.5), xycoords="axes fraction", ha="center", color=SOFT)
    if panel.title:
        axes.set_title(panel.title, loc="left", fontsize=6 if tile else 8)
    if panel.above:
        label, scale = panel.above
        both = (lambda c: np.multiply(c, scale), lambda hz: np.divide(hz, scale))
        axes.secondary_xaxis("top", functions=both).set_xlabel(label)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the path's suffix: pdf, svg or png. Raises UserError."""
    path = Path(path)
    with writing(path), matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata=UNDATED[path.suffix[1:]])


def _axis(axes: Axes, name: Literal["x", "y"], axis: Axis) -> None:
    side = getattr(axes, f"{name}axis")
    side.set_label_text(axis.label)
    if axis.log:
        axes.set(**{f"{name}scale": "log"})
        side.set_minor_locator(matplotlib.ticker.NullLocator())
    bounds = getattr(axes, f"get_{name}lim")()  # which ticks may widen
    if axis.ticks is not None:
        side.set_ticks([at for at, _ in axis.ticks], [text for _, text in axis.ticks])
    if axis.whole:
        axes.locator_params(axis=name, integer=True)
    limits = [new if new is not None else old for new, old in zip(axis.range, bounds)]
    if not axis.log or limits[0] > 0:
        axes.set(**{f"{name}lim": limits})


def _line(axes: Axes, line: Line) -> None:
    look, x, y, step = line.look, line.x, line.y, STEPS.get(line.step)
    style: dict[str, Any] = {
        "color": look.color,
        "alpha": line.opacity,
        "label": line.label or None,
    }
    if line.points or line.markers:
        style |= {"marker": MARKERS[look.marker], "ms": line.size if line.points else 3.5}
        style |= {"mfc": "none"} if line.open else {"mew": 0}
        if not line.points:
            style["markevery"] = math.ceil(len(x) / 8)
    style["ls"] = "none" if line.points else DASHES[look.dash]
    style["drawstyle"] = f"steps-{step}" if step else "default"
    axes.plot(x, y, lw=line.width, **style)
    if line.low is not None and line.high is not None:
        if line.points:
            axes.vlines(x, line.low, line.high, color=look.color, lw=1, alpha=0.6)
        else:
            band: dict[str, Any] = {"color": look.color, "alpha": 0.18, "lw": 0, "step": step}
            axes.fill_between(x, line.low, line.high, **band)


def _image(axes: Axes, image: Image) -> None:
    axes.imshow(
        image.z,
        cmap=MAPS[image.signed],
        vmin=-image.most if image.signed else 0,
        vmax=image.most,
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
    # About .05 inches a letter at 7 points, and .45 for the line beside it.
    fitting = int(width / (0.45 + 0.05 * max(map(len, entries))))
    columns = min(max(1, fitting), len(entries))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns)
    return 0.17 * math.ceil(len(entries) / columns)
