"""The panels of the figures of runs, which `paper` draws for print, `interactive` for pages.

Runs of the same settings are one line, the mean over their seeds, in a band from the lowest seed to
the highest. What cannot be drawn raises `Missing`, which says what is missing and why. The panels
of one model are in `analysis.model_panels`; docs/analysis.md has a notebook's own figure.
"""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from analysis.colours import ALPHA, DEAD, INK, PREDICTION, SOFT, SPARSITY, TRUTH
from analysis.drawing import DASHES, INPUT, Axis, Line, Missing, Panel, Style, styles
from analysis.fronts import costs, hypervolume, pareto_front
from analysis.runs import GOOD, Run, best, grouped, groups, labels, split_of
from emaae.data.features import CHANNELS, FRAME_RATE_HZ

# Of more settings, points show the schedule only.
MAX_SETTINGS = 12
MAX_SETTINGS_OF_ONE_SCHEDULE = 30  # as many as can be told apart
BROKEN = ("diverged", "failed")  # statuses of runs that count in no mean over seeds
EPOCH = Axis("epoch", whole=True)
Curve = tuple[np.ndarray, np.ndarray]  # x (n,) and y (n,)


# ---- over epochs


def over_epochs(runs: Sequence[Run], name: str, y: Axis) -> Panel:
    """One metric over epochs: mean and range of the seeds that reached the epoch."""

    def curve(run: Run) -> Curve:
        found = run.column(name)
        return run.column("epoch"), np.where(found > 0, found, np.nan) if y.log else found

    above = " above 0" if y.log else ""
    return Panel(EPOCH, y, _means(runs, curve, f"no run has logged {name}{above}"))


def losses(runs: Sequence[Run]) -> list[Panel]:
    """Training and validation loss over epochs, on one scale."""
    splits = {"train": "training loss", "val": "validation loss"}
    known = np.concatenate(
        [run.column(f"{split}/loss") for run in _counted(runs) for split in splits]
    )
    known = known[(known > 0) & (known < np.inf)]
    scale = (known.min() / 1.1, known.max() * 1.1) if len(known) else (None, None)
    return [
        over_epochs(runs, f"{split}/loss", Axis(label, log=True, range=scale))
        for split, label in splits.items()
    ]


def losses_by_run(runs: Sequence[Run], max_runs: int = 60) -> list[Panel]:
    """Training and validation loss of each run, a panel each.

    Of more runs than `max_runs` those with the lowest scores are drawn, in this order.
    """
    runs = [run for run in runs if run.history]
    if len(runs) < 2:
        raise Missing("fewer than two runs have finished an epoch; one alone is in the overview")
    if len(runs) > max_runs:
        runs = sorted(runs, key=lambda run: (np.nan_to_num(run.score, nan=np.inf), run.name))
    # Of a long name the end, which tells runs apart.
    short = [run.name if len(run.name) <= 52 else f"…{run.name[-51:]}" for run in runs]
    titles = [textwrap.fill(name, 26, break_on_hyphens=False) for name in short]
    return [run_losses(r)._replace(title=title) for r, title in zip(runs[:max_runs], titles)]


def run_losses(run: Run) -> Panel:
    """Training and validation loss of one run; the upright line is the selected epoch."""
    names = {"training": ("train/loss", TRUTH), "validation": ("val/loss", PREDICTION)}
    return _of_run(run, names, Axis("loss", log=True))


def run_alpha(run: Run) -> Panel:
    """Alpha, sparsity and dead units of one run, as fractions."""
    names = {
        "alpha": ("alpha", ALPHA),
        "sparsity": ("val/sparsity", SPARSITY),
        "dead": ("val/dead", DEAD),
    }
    return _of_run(run, names, Axis("fraction", range=(0, 1)))


def _of_run(run: Run, names: dict[str, tuple[str, str]], y: Axis) -> Panel:
    if not run.history:
        raise Missing(f"run {run.name} has finished no epoch")
    items = [
        Line(run.column("epoch"), run.column(name), Style(color, dash), label, width=1.8)
        for dash, (label, (name, color)) in zip(DASHES, names.items())
        if np.isfinite(run.column(name)).any()
    ]
    return Panel(EPOCH, y, items, marks=[run.selected["epoch"]] if run.selected else [])


def alpha(runs: Sequence[Run]) -> list[Panel]:
    """Alpha and sparsity over epochs, both from 0 to 1."""
    names = {"alpha": "alpha", "val/sparsity": "val sparsity (fraction of zeros)"}
    return [over_epochs(runs, name, Axis(label, range=(0, 1))) for name, label in names.items()]


