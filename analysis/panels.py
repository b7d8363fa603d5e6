"""One function per figure: it takes axes and runs, and returns the axes.

So a notebook puts a paper's figure together from them:

    figure, axes = plt.subplots(1, 2)
    panels.losses(axes, read_runs("runs/demo"))

Runs of the same settings are one line, the mean over their seeds, in a band from the lowest seed to
the highest. What cannot be drawn raises `Missing`, which says what is missing and why. The figures
of one model (`reconstruction` and below) show the selected weights.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.anatomy import answer, busiest_units, first_kernels, primitives
from analysis.colours import COLOURS, SCHEDULE_COLOURS
from analysis.fronts import hypervolume, pareto_front
from analysis.runs import Run, final, groups, number, score, split_of
from emaae.data.features import ARTICULATORS, CHANNELS, FRAME_RATE_HZ
from emaae.models import CNNAutoEncoder
from emaae.runs.reconstructions import Reconstruction
from emaae.system.errors import UserError

STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (9, 2)))
MARKERS = "os^Dv*XP<>h"
MANY = 12  # settings
INPUT: dict[str, Any] = {"color": "black", "lw": 1.0, "ls": (0, (4, 2)), "zorder": 3}
TRUTH, PREDICTION, ALPHA, SPARSITY = "#1d3557", "#e07a5f", "#b08900", "#3d7a5f"
SHOWN = ("TTY", "TDY", "LLY", "pitch")
MS = 1000 / FRAME_RATE_HZ  # of a frame


class Missing(UserError):
    """What a figure needs and the runs have not."""


class Look(NamedTuple):
    """How a setting is told from the others: by colour and, again, by style."""

    color: str
    style: str | tuple
    marker: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each label of `groups`; at least thirty differ, as lines and as points.

    Where both schedules and something else vary, a schedule is a colour and the rest a style.
    """
    parts = [label.partition(", ") for label in labels]
    schedules, rests = (list(dict.fromkeys(part[i] for part in parts)) for i in (0, 2))
    named = all(schedule in SCHEDULE_COLOURS for schedule in schedules)
    crossed = len(schedules) > 1 and len(rests) > 1
    found = {}
    for i, (label, (schedule, _, rest)) in enumerate(zip(labels, parts)):
        at, form = (schedules.index(schedule), rests.index(rest)) if crossed else (i, i)
        if not named or len(schedules) == 1:
            # Colours that come again come in other styles.
            form += at // len(COLOURS) * (len(rests) if crossed else 3)
            color = COLOURS[at % len(COLOURS)]
        else:
            color = SCHEDULE_COLOURS[schedule]
        found[label] = Look(color, STYLES[form % len(STYLES)], MARKERS[form % len(MARKERS)])
    return found


# ---- over epochs


def losses(axes: np.ndarray, runs: Sequence[Run]) -> np.ndarray:
    """Training and validation loss over epochs, one panel each, (2,) axes of one scale."""
    for panel, name in zip(axes, ("train/loss", "val/loss")):
        over_epochs(panel, runs, name)
        panel.set(title=f"{'training' if name[0] == 't' else 'validation'} loss", ylabel="")
        _log(panel)
    low, high = (f(panel.get_ylim()[i] for panel in axes) for i, f in enumerate((min, max)))
    for panel in axes:
        panel.set_ylim(low, high)
    axes[0].set_ylabel("loss")
    return axes


