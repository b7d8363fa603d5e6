"""Drawings on pages and in notebooks: plotly."""

import math
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis.colours import FAINT, INK, PAPER, SIGNED, SILENCE_TO_PEAK, SOFT
from analysis.drawing import Axis, Drawing, Image, Line, Panel

AXIS = {
    "gridcolor": FAINT,
    "linecolor": SOFT,
    "tickcolor": SOFT,
    "ticks": "outside",
    "ticklen": 4,
    "zeroline": False,
    "title": {"standoff": 8},
    "automargin": True,
}
SMALL = {"color": SOFT, "size": 12}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 12.5, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": SOFT, "font": {"color": INK}},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": SOFT, "activecolor": INK},
        "margin": {"l": 60, "r": 14, "t": 24, "b": 46},
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "maxheight": 1,
        },
        "xaxis": AXIS,
        "yaxis": AXIS,
        "annotationdefaults": {"showarrow": False, "align": "left", "font": SMALL},
        "shapedefaults": {"type": "line", "line": {"color": SOFT, "width": 1, "dash": "dot"}},
        "coloraxis": {"colorbar": {"thickness": 10, "outlinewidth": 0, "title": {"side": "right"}}},
    }
)
MAX_UPRIGHT = 6  # letters of a tick, more are written upwards
MAX_LETTERS = 45  # of a line in a legend
MAX_LABELS = 12  # of a legend; more are told apart by the pointer


def draw(drawing: Drawing, height: int = 360) -> go.Figure:
    """The drawing as a figure; height in pixels of a row.

    Each trace has in `meta` which runs it shows (runs) and its kind, as `Line` has them; those of
    kind "each" are hidden at first.
    """
    rows, columns = len(drawing.rows), max(map(len, drawing.rows))
    titled = any(panel.title for panel in drawing.panels)
    # Where columns differ, the bar of an image's colours may be between two of them.
    gap = (0.3 if drawing.widths else 0.15) / columns
    across = _domains(drawing.widths or [1] * columns, gap)
    upwards = _domains((drawing.heights or [1] * rows)[::-1], (0.25 if titled else 0.12) / rows)
    layout: dict[str, Any] = {"template": TEMPLATE, "annotations": [], "shapes": []}
    traces: list[dict[str, Any]] = []
    labels: set[str] = set()
    places = [(row, column) for row in range(rows) for column in range(len(drawing.rows[row]))]
    for i, ((row, column), panel) in enumerate(zip(places, drawing.panels)):
        number = str(i + 1) if i else ""  # plotly's first axes have none
        x, y = (_axis(axis) for axis in panel.axes.values())
        x |= {"domain": across[column], "anchor": f"y{number}"}
        y |= {"domain": upwards[rows - 1 - row], "anchor": f"x{number}"}
        if drawing.share_x and row + 1 < rows:
            x |= {"matches": f"x{rows}", "showticklabels": False}
        if panel.images:
            y |= {"autorange": "reversed", "showgrid": False, "tickfont": {"size": 10}}
            layout["coloraxis"] = _scale(panel.images[0], x["domain"], y["domain"])
        if panel.equal:
            x["visible"] = y["visible"] = False
            y["scaleanchor"] = f"x{number}"
        layout |= {f"xaxis{number}": x, f"yaxis{number}": y}
        _annotate(layout, panel, {"xref": f"x{number}", "yref": f"y{number}"})
        for item in panel.items:
            if isinstance(item, Image):
                found: Iterable[dict[str, Any]] = [_heatmap(item)]
            else:
                shown = item.kind != "each"
                found = _traces(item, shown and item.label not in labels)
                labels |= {item.label} - {""} if shown else set()
            traces += [trace | {"xaxis": f"x{number}", "yaxis": f"y{number}"} for trace in found]
    layout["showlegend"] = 1 < len(labels) <= MAX_LABELS
    layout["height"] = height * rows + (_legend_height(labels) if layout["showlegend"] else 0)
    beside = [text.text for panel in drawing.panels for text in panel.texts if text.x is None]
    if beside:
        letters = max(len(line) for text in beside for line in text.split("\n"))
        layout["margin"] = {"r": 24 + 7 * letters}
    return go.Figure({"data": traces, "layout": layout})


def _domains(shares: Sequence[float], gap: float) -> list[list[float]]:
    """From, to of each share of 0..1, with gaps between them."""
    room = np.array(shares) * (1 - gap * (len(shares) - 1)) / sum(shares)
    ends = np.cumsum(room + gap) - gap
    return np.stack([ends - room, ends], 1).clip(0, 1).tolist()


