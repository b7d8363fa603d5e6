"""Drawings on pages and in notebooks: plotly."""

import math
from collections.abc import Collection, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis.colours import FAINT, INK, PAPER, SIGNED, SILENCE_TO_PEAK, SOFT
from analysis.drawing import Axis, Drawing, Image, Line, Panel, ranged

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
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 12.5, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": SOFT, "font": {"color": INK}},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": SOFT, "activecolor": INK},
        "margin": {"l": 60, "r": 14, "t": 24, "b": 46},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        "xaxis": AXIS,
        "yaxis": AXIS,
    }
)
UPRIGHT = 6  # letters of a tick, more are written upwards
LABELS = 12  # of a legend; more are told apart by the pointer


def draw(drawing: Drawing, height: int = 360) -> go.Figure:
    """The drawing as a figure; height in pixels of a row.

    Each trace has in `meta` which runs it shows (runs) and its kind, as `Line` has them; those of
    kind "each" are hidden at first.
    """
    rows, columns = len(drawing.rows), max(map(len, drawing.rows))
    titled = any(panel.title for panel in drawing.panels)
    across = _domains(drawing.widths or [1] * columns, 0.15 / columns)
    gap = (0.25 if titled else 0.12) / rows
    down = [(1 - b, 1 - a) for a, b in _domains(drawing.heights or [1] * rows, gap)]
    layout: dict[str, Any] = {"template": TEMPLATE, "annotations": [], "shapes": []}
    traces: list[Any] = []
    labels: set[str] = set()
    for row, panels in enumerate(drawing.rows):
        for column, panel in enumerate(panels):
            # Plotly's first axes have no number.
            number = str(row * columns + column + 1) if row or column else ""
            _axes(layout, ranged(panel), number, (across[column], down[row]))
            if drawing.share_x and row + 1 < rows:
                layout[f"xaxis{number}"] |= {"matches": f"x{rows}", "showticklabels": False}
            for item in panel.items:
                if isinstance(item, Image):
                    found = [_image(item)]
                else:
                    shown = item.kind != "each"
                    found = _traces(item, shown and item.label not in labels)
                    labels |= {item.label} - {""} if shown else set()
                for trace in found:
                    trace.update(xaxis=f"x{number}", yaxis=f"y{number}")
                traces += found
    layout["showlegend"] = 1 < len(labels) <= LABELS
    layout["height"] = height * rows + (_legend_height(labels) if layout["showlegend"] else 0)
    notes = [part for p in drawing.panels for _, text in p.notes for part in text.split("\n")]
    if notes:
        layout["margin"] = {"r": 24 + 7 * max(map(len, notes))}
    return go.Figure({"data": traces, "layout": layout})