def losses_by_run(axes: np.ndarray, runs: Sequence[Run]) -> np.ndarray:
    """Training and validation loss of each run, a panel each; the first panel has the legend.

    axes: (rows, columns); those that are left over are hidden. Of more runs than axes those with
    the lowest scores are drawn, in this order.
    """
    runs = [run for run in runs if run.history]
    if len(runs) < 2:
        raise Missing("fewer than two runs have finished an epoch; one alone is in the overview")
    figure, columns = axes.flat[0].figure, axes.shape[1]
    if len(runs) > axes.size:
        figure.suptitle(f"the {axes.size} of {len(runs)} runs with the lowest scores")
        runs = sorted(runs, key=lambda run: (np.nan_to_num(score(run), nan=np.inf), run.name))
    for panel in axes.flat[len(runs) :]:
        panel.set_visible(False)
    for panel in axes.flat[max(0, len(runs) - columns) : len(runs)]:
        panel.tick_params(labelbottom=True)
    for panel, run in zip(axes.flat, runs):
        epochs = run.column("epoch")
        panel.plot(epochs, run.column("train/loss"), color=TRUTH, lw=0.9, label="train")
        panel.plot(epochs, run.column("val/loss"), color=PREDICTION, lw=1.5, label="val")
        if run.selected:
            panel.axvline(run.selected["epoch"], color="0.6", lw=0.8, ls=":", label="selected")
        found = "" if math.isnan(score(run)) else f"  J = {score(run):.3f}"
        panel.set_title(f"{run.name}{found}", loc="left", parse_math=False)
        panel.locator_params(axis="x", integer=True)
        _log(panel)
    axes.flat[0].legend()
    figure.supxlabel("epoch")
    figure.supylabel("loss")
    return axes


def alpha(axes: np.ndarray, runs: Sequence[Run]) -> np.ndarray:
    """What the schedules did, and what the encodings made of it: (2,) axes, both from 0 to 1."""
    for panel, name in zip(axes, ("alpha", "val/sparsity")):
        over_epochs(panel, runs, name)
        panel.set_ylim(0, 1)
    axes[0].set_ylabel("alpha")
    axes[1].set_ylabel("val sparsity (fraction of zeros)")
    return axes


def over_epochs(axes: Axes, runs: Sequence[Run], name: str) -> Axes:
    """One metric over epochs: the mean over the seeds that got so far, and the range of them."""
    found = {
        label: [run for run in members if np.isfinite(run.column(name)).any()]
        for label, members in groups(runs).items()
    }
    if not any(found.values()):
        raise Missing(f"no run has logged {name}")
    for label, look in looks(list(found)).items():
        curves = [(run.column("epoch"), run.column(name)) for run in found[label]]
        if curves:
            _mean_and_range(axes, curves, look, label)
    axes.set(xlabel="epoch", ylabel=name.replace("/", " "))
    axes.locator_params(axis="x", integer=True)
    return axes


def mse_against_alpha(axes: np.ndarray, runs: Sequence[Run]) -> np.ndarray:
    """What alpha costs, (2,) axes: epoch by epoch within runs, and across runs at the selected one.

    Within a run every point is an epoch, and the ring is the selected one.
    """
    if not any(run.history for run in runs):
        raise Missing("no run has finished an epoch")
    members, split = groups(runs), split_of(runs)
    for label, look in looks(list(members)).items():
        for run in members[label]:
            x, y = run.column("alpha"), run.column("val/mse")
            axes[0].plot(x, y, color=look.color, ls=look.style, lw=0.6, alpha=0.5)
            axes[0].plot(x, y, ".", color=look.color, ms=2.5, alpha=0.7, mew=0)
            chosen = final(run, "alpha"), final(run, "val/mse")
            axes[0].plot(*chosen, "o", mfc="none", mec=look.color)
    if any(run.selected for run in runs):
        points(axes[1], runs, "select/alpha", f"{split}/mse")
    for panel, where in zip(axes, ("within runs", "across runs, selected epoch")):
        panel.set(xlabel="alpha", title=where)
        _log(panel)
    axes[0].set_ylabel("val mse (sd²)")
    axes[1].set_ylabel(f"{split} mse (sd²)")
    return axes


# ---- across runs


