"""Runs from W&B, in the form of their folders, for `analysis`."""

import math
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from emaae.system.errors import UserError
from emaae.tracking.artifacts import MODEL_PREFIX, RECONSTRUCTIONS_PREFIX
from emaae.tracking.client import get_or_none, one_line, public_api, split_path
from emaae.tracking.mirror import CHANNEL_PREFIX, CURVE_COLUMNS

# Requests at a time: a run's history is one request for each thousand rows.
MAX_REQUESTS = 8


@dataclass(frozen=True)
class RemoteRun:
    """A run on W&B in the form of its folder; `reconstructions` downloads that folder on call."""

    id: str
    config: Mapping[str, Any]
    history: list[dict]
    metrics: Mapping[str, Any]
    curves: Mapping[str, Any]
    model_ref: str
    reconstructions: Callable[[], Path | None]


def runs(path: str) -> list[RemoteRun]:
    """All training and evaluation runs of ENTITY/PROJECT or ENTITY/PROJECT/SWEEP, by id.

    Raises UserError when there are none, or W&B cannot be asked.
    """
    import wandb

    entity, project, sweep = split_path(path)
    where = path.strip("/")
    try:
        api = public_api()
        # Without `lazy=False` the config and the summary would be asked for run by run.
        found = list(api.sweep(where).runs if sweep else api.runs(where, lazy=False))
        found = [run for run in found if run.job_type != "promote"]
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            rows = list(pool.map(lambda run: list(run.scan_history()), found))
    except (UserError, wandb.Error, ValueError, OSError) as error:
        raise UserError(
            f"{path} is no local folder, and could not be read from W&B ({one_line(error)}): check "
            "the path; on W&B it is ENTITY/PROJECT or ENTITY/PROJECT/SWEEP"
        ) from None
    if not found:
        raise UserError(f"{where} holds no run yet: start one, or check the path")
    both = sorted(zip(found, rows), key=lambda pair: pair[0].id)
    return [_downloaded(f"{entity}/{project}", run, history) for run, history in both]


def _downloaded(project: str, run: Any, rows: list[dict]) -> RemoteRun:
    config = {name: value for name, value in run.config.items() if not name.startswith("_")}
    # A run that was queued again has some epochs twice: the later row is what went on.
    # The final metrics are a row at the epoch that was selected.
    of_epochs = [row for row in rows if row.get("epoch") is not None and "select/epoch" not in row]
    epochs = {row["epoch"]: _plain(row) for row in of_epochs}
    per_epoch = {name for row in epochs.values() for name in row}
    of_curves = {name for columns in CURVE_COLUMNS.values() for name in columns.values()}
    final = _plain(run.summary_metrics)
    return RemoteRun(
        id=run.id,
        config=config,
        history=[epochs[epoch] for epoch in sorted(epochs)],
        # The summary holds the last value of everything; a run's own metrics belong to no epoch.
        metrics={k: v for k, v in final.items() if k not in per_epoch | of_curves},
        curves=_curves(rows, "test" if "test" in config.get("data", {}) else "val"),
        model_ref=f"wandb:{project}/{MODEL_PREFIX}-{run.id}:latest",
        reconstructions=partial(
            _download_artifact, f"{project}/{RECONSTRUCTIONS_PREFIX}-{run.id}:latest"
        ),
    )


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as history.jsonl has it: without W&B's own entries and media, NaN as None."""
    plain = {}
    for name, value in row.items():
        if isinstance(value, Mapping):  # an image, or a histogram
            value = value.get("values") if value.get("_type") == "histogram" else None
            if value is None:
                continue
        undefined = value in ("NaN", "Infinity", "-Infinity")
        undefined |= isinstance(value, float) and not math.isfinite(value)
        if not name.startswith("_"):
            plain[name.removeprefix(CHANNEL_PREFIX)] = None if undefined else value
    return plain


def _curves(rows: list[dict], split: str) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    for curve, columns in CURVE_COLUMNS.items():
        axis, *_ = columns.values()
        found = [row for row in map(_plain, rows) if axis in row]
        if found:
            curves[curve] = {c: [row.get(name) for row in found] for c, name in columns.items()}
    if "gain" in curves:  # the signal's own, by definition
        curves["gain"]["input"] = [1] * len(curves["gain"]["shift_ms"])
    return {"split": split} | curves if curves else {}


def _download_artifact(name: str) -> Path | None:
    """The files of an artifact, in the cache folder; None when there is no such artifact."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    artifact = get_or_none(public_api().artifact, name)
    if artifact is None:
        return None
    folder = base / "emaae" / re.sub(r"[^\w./-]", "-", name) / artifact.version
    return Path(artifact.download(root=str(folder)))
