"""Runs, read once for every table, figure and page.

A run is a local folder or a run on W&B; both become a `Run`. Missing and broken parts of a run are
left out, so that a sweep can be examined while it runs, or after some of its runs failed.
"""

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

import emaae
from analysis.kernels import form_of
from emaae.config import KNOBS, SWEEPABLE
from emaae.metric_table import score_description
from emaae.metrics import DENSITY_EDGES
from emaae.models import CNNAutoEncoder
from emaae.runs import read
from emaae.runs.checkpoint import load_last
from emaae.runs.read import GOOD
from emaae.runs.reconstructions import Reconstruction
from emaae.system.errors import UserError, last_error, shortened
from emaae.tracking import download
from emaae.tracking.client import is_local

# The middles of the bins of a density, log10 of the fraction of frames on which a unit fires.
DENSITIES = (np.array(DENSITY_EDGES[1:]) + DENSITY_EDGES[:-1]) / 2


@dataclass(frozen=True, eq=False)
class Run:
    """One run, as far as it got; no two are equal.

    name: its folder's name, or its id on W&B. config, metrics, curves: the JSON files of that
    name, {} without one. history: a row per epoch, in order, undefined values None. ref: what
    `emaae.load_model` takes. last_error: the last error that it printed, else its last line, if a
    sweep kept its output. kept: gives the folder of its reconstructions, None without one.
    """

    name: str
    config: Mapping[str, Any]
    history: list[dict]
    metrics: Mapping[str, Any]
    curves: Mapping[str, Any]
    ref: str
    last_error: str = ""
    kept: Callable[[], Path | None] = field(default=lambda: None, repr=False)

    @property
    def schedule(self) -> str:
        """The name of alpha's schedule, "unknown" for a run that left no config."""
        return str(self.config.get("schedule", "unknown"))

    @property
    def status(self) -> str:
        """How it ended; "unfinished" for a run that left no metrics."""
        return str(self.metrics.get("status", "unfinished"))

    @property
    def selected(self) -> dict:
        """The row of the epoch whose weights were selected, {} when none was."""
        epoch = self.metrics.get("select/epoch")
        return next((row for row in self.history if row["epoch"] == epoch), {})

    @property
    def measured(self) -> dict[str, Any]:
        """Metrics of the selected weights: the row of their epoch, and the final metrics."""
        return {**self.selected, **self.metrics}

    @property
    def score(self) -> float:
        """The score of the selected weights, NaN when it has none."""
        return number(self.metrics.get("select/score"))

    def knob(self, name: str) -> Any:
        """The value of a knob in the run's config, or its schedule; None without one."""
        return self.schedule if name == "schedule" else self.config.get(name)

    def metric(self, name: str) -> float:
        """A number of the selected weights, NaN when it is not known."""
        return number(self.measured.get(name))

    def column(self, name: str) -> np.ndarray:
        """One metric over the epochs of the history (n,); NaN where it is undefined or missing."""
        return np.array([number(row.get(name)) for row in self.history], dtype=float)

    def curve(self, name: str) -> dict[str, np.ndarray]:
        """The columns (n,) of a curve by their names, without those that are no lists."""
        columns = self.curves.get(name)
        columns = columns if isinstance(columns, Mapping) else {}
        return {k: np.array([*map(number, v)]) for k, v in columns.items() if isinstance(v, list)}

    def density(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """`DENSITIES` and the live units (n,) in the bin of each; both are empty if unknown."""
        counts = self.measured.get(f"{split}/density_log10")
        if not isinstance(counts, list) or len(counts) != len(DENSITIES):
            return np.empty(0), np.empty(0)
        return DENSITIES, np.array([*map(number, counts)])

    def model(self, final: bool = False) -> CNNAutoEncoder | None:
        """The selected weights, or those after the last epoch; None without any to be loaded.

        Those after the last epoch are only in local folders.
        """
        try:
            model = emaae.load_model(self.ref)
            if final:
                model.load_state_dict(load_last(Path(self.ref))["model"])
        except (UserError, RuntimeError):
            return None
        return model

    def reconstructions(self) -> list[Reconstruction]:
        """Truth and prediction of the validation utterances kept last; [] without any."""
        folder = self.kept()
        drawn = read.drawn_epochs(folder) if folder else {}
        for epoch in reversed(drawn.values()):
            arrays = (_reconstruction(npz) for npz in sorted(epoch.rglob("*.npz")))
            if found := [one for one in arrays if one is not None]:
                return found
        return []


def read_runs(*refs: str | os.PathLike) -> list[Run]:
    """All runs of each REF: a folder of a run or of runs, or ENTITY/PROJECT[/SWEEP] on W&B.

    A run of several REFs is read once. Raises UserError when there is no run.
    """
    by_place: dict[str, Run] = {}
    for ref in refs:
        folder = Path(ref).expanduser()
        if not is_local(folder):
            by_place |= {fields["ref"]: Run(**fields) for fields in download.runs(str(ref))}
            continue
        folders = [folder] if read.is_run(folder) else read.run_folders(folder)
        if not folders:
            raise UserError(
                f"{folder} holds no run: expected the folder of a run (with a config.json in it), "
                "of a sweep, or an --out_dir"
            )
        by_place |= {str(folder.resolve()): read_run(folder) for folder in folders}
    # Sweeps number their runs from 0001: where names repeat, what differs in their places is added.
    alike: dict[str, list[tuple[str, ...]]] = {}
    for place, run in by_place.items():
        alike.setdefault(run.name, []).append(Path(place).parts)
    found = []
    for place, run in by_place.items():
        if len(alike[run.name]) > 1:
            n_common = len(os.path.commonprefix(alike[run.name]))
            apart = [part for part in Path(place).parts[n_common:-1] if part != "runs"]
            run = replace(run, name="/".join([*apart, run.name]))
        found.append(run)
    return found


def read_comparable(*refs: str | os.PathLike) -> list[Run]:
    """The runs of the refs that learnt from the same data; of several data sets, the one most used.

    A warning names the others, whose numbers cannot be compared. Raises UserError.
    """
    data = {run: read.data_fingerprint(run.config) for run in read_runs(*refs)}
    (most, _), *_ = Counter(filter(None, data.values())).most_common(1) or [("", 0)]
    left_out = [run.name for run, of in data.items() if of not in ("", most)]
    if left_out:
        warnings.warn(
            f"left out {len(left_out)} of {len(data)} runs, which learnt from other data than "
            f"those of data_fingerprint {most} and cannot be compared: {shortened(left_out)}",
            stacklevel=2,
        )
    return [run for run, of in data.items() if of in ("", most)]


def read_run(folder: Path) -> Run:
    """One run from its folder, as far as it can be read."""
    return Run(
        name=folder.resolve().name,
        config=read.read_or_empty(folder / "config.json"),
        history=read.history(folder),
        metrics=read.metrics(folder),
        curves=read.read_or_empty(folder / "curves.json"),
        ref=str(folder),
        last_error=last_error(folder.parent.parent / "logs" / f"{folder.name}.txt"),
        kept=lambda: folder / "reconstructions",
    )


def varying(runs: Sequence[Run]) -> list[str]:
    """The knobs that differ between runs, first `schedule`, last the seed."""
    # `schedule` stands for both: one of them alone may differ between runs of the same schedule.
    apart = ("update", "penalty_scheduler", "seed")
    names = ["schedule", *(n for n in SWEEPABLE if n not in apart), "seed"]
    return [
        name
        for name in names
        if len({json.dumps(run.knob(name)) for run in runs if _matters(run, name)}) > 1
    ]


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in the seed only, by a label of the settings that vary."""
    return grouped(runs, labels(runs).__getitem__)


def labels(runs: Sequence[Run]) -> dict[Run, str]:
    """Each run's schedule and values of the knobs that vary, e.g. `cosine, alpha_max 0.5`."""
    names = [name for name in varying(runs) if name not in ("schedule", "seed")]
    values_of = {
        run: [
            f"{name} {text(run.config[name])}"
            for name in names
            if _matters(run, name) and run.config[name] is not None
        ]
        for run in runs
    }
    return {run: ", ".join([run.schedule, *values]) for run, values in values_of.items()}


def grouped(runs: Sequence[Run], key: Callable[[Run], str]) -> dict[str, list[Run]]:
    """The runs by their key, in the order in which keys first occur."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def best(runs: Sequence[Run]) -> Run | None:
    """The run that ended well with the lowest `select/score`; None when there is none."""
    return read.best_by_score({run: run.metrics for run in runs})


def aims(runs: Sequence[Run]) -> str:
    """The targets of the scores of these runs; only scores with equal targets compare."""
    known = [run for run in runs if run.config] or runs
    return " or ".join(sorted({score_description(run.config) for run in known}))


def split_of(runs: Sequence[Run]) -> str:
    """The split to compare on: "test" if all runs that ended well were measured there, or "val"."""
    ended = [run for run in runs if run.status in GOOD]
    return "test" if ended and all("test/fvu" in run.metrics for run in ended) else "val"


def number(value: Any) -> float:
    """A number as JSON or W&B keeps it; NaN for null, other types, and what no float can hold."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def text(value: Any) -> str:
    """A setting as tables and labels show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reconstruction(path: Path) -> Reconstruction | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            truth, prediction = (kept[key].astype(np.float32) for key in ("truth", "prediction"))
            name, channels = str(kept["name"]), tuple(map(str, kept["channels"]))
    except (OSError, TypeError, ValueError, KeyError, EOFError, BadZipFile):  # half written
        return None
    whole = truth.size and truth.shape == prediction.shape and truth.shape[1:] == (len(channels),)
    ours = whole and channels == form_of(len(channels)).channels
    return Reconstruction(name, channels, truth, prediction) if ours else None


def _matters(run: Run, name: str) -> bool:
    """Whether a run has a knob and uses it: a constant alpha has no use for knobs of schedules."""
    if name == "schedule":
        return bool(run.config)
    moves_alpha = name != "alpha" and KNOBS[name].group == "alpha"
    return name in run.config and not (moves_alpha and run.schedule == "constant")
