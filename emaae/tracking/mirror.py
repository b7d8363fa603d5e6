"""Copying a run's folder to a W&B run: everything that the folder has and W&B lacks is sent.

The same code serves a run in progress, a resumed run, and a later upload. A row on W&B is an epoch
of history.jsonl, the final metrics, or a point of curves.json, in this order, so the number of rows
on W&B tells which rows are missing.
"""

import contextlib
import logging
import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emaae.config import Config
from emaae.metric_table import BY_NAME, logged_each_epoch
from emaae.metrics import DENSITY_EDGES
from emaae.runs import read
from emaae.runs.checkpoint import has_last
from emaae.runs.folder import Observer, json_safe
from emaae.system.distributed import is_main_process
from emaae.system.errors import UserError, reason
from emaae.system.files import write_json
from emaae.tracking import agent, client
from emaae.tracking.artifacts import log_artifacts, model_artifact, reconstruction_table

UPLOAD_TIMEOUT_S = 120
PREEMPTED_TIMEOUT_S = 20  # the node is about to be reclaimed
# For each curve of curves.json, its columns and their names on W&B; the first is the x axis.
CURVE_COLUMNS = {
    "self_similarity": {
        "lag_ms": "shift/lag_ms",
        "encoding": "shift/self_similarity",
        "input": "shift/input_self_similarity",
    },
    "gain": {"shift_ms": "shift/shift_ms", "encoding": "shift/gain"},
    "lowpass": {
        "cutoff": "lowpass/cutoff",
        "encoding": "lowpass/fvu",
        "input": "lowpass/input_fvu",
    },
}
# Prefix of the metrics of single channels, which gives them a section of their own on W&B's pages.
CHANNEL_PREFIX = "channels/"
# Knobs that are part of every run's name.
KNOBS_IN_NAME = (
    "penalty_scheduler", "update", "alpha", "alpha_max", "seed",
    "inner_size", "n_encoder", "n_decoder",
)  # fmt: skip
# File in a run's folder: its W&B run, and what W&B lacks of the folder.
RECORD_FILE = "wandb.json"