def points(axes: Axes, runs: Sequence[Run], x: str, y: str) -> Axes:
    """One metric of the selected weights against another, a point per run. Raises Missing.

    Of more settings than a legend can tell apart, only the schedules are told apart.
    """
    drawn = 0
    members = groups(runs)
    if len(members) > MANY and len({run.schedule for run in runs}) > 1:
        members = {}
        for run in runs:
            members.setdefault(run.schedule, []).append(run)
    for label, look in looks(list(members)).items():
        pairs = np.array([(final(run, x), final(run, y)) for run in members[label]])
        pairs = pairs[np.isfinite(pairs).all(1)]
        drawn += len(pairs)
        if len(pairs):
            axes.plot(*pairs.T, look.marker, color=look.color, ms=4.5, mew=0, alpha=0.85)
            axes.lines[-1].set_label(label)
    if not drawn:
        raise Missing(f"no run has both {x} and {y}")
    axes.set(xlabel=x, ylabel=y)
    return axes


def fvu_against_sparsity(axes: Axes, runs: Sequence[Run]) -> Axes:
    """The trade that alpha makes, and the Pareto front of all runs: right and down is better."""
    split = split_of(runs)
    points(axes, runs, f"{split}/sparsity", f"{split}/fvu")
    costs = [(final(run, f"{split}/fvu"), 1 - final(run, f"{split}/sparsity")) for run in runs]
    if len(runs) > 1:
        fvu, dense = pareto_front(costs).T
        look: dict[str, Any] = {"where": "pre", "color": "0.45", "lw": 0.9, "zorder": 1}
        label = f"Pareto front, hypervolume {hypervolume(costs):.3f}"
        axes.step(1 - dense, fvu, **look, label=label)
    axes.set(xlabel=f"{split} sparsity (fraction of zeros)", ylabel=f"{split} fvu")
    _log(axes)
    return axes


def sparsity_against_persistence(axes: Axes, runs: Sequence[Run]) -> Axes:
    """The aim, sparse and tolerant to shifts: right and up is better; 1 is the input's own."""
    split = split_of(runs)
    points(axes, runs, "shift/persistence", f"{split}/sparsity")
    axes.axvline(1, **INPUT, label="input")
    axes.set(
        xlabel="persistence (half-life of encoding / input)",
        ylabel=f"{split} sparsity (fraction of zeros)",
    )
    return axes


def self_similarity(axes: Axes, runs: Sequence[Run]) -> Axes:
    """How alike the encoding is to itself some time later; the input is the baseline."""
    _curve(axes, runs, "self_similarity", "lag_ms")
    axes.axhline(0, color="0.8", lw=0.6, zorder=0)
    axes.set(xlabel="lag (ms)", ylabel="self-similarity", ylim=(None, 1))
    return axes


def lowpass(axes: Axes, runs: Sequence[Run]) -> Axes:
    """Fvu after the encoding was smoothed in time; the input, smoothed likewise, is the baseline.

    The cutoff's second axis is in Hz.
    """
    _curve(axes, runs, "lowpass", "cutoff")
    nyquist = FRAME_RATE_HZ / 2
    to_hz = (lambda c: np.multiply(c, nyquist), lambda hz: np.divide(hz, nyquist))
    above = axes.secondary_xaxis("top", functions=to_hz)
    above.set_xlabel("cutoff (Hz)")
    axes.set(xlabel="cutoff (fraction of Nyquist)", ylabel="fvu after smoothing")
    _log(axes)
    return axes


def shift_tolerance(axes: np.ndarray, runs: Sequence[Run]) -> np.ndarray:
    """`self_similarity` beside `lowpass`, (2,) axes: neither is evidence without the other."""
    self_similarity(axes[0], runs)
    lowpass(axes[1], runs)
    return axes


