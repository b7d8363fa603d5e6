"""The numbers of the report page: everything that its panels draw, each number once.

Runs become rows that refer to shared lists (settings, colours, columns); the page puts together
from them what is being looked at. NaN is null, and numbers keep five digits.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from analysis import anatomy
from analysis.colours import COLOURS, SCHEDULE_COLOURS
from analysis.runs import Run, best, final, groups, number, score, split_of, text, varying
from emaae.data.features import CHANNELS, FRAME_RATE_HZ
from emaae.metric_table import BY_NAME, METRICS, SHORT, SHORT_AT_END
from emaae.metrics import DENSITY_EDGES
from emaae.models import CNNAutoEncoder
from emaae.runs.reconstructions import Reconstruction
from emaae.schedules import SCHEDULES

WITHOUT_LOUDNESS = tuple(name for name in CHANNELS if name != "loudness")
# Per epoch; a column that no run has is left out.
PER_EPOCH = (
    *("epoch", "alpha", "lambda_eff", "train/loss", "val/loss", "val/mse", "val/fvu"),
    *("val/sparsity", "val/dead", "val/self_similarity_20ms", "val/self_similarity_80ms"),
    "val/persistence_within",
)
# What is logged once, of the selected weights.
AT_END = tuple(name for m in METRICS if m.logged == "end" for name in m.names)
MAX_COLOURS = len(COLOURS)

# What is drawn of one run: the best, and the best of up to three other colours.
MAX_DETAILED = 4
UTTERANCES_OF_BEST, UTTERANCES_OF_OTHERS = 3, 1
MAX_FRAMES = 10 * FRAME_RATE_HZ
N_TILES = 24


def collect(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the page's panels draw of runs, as plain JSON values."""
    split, knobs = split_of(runs), [name for name in varying(runs) if name != "seed"]
    knob, values, colours = series(runs, knobs)
    settings = groups(runs)
    numbered = {id(run): i for i, members in enumerate(settings.values()) for run in members}
    top = best(runs)
    loudness = any(run.config.get("keep_loudness") for run in runs)
    channels = CHANNELS if loudness else WITHOUT_LOUDNESS
    columns = [c for c in PER_EPOCH if any(c in row for run in runs for row in run.history)]
    rows = [
        {
            "name": run.name,
            "series": values.index(_value(run, knob)),
            "group": numbered[id(run)],
            "seed": run.config.get("seed"),
            "status": run.status,
            "knobs": [run.config.get(name) for name in knobs],
            "epochs": {c: _plain(run.column(c)) for c in columns},
            "final": {name: _plain(final(run, f"{split}/{name}")) for name in SHORT}
            | {name: _plain(final(run, name)) for name in AT_END},
            "r": _plain(final(run, f"{split}/r/{channel}") for channel in channels),
            "density": _density(run, split),
            "curves": _curves(run),
        }
        for run in runs
    ]
    return {
        "split": split,
        "columns": [_column(name, split) for name in (*SHORT, *SHORT_AT_END) if name != "score"],
        "knobs": knobs,
        "series": {"knob": knob, "names": [text(v) for v in values], "colours": colours},
        "groups": list(settings),
        "channels": channels,
        "density_edges": DENSITY_EDGES,
        "best": runs.index(top) if top else None,
        "runs": rows,
        "details": details(runs, values, knob),
    }


def _column(name: str, split: str) -> dict[str, str]:
    """A column of the table of runs: the metric, its heading, and what it says."""
    metric = BY_NAME.get(name) or BY_NAME[f"{split}/{name}"]
    better = f"; {metric.better} is better" if metric.better else ""
    heading = name.removeprefix("shift/").replace("/", " ").replace("_", " ")
    return {"key": name, "name": heading, "title": metric.words + better}


def series(runs: Sequence[Run], knobs: Sequence[str]) -> tuple[str, list[Any], list[str]]:
    """What colours stand for: a knob, its values in order, and a colour for each.

    The schedule, unless there is one alone and another knob has few enough values.
    """
    candidates = ["schedule", *knobs]
    several = [k for k in candidates if 1 < len(_values(runs, k)) <= MAX_COLOURS]
    knob = several[0] if several else "schedule"
    values = _values(runs, knob)
    if knob == "schedule":
        values.sort(key=lambda v: SCHEDULES.index(v) if v in SCHEDULES else len(SCHEDULES))
        return knob, values, [SCHEDULE_COLOURS.get(v, "#7f7f7f") for v in values]
    return knob, values, list(COLOURS[: len(values)])


