"""Sending W&B what it lacks: offline runs, lost uploads, a local sweep."""

import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emaae.runs import read
from emaae.runs.checkpoint import write_json
from emaae.system.errors import UserError
from emaae.system.progress import progress
from emaae.tracking.artifacts import log_artifacts, model_artifact
from emaae.tracking.models import _line, existing
from emaae.tracking.run import (
    RECORD,
    UPLOAD_TIMEOUT_S,
    Tracker,
    check_history,
    define_axes,
    public_api,
    read_record,
)


@dataclass(frozen=True)
class Uploaded:
    """A run that is on W&B as a whole: its folder and its path there."""

    folder: Path
    path: str


def upload_pending(
    folder: Path, entity: str | None = None, project: str | None = None
) -> tuple[list[Uploaded], list[str]]:
    """Upload what W&B lacks of the run in `folder`, or of all runs below it.

    entity, project: where to, if not where the run was meant to go. What has arrived is asked of
    W&B before it counts. Returns what is there as a whole, and one line for each run that is not.
    """
    folders = [folder] if (folder / RECORD).is_file() else read.run_folders(folder)
    folders = [run for run in folders if read_record(run) is not None]
    if not folders:
        raise UserError(f"{folder} holds no run that W&B was told of: expected {RECORD} in a run")
    there, missing = [], []
    for run in progress(folders, "uploading", unit="runs"):
        try:
            there.append(Uploaded(run, _upload(run, entity, project)))
        except _NotThere as error:
            missing.append(f"{run}: {error}")
    return there, missing


class _NotThere(Exception):
    """Something of a run did not arrive."""


def _upload(folder: Path, entity: str | None, project: str | None) -> str:
    import wandb

    record = read_record(folder)
    # Said in full: an offline run does not know whose it will be.
    entity = entity or record["entity"] or public_api().default_entity
    project = project or record["project"]
    meant = (record["entity"] or entity, record["project"])
    path = f"{entity}/{project}/{record['id']}"
    if meant != (entity, project) or (
        "run" in record["pending"] and not _has_history(folder, path)
    ):
        again = ("--yes", "--include-online", "--include-synced")
        _wandb("sync", *again, *_to(entity, project), str(folder / record["files"]))
    record |= {"entity": entity, "project": project}
    if not (_has_history(folder, path) and _has_model(folder, record)):
        # `wandb sync` calls a run synced even when an artifact of it failed, leaves artifacts in
        # the project that the run was first meant for, and knows no row that wandb had lost.
        try:
            run = wandb.init(
                id=record["id"],
                entity=entity,
                project=record["project"],
                resume="allow",
                dir=str(folder),
                settings=wandb.Settings(silent=True, console="off"),
            )
            try:
                if not _has_history(folder, path):
                    define_axes(run)
                    again = Tracker(folder, run, "online")
                    again.log_again()
                    again.log_final(read.final_metrics(folder))
                log_artifacts(run, folder, UPLOAD_TIMEOUT_S)
            finally:
                run.finish()
        except (wandb.Error, OSError, ValueError) as error:
            raise _NotThere(f"its artifacts did not arrive ({_line(error)})") from None
        if not _has_history(folder, path):
            raise _NotThere("its history did not arrive")
        if not _has_model(folder, record):
            raise _NotThere("its model did not arrive")
    write_json(folder / RECORD, record | {"pending": []})
    return path


def _has_history(folder: Path, path: str) -> bool:
    # Asked first, since a second `wandb sync` of the same run doubles its history.
    import wandb

    try:
        check_history(folder, path)
    except (wandb.Error, ValueError):
        return False
    return True


def _has_model(folder: Path, record: dict[str, Any]) -> bool:

    mine = model_artifact(folder, record["id"])
    if mine is None:
        return True
    there = existing(public_api(), f"{record['entity']}/{record['project']}/{mine.name}:latest")
    return there is not None and there.metadata.get("sha256") == mine.metadata["sha256"]


def publish(folder: Path, project: str, entity: str | None = None) -> str:
    """Put a local sweep on W&B: its runs first, then a sweep that holds them; returns its path.

    Raises UserError when a run or its model did not arrive.
    """
    sweep_file = folder / "sweep.yaml"
    if not sweep_file.is_file():
        raise UserError(f"{sweep_file} is missing: expected the folder of a local sweep")
    there, missing = upload_pending(folder, entity, project)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(there) + len(missing)} runs are not on W&B "
            f"({missing[0]}): publish again when it can be reached"
        )
    return _create_sweep(sweep_file, there, project)


def _create_sweep(sweep_file: Path, runs: Iterable[Uploaded], project: str) -> str:

    ids = [run.path.rsplit("/", 1)[1] for run in runs]
    entity = next(iter(runs)).path.split("/", 1)[0]
    prior = [word for run_id in ids for word in ("--prior_run", run_id)]
    output = _wandb("sweep", *_to(entity, project), *prior, str(sweep_file))
    found = re.search(r"wandb agent (\S+)", output) or re.search(r"with ID: (\S+)", output)
    if not found:
        raise UserError(f"wandb sweep did not say which sweep it made: {output.strip()[-300:]}")
    path = found[1] if "/" in found[1] else f"{entity}/{project}/{found[1]}"
    inside = {run.id for run in public_api().sweep(path).runs}
    if not set(ids) <= inside:
        raise UserError(f"{path} holds {len(inside)} runs, expected {len(ids)}: look at it on W&B")
    return path


def _to(entity: str | None, project: str | None) -> list[str]:
    return [*(("--entity", entity) if entity else ()), *(("--project", project) if project else ())]


def _wandb(*arguments: str) -> str:
    """Run W&B's own command line, which has no equivalent in its library; returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *arguments], capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    if done.returncode:
        last = (output.strip().splitlines() or ["nothing output"])[-1]
        raise _NotThere(f"wandb {arguments[0]} failed: {last}")
    return output
