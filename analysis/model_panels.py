"""The panels of one model: utterances through it, its encodings, kernels and units.

Panels as those of `analysis.panels`, of the selected weights. What cannot be drawn raises
`Missing`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis import kernels
from analysis.colours import PREDICTION, TRUTH
from analysis.drawing import Axis, Drawing, Image, Line, Missing, Panel, Style, Text
from analysis.runs import Run
from emaae.data.features import ARTICULATORS, FRAME_RATE_HZ
from emaae.models import CNNAutoEncoder
from emaae.runs.reconstructions import Reconstruction
from emaae.shift import FRAME_MS

TRACED = ("TTY", "TDY", "LLY", "pitch")
MAX_LABELS, N_TILES = 12, 24
EPS = 1e-12  # in place of a scale of 0


def model_of(run: Run) -> CNNAutoEncoder:
    """The selected weights. Raises Missing."""
    model = run.model()
    if model is None:
        raise Missing(f"run {run.name} has no model (best.pth) that can be loaded")
    return model


def kept_by(run: Run, model: CNNAutoEncoder) -> dict[str, Reconstruction]:
    """The kept utterances whose channels the model reads, by name. Raises Missing."""
    kept = {one.name: one for one in run.reconstructions() if len(one.truth.T) == model.input_dim}
    if not kept:
        raise Missing(f"run {run.name} has kept no reconstructions")
    return kept


def autoencode(run: Run, name: str | None = None) -> tuple[Reconstruction, np.ndarray]:
    """A kept utterance as the selected weights see it, and its encoding z (T, C).

    name: the utterance; without one, that nearest to 5 s. Raises Missing.
    """
    model = model_of(run)
    kept = kept_by(run, model)
    if name is None:
        name = min(kept, key=lambda one: abs(len(kept[one].truth) - 5 * FRAME_RATE_HZ))
    if name not in kept:
        raise Missing(f"run {run.name} has not kept {name}: it has {', '.join(sorted(kept))}")
    y, z = kernels.autoencode(model, kept[name].truth)
    return replace(kept[name], prediction=y), z


def reconstruction(found: Reconstruction, title: str = "") -> Drawing:
    """Truth and reconstruction of every channel of an utterance, a panel each, in its own unit."""
    rows = []
    for i, (name, r) in enumerate(zip(found.channels, found.correlations())):
        truth, prediction = found.truth[:, i], found.prediction[:, i]
        unit = " z" if name in ARTICULATORS else " Hz" if name == "pitch" else ""
        lines = _truth_over_prediction(truth, prediction, labelled=i == 0)
        texts = [Text(_agreement(r), float(np.nanmean(truth)))]
        x = _seconds_of(truth, "seconds" if i == len(found.channels) - 1 else "")
        rows.append([Panel(x, Axis(name + unit), lines, texts=texts)])
    return Drawing(rows, title, share_x=True, legend=True)


def encodings(found: Reconstruction, z: np.ndarray, title: str = "") -> Drawing:
    """Some channels, each divided by its sd, and below them their encoding z (T, C).

    Each live unit is divided by its maximum; units are in the order of their peaks.
    """
    alive = z[:, z.max(0) > 0]
    if not alive.size:
        raise Missing("no unit fires on the kept utterance")
    items, texts, r = [], [], found.correlations()
    for row, name in enumerate(TRACED):
        i = found.channels.index(name)
        mean, sd = found.truth[:, i].mean(), max(found.truth[:, i].std(), EPS)
        x, y = ((v[:, i] - mean) / sd - 5 * row for v in (found.truth, found.prediction))
        items += _truth_over_prediction(x, y, labelled=row == 0)
        texts.append(Text(f"{name}\n{_agreement(r[i])}", -5.0 * row))
    traces = Panel(_seconds_of(z), Axis(ticks=()), items, texts=texts)

    alive = alive / alive.max(0)
    order = np.argsort(alive.argmax(0), kind="stable")
    where = (0, len(z) / FRAME_RATE_HZ), (0, alive.shape[1])
    image = Image(alive[:, order].T, *where, "of the unit's maximum")
    counts = f"{alive.shape[1]} of {z.shape[1]} units fire, {(z == 0).mean():.0%} zeros"
    units = Axis("unit, by time of peak", whole=True)
    raster = Panel(Axis("seconds"), units, [image], counts)
    return Drawing([[traces], [raster]], title, heights=(1, 1.6))


def first_kernels(model: CNNAutoEncoder, n: int = N_TILES) -> list[Panel]:
    """First-layer weights, a panel each, the largest norm first."""
    found = kernels.first_kernels(model, n)
    return _montage(found, [f"no. {i + 1}" for i in range(len(found))], "weight (per sd)")


def primitives(effects: np.ndarray, units: np.ndarray) -> list[Panel]:
    """What single units add to the output, (n, D, W) of `kernels.primitives`, a panel each."""
    return _montage(effects, [f"unit {unit}" for unit in units], "response (sd)")


def firing(fired: Mapping[str, np.ndarray]) -> Panel:
    """Activations (T,) of one unit in utterances by name, divided by the maximum of all."""
    high = max(EPS, *(float(z.max()) for z in fired.values()))
    items, texts = [], []
    for row, (name, z) in enumerate(fired.items()):
        items.append(Line(_seconds(z), z / high - 1.2 * row, Style(TRUTH)))
        texts.append(Text(name.rpartition("/")[2], -1.2 * row))
    return Panel(Axis("seconds"), Axis(ticks=()), items, "activation", texts=texts)


def by_label(z: np.ndarray, labels: np.ndarray) -> Panel:
    """A unit's mean over frames of each label, z and labels (T,), relative to its overall mean."""
    names = np.unique(labels)
    means = np.array([z[labels == name].mean() for name in names], dtype=float)
    means /= max(float(z.mean()), EPS)
    first = np.argsort(-means, kind="stable")[:MAX_LABELS]
    points = Line(np.arange(len(first)), means[first], Style(TRUTH), points=True)
    x = Axis(range=(-0.5, len(first) - 0.5), ticks=list(enumerate(map(str, names[first]))))
    return Panel(x, Axis("times its mean", range=(0, None)), [points], levels=(1,))