def mse_along_epochs(runs: Sequence[Run]) -> Panel:
    """Mse against alpha, epoch by epoch: mean of the seeds; the marker is the last epoch."""
    names = ("alpha", "val/mse")

    def curve(run: Run, name: str) -> Curve:
        known = np.isfinite([run.column(one) for one in names]).all(0)
        return run.column("epoch")[known], run.column(name)[known]

    alphas, mses = (
        _means(runs, partial(curve, name=name), "no run has finished an epoch") for name in names
    )
    items = []
    for alpha, mse in zip(alphas, mses):  # of the same runs and epochs
        line = mse._replace(x=alpha.y, low=None, high=None)
        end = line._replace(x=line.x[-1:], y=line.y[-1:], label="", points=True, size=7.0)
        items += [line, end]
    return Panel(Axis("alpha, along the epochs"), Axis("val mse (sd²)", log=True), items)


def mse_across_runs(runs: Sequence[Run]) -> Panel:
    """Mse against alpha at the selected epochs, a point per run."""
    split = split_of(runs)
    items = points(runs, "select/alpha", f"{split}/mse")
    return Panel(Axis("alpha, at the selected epoch"), Axis(f"{split} mse (sd²)", log=True), items)


# ---- across runs


def points(runs: Sequence[Run], x: str, y: str) -> list[Line]:
    """One metric of the selected weights against another, a point per run. Raises Missing."""
    members, settings = groups(runs), labels(runs)
    one_schedule = len({run.schedule for run in runs}) == 1
    if len(members) > (MAX_SETTINGS_OF_ONE_SCHEDULE if one_schedule else MAX_SETTINGS):
        members = grouped(runs, lambda run: run.schedule)
    items: list[Line] = []
    for (label, some), style in zip(members.items(), styles(list(members)).values()):
        for run in some:
            at_x, at_y = np.array([[run.metric(name)] for name in (x, y)])
            if run.status in GOOD and np.isfinite([at_x, at_y]).all():
                seed, whose = f"seed {run.config.get('seed')}", (runs.index(run),)
                text = f"{run.name}: {settings[run]}, {seed}, score {run.score:.4g}"
                items.append(Line(at_x, at_y, style, label, points=True, runs=whose, text=text))
    if not items:
        raise Missing(f"no run has both {x} and {y}")
    return items


def fvu_against_sparsity(runs: Sequence[Run]) -> Panel:
    """The trade that alpha makes, and the Pareto front of all runs: right and down is better."""
    split = split_of(runs)
    x, y = f"{split}/sparsity", f"{split}/fvu"
    items: Sequence[Line] = points(runs, x, y)
    found, top, title = costs(runs, split), best(runs), "one run: a front needs several"
    if len(found) > 1:
        title = ""
        fvu, dense = pareto_front(found).T
        label = f"Pareto front, hypervolume {hypervolume(found):.3f}"
        front = Line(1 - dense, fvu, Style(SOFT), label, step="vh", width=1.0)
        rings = [
            one._replace(style=Style(INK), label=f"best: {top.name}", size=11.0, open=True, text="")
            for one in items
            if top is runs[one.runs[0]]
        ]
        items = [front, *items, *rings]
    fvu_axis = Axis(f"{split} fvu", log=True)
    return Panel(Axis(f"{split} sparsity (fraction of zeros)"), fvu_axis, items, title)


def sparsity_against_persistence(runs: Sequence[Run]) -> Panel:
    """The aim, sparse and tolerant to shifts: right and up is better; 1 is the input's own."""
    split = split_of(runs)
    items = points(runs, "shift/persistence", f"{split}/sparsity")
    x = Axis("persistence (half-life of encoding / input)")
    return Panel(x, Axis(f"{split} sparsity (fraction of zeros)"), items, marks=(1,))


def participation_against_persistence(runs: Sequence[Run]) -> Panel:
    """Whether tolerance is real: persistence of few directions is no evidence."""
    items = points(runs, "shift/participation_ratio", "shift/persistence")
    x = Axis("participation ratio (directions in use)", log=True)
    return Panel(x, Axis("persistence (encoding / input)"), items, levels=(1,))


def self_similarity(runs: Sequence[Run]) -> Panel:
    """How alike the encoding is to itself some time later; the input is the baseline."""
    items = _curves(runs, "self_similarity", "lag_ms")
    return Panel(Axis("lag (ms)"), Axis("self-similarity", range=(None, 1)), items, levels=(0, 0.5))


def gain(runs: Sequence[Run]) -> Panel:
    """How far a small shift of the input moves the encoding, relative to the input's own move."""
    items = _curves(runs, "gain", "shift_ms")
    ticks = [(float(ms), str(ms)) for ms in (5, 10, 20, 40)]
    return Panel(Axis("shift (ms)", log=True, ticks=ticks), Axis("gain"), items)