def articulators(axes: Axes, runs: Sequence[Run]) -> Axes:
    """Pearson r of every channel: mean of the seeds of a setting, and their range."""
    prefix = f"{split_of(runs)}/r/"
    keys = dict.fromkeys(k for run in runs for k in (*run.selected, *run.metrics))
    channels = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    if not channels:
        raise Missing("no run has measured the channels of selected weights")
    members = groups(runs)
    aside = np.linspace(-0.3, 0.3, len(members)) if len(members) > 1 else [0.0]
    for (label, look), dx in zip(looks(list(members)).items(), aside):
        r = np.array([[final(run, prefix + name) for name in channels] for run in members[label]])
        r = r[np.isfinite(r).any(1)]
        if len(r):
            low, mean, high = np.nanmin(r, 0), np.nanmean(r, 0), np.nanmax(r, 0)
            x = np.arange(len(channels)) + dx
            axes.vlines(x, low, high, color=look.color, lw=1, alpha=0.6)
            axes.plot(x, mean, look.marker, color=look.color, ms=3.5, mew=0, label=label)
    for boundary in np.arange(len(channels) - 1) + 0.5:
        axes.axvline(boundary, color="0.9", lw=0.6, zorder=0)
    axes.set_xticks(range(len(channels)), channels)
    axes.set(xlim=(-0.5, len(channels) - 0.5), ylabel=f"{prefix[:-3]} r (Pearson)")
    return axes


# ---- one model


def through(run: Run, name: str | None = None) -> tuple[Reconstruction, np.ndarray]:
    """A kept utterance as the selected weights see it, and its encoding z (T, C).

    name: the utterance; without one, that nearest to 5 s. Raises Missing.
    """
    model = _model(run)
    kept = _kept(run, model)
    if name is not None and name not in kept:
        raise Missing(f"{run.name} has not kept {name}: it has {', '.join(sorted(kept))}")
    if name is None:
        name = min(kept, key=lambda one: abs(len(kept[one]) - 5 * FRAME_RATE_HZ))
    found = answer(model, kept[name])
    return Reconstruction(name, channels_of(model.input_dim), kept[name], found.y), found.z


def channels_of(input_dim: int) -> tuple[str, ...]:
    """The names of a model's channels: 14, or 13 without loudness."""
    return tuple(n for n in CHANNELS if n != "loudness" or input_dim == len(CHANNELS))


def reconstruction(axes: np.ndarray, run: Run) -> np.ndarray:
    """Truth and reconstruction of every channel of an utterance, (D,) axes, in their own units."""
    found, _ = through(run)
    seconds = np.arange(len(found.truth)) / FRAME_RATE_HZ
    for i, (panel, name, r) in enumerate(zip(axes, found.channels, found.r())):
        y, x = found.prediction[:, i], found.truth[:, i]
        panel.plot(seconds, y, color=PREDICTION, lw=1.8, label="reconstruction")
        panel.plot(seconds, x, color=TRUTH, lw=0.7, label="truth")
        unit = "z" if name in ARTICULATORS else "Hz" if name == "pitch" else ""
        panel.set_ylabel(f"{name}\n{unit}".strip(), rotation=0, ha="right", va="center")
        agreement = "undefined" if math.isnan(r) else f"{r:.3f}"
        panel.annotate(f"r = {agreement}", (1.01, 0.5), xycoords="axes fraction", va="center")
        panel.margins(x=0)
        panel.locator_params(axis="y", nbins=3)
        panel.label_outer()
    axes[-1].set_xlabel("seconds")
    axes[0].set_title(f"{found.name}, run {run.name}", loc="left", parse_math=False)
    axes[0].legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98))
    return axes


def traces(axes: Axes, found: Reconstruction, shown: Sequence[str] = SHOWN) -> Axes:
    """Truth and reconstruction of some channels, one above the other, each in units of its sd."""
    seconds = np.arange(len(found.truth)) / FRAME_RATE_HZ
    r = found.r()
    for row, name in enumerate(shown):
        i = found.channels.index(name)
        mean, sd = found.truth[:, i].mean(), max(found.truth[:, i].std(), 1e-12)
        for values, color, width, label in (
            (found.prediction, PREDICTION, 2.6, "reconstruction"),
            (found.truth, TRUTH, 1.1, "truth"),
        ):
            shifted = (values[:, i] - mean) / sd - 5 * row
            axes.plot(seconds, shifted, color=color, lw=width, label=None if row else label)
        axes.annotate(
            f"{name}\nr = {r[i]:.3f}",
            (1.01, -5 * row),
            xycoords=("axes fraction", "data"),
            va="center",
        )
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 0.97))
    axes.set(yticks=[], xlim=(0, len(found.truth) / FRAME_RATE_HZ))
    axes.spines["left"].set_visible(False)
    return axes


