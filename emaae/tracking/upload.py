"""Sending W&B what it lacks: offline runs, lost uploads, a local sweep."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import yaml

from emaae.runs import read
from emaae.runs.checkpoint import write_json
from emaae.sweeps.sweep_file import description_of
from emaae.system.errors import UserError
from emaae.system.files import lock_folder
from emaae.system.progress import progress
from emaae.tracking import client
from emaae.tracking.mirror import RECORD_FILE, read_record, upload

# In a sweep's folder: as which sweep it was published.
PUBLISHED_FILE = "published.json"


def upload_pending(
    folder: Path, entity: str | None = None, project: str | None = None
) -> tuple[dict[Path, str], list[str]]:
    """Send W&B what it lacks of the run in `folder`, or of all runs below it that it knows.

    entity, project: where to, if not where the runs were meant to go. Returns the paths on W&B of
    what is there as a whole, and one line for each run that is not.
    """
    folders = [folder] if (folder / RECORD_FILE).is_file() else read.run_folders(folder)
    folders = [run for run in folders if (run / RECORD_FILE).is_file()]
    if not folders:
        raise UserError(f"{folder} holds no run that W&B knows: expected {RECORD_FILE} in a run")
    return _upload_all(folders, partial(upload, entity=entity, project=project))


def _upload_all(
    folders: Iterable[Path], send: Callable[[Path], str]
) -> tuple[dict[Path, str], list[str]]:
    import wandb

    there, missing = {}, []
    for run in progress(folders, "uploading", unit="runs"):
        try:
            with lock_folder(run) or contextlib.nullcontext():  # the lock of a run that goes on
                there[run] = send(run)
        except UserError as error:
            missing.append(f"{run}: {error}")
        except (wandb.Error, OSError, ValueError) as error:
            missing.append(f"{run}: the run did not arrive ({client.one_line(error)})")
    return there, missing


def publish(folder: Path, project: str, entity: str | None = None) -> str:
    """Put a local sweep on W&B: its runs, then a sweep that holds them; returns its path.

    Again it sends what W&B lacks by then, to the same sweep, which the folder remembers. The sweep
    has the name and the question of its file, and is finished. Raises UserError when a run or its
    model did not arrive.
    """
    import wandb

    sweep_file = folder / "sweep.yaml"
    if not sweep_file.is_file():
        raise UserError(f"{sweep_file} is missing: expected the folder of a local sweep")
    config = yaml.safe_load(sweep_file.read_text(encoding="utf-8"))
    compare = f"Compare its runs: python -m analysis.workspace ENTITY/{project}/SWEEP"
    config = {"name": folder.resolve().name} | config
    config["description"] = f"{description_of(sweep_file)}\n\n{compare}".strip()
    sweep = _published_sweep(folder, project, entity)
    send = partial(upload, entity=entity, project=project, sweep=sweep, sweep_config=config)
    there, missing = _upload_all(read.run_folders(folder), send)
    if missing or not there:
        raise UserError(
            f"{len(missing)} of {len(there) + len(missing)} runs are not on W&B "
            f"({(missing or ['there are none'])[0]}): publish again when it can be reached"
        )
    entity = next(iter(there.values())).split("/", 1)[0]
    ids = [path.rsplit("/", 1)[1] for path in there.values()]
    if sweep is None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what we print
                sweep = wandb.sweep(config, entity, project, prior_runs=ids)
        except (wandb.Error, ValueError) as error:
            raise UserError(f"W&B refuses {sweep_file} ({client.one_line(error)})") from None
        write_json(folder / PUBLISHED_FILE, {"sweep": sweep, "entity": entity, "project": project})
        for run in there:
            write_json(run / RECORD_FILE, read_record(run) | {"sweep": sweep})
    path = f"{entity}/{project}/{sweep}"
    found = client.get_or_none(client.public_api().sweep, path)
    lacking = sorted(set(ids) - {run.id for run in found.runs}) if found else ids
    if found is None or lacking:
        raise UserError(f"{path} lacks the runs {', '.join(lacking)}: look at it on W&B")
    if found.state.upper() != "FINISHED":
        _finish(path)
    return path


def _finish(path: str) -> None:
    # By the client's own command: it has no function for it.
    command = [sys.executable, "-m", "wandb", "sweep", "--stop", path]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=client.FINISH_TIMEOUT_S)
    except subprocess.SubprocessError:
        raise UserError(f"{path} is there and could not be finished: publish again") from None


def _published_sweep(folder: Path, project: str, entity: str | None) -> str | None:
    """The sweep as which a folder was published, if it is there still. Raises UserError."""
    record = read.read_or_empty(folder / PUBLISHED_FILE)
    if record.get("project") != project or entity not in (None, record.get("entity")):
        return None
    path = f"{record['entity']}/{project}/{record['sweep']}"
    found = client.get_or_none(client.public_api().sweep, path)
    return found.id if found else None