def lowpass(runs: Sequence[Run]) -> Panel:
    """Fvu after the encoding was smoothed in time; so was the input, the baseline."""
    items = _curves(runs, "lowpass", "cutoff")
    x = Axis(f"cutoff (fraction of Nyquist, {FRAME_RATE_HZ / 2:g} Hz)")
    return Panel(x, Axis("fvu after smoothing", log=True), items)


def articulators(runs: Sequence[Run]) -> Panel:
    """Pearson r of every channel: mean of the seeds of a setting, and their range."""
    prefix = f"{split_of(runs)}/r/"
    measured = {key for run in runs for key in run.measured}
    channels = [name for name in CHANNELS if prefix + name in measured]
    settings = list(groups(runs).values())
    aside = {run: (i + 0.5) / len(settings) - 0.5 for i, of in enumerate(settings) for run in of}

    def curve(run: Run) -> Curve | None:
        r = np.array([run.metric(prefix + name) for name in channels])
        x = np.arange(len(channels)) + 0.7 * aside[run]
        return (x, r) if run.status in GOOD else None

    lacking = "no run has measured the channels of selected weights"
    items = _means(runs, curve, lacking, points=True, size=4.0)
    x = Axis(range=(-0.5, len(channels) - 0.5), ticks=list(enumerate(channels)))
    return Panel(x, Axis(f"{prefix[:-3]} r (Pearson)"), items)


def density(runs: Sequence[Run]) -> Panel:
    """Live units by the fraction of frames on which they fire."""
    split = split_of(runs)

    def curve(run: Run) -> Curve:
        log10, counts = run.density(split)
        return 10**log10, counts

    items = _means(runs, curve, "no run has counted how often its units fire", step="hvh")
    return Panel(Axis("fraction of frames", log=True), Axis("units per bin"), items)


# ---- what they share


def styled(runs: Sequence[Run]) -> list[tuple[str, Style, list[Run]]]:
    """Each setting's label, style and runs."""
    members = groups(runs)
    return [(label, style, members[label]) for label, style in styles(list(members)).items()]


def _counted(runs: Sequence[Run]) -> list[Run]:
    """The runs that did not go wrong; if all that began did, all of them."""
    return [run for run in runs if run.history and run.status not in BROKEN] or list(runs)


def _means(
    runs: Sequence[Run], curve: Callable[[Run], Curve | None], lacking: str, **more: Any
) -> list[Line]:
    """The mean of each setting with its range, and every run by itself for pages.

    lacking: what the Missing says when there is no curve.
    """
    items, counted = [], set(_counted(runs))
    for label, style, members in styled(runs):
        curves = {runs.index(run): curve(run) for run in members}
        found = {i: got for i, got in curves.items() if got and np.isfinite(got[1]).any()}
        whose = tuple(i for i in found if runs[i] in counted)
        if whose:
            x, mean, low, high = _mean_and_range([found[i] for i in whose])
            band: dict[str, Any] = {"low": low, "high": high} if len(whose) > 1 else {}
            band |= {"runs": whose, "kind": "mean", "markers": True}
            items.append(Line(x, mean, style, label, **band, **more))
        for i, (x, y) in found.items():
            own: dict[str, Any] = {"runs": (i,), "kind": "each", "text": runs[i].name}
            items.append(Line(x, y, style, label, **own, **more))
    if not items:
        raise Missing(lacking)
    return items


def _mean_and_range(curves: list[Curve]) -> tuple[np.ndarray, ...]:
    """x, mean, lowest, highest of curves whose x may differ; undefined points are left out."""
    x = np.unique(np.concatenate([x for x, _ in curves]))
    y = np.full((len(curves), len(x)), np.nan)
    for row, (at, values) in zip(y, curves):
        row[np.searchsorted(x, at)] = values
    known = np.isfinite(y).any(0)
    drawn = y[:, known]
    return x[known], np.nanmean(drawn, 0), np.nanmin(drawn, 0), np.nanmax(drawn, 0)


def _curves(runs: Sequence[Run], name: str, x: str) -> list[Line]:
    def read(run: Run, who: str = "encoding") -> Curve | None:
        at, values = (run.curve(name).get(key, np.empty(0)) for key in (x, who))
        return (at, values) if len(at) == len(values) and np.isfinite(values).any() else None

    items = _means(runs, read, f"no run has the curve {name} (curves.json)")
    inputs = [found for run in runs if (found := read(run, "input"))]
    if inputs:
        at = inputs[0][0]
        same = [values for where, values in inputs if np.array_equal(where, at)]
        items.append(Line(at, np.mean(same, 0), INPUT, "input"))
    return items