def _annotate(layout: dict[str, Any], panel: Panel, place: dict[str, str]) -> None:
    """Add the panel's texts, its title and its dotted lines; place: its axes."""
    wide, high = (place | {axis: f"{place[axis]} domain"} for axis in place)
    for text, y, x in panel.texts:
        where = wide | {"x": 1.005} if x is None else place | {"x": x}
        lines = escape(text, quote=False).replace("\n", "<br>")
        layout["annotations"].append(where | {"text": lines, "y": y, "xanchor": "left"})
    if panel.title:
        above = {"x": 0.5, "y": 1, "yanchor": "bottom", "font": SMALL | {"color": INK}}
        title = {"text": escape(panel.title, quote=False), "yref": high["yref"]}
        layout["annotations"].append(wide | above | title)
    layout["shapes"] += [wide | {"x0": 0, "x1": 1, "y0": y, "y1": y} for y in panel.levels]
    layout["shapes"] += [high | {"y0": 0, "y1": 1, "x0": x, "x1": x} for x in panel.marks]


def _legend_height(labels: Collection[str]) -> int:
    """Pixels of a legend whose entries share lines as far as the longest lets them."""
    columns = max(1, 400 // (7 * max(map(len, labels)) + 50))
    n_lines = sum(len(textwrap.wrap(label, MAX_LETTERS)) for label in labels)
    return 14 + 17 * math.ceil(len(labels) / columns) + 16 * math.ceil(n_lines / columns)


def _axis(axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {"title": {"text": axis.label}}
    limits = list(axis.range)
    if axis.log:
        found["type"] = "log"
        limits = [None if value is None else float(np.log10(value)) for value in limits]
    if None not in limits:
        found["range"] = limits
    elif limits != [None, None]:  # the other end as the data have it
        found["autorangeoptions"] = {"minallowed": limits[0], "maxallowed": limits[1]}
    if axis.ticks is not None:
        found |= {"tickvals": [at for at, _ in axis.ticks], "ticktext": [t for _, t in axis.ticks]}
        if max((len(text) for _, text in axis.ticks), default=0) > MAX_UPRIGHT:
            found |= {"tickangle": -90, "ticklabeloverflow": "allow"}
    return found


def _traces(line: Line, in_legend: bool) -> Iterator[dict[str, Any]]:
    style, in_lines = line.style, textwrap.wrap(line.label, MAX_LETTERS)
    label = "<br>".join(escape(part, quote=False) for part in in_lines)
    pointed = "".join(f"{part}<br>" for part in (label, "%{text}" if line.text else "") if part)
    common: dict[str, Any] = {
        "type": "scatter",
        "legendgroup": label,
        "meta": {"runs": line.runs, "kind": line.kind},
        "visible": line.kind != "each",
    }
    trace = common | {
        "x": line.x.astype(np.float32),
        "y": line.y.astype(np.float32),
        "mode": "markers" if line.points else "lines+markers" if line.markers else "lines",
        "name": label,
        "showlegend": in_legend and bool(label),
        "opacity": 0.85 if line.points else 1,
        "line": {"color": style.color, "width": 1.4 * line.width, "dash": style.dash},
        "marker": {
            "color": style.color,
            "size": 1.8 * line.size if line.points else 7,
            "symbol": style.marker + ("-open" if line.open else ""),
            "maxdisplayed": 0 if line.points else 8,
            "line": {"width": 2 if line.open else 0},
        },
        "text": escape(line.text, quote=False),
        "hovertemplate": f"{pointed}%{{x:.4~g}}, %{{y:.4~g}}<extra></extra>",
    }
    if line.step:
        trace["line"]["shape"] = line.step
    if line.low is not None and line.high is not None:
        if line.points:
            up, down = line.high - line.y, line.y - line.low
            trace["error_y"] = {"array": up, "arrayminus": down, "thickness": 1, "width": 0}
        else:
            yield common | {
                "x": np.concatenate([line.x, line.x[::-1]]).astype(np.float32),
                "y": np.concatenate([line.high, line.low[::-1]]).astype(np.float32),
                "mode": "lines",
                "fill": "toself",
                "fillcolor": style.color,
                "opacity": 0.15,
                "line": trace["line"] | {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
            }
    yield trace


def _heatmap(image: Image) -> dict[str, Any]:
    rows, columns = image.z.shape
    (x0, x1), (y0, y1) = image.x, image.y
    dx, dy = (x1 - x0) / columns, (y1 - y0) / rows
    place = {"x0": x0 + dx / 2, "dx": dx, "y0": y0 + dy / 2, "dy": dy}
    return place | {
        "type": "heatmap",
        "z": image.z.astype(np.float32),
        "coloraxis": "coloraxis",
        "hovertemplate": "%{x:.4~g}, %{y:.0f}: %{z:.3~g}<extra></extra>",
    }


def _scale(image: Image, across: list[float], upwards: list[float]) -> dict[str, Any]:
    """The colours of all images, with a bar beside the one in these parts of the figure."""
    colours = SIGNED if image.signed else SILENCE_TO_PEAK
    place = {"x": across[1], "y": sum(upwards) / 2, "len": upwards[1] - upwards[0]}
    return {
        "cmin": -image.high if image.signed else 0,
        "cmax": image.high,
        "colorscale": list(zip(np.linspace(0, 1, len(colours)).tolist(), colours)),
        "colorbar": {"title": {"text": image.label}, **place},
    }
