"""Reading runs from W&B for `analysis`, as if from their folders."""

import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from emaae.config import Config
from emaae.runs.folder import json_safe
from emaae.system.errors import UserError
from emaae.tracking import client
from emaae.tracking.artifacts import MODEL_PREFIX, RECONSTRUCTIONS_PREFIX
from emaae.tracking.mirror import CHANNEL_PREFIX, CURVE_COLUMNS

# Simultaneous requests: a run's history takes one request per thousand rows.
MAX_REQUESTS = 8


def runs(path: str) -> list[dict[str, Any]]:
    """The fields of `analysis.runs.Run` for all runs of ENTITY/PROJECT[/SWEEP], sorted by id.

    Raises UserError when there are none, or W&B cannot be reached.
    """
    found = client.runs(path)
    if not found:
        raise UserError(f"{path} holds no run yet: start one, or check the path")
    failed = client.user_errors(f"{path} could not be read from W&B", "check the network")
    with failed, ThreadPoolExecutor(MAX_REQUESTS) as pool:
        histories = list(pool.map(lambda run: [_plain(row) for row in run.scan_history()], found))
    return [_downloaded(*pair) for pair in zip(found, histories)]


def _downloaded(run: Any, rows: list[dict]) -> dict[str, Any]:
    config = {name: value for name, value in run.config.items() if not name.startswith("_")}
    # A requeued run has some epochs twice: the later row counts. The row of the final metrics has
    # `epoch` too.
    epoch_rows = [row for row in rows if row.get("epoch") is not None and "select/epoch" not in row]
    epochs = {row["epoch"]: row for row in epoch_rows}
    per_epoch = {name for row in epochs.values() for name in row}
    curve_names = {name for columns in CURVE_COLUMNS.values() for name in columns.values()}
    final = _plain(run.summary_metrics)
    data = config.get("data")  # of another program perhaps anything
    splits = [s for s in ("test", "val", "train") if isinstance(data, dict) and s in data]
    project = f"{run.entity}/{run.project}"
    reconstructions = f"{project}/{RECONSTRUCTIONS_PREFIX}-{run.id}:latest"
    return {
        "name": run.id,
        "config": config,
        "history": [epochs[epoch] for epoch in sorted(epochs)],
        # The summary has the last value of every metric; final metrics are those of no epoch.
        "metrics": {k: v for k, v in final.items() if k not in per_epoch | curve_names},
        "curves": _curves(rows, next(iter(splits), "val")),
        "ref": f"wandb:{project}/{MODEL_PREFIX}-{run.id}:latest",
        "kept": partial(_download_artifact, reconstructions),
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as in history.jsonl: without W&B's own entries and media, NaN as None."""
    plain = {}
    for name, value in row.items():
        if isinstance(value, Mapping):  # a histogram, or media, which have no `values`
            value = value.get("values")
            if value is None:
                continue
        if not name.startswith("_"):
            undefined = value in ("NaN", "Infinity", "-Infinity")
            plain[name.removeprefix(CHANNEL_PREFIX)] = None if undefined else json_safe(value)
    return plain


def _curves(rows: list[dict], split: str) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    for curve, columns in CURVE_COLUMNS.items():
        axis, *_ = columns.values()
        found = [row for row in rows if axis in row]
        if found:
            curves[curve] = {c: [row.get(name) for row in found] for c, name in columns.items()}
    if "gain" in curves:  # the gain of the input itself is 1 by definition
        curves["gain"]["input"] = [1] * len(curves["gain"]["shift_ms"])
    return {"split": split} | curves if curves else {}


def _download_artifact(name: str) -> Path | None:
    """The files of an artifact, in the cache folder; None when there is no such artifact."""
    artifact = client.get_or_none(client.public_api().artifact, name)
    if artifact is None:
        return None
    cache = Config().cache_folder or Path(tempfile.mkdtemp())
    return client.download(artifact, cache / re.sub(r"[^\w./-]", "-", name) / artifact.version)
