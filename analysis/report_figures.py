"""The figures of the report page: which there are, what they are called, and what they say."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from analysis import insides, interactive, panels, sagittal
from analysis.anatomy import answer, busiest_units, primitives, select_channels
from analysis.drawing import Axis, Drawing, Missing, Panel, described, in_grid
from analysis.labels import LABELS, read_split
from analysis.runs import Run, best, groups, score
from emaae.data.features import ARTICULATORS, FRAME_RATE_HZ
from emaae.models import CNNAutoEncoder
from emaae.runs.reconstructions import Reconstruction
from emaae.system.errors import UserError

# Runs that are shown in full: the best, and the best of up to three other settings.
MAX_DETAILED = 4
UTTERANCES_OF_BEST, UTTERANCES_OF_OTHERS = 3, 1
MOST = 10 * FRAME_RATE_HZ  # frames of an utterance
N_TILES = 24
MOST_LABELLED = 30  # utterances
OF_UNITS = ("primitives", "unit", "unit-phones", "unit-gestures")


class Shown(NamedTuple):
    """A figure of the page. show: from all runs, or, when of says which, of the one looked at."""

    name: str
    heading: str
    caption: str
    show: Callable[[Sequence[Run]], Panel] | None = None
    of: str = ""
    wide: bool = False


def _epochs(name: str, label: str, **more: Any) -> Callable[[Sequence[Run]], Panel]:
    return lambda runs: panels.over_epochs(runs, name, Axis(label, **more))


SECTIONS: dict[str, list[Shown]] = {
    "Trade-off": [
        Shown(
            "fvu-sparsity",
            "Reconstruction against sparsity",
            "Each run's selected weights; the line is the Pareto front of all runs, those that "
            "no other beats in both measures; the ring is the best run. Right and down is better.",
            panels.fvu_against_sparsity,
        ),
        Shown(
            "sparsity-persistence",
            "Sparsity against persistence",
            "Persistence is the half-life of the encoding's self-similarity over that of the "
            "input's: above 1 the encoding changes more slowly. Right and up is better.",
            panels.sparsity_against_persistence,
        ),
    ],
    "Training": [
        Shown(
            "train-loss",
            "Training loss",
            "Lower is better only at one alpha: the loss weighs its two terms by alpha.",
            lambda runs: panels.losses(runs)[0],
        ),
        Shown(
            "val-loss",
            "Validation loss",
            "On the scale of the training loss; a gap that widens is overfitting.",
            lambda runs: panels.losses(runs)[1],
        ),
        Shown(
            "fvu",
            "Fraction of variance unexplained",
            "How much of the validation split the reconstruction misses, whatever alpha is; "
            "predicting the mean gives 1. Lower is better.",
            _epochs("val/fvu", "val fvu", log=True),
        ),
        Shown(
            "similarity-epochs",
            "Self-similarity while training",
            "At a lag of 80 ms, on a part of the validation split. Higher is more tolerant, if "
            "fvu stays low.",
            _epochs("val/self_similarity_80ms", "self-similarity at 80 ms"),
        ),
    ],
    "Alpha": [
        Shown(
            "alpha-epochs",
            "Alpha",
            "The value of alpha in each epoch; neither direction is better.",
            _epochs("alpha", "alpha", range=(0, None)),
        ),
        Shown(
            "lambda-epochs",
            "Effective weight of the penalty",
            "The weight of the penalty per unit relative to the mse, lambda_eff = alpha / "
            "(1 - alpha) D / C; it compares alphas across encoding sizes.",
            _epochs("lambda_eff", "lambda_eff", log=True),
        ),
        Shown(
            "mse-alpha-epochs",
            "Mse against alpha, along the epochs",
            "The course of training, up to the marker; where a line rises with alpha, "
            "sparsity costs reconstruction. Down is better.",
            panels.mse_along_epochs,
        ),
        Shown(
            "mse-alpha-runs",
            "Mse against alpha, across runs",
            "The same at each run's selected epoch: what an alpha costs once trained. Down is "
            "better.",
            panels.mse_across_runs,
        ),
    ],
    "Shift tolerance": [
        Shown(
            "self-similarity",
            "Self-similarity over time",
            "Mean correlation of a unit with itself after a lag; the dashed line is the "
            "input's own. Above it, the encoding changes less than the signal.",
            panels.self_similarity,
        ),
        Shown(
            "gain",
            "Gain of small shifts",
            "How much a shift of the input, down to a quarter of a frame, moves the encoding, "
            "relative to how much it moves the input. Below 1 is more tolerant than the signal.",
            panels.gain,
        ),
        Shown(
            "lowpass",
            "Smoothed encodings",
            "What is lost when the encoding is low-passed before it is decoded; the dashed "
            "line is the input smoothed alike. Lower is better; below that line the encoding "
            "survives smoothing better than the input.",
            panels.lowpass,
        ),
        Shown(
            "guard",
            "Persistence against participation ratio",
            "Persistence is no evidence when a few slow directions carry most variance: the "
            "participation ratio counts the directions in use. Right and up is better.",
            panels.participation_against_persistence,
        ),
    ],
    "Articulators": [
        Shown(
            "r-channels",
            "Correlation per channel",
            "Pearson r of reconstruction and truth for each channel, at the selected weights; "
            "1 is perfect. Bars reach from the lowest seed to the highest.",
            panels.articulators,
            wide=True,
        ),
    ],
    "Units": [
        Shown(
            "dead",
            "Dead units",
            "Units that never fire on the validation split: unused capacity.",
            _epochs("val/dead", "dead units (fraction)", range=(0, None)),
        ),
        Shown(
            "density",
            "How often units fire",
            "Live units by the fraction of frames on which they fire, selected weights; a peak "
            "at the right means a dense code, a tail at the left units that are rarely used.",
            panels.density,
        ),
    ],
    "One run": [
        Shown(
            "run-losses",
            "Losses of this run",
            "Training and validation loss; the dotted line is the epoch whose weights were "
            "selected. Lower is better at one alpha.",
            of="run",
        ),
        Shown(
            "run-alpha",
            "Alpha, sparsity and dead units of this run",
            "Alpha, sparsity and dead units, as fractions; more zeros are better, dead units "
            "are not.",
            of="run",
        ),
        Shown(
            "encoding",
            "Encoding under the articulators",
            "Above, some channels; below, a row for each unit that fires, ordered by the time "
            "of its peak and shaded by its own maximum. The background colour is 0.",
            of="run utterance",
            wide=True,
        ),
        Shown(
            "reconstruction",
            "Reconstruction",
            "Every channel of a validation utterance, the truth thin over the "
            "reconstruction; r is their Pearson correlation.",
            of="run utterance",
            wide=True,
        ),
    ],
    "Inside its model": [
        Shown(
            "unit",
            "A unit",
            "Left, what it adds to the output: the decoder's response to an impulse minus its "
            "response to zeros. Middle, sensors of a schematic mouth at rest (thin) and at "
            "the strongest frame (bold), magnified. Right, its activation in the utterances "
            "above.",
            of="run unit",
            wide=True,
        ),
        Shown(
            "unit-phones",
            "The phones on which it fires",
            "Mean activation on frames of each phone, in units of its mean over all frames; "
            "known for generated speech only.",
            of="run unit",
        ),
        Shown(
            "unit-gestures",
            "The gestures on which it fires",
            "The same by the articulators that a consonant binds, or all of them for a vowel.",
            of="run unit",
        ),
        Shown(
            "primitives",
            "Decoder primitives",
            "What single units add to the output, ordered by their contribution; rows are "
            "channels, columns are frames, in one colour scale.",
            of="run",
            wide=True,
        ),
        Shown(
            "kernels",
            "First-layer kernels",
            "Weights of the encoder's first layer, the largest first; rows are channels, "
            "columns are frames, in one colour scale.",
            of="run",
            wide=True,
        ),
    ],
}


def collect(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[int, dict[str, list[str]]]]:
    """The page's figures by key, and what may be chosen of each run that is shown in full.

    A key is the figure's name and, for those of one run, its position among the runs and that of
    the utterance or the unit. A figure is {figure, text}, or a text that says why there is none.
    """
    every = [one for shown in SECTIONS.values() for one in shown]
    figures = {one.name: _shown(one.show, runs) for one in every if one.show}
    for i, run in enumerate(runs):
        figures[f"run-losses/{i}"] = _shown(panels.run_losses, run)
        figures[f"run-alpha/{i}"] = _shown(panels.run_alpha, run)
    details = {}
    for n, run in enumerate(shown_in_full(runs)):
        i = runs.index(run)
        found, details[i] = _in_full(run, i, UTTERANCES_OF_OTHERS if n else UTTERANCES_OF_BEST)
        figures |= found
    return figures, details


def shown_in_full(runs: Sequence[Run]) -> list[Run]:
    """The best run and the best of other settings; a run that failed when it is all there is."""
    leaders = [found for members in groups(runs).values() if (found := best(members))]
    leaders.sort(key=score)
    return leaders[:MAX_DETAILED] or [run for run in runs if run.history][:1]


def _in_full(run: Run, i: int, n_utterances: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Figures of run i by key, and what may be chosen.

    Without a model its reconstructions are those that it kept last.
    """
    model, kept = run.model(), run.reconstructions()
    found = kept[max(kept)][:n_utterances] if kept else []
    figures: dict[str, Any] = {}
    encodings = []
    for at, one in enumerate(found):
        cut = Reconstruction(one.name, one.channels, one.truth[:MOST], one.prediction[:MOST])
        if model is not None and one.truth.shape[1] == model.input_dim:
            y, z = answer(model, one.truth)
            encodings.append(z)
            cut = replace(cut, prediction=y[:MOST])
            figures[f"encoding/{i}/{at}"] = _shown(_encoding, cut, z[:MOST])
        rows = [[panel] for panel in insides.reconstruction(cut)]
        figures[f"reconstruction/{i}/{at}"] = _figure(Drawing(rows, share_x=True), height=96)
    may_choose = {"utterances": [one.name for one in found], "units": []}
    if not found:
        figures[f"reconstruction/{i}"] = "This run has kept no reconstructions."
    if model is None:
        figures[f"encoding/{i}"] = "This run has no model, and so no encodings."
        lacking = "This run has no model that can be loaded."
        return figures | {f"{name}/{i}": lacking for name in ("kernels", *OF_UNITS)}, may_choose
    kernels = in_grid(insides.kernels(run, N_TILES), 8)
    figures[f"kernels/{i}"] = _figure(Drawing(kernels), height=240)
    units = np.empty(0, dtype=int)
    if encodings:
        units = busiest_units(model, np.concatenate(encodings), N_TILES)
    if not len(units):
        lacking = "No unit of this model fires on the utterances that were kept."
        return figures | {f"{name}/{i}": lacking for name in ("encoding", *OF_UNITS)}, may_choose
    may_choose["units"] = names = [f"unit {unit}" for unit in units]
    effects = primitives(model, units)
    tiles = insides.montage(effects, names)
    figures[f"primitives/{i}"] = _figure(Drawing(in_grid(tiles, 8)), height=240)
    labels, z_of_labels = _labelled(run, model)
    for at, unit in enumerate(units):
        firing = insides.firing([z[:, unit] for z in encodings], may_choose["utterances"])
        row = [tiles[at], sagittal.moved(effects[at]), firing]
        figures[f"unit/{i}/{at}"] = _figure(Drawing([row], widths=(1, 1.2, 1.6)))
        for name in LABELS:
            figures[f"unit-{name}s/{i}/{at}"] = (
                _shown(insides.by_label, z_of_labels[:, unit], labels[name])
                if labels
                else "Labels are known for generated speech only."
            )
    return figures, may_choose