def raster(axes: Axes, z: np.ndarray) -> Axes:
    """An encoding z (T, C): each live unit over its own maximum, in the order of its peak."""
    alive = z[:, z.max(0) > 0]
    if not alive.size:
        raise Missing("no unit fires on the kept utterance")
    alive = alive / alive.max(0)
    order = np.argsort(alive.argmax(0), kind="stable")
    axes.imshow(
        alive[:, order].T,
        aspect="auto",
        cmap="Greys",
        vmin=0,
        vmax=1,
        extent=(0, len(z) / FRAME_RATE_HZ, alive.shape[1], 0),
        interpolation="nearest",
    )
    axes.set(xlabel="seconds", ylabel="unit, by time of peak")
    return axes


def encodings(axes: np.ndarray, run: Run) -> np.ndarray:
    """The encoding of an utterance under what it encodes: (2,) axes, traces over raster."""
    found, z = through(run)
    traces(axes[0], found)
    raster(axes[1], z)
    axes[1].set_title(
        f"encoding of {found.name}: {z.shape[1]} units, {(z == 0).mean():.0%} zeros",
        loc="left",
        parse_math=False,
    )
    return axes


def kernels(axes: np.ndarray, run: Run) -> np.ndarray:
    """First-layer weights, a panel each, (rows, columns) axes, the largest norm first.

    A row of a panel is a channel, a column a frame; the colours of all panels are one scale,
    symmetric about 0.
    """
    model = _model(run)
    _montage(axes, first_kernels(model, axes.size), "weight (per sd)")
    n = model.encoder[0].conv.out_channels
    axes.flat[0].figure.suptitle(
        f"first-layer kernels of {run.name}, {min(n, axes.size)} of {n}, the largest norm first",
        parse_math=False,
    )
    return axes


def decoder_primitives(axes: np.ndarray, run: Run) -> np.ndarray:
    """What single units add to the output, a panel each, (rows, columns) axes.

    The decoder's answer to an impulse of height 1 less its answer to silence; the units that put
    most into the reconstruction of the kept utterances come first. Colours as in `kernels`.
    """
    model = _model(run)
    z = np.concatenate([answer(model, x).z for x in _kept(run, model).values()])
    units = busiest_units(model, z, axes.size)
    if not len(units):
        raise Missing(f"no unit of {run.name} fires on the kept utterances")
    _montage(axes, primitives(model, units), "answer to an impulse (sd)")
    for panel, unit in zip(axes.flat, units):
        panel.set_title(f"unit {unit}", fontsize=6, pad=2)
    axes.flat[0].figure.suptitle(
        f"decoder primitives of {run.name}, the {len(units)} busiest of {model.inner_size} units",
        parse_math=False,
    )
    return axes


def overview(axes: dict[str, Axes], run: Run) -> dict[str, Axes]:
    """A run at a glance: axes loss, alpha, traces, encoding."""
    if not run.history:
        raise Missing(f"{run.name} has finished no epoch")
    epochs = run.column("epoch")
    axes["loss"].plot(epochs, run.column("train/loss"), color=TRUTH, lw=1.2, label="train loss")
    axes["loss"].plot(epochs, run.column("val/loss"), color=PREDICTION, lw=1.8, label="val loss")
    axes["loss"].set_ylabel("loss")
    _log(axes["loss"])
    for name, color in (("alpha", ALPHA), ("val/sparsity", SPARSITY)):
        label = name.replace("/", " ")
        axes["alpha"].plot(epochs, run.column(name), color=color, lw=1.8, label=label)
    axes["alpha"].set(ylim=(0, 1), xlabel="epoch", ylabel="fraction")
    for name in ("loss", "alpha"):
        axes[name].legend()
        axes[name].locator_params(axis="x", integer=True)
    encodings(np.array([axes["traces"], axes["encoding"]]), run)
    return axes