class Mirror(Observer):
    """Sends the content of a run's folder to a W&B run.

    sweep: the content of the sweep's file; by default that of the sweep on W&B, if the run has one.
    """

    def __init__(self, folder: Path, run: Any, sweep: Mapping[str, Any] | None = None):
        self.folder, self._run, self._online = folder, run, not run.offline
        if sweep is None and run.settings.sweep_id:
            path = f"{run.entity}/{run.project}/{run.settings.sweep_id}"
            sweep = client.sweep_config(path) if self._online else {}
        self._send_error: Exception | None = None  # why no more rows are sent
        self._n_sent = run.starting_step
        _define_axes(run, sweep)
        # Everything is pending until it has arrived: a process may be killed at any moment.
        self._record(["run", "artifacts"] if self._online else ["run"])
        self._send_config(client.varying_names(sweep or {}))
        self._send_rows()

    def on_epoch(self, row: Mapping[str, Any], seconds: float) -> None:
        """Send a row; it holds `epoch`, which is the axis of every chart."""
        if row["epoch"] > self._n_sent:
            self._send(row)

    def on_end(self, metrics: Mapping[str, Any], status: str, curves: Mapping[str, Any]) -> None:
        """Send the final metrics and the artifacts, and end the W&B run.

        A failure of W&B does not end the training: wandb.json lists what is missing, and
        `python -m emaae upload-pending` sends it.
        """
        preempted = status == "preempted"
        # "Stop run" on a run's page and hyperband send a signal too, but end the run for good.
        if preempted and not (self._online and client.stop_requested(self._run.path)):
            with contextlib.suppress(Exception):  # if it fails, so does `finish`, with a report
                self._run.mark_preempting()  # a run of a sweep is requeued
        later = f"nothing is lost, {_how_to_upload(self.folder)}"
        try:
            missing = self.finish(status, PREEMPTED_TIMEOUT_S if preempted else UPLOAD_TIMEOUT_S)
        except KeyboardInterrupt:
            print(f"the upload to W&B was interrupted; {later}", flush=True)
            raise
        if missing:
            reasons = "; ".join(dict.fromkeys(map(reason, missing.values())))
            print(f"W&B lacks the {' and the '.join(missing)} ({reasons}); {later}", flush=True)

    def finish(self, status: str, wait_s: int) -> dict[str, Exception]:
        """Send what W&B lacks, and end the W&B run.

        wait_s: seconds to wait for each artifact. Returns the parts that did not arrive, "run" or
        "artifacts", with the errors.
        """
        self._send_rows()
        missing: dict[str, Exception] = {"run": self._send_error} if self._send_error else {}
        try:
            self._run.summary["status"] = status
            log_artifacts(self._run, self.folder, wait_s)
        except Exception as error:  # of wandb or the network
            missing["artifacts"] = error
        try:
            self._run.finish(exit_code=0 if status in read.GOOD else 1)
            if self._online and _lacks_rows(self.folder, self._run.path):
                raise UserError("not all rows arrived")
        except Exception as error:
            missing["run"] = error
        self._record(list(missing) if self._online else ["run"])
        return missing

    def _send_config(self, varying: Sequence[str]) -> None:
        """Send config.json to the W&B run, and name the run after it; varying: see `_name`."""
        config = read.read_or_empty(self.folder / "config.json")
        if not config:  # of a run that failed at its start
            return
        locked = agent.agent_config()  # set by the sweep; W&B refuses to change these
        unlocked = {k: v for k, v in config.items() if k not in locked}
        demo = ("demo",) if config.get("demo") else ()
        try:
            self._run.config.update(unlocked, allow_val_change=True)
            self._run.name = _name(config, varying)
            # Besides those that a user gave, by WANDB_TAGS or on the run's page.
            tags = (*(self._run.tags or ()), config["schedule"], config["sparse_loss"], *demo)
            self._run.tags = tuple(dict.fromkeys(tags))
        except Exception as error:  # wandb's service is another process, which may die
            self._stop_sending(error)

    def _send_rows(self) -> None:
        """Send the rows of the folder that the W&B run lacks."""
        for row in rows(self.folder)[self._n_sent :]:
            self._send(row)

    def _send(self, row: Mapping[str, Any]) -> None:
        if self._send_error is not None:
            return
        try:
            self._run.log(_for_wandb(row) | self._media(row))
            self._n_sent += 1
        except Exception as error:  # see `_send_config`
            self._stop_sending(error)

    def _stop_sending(self, error: Exception) -> None:
        self._send_error = error
        print(f"no more rows are sent to W&B ({reason(error)}); the run continues", flush=True)

    def _media(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The reconstructions of an epoch as images; with the final metrics, one as a table."""
        if "select/epoch" in row:
            table = reconstruction_table(self.folder)
            return {} if table is None else {"reconstruction": table}
        drawn = self.folder / "reconstructions" / f"epoch-{row.get('epoch', 0):04d}"
        images = sorted(drawn.rglob("*.png"))
        if not images:
            return {}
        import wandb

        return {"reconstructions": [wandb.Image(str(p), caption=p.stem) for p in images]}

    def _record(self, pending: list[str]) -> None:
        """Write wandb.json; pending: the parts that W&B may lack, "run" and "artifacts"."""
        run = self._run
        record = {"id": run.id, "entity": run.entity or None, "project": run.project}
        record |= {"sweep": run.settings.sweep_id, "group": run.group or None}
        write_json(self.folder / RECORD_FILE, record | {"pending": sorted(pending)})


def start(config: Config, folder: Path) -> Observer:
    """Begin or continue the W&B run of a folder; returns its Mirror.

    Returns an Observer that does nothing with --wandb disabled, and in all processes but the first.
    With --wandb auto, a run that cannot begin online begins offline. Raises UserError.
    """
    mode = client.mode_of(config.wandb) if is_main_process() else "disabled"
    if mode == "disabled":
        print("W&B disabled", flush=True)
        return Observer()
    # W&B writes a log: on a full disk each line of the log would print a traceback.
    logging.raiseExceptions = False
    # Without a saved state the run starts again, perhaps with other settings: as another W&B run.
    record = read.read_or_empty(folder / RECORD_FILE) if has_last(folder) else {}
    group = os.environ.get("WANDB_RUN_GROUP") or os.environ.get("WANDB_SWEEP_ID")
    given = {"entity": config.wandb_entity, "project": config.wandb_project}
    given |= {"id": record.get("id"), "group": group or record.get("group")}
    given["job_type"] = "eval" if config.eval_only else "train"
    with client.user_errors(
        "W&B refuses the run",
        "log in with `wandb login`, correct --wandb_project or --wandb_entity, or use --wandb "
        "offline or disabled",
    ):
        try:
            run = client.init(folder, mode, **given)
        except Exception as error:  # wandb and its libraries have no common error class
            if mode == "offline" or config.wandb == "online":
                raise
            print(f"W&B cannot be reached ({reason(error)}); continuing offline", flush=True)
            run = client.init(folder, "offline", **given)
    where = f"offline; {_how_to_upload(folder)}" if run.offline else f"online at {run.url}"
    print(f"W&B {where}", flush=True)
    return Mirror(folder, run)


def _how_to_upload(folder: Path) -> str:
    return f"upload later with: python -m emaae upload-pending {shlex.quote(str(folder))}"


def upload(
    folder: Path,
    entity: str | None = None,
    project: str | None = None,
    sweep: str | None = None,
    sweep_config: Mapping[str, Any] | None = None,
) -> str:
    """Send what W&B lacks of the run in a folder; returns its path on W&B.

    entity, project, sweep: the destination (default: that of the run); sweep_config: the content of
    the sweep's file. Raises UserError for a part that did not arrive, and errors of W&B's client.
    """
    record = read.read_or_empty(folder / RECORD_FILE)
    config = read.read_or_empty(folder / "config.json")  # {} for a run that failed at its start
    # An offline run does not know its entity.
    entity = entity or record.get("entity") or client.public_api().default_entity
    project = project or record.get("project") or config.get("wandb_project")
    if record.get("project") == project and record.get("entity") in (None, entity):
        sweep = sweep or record.get("sweep")
    # Without an id the run would get that of the environment, as all other runs would.
    run_id = record.get("id") or uuid.uuid4().hex[:8]
    path = f"{entity}/{project}/{run_id}"
    sent = sweep == record.get("sweep") and "artifacts" not in record.get("pending", ())
    if record and sent and not _lacks_rows(folder, path) and not _lacks_model(folder, path):
        record |= {"entity": entity, "project": project, "pending": []}
        write_json(folder / RECORD_FILE, record)
        return path
    given = {"entity": entity, "project": project, "id": run_id, "group": record.get("group")}
    given["job_type"] = "eval" if config.get("eval_only") else "train"
    settings = {"sweep_id": sweep, "console": "off"}
    run = client.init(folder, "online", settings=settings, **given)
    mirror = Mirror(folder, run, sweep_config)
    missing = mirror.finish(read.metrics(folder).get("status", "failed"), UPLOAD_TIMEOUT_S)
    if missing:
        what, error = next(iter(missing.items()))
        raise UserError(f"its {what} did not arrive ({reason(error)})")
    if _lacks_model(folder, path):
        raise UserError("its model did not arrive (W&B has another one)")
    return path


def _name(config: Mapping[str, Any], varying: Sequence[str] = ()) -> str:
    """The name of a run on W&B's pages, e.g. cosine a0.1-0.95 i1024 e5d3 s0 norm=layer.

    varying: the knobs that the sweep varies; those that are not in every name are appended.
    """
    ramp = f"-{config['alpha_max']:g}" if config["update"] else ""
    blocks = f"e{config['n_encoder']}d{config['n_decoder']}"
    alpha, size = f"a{config['alpha']:g}{ramp}", f"i{config['inner_size']}"
    rest = (f" {n}={config[n]}" for n in varying if n in config and n not in KNOBS_IN_NAME)
    return f"{config['schedule']} {alpha} {size} {blocks} s{config['seed']}{''.join(rest)}"


def _lacks_rows(folder: Path, path: str) -> bool:
    """Whether the W&B run at `path` has fewer rows than the folder, or does not exist."""
    try:
        # Ask the server, since the client does not report rows that are lost. Steps count from 0.
        return client.public_api().run(path).lastHistoryStep + 1 < len(rows(folder))
    except Exception:  # no such run, or no answer
        return True


def _lacks_model(folder: Path, path: str) -> bool:
    """Whether the model in the folder is not the latest model of the W&B run at `path`."""
    project, run_id = path.rsplit("/", 1)
    local = model_artifact(folder, run_id)
    if local is None:
        return False
    uploaded = client.get_or_none(client.public_api().artifact, f"{project}/{local.name}:latest")
    return uploaded is None or uploaded.metadata.get("sha256") != local.metadata["sha256"]


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows on W&B of the run in a folder: epochs, final metrics, points of the curves."""
    final, curves = read.final_metrics(folder), read.read_or_empty(folder / "curves.json")
    if "select/epoch" in final:  # the epoch of the measured weights
        final["epoch"] = final["select/epoch"]
    found = read.history(folder) + ([final] if final else [])
    for curve, names in CURVE_COLUMNS.items() if final and curves else ():
        for point in zip(*(curves[curve][column] for column in names)):
            found.append(dict(zip(names.values(), point)))
    return found


def _define_axes(run: Any, sweep: Mapping[str, Any] | None) -> None:
    """Tell W&B the x axis of each metric, and for which metrics the summary is the extremum.

    A summary with an extremum is a mapping, which W&B's search cannot read. So the metric of a
    sweep gets no extremum, and if that metric is unknown, no metric gets one.
    """
    # W&B must not fill in the epoch: the points of curves have none.
    run.define_metric("*", step_metric="epoch", step_sync=False)
    for axis, *metrics in (names.values() for names in CURVE_COLUMNS.values()):
        run.define_metric(axis, summary="none")
        for name in metrics:
            run.define_metric(name, step_metric=axis, step_sync=False, summary="none")
    sweep_metric = ((sweep or {}).get("metric") or {}).get("name")
    if sweep is not None and sweep_metric is None:
        return
    for name, metric in BY_NAME.items():
        single = metric.better and "CHANNEL" not in metric.names
        if single and logged_each_epoch(name) and name != sweep_metric:
            best = "min" if metric.better == "lower" else "max"
            run.define_metric(name, step_metric="epoch", step_sync=False, summary=best)


def _for_wandb(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without undefined values: one NaN makes W&B's minimum and maximum NaN."""
    import wandb

    found = {}
    for name, value in row.items():
        if json_safe(value) is None:
            continue
        if name.endswith("density_log10"):
            value = wandb.Histogram(np_histogram=(np.array(value), np.array(DENSITY_EDGES)))
        found[CHANNEL_PREFIX + name if name.count("/") == 2 else name] = value
    return found
