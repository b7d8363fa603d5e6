"""Sending what W&B lacks: offline runs, failed uploads, a local sweep."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from emaae.runs import read
from emaae.sweeps.sweep_file import description_of
from emaae.system.errors import UserError
from emaae.system.files import lock_folder, write_json
from emaae.system.progress import progress
from emaae.tracking import client
from emaae.tracking.mirror import RECORD_FILE, upload

# File in a sweep's folder: the W&B sweep that the folder was published as.
PUBLISHED_FILE = "published.json"


def upload_pending(
    folder: Path, entity: str | None = None, project: str | None = None
) -> tuple[dict[Path, str], list[str]]:
    """Send what W&B lacks of the run in `folder`, or of all runs below it that use W&B.

    Returns the paths on W&B of the complete runs, and one line for each run that failed. Raises
    UserError when there is no run.
    """
    folders = [file.parent for file in sorted(folder.rglob(RECORD_FILE))]
    if not folders:
        raise UserError(f"{folder} holds no run that uses W&B: expected {RECORD_FILE} in a run")
    return _upload_all(folders, partial(upload, entity=entity, project=project))


def _upload_all(
    folders: Iterable[Path], send: Callable[[Path], str]
) -> tuple[dict[Path, str], list[str]]:
    uploaded, failures = {}, []
    for run in progress(folders, "uploading", unit="runs"):
        try:
            failed = client.user_errors("the run did not arrive", "upload it again")
            with failed, lock_folder(run) or contextlib.nullcontext():  # a run in progress holds it
                uploaded[run] = send(run)
        except UserError as error:
            failures.append(f"{run}: {error}")
    return uploaded, failures


def publish(folder: Path, project: str, entity: str | None = None) -> str:
    """Put a local sweep on W&B: its runs, then a sweep that holds them; returns its path.

    A later call for the same project sends what W&B still lacks to the same sweep, whose id is in
    published.json. The sweep gets the name and description of its file and the state FINISHED.
    Raises UserError when a run or its model did not arrive.
    """
    import wandb

    sweep_file, folders = folder / "sweep.yaml", read.run_folders(folder)
    if not sweep_file.is_file():
        raise UserError(f"{sweep_file} is missing: expected the folder of a local sweep")
    if not folders:
        raise UserError(f"{folder} holds no run yet: run the sweep first")
    config = yaml.safe_load(sweep_file.read_text(encoding="utf-8"))
    compare = f"Compare its runs: python -m analysis.workspace ENTITY/{project}/SWEEP"
    config = {"name": folder.resolve().name} | config
    config["description"] = f"{description_of(sweep_file)}\n\n{compare}".strip()
    published = read.read_or_empty(folder / PUBLISHED_FILE)
    if published.get("project") == project:
        entity = entity or published["entity"]
    sweep = _published_sweep(published, project, entity)
    send = partial(upload, entity=entity, project=project, sweep=sweep, sweep_config=config)
    uploaded, failures = _upload_all(folders, send)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(folders)} runs are not on W&B ({failures[0]}): publish again "
            "when it can be reached"
        )
    entity, *_ = next(iter(uploaded.values())).split("/")
    ids = [path.rsplit("/", 1)[1] for path in uploaded.values()]
    if sweep is None:
        refused = client.user_errors(f"W&B refuses {sweep_file}", "correct it, or publish again")
        with refused, contextlib.redirect_stdout(io.StringIO()):  # it prints the path
            sweep = wandb.sweep(config, entity, project, prior_runs=ids)
        write_json(folder / PUBLISHED_FILE, {"sweep": sweep, "entity": entity, "project": project})
        for run in uploaded:
            record = read.read_or_empty(run / RECORD_FILE)
            write_json(run / RECORD_FILE, record | {"sweep": sweep})
    path = f"{entity}/{project}/{sweep}"
    with client.user_errors(f"{path} could not be read from W&B", "publish again"):
        found = client.public_api().sweep(path)
        lacking = sorted(set(ids) - {run.id for run in found.runs})
    if lacking:
        raise UserError(f"{path} lacks the runs {', '.join(lacking)}: look at it on W&B")
    if found.state.upper() != "FINISHED":
        _finish(path)
    return path


def _finish(path: str) -> None:
    # The client has only a command for this.
    command = [sys.executable, "-m", "wandb", "sweep", "--stop", path]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=client.FINISH_TIMEOUT_S)
    except subprocess.SubprocessError:
        raise UserError(f"{path} exists and could not be finished: publish again") from None


def _published_sweep(record: Mapping[str, Any], project: str, entity: str | None) -> str | None:
    """The id of the W&B sweep in a published.json, if it is there and exists. Raises UserError."""
    if (record.get("project"), record.get("entity")) != (project, entity):
        return None
    path = f"{entity}/{project}/{record['sweep']}"
    found = client.get_or_none(client.public_api().sweep, path)
    return found.id if found else None