def details(runs: Sequence[Run], values: Sequence[Any], knob: str) -> dict[int, dict[str, Any]]:
    """What is inside the best run and the best ones of other colours, by index of the run."""
    found = [best([run for run in runs if _value(run, knob) == value]) for value in values]
    leaders = sorted((run for run in found if run is not None), key=score)
    # A run that failed, or that goes on, may be all there is.
    shown = leaders[:MAX_DETAILED] or [run for run in runs if run.history][:1]
    counts = [UTTERANCES_OF_BEST] + [UTTERANCES_OF_OTHERS] * MAX_DETAILED
    return {runs.index(run): detail(run, n) for run, n in zip(shown, counts)}


def detail(run: Run, n_utterances: int) -> dict[str, Any]:
    """Reconstructions, encodings, kernels and primitives of one run; what is missing is left out.

    Without a model the reconstructions are those that the run kept last.
    """
    model, kept = run.model(), run.reconstructions()
    found: dict[str, Any] = {"utterances": [], "epoch": run.metrics.get("select/epoch")}
    encodings = []
    if kept and model is None:
        found["epoch"] = max(kept)
    for one in kept[max(kept)][:n_utterances] if kept else ():
        truth, prediction = one.truth[:MAX_FRAMES], one.prediction[:MAX_FRAMES]
        entry = {"name": one.name, "channels": one.channels, "cut": len(one.truth) > len(truth)}
        if model is not None and truth.shape[1] == model.input_dim:
            answer = anatomy.answer(model, one.truth)
            prediction = answer.y[:MAX_FRAMES]
            encodings.append(answer.z)
            entry["raster"] = _raster(answer.z[:MAX_FRAMES])
        shown = Reconstruction(one.name, one.channels, truth, prediction)
        entry |= {
            "r": _plain(shown.r(), 4),
            "truth": _plain(truth.T, 4),
            "prediction": _plain(prediction.T, 4),
        }
        found["utterances"].append(entry)
    if model is not None:
        found |= _inside(model, encodings)
    return found


def _inside(model: CNNAutoEncoder, encodings: Sequence[np.ndarray]) -> dict[str, Any]:
    channels = CHANNELS if model.input_dim == len(CHANNELS) else WITHOUT_LOUDNESS
    found: dict[str, Any] = {"channels": channels}
    found["kernels"] = _plain(anatomy.first_kernels(model, N_TILES), 3)
    if encodings:
        units = anatomy.busiest_units(model, np.concatenate(encodings), N_TILES)
        found["units"] = [int(unit) for unit in units]
        found["primitives"] = _plain(anatomy.primitives(model, units), 3)
    return found


def _raster(z: np.ndarray) -> dict[str, Any]:
    """z (T, C) as bytes, a row per live unit: 255 is the unit's maximum, rows by time of peak."""
    live = np.flatnonzero(z.max(0) > 0)
    live = live[np.argsort(z[:, live].argmax(0), kind="stable")]
    peak = z[:, live].max(0)
    scaled = np.ceil(255 * z[:, live].T / peak[:, None]).astype(np.uint8)
    return {
        "units": live.tolist(),
        "n_units": z.shape[1],
        "zeros": _plain(float((z == 0).mean())),
        "peak": _plain(peak, 3),
        "data": base64.b64encode(scaled.tobytes()).decode(),
    }


def _density(run: Run, split: str) -> list[int] | None:
    name = f"{split}/density_log10"
    found = run.metrics.get(name, run.selected.get(name))
    right = isinstance(found, list) and len(found) == len(DENSITY_EDGES) - 1
    return found if right else None


def _curves(run: Run) -> dict[str, Any]:
    """Those curves whose columns are lists of one length; a half-written file may hold others."""
    found = {}
    for name, columns in run.curves.items():
        if isinstance(columns, dict) and all(isinstance(c, list) for c in columns.values()):
            lengths = {len(c) for c in columns.values()}
            if len(lengths) == 1:
                found[name] = {key: _plain(c) for key, c in columns.items()}
    return found


def _values(runs: Sequence[Run], knob: str) -> list[Any]:
    values: list[Any] = []
    for run in runs:
        if _value(run, knob) not in values:
            values.append(_value(run, knob))
    return sorted(values, key=lambda v: (number(v), "") if _is_number(v) else (math.inf, str(v)))


def _value(run: Run, knob: str) -> Any:
    return run.schedule if knob == "schedule" else run.config.get(knob)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(values: Any, digits: int = 5) -> Any:
    """Numbers as JSON has them: lists of lists of floats with few digits, NaN as None."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, Iterable) and not isinstance(values, str | bytes):
        return [_plain(value, digits) for value in values]
    if not isinstance(values, int | float) or not math.isfinite(values):
        return None
    if isinstance(values, int) or values.is_integer():
        return int(values)
    return float(f"{values:.{digits}g}")