def _labelled(run: Run, model: CNNAutoEncoder) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Phone and gesture (T,) of frames of the validation split, and its encoding (T, C).

    They are known of generated speech alone; {} for any other.
    """
    folder, recursive = run.config.get("val_dir"), bool(run.config.get("recursive"))
    try:
        found = read_split("val", folder, recursive, MOST_LABELLED)
    except UserError:
        return {}, np.empty(0)
    z = np.concatenate(
        [answer(model, select_channels(one.features, model.input_dim)).z for one in found]
    )
    labels = {name: np.concatenate([one.labels[name] for one in found]) for name in LABELS}
    bound = labels["gesture"]
    labels["gesture"] = np.where(bound == " ".join(ARTICULATORS), "all (vowel)", bound)
    return labels, z


def _encoding(found: Reconstruction, z: np.ndarray) -> Drawing:
    return Drawing([[panel] for panel in insides.encodings(found, z)], heights=(1, 1.6))


def _shown(show: Callable[..., Panel | Drawing], *args: Any) -> Any:
    """The figure of what show draws, or why it draws nothing."""
    try:
        made = show(*args)
    except Missing as why:
        return f"{str(why)[0].upper()}{str(why)[1:]}."
    # The page has the title of a single panel above it.
    return _figure(made if isinstance(made, Drawing) else Drawing([[replace(made, title="")]]))


def _figure(drawing: Drawing, height: int = 340) -> dict[str, Any]:
    figure = interactive.draw(drawing, height)
    figure.layout.template = None  # the page has it once
    return {"figure": json.loads(figure.to_json()), "text": described(drawing)}
