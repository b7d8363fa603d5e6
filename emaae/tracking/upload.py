"""Sending W&B what it lacks: offline runs, lost uploads, a local sweep."""

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import yaml

from emaae.runs import read
from emaae.system.errors import UserError
from emaae.system.progress import progress
from emaae.tracking import client
from emaae.tracking.mirror import RECORD, read_record, upload


def upload_pending(
    folder: Path, entity: str | None = None, project: str | None = None
) -> tuple[dict[Path, str], list[str]]:
    """Send W&B what it lacks of the run in `folder`, or of all runs below it that it knows.

    entity, project: where to, if not where the runs were meant to go. Returns the paths on W&B of
    what is there as a whole, and one line for each run that is not.
    """
    folders = [folder] if (folder / RECORD).is_file() else read.run_folders(folder)
    folders = [run for run in folders if read_record(run) is not None]
    if not folders:
        raise UserError(f"{folder} holds no run that W&B knows: expected {RECORD} in a run")
    return _upload_all(folders, entity, project)


def _upload_all(
    folders: Iterable[Path], entity: str | None, project: str | None
) -> tuple[dict[Path, str], list[str]]:
    there, missing = {}, []
    for run in progress(folders, "uploading", unit="runs"):
        try:
            there[run] = upload(run, entity, project)
        except UserError as error:
            missing.append(f"{run}: {error}")
    return there, missing


def publish(folder: Path, project: str, entity: str | None = None) -> str:
    """Put a local sweep on W&B: its runs first, then a sweep that holds them; returns its path.

    Raises UserError when a run or its model did not arrive.
    """
    import wandb

    sweep_file = folder / "sweep.yaml"
    if not sweep_file.is_file():
        raise UserError(f"{sweep_file} is missing: expected the folder of a local sweep")
    there, missing = _upload_all(read.run_folders(folder), entity, project)
    if missing or not there:
        raise UserError(
            f"{len(missing)} of {len(there) + len(missing)} runs are not on W&B "
            f"({(missing or ['there are none'])[0]}): publish again when it can be reached"
        )
    entity = next(iter(there.values())).split("/", 1)[0]
    ids = [path.rsplit("/", 1)[1] for path in there.values()]
    config = yaml.safe_load(sweep_file.read_text(encoding="utf-8"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what we print
            sweep = wandb.sweep(config, entity, project, prior_runs=ids)
    except (wandb.Error, ValueError) as error:
        raise UserError(f"W&B refuses {sweep_file} ({client.line(error)})") from None
    path = f"{entity}/{project}/{sweep}"
    inside = {run.id for run in client.public_api().sweep(path).runs}
    if not set(ids) <= inside:
        raise UserError(f"{path} holds {len(inside)} runs, expected {len(ids)}: look at it on W&B")
    return path
