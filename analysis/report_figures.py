"""The figures of the report page, by their names in report.html."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from analysis import interactive, kernels, model_panels, panels, sagittal
from analysis.costs import Codec
from analysis.drawing import Axis, Drawing, Missing, Panel, described, in_grid
from analysis.labels import LABELS, read_split
from analysis.runs import Run, best, groups
from emaae.data.features import ARTICULATORS, FRAME_RATE_HZ
from emaae.models import CNNAutoEncoder
from emaae.system.errors import UserError

# Runs that are shown in full: the best, and the best of up to three other settings.
MAX_IN_FULL = 4
UTTERANCES_OF_BEST, UTTERANCES_OF_OTHERS = 3, 1
MAX_FRAMES = 10 * FRAME_RATE_HZ  # of an utterance
MAX_LABELLED = 30  # utterances


def _epochs(name: str, label: str, **more: Any) -> Callable[[Sequence[Run]], Panel]:
    return lambda runs: panels.over_epochs(runs, name, Axis(label, **more))


OF_RUNS: dict[str, Callable[[Sequence[Run]], Panel]] = {
    "fvu-sparsity": panels.fvu_against_sparsity,
    "sparsity-persistence": panels.sparsity_against_persistence,
    "train-loss": lambda runs: panels.losses(runs)[0],
    "val-loss": lambda runs: panels.losses(runs)[1],
    "fvu": _epochs("val/fvu", "val fvu", log=True),
    "similarity-epochs": _epochs("val/self_similarity_80ms", "self-similarity at 80 ms"),
    "alpha-epochs": _epochs("alpha", "alpha", range=(0, None)),
    "lambda-epochs": _epochs("lambda_eff", "lambda_eff", log=True),
    "mse-alpha-epochs": panels.mse_along_epochs,
    "mse-alpha-runs": panels.mse_across_runs,
    "self-similarity": panels.self_similarity,
    "gain": panels.gain,
    "lowpass": panels.lowpass,
    "guard": panels.participation_against_persistence,
    "r-channels": panels.articulators,
    "dead": _epochs("val/dead", "dead units (fraction)", range=(0, None)),
    "density": panels.density,
}
OF_MODEL = ("encoding", "kernels", "primitives", "unit", "unit-phones", "unit-gestures")


def collect(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[int, dict[str, list[str]]]]:
    """The page's figures by key, and what may be chosen of each run that is shown in full.

    A key is the figure's name and, for those of one run, its position among the runs and that of
    the utterance or the unit, if it has any. A figure is {figure, text}, or a text that says why
    there is none.
    """
    figures = {name: _shown(show, runs) for name, show in OF_RUNS.items()}
    for i, run in enumerate(runs):
        figures[f"run-losses/{i}"] = _shown(panels.run_losses, run)
        figures[f"run-alpha/{i}"] = _shown(panels.run_alpha, run)
    # The best run of each setting or, if no run ended well, the first that finished an epoch.
    leaders = [top for members in groups(runs).values() if (top := best(members))]
    leaders.sort(key=lambda run: run.score)
    in_full = leaders[:MAX_IN_FULL] or [run for run in runs if run.history][:1]
    choices = {}
    for n, run in enumerate(in_full):
        i = runs.index(run)
        found, choices[i] = _in_full(run, i, UTTERANCES_OF_OTHERS if n else UTTERANCES_OF_BEST)
        figures |= found
    return figures, choices


def _in_full(run: Run, i: int, n_utterances: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Figures of run i by key, and what may be chosen.

    Without a model its reconstructions are those that it kept last.
    """
    model, utterances = run.model(), run.reconstructions()[:n_utterances]
    lacking = "No unit of this model fires on the utterances that were kept."
    if model is None:
        lacking = "This run has no model that can be loaded."
    figures: dict[str, Any] = {f"{name}/{i}": lacking for name in OF_MODEL}
    figures[f"reconstruction/{i}"] = "This run has kept no reconstructions."
    encodings = {}
    for at, one in enumerate(utterances):
        z = None
        if model is not None and one.truth.shape[1] == model.input_dim:
            y, z = kernels.autoencode(model, one.truth)
            one, encodings[one.name] = replace(one, prediction=y), z
        shown = replace(one, truth=one.truth[:MAX_FRAMES], prediction=one.prediction[:MAX_FRAMES])
        if z is not None:
            figures[f"encoding/{i}/{at}"] = _shown(model_panels.encodings, shown, z[:MAX_FRAMES])
        figures[f"reconstruction/{i}/{at}"] = _figure(model_panels.reconstruction(shown), height=96)
    units = np.empty(0, dtype=int)
    if model is not None:
        tiles = in_grid(model_panels.first_kernels(model), 8)
        figures[f"kernels/{i}"] = _figure(tiles, height=240)
        if encodings:
            z = np.concatenate(list(encodings.values()))
            units = kernels.busiest_units(model, z, model_panels.N_TILES)
        if len(units):
            figures |= _of_units(run, i, model, units, encodings)
    choices = {"utterances": [one.name for one in utterances]}
    return figures, choices | {"units": [f"unit {unit}" for unit in units]}


def _of_units(
    run: Run, i: int, model: CNNAutoEncoder, units: np.ndarray, encodings: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Figures of units by key; encodings (T, C) by the name of the utterance."""
    effects = kernels.primitives(model, units)
    tiles = model_panels.primitives(effects, units)
    figures: dict[str, Any] = {f"primitives/{i}": _figure(in_grid(tiles, 8), height=240)}
    labels, z_of_labels = _labelled(run, model)
    for name in LABELS:
        figures[f"unit-{name}s/{i}"] = "Labels are known for generated speech only."
    for at, unit in enumerate(units):
        firing = model_panels.firing({name: z[:, unit] for name, z in encodings.items()})
        row = [tiles[at], sagittal.displacement(effects[at]), firing]
        figures[f"unit/{i}/{at}"] = _figure(Drawing([row], widths=(1, 1.2, 1.6)))
        for name, of_frames in labels.items():
            panel = model_panels.by_label(z_of_labels[:, unit], of_frames)
            figures[f"unit-{name}s/{i}/{at}"] = _figure(Drawing([[panel]]))
    return figures


def _labelled(run: Run, model: CNNAutoEncoder) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Phone and gesture (T,) of frames of the validation split, and its encoding (T, C).

    They are known of generated speech alone; {} for any other.
    """
    folder, recursive = run.config.get("val_dir"), bool(run.config.get("recursive"))
    try:
        found = read_split("val", folder, recursive, MAX_LABELLED)
    except UserError:
        return {}, np.empty(0)
    z = np.concatenate([Codec.of(model).encoding(one.features) for one in found])
    labels = {name: np.concatenate([one.labels[name] for one in found]) for name in LABELS}
    bound = labels["gesture"]
    labels["gesture"] = np.where(bound == " ".join(ARTICULATORS), "all (vowel)", bound)
    return labels, z


def _shown(show: Callable[..., Panel | Drawing], *args: Any) -> Any:
    """The figure of what show draws, or why it draws nothing."""
    try:
        made = show(*args)
    except Missing as why:
        return f"{str(why)[0].upper()}{str(why)[1:]}."
    return _figure(made if isinstance(made, Drawing) else Drawing([[made]]))


def _figure(drawing: Drawing, height: int = 340) -> dict[str, Any]:
    figure = interactive.draw(drawing, height)
    figure.layout.template = None  # the page has it once
    return {"figure": json.loads(figure.to_json()), "text": described(drawing)}