def _legend_height(labels: Collection[str]) -> int:
    """Pixels of a legend whose entries share lines as far as the longest lets them."""
    columns = max(1, 400 // (7 * max(map(len, labels)) + 50))
    return 20 * math.ceil(len(labels) / columns)


def _domains(shares: Sequence[float], gap: float) -> list[tuple[float, float]]:
    """From, to of each share of 0..1, with gaps between them."""
    room = (1 - gap * (len(shares) - 1)) / sum(shares)
    starts = [room * sum(shares[:i]) + gap * i for i in range(len(shares))]
    return [(start, min(1.0, start + room * share)) for start, share in zip(starts, shares)]


def _axes(layout: dict[str, Any], panel: Panel, number: str, domains: Sequence[Any]) -> None:
    x, y = _axis(panel.x), _axis(panel.y)
    x |= {"domain": domains[0], "anchor": f"y{number}"}
    y |= {"domain": domains[1], "anchor": f"x{number}"}
    if panel.images:
        y |= {"autorange": "reversed", "showgrid": False}
    if panel.equal:
        x["visible"] = y["visible"] = False
        y["scaleanchor"] = f"x{number}"
    layout[f"xaxis{number}"], layout[f"yaxis{number}"] = x, y
    inside = {"xref": f"x{number} domain", "yref": f"y{number} domain", "showarrow": False}
    beside = inside | {"yref": f"y{number}", "x": 1.005, "xanchor": "left", "align": "left"}
    title = inside | {"x": 0.5, "y": 1, "yanchor": "bottom", "font": {"color": INK, "size": 12}}
    texts = [(text, beside | {"y": height}) for height, text in panel.notes]
    texts += [(panel.note, inside | {"x": 0.5, "y": 0.5}), (panel.title, title)]
    for text, place in texts:
        if text:
            said = escape(text, quote=False).replace("\n", "<br>")
            soft = {"text": said, "font": {"color": SOFT, "size": 12}}
            layout["annotations"].append(soft | place)
    dotted = {"line": {"color": SOFT, "width": 1, "dash": "dot"}, "layer": "above", "type": "line"}
    across = dotted | {"x0": 0, "x1": 1, "xref": inside["xref"], "yref": f"y{number}"}
    upright = dotted | {"y0": 0, "y1": 1, "xref": f"x{number}", "yref": inside["yref"]}
    layout["shapes"] += [across | {"y0": level, "y1": level} for level in panel.levels]
    layout["shapes"] += [upright | {"x0": mark, "x1": mark} for mark in panel.marks]


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
        if max((len(text) for _, text in axis.ticks), default=0) > UPRIGHT:
            found |= {"tickangle": -90, "ticklabeloverflow": "allow"}
    return found


def _traces(line: Line, shown: bool) -> list[dict[str, Any]]:
    look, label = line.look, escape(line.label, quote=False)
    said = "".join(f"{part}<br>" for part in (label, "%{text}" if line.text else "") if part)
    common: dict[str, Any] = {
        "type": "scatter",
        "legendgroup": label,
        "meta": {"runs": line.runs, "kind": line.kind},
        "visible": line.kind != "each",
    }
    pen = {"color": look.color, "width": 1.4 * line.width, "dash": look.dash}
    trace = common | {
        "x": np.asarray(line.x, dtype=np.float32),
        "y": np.asarray(line.y, dtype=np.float32),
        "mode": "markers" if line.points else "lines+markers" if line.markers else "lines",
        "name": label,
        "showlegend": shown and bool(label),
        "opacity": line.opacity,
        "line": pen | {"shape": line.step or "linear"},
        "marker": {
            "color": look.color,
            "size": 1.8 * line.size if line.points else 7,
            "symbol": look.marker + ("-open" if line.open else ""),
            "maxdisplayed": 0 if line.points else 8,
            "line": {"width": 2 if line.open else 0},
        },
        "text": [escape(text, quote=False) for text in line.text],
        "hovertemplate": f"{said}%{{x:.4~g}}, %{{y:.4~g}}<extra></extra>",
    }
    if line.low is None or line.high is None:
        return [trace]
    if line.points:
        up, down = line.high - line.y, line.y - line.low
        bars = {"array": up, "arrayminus": down, "thickness": 1, "width": 0}
        return [trace | {"error_y": bars}]
    band = common | {
        "x": np.concatenate([line.x, line.x[::-1]]).astype(np.float32),
        "y": np.concatenate([line.high, line.low[::-1]]).astype(np.float32),
        "mode": "lines",
        "fill": "toself",
        "fillcolor": look.color,
        "opacity": 0.15,
        "line": {"width": 0, "shape": line.step or "linear"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [band, trace]


def _image(image: Image) -> dict[str, Any]:
    rows, columns = image.z.shape
    (x0, x1), (y0, y1) = image.x, image.y
    dx, dy = (x1 - x0) / columns, (y1 - y0) / rows
    colours = SIGNED if image.signed else SILENCE_TO_PEAK
    return {
        "type": "heatmap",
        "z": image.z.astype(np.float32),
        "x0": x0 + dx / 2,
        "dx": dx,
        "y0": y0 + dy / 2,
        "dy": dy,
        "zmin": -image.most if image.signed else 0,
        "zmax": image.most,
        "colorscale": [(i / (len(colours) - 1), colour) for i, colour in enumerate(colours)],
        "showscale": False,
        "hovertemplate": "%{x:.4~g}, %{y:.0f}: %{z:.3~g}<extra></extra>",
    }
