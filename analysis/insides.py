"""The panels of one model: utterances through it, its encodings, kernels and units.

Panels as those of `analysis.panels`, of the selected weights. What cannot be drawn raises
`Missing`.
"""

import math
from collections.abc import Sequence

import numpy as np

from analysis.anatomy import answer, busiest_units, channels_of, first_kernels, primitives
from analysis.colours import PREDICTION, TRUTH
from analysis.drawing import Axis, Drawing, Image, Line, Look, Missing, Panel
from analysis.panels import run_alpha, run_losses
from analysis.runs import Run
from emaae.data.features import ARTICULATORS, FRAME_RATE_HZ
from emaae.models import CNNAutoEncoder
from emaae.runs.reconstructions import Reconstruction
from emaae.shift import FRAME_MS

SHOWN = ("TTY", "TDY", "LLY", "pitch")


def through(run: Run, name: str | None = None) -> tuple[Reconstruction, np.ndarray]:
    """A kept utterance as the selected weights see it, and its encoding z (T, C).

    name: the utterance; without one, that nearest to 5 s. Raises Missing.
    """
    model = model_of(run)
    kept = kept_by(run, model)
    if name is not None and name not in kept:
        raise Missing(f"{run.name} has not kept {name}: it has {', '.join(sorted(kept))}")
    if name is None:
        name = min(kept, key=lambda one: abs(len(kept[one]) - 5 * FRAME_RATE_HZ))
    found = answer(model, kept[name])
    return Reconstruction(name, channels_of(model.input_dim), kept[name], found.y), found.z


def reconstruction(found: Reconstruction) -> list[Panel]:
    """Truth and reconstruction of every channel of an utterance, a panel each, in its own unit."""
    panels = []
    span = (0, len(found.truth) / FRAME_RATE_HZ)
    for i, (name, r) in enumerate(zip(found.channels, found.correlations())):
        truth, prediction = found.truth[:, i], found.prediction[:, i]
        agreement = "undefined" if math.isnan(r) else f"{r:.3f}"
        unit = " z" if name in ARTICULATORS else " Hz" if name == "pitch" else ""
        panels.append(
            Panel(
                Axis("seconds" if i == len(found.channels) - 1 else "", range=span),
                Axis(name + unit),
                _truth_and_prediction(truth, prediction, labelled=i == 0),
                notes=[(float(np.nanmean(truth)), f"r = {agreement}")],
            )
        )
    return panels


def traces(found: Reconstruction) -> Panel:
    """Truth and reconstruction of `SHOWN`, one above the other, each in units of its sd."""
    items, notes, r = [], [], found.correlations()
    for row, name in enumerate(SHOWN):
        i = found.channels.index(name)
        mean, sd = found.truth[:, i].mean(), max(found.truth[:, i].std(), 1e-12)
        x, y = ((v[:, i] - mean) / sd - 5 * row for v in (found.truth, found.prediction))
        items += _truth_and_prediction(x, y, labelled=row == 0)
        notes.append((-5.0 * row, f"{name}\nr = {r[i]:.3f}"))
    span = (0, len(found.truth) / FRAME_RATE_HZ)
    return Panel(Axis(range=span), Axis(ticks=()), items, notes=notes)


def raster(z: np.ndarray) -> Panel:
    """An encoding z (T, C): each live unit over its own maximum, in the order of its peak."""
    alive = z[:, z.max(0) > 0]
    if not alive.size:
        raise Missing("no unit fires on the kept utterance")
    alive = alive / alive.max(0)
    order = np.argsort(alive.argmax(0), kind="stable")
    image = Image(alive[:, order].T, (0, len(z) / FRAME_RATE_HZ), (0, alive.shape[1]))
    counts = f"{alive.shape[1]} of {z.shape[1]} units fire, {(z == 0).mean():.0%} zeros"
    return Panel(Axis("seconds"), Axis("unit, by time of peak"), [image], counts)


def encodings(found: Reconstruction, z: np.ndarray) -> list[Panel]:
    """The encoding of an utterance under what it encodes: traces over raster."""
    return [traces(found), raster(z)]