# ---- what they share


def _mean_and_range(axes: Axes, curves: list[tuple], look: Look, label: str) -> None:
    """curves: pairs of x (n,) and y (n,), whose x may differ in length."""
    x = np.unique(np.concatenate([x for x, _ in curves]))
    y = np.full((len(curves), len(x)), np.nan)
    for row, (at, values) in zip(y, curves):
        row[np.searchsorted(x, at)] = values
    known = np.isfinite(y).any(0)
    x, known_y = x[known], y[:, known]
    axes.plot(x, np.nanmean(known_y, 0), color=look.color, ls=look.style, label=label)
    if len(curves) > 1:
        axes.fill_between(
            x, np.nanmin(known_y, 0), np.nanmax(known_y, 0), color=look.color, alpha=0.18, lw=0
        )


def _curve(axes: Axes, runs: Sequence[Run], name: str, x: str) -> None:
    def read(run: Run, who: str) -> tuple[np.ndarray, np.ndarray] | None:
        curve = run.curves.get(name) or {}
        values = np.array([number(value) for value in curve.get(who, ())])
        at = np.array([number(value) for value in curve.get(x, ())])
        return (at, values) if len(at) == len(values) and np.isfinite(values).any() else None

    members, inputs = groups(runs), []
    for label, look in looks(list(members)).items():
        curves = [found for run in members[label] if (found := read(run, "encoding"))]
        inputs += [found for run in members[label] if (found := read(run, "input"))]
        if curves:
            _mean_and_range(axes, curves, look, label)
    if not axes.lines:
        raise Missing(f"no run has the curve {name} (curves.json)")
    if inputs:
        at = inputs[0][0]
        same = [values for where, values in inputs if np.array_equal(where, at)]
        axes.plot(at, np.mean(same, 0), **INPUT, label="input")


def _log(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.dataLim.intervaly
    if 0 < low == high:  # a single point would get a whole decade
        axes.set_ylim(low / 1.5, high * 1.5)
    # Most span little more than a decade: powers of ten alone would leave one label.
    low, high = axes.get_ylim()
    subs = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 1000 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _model(run: Run) -> CNNAutoEncoder:
    model = run.model()
    if model is None:
        raise Missing(f"{run.name} has no model (best.pth) that can be loaded")
    return model


def _kept(run: Run, model: CNNAutoEncoder) -> dict[str, np.ndarray]:
    """Features of the kept utterances that the model can read, by name."""
    kept = {name: x for name, x in run.features().items() if x.shape[1] == model.input_dim}
    if not kept:
        raise Missing(f"{run.name} has kept no reconstructions")
    return kept


def _montage(axes: np.ndarray, images: np.ndarray, label: str) -> None:
    """images (n, D, W) on axes (rows, columns), as many as fit, in one symmetric colour scale."""
    channels = channels_of(images.shape[1])
    most, half = max(float(np.abs(images).max()), 1e-12), images.shape[2] / 2 * MS
    for panel, image in itertools.zip_longest(axes.flat, images):
        if image is None:
            panel.set_visible(False)
            continue
        drawn = panel.imshow(
            image,
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
            aspect="auto",
            extent=(-half, half, len(channels) - 0.5, -0.5),
            interpolation="nearest",
        )
        panel.set_yticks(range(len(channels)), channels, fontsize=5)
        panel.tick_params(length=1.5)
        panel.tick_params(axis="x", labelsize=6)
        for side in ("top", "right"):
            panel.spines[side].set_visible(True)
    columns = axes.shape[1]
    for i, panel in enumerate(axes.flat[: len(images)]):
        if i % columns:
            panel.set_yticks([])
        if i + columns < len(images):
            panel.set_xticklabels([])
        else:
            panel.set_xlabel("ms", fontsize=6, labelpad=1)
    bar = axes.flat[0].figure.colorbar(drawn, ax=list(axes.flat), shrink=0.5, aspect=30, pad=0.01)
    bar.set_label(label)