# ---- what they share


def _seconds(frames: np.ndarray) -> np.ndarray:
    return np.arange(len(frames)) / FRAME_RATE_HZ


def _seconds_of(frames: np.ndarray, label: str = "") -> Axis:
    return Axis(label, range=(0, len(frames) / FRAME_RATE_HZ))


def _agreement(r: float) -> str:
    return "r = undefined" if np.isnan(r) else f"r = {r:.3f}"


def _truth_over_prediction(truth: np.ndarray, prediction: np.ndarray, labelled: bool) -> list[Line]:
    names = ("reconstruction", "truth") if labelled else ("", "")
    return [
        Line(_seconds(prediction), prediction, Style(PREDICTION), names[0], width=2.2),
        Line(_seconds(truth), truth, Style(TRUTH), names[1], width=0.9),
    ]


def _montage(images: np.ndarray, titles: Sequence[str], label: str) -> list[Panel]:
    """images (n, D, W), rows channels and columns frames, in one scale symmetric about 0."""
    channels = kernels.form_of(images.shape[1]).channels
    high, half = max(float(np.abs(images).max()), EPS), images.shape[2] / 2 * FRAME_MS
    x = Axis("ms", ticks=[(at, f"{at:.0f}") for at in (-half / 2, 0, half / 2)])
    y = Axis(ticks=[(i + 0.5, name) for i, name in enumerate(channels)])
    where = (-half, half), (0, len(channels))
    return [
        Panel(x, y, [Image(image, *where, label, high, signed=True)], title)
        for image, title in zip(images, titles)
    ]