def kernels(run: Run, n: int = 24) -> list[Panel]:
    """First-layer weights, a panel each, the largest norm first.

    A row of a panel is a channel, a column a frame; the colours of all panels are one scale,
    symmetric about 0.
    """
    found = first_kernels(model_of(run), n)
    return montage(found, [f"no. {i + 1}" for i in range(len(found))])


def decoder_primitives(run: Run, n: int = 24) -> list[Panel]:
    """The contributions of single units to the output, a panel each, strongest first.

    The decoder's answer to an impulse of height 1 less its answer to silence, colours as in
    `kernels`; the order is that of what units put into the reconstruction of kept utterances.
    """
    model = model_of(run)
    z = np.concatenate([answer(model, x).z for x in kept_by(run, model).values()])
    units = busiest_units(model, z, n)
    if not len(units):
        raise Missing(f"no unit of {run.name} fires on the kept utterances")
    return montage(primitives(model, units), [f"unit {unit}" for unit in units])


def firing(fired: Sequence[np.ndarray], names: Sequence[str]) -> Panel:
    """When one unit fires (T,) in some utterances, one above the other, over its own maximum."""
    most = max(1e-12, *(float(z.max()) for z in fired))
    items, notes = [], []
    for row, (z, name) in enumerate(zip(fired, names)):
        items.append(Line(_seconds(z), z / most - 1.2 * row, Look(TRUTH)))
        notes.append((-1.2 * row, name.rpartition("/")[2]))
    return Panel(Axis("seconds"), Axis(ticks=()), items, "activation", notes=notes)


def by_label(z: np.ndarray, labels: np.ndarray) -> Panel:
    """How strongly one unit (T,) fires on frames of the 12 labels (T,) where it does most.

    In units of its mean over all frames: 1 is the mean.
    """
    names = np.unique(labels)
    means = np.array([z[labels == name].mean() for name in names], dtype=float)
    means /= max(float(z.mean()), 1e-12)
    first = np.argsort(-means, kind="stable")[:12]
    points = Line(np.arange(len(first)), means[first], Look(TRUTH), points=True)
    x = Axis(range=(-0.5, len(first) - 0.5), ticks=list(enumerate(map(str, names[first]))))
    return Panel(x, Axis("times its mean", range=(0, None)), [points], levels=(1,))


def overview(run: Run) -> Drawing:
    """A run at a glance: its losses, its alpha, an utterance and its encoding."""
    rows = list(zip((run_losses(run), run_alpha(run)), encodings(*through(run))))
    return Drawing(rows, widths=(1, 1.9))


def model_of(run: Run) -> CNNAutoEncoder:
    """The selected weights. Raises Missing."""
    model = run.model()
    if model is None:
        raise Missing(f"{run.name} has no model (best.pth) that can be loaded")
    return model


def kept_by(run: Run, model: CNNAutoEncoder) -> dict[str, np.ndarray]:
    """Features (T, D) of the kept utterances that the model can read, by name. Raises Missing."""
    kept = {name: x for name, x in run.features().items() if x.shape[1] == model.input_dim}
    if not kept:
        raise Missing(f"{run.name} has kept no reconstructions")
    return kept


# ---- what they share


def _seconds(frames: np.ndarray) -> np.ndarray:
    return np.arange(len(frames)) / FRAME_RATE_HZ


def _truth_and_prediction(truth: np.ndarray, prediction: np.ndarray, labelled: bool) -> list[Line]:
    names = ("reconstruction", "truth") if labelled else ("", "")
    return [
        Line(_seconds(prediction), prediction, Look(PREDICTION), names[0], width=2.2),
        Line(_seconds(truth), truth, Look(TRUTH), names[1], width=0.9),
    ]


def montage(images: np.ndarray, titles: Sequence[str]) -> list[Panel]:
    """images (n, D, W), a panel each, in one colour scale that is symmetric about 0."""
    channels = channels_of(images.shape[1])
    most, half = max(float(np.abs(images).max()), 1e-12), images.shape[2] / 2 * FRAME_MS
    ticks = [(i + 0.5, name) for i, name in enumerate(channels)]
    return [
        Panel(
            Axis("ms", ticks=[(at, f"{at:.0f}") for at in (-half / 2, 0, half / 2)]),
            Axis(ticks=ticks),
            [Image(image, (-half, half), (0, len(channels)), most, signed=True)],
            title,
        )
        for image, title in zip(images, titles)
    ]
