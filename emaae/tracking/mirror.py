"""A W&B run as the mirror of a run's folder: what the folder has and W&B lacks is sent.

One path serves a run that goes on, one that is resumed, and one that is uploaded later. A row on
W&B is an epoch of history.jsonl, the final metrics, or a point of curves.json, in this order, so
that the number of rows there says what is missing.
"""

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emaae.config import Config
from emaae.metric_table import BY_NAME, logged_each_epoch
from emaae.metrics import DENSITY_EDGES
from emaae.runs import read
from emaae.runs.folder import Observer
from emaae.system.distributed import is_main_process
from emaae.system.errors import UserError
from emaae.system.files import read_json, write_json
from emaae.tracking import agent, client
from emaae.tracking.artifacts import log_artifacts, model_artifact, reconstruction_table

UPLOAD_TIMEOUT_S = 120
PREEMPTED_TIMEOUT_S = 20  # of a node that is about to be taken
# The curves of curves.json, column by column, as rows on W&B name them; the first is the axis.
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
# Before the names of metrics of single channels, which have a section of their own on W&B's pages.
CHANNEL_PREFIX = "channels/"
# Knobs that are part of every run's name.
KNOBS_IN_NAME = (
    *("penalty_scheduler", "update", "alpha", "alpha_max", "seed"),
    *("inner_size", "n_encoder", "n_decoder"),
)
# In a run's folder: which W&B run it is, and what of it W&B does not have yet.
RECORD_FILE = "wandb.json"


class Mirror(Observer):
    """A W&B run that gets what a run's folder has.

    sweep: the content of its sweep's file, {} when unknown; None for a run outside of sweeps.
    """

    def __init__(self, folder: Path, run: Any, mode: str, sweep: Mapping[str, Any] | None = None):
        self.folder, self.mode, self._run = folder, mode, run
        self._varying = client.varying_names(sweep or {})  # which names the run
        self._lost: Exception | None = None  # why the W&B run gets no more rows
        self._n_there = run.starting_step
        _define_axes(run, sweep)
        # Until its end is confirmed, all is pending: a process may be killed at any moment.
        self._record(["run", "artifacts"] if mode == "online" else ["run"])

    def on_config(self, values: Mapping[str, Any]) -> None:
        """Give config.json to the W&B run, and name it by what it holds."""
        locked = agent.agent_config()  # by the sweep
        free = {k: v for k, v in values.items() if k not in locked}
        demo = ("demo",) if values.get("demo") else ()
        try:
            self._run.config.update(free)
            self._run.name = _name(values, self._varying)
            self._run.tags = (values["schedule"], values["sparse_loss"], *demo)
        except Exception as error:  # wandb's own service is a process that may die
            self._stop_sending(error)

    def on_resume(self, last: Mapping[str, Any]) -> None:
        """Send the epochs that the W&B run lacks."""
        self.send()

    def on_epoch(self, row: Mapping[str, Any], seconds: float) -> None:
        """Send a row; it holds `epoch`, which is the axis of every chart."""
        if row["epoch"] > self._n_there:
            self._send(row)

    def on_end(self, metrics: Mapping[str, Any], status: str, curves: Mapping[str, Any]) -> None:
        """Send the final metrics and the artifacts, and end the W&B run.

        No failure of W&B ends a run of ours: wandb.json says what is missing, and
        `python -m emaae upload-pending` sends it.
        """
        preempted = status == "preempted"
        # The page of a run and hyperband send a signal too, to end it for good.
        stopped = preempted and self.mode == "online" and client.stop_requested(self._path)
        if preempted and not stopped:
            with contextlib.suppress(Exception):  # if this fails, `finish` fails too and reports it
                self._run.mark_preempting()  # a run of a sweep is queued again
        missing = self.finish(status, PREEMPTED_TIMEOUT_S if preempted else UPLOAD_TIMEOUT_S)
        if missing:
            reasons = "; ".join(dict.fromkeys(map(client.one_line, missing.values())))
            print(
                f"W&B lacks the {' and the '.join(missing)} ({reasons}); nothing is lost, finish "
                f"with: python -m emaae upload-pending {self.folder}",
                flush=True,
            )

    def finish(self, status: str, patience_s: int) -> dict[str, Exception]:
        """Send all that the folder has, and end the W&B run; returns what did not arrive, and why.

        patience_s: how long each artifact may take.
        """
        missing: dict[str, Exception] = {}
        online = self.mode == "online"
        self.send()
        try:
            self._run.summary["status"] = status
            with client.wandb_environment(self.folder, self.mode):
                log_artifacts(self._run, self.folder, patience_s if online else None)
        except Exception as error:  # whatever the network does
            missing["artifacts"] = error
        try:
            self._run.finish(exit_code=0 if status in read.GOOD else 1)
            if online and lacks_rows(self.folder, self._path):
                raise UserError("not all rows arrived")
        except Exception as error:
            missing["run"] = error
        if self._lost is not None:
            missing["run"] = self._lost
        self._record(list(missing) if online else ["run"])
        return missing

    def send(self) -> None:
        """Send the rows of the folder that the W&B run lacks."""
        for row in rows(self.folder)[self._n_there :]:
            self._send(row)

    def _send(self, row: Mapping[str, Any]) -> None:
        if self._lost is not None:
            return
        try:
            self._run.log(_for_wandb(row) | self._pictures(row))
            self._n_there += 1
        except Exception as error:  # as above, in whichever way
            self._stop_sending(error)

    def _stop_sending(self, error: Exception) -> None:
        self._lost = error
        print(f"W&B gets no more rows ({client.one_line(error)}); the run goes on", flush=True)

    def _pictures(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The reconstructions of an epoch as images; beside the final metrics one as a table."""
        if "select/epoch" in row:
            table = reconstruction_table(self.folder)
            return {} if table is None else {"reconstruction": table}
        drawn = self.folder / "reconstructions" / f"epoch-{row.get('epoch', 0):04d}"
        images = sorted(drawn.rglob("*.png"))
        if not images:
            return {}
        import wandb

        return {"reconstructions": [wandb.Image(str(p), caption=p.stem) for p in images]}

    @property
    def _path(self) -> str:
        return f"{self._run.entity}/{self._run.project}/{self._run.id}"

    def _record(self, pending: list[str]) -> None:
        record = {
            "id": self._run.id,
            "entity": self._run.entity or None,
            "project": self._run.project,
            "sweep": self._run.settings.sweep_id,
            "group": self._run.group or None,
            "mode": self.mode,
            "pending": sorted(pending),
        }
        write_json(self.folder / RECORD_FILE, record)


def start(config: Config, folder: Path) -> Observer:
    """Begin, or go on with, the W&B run of a folder; with --wandb disabled nothing follows it.

    An online start that fails goes on offline, unless it was asked for by name. Of several
    processes the first has the W&B run. Raises UserError.
    """
    if not is_main_process():
        return Observer()
    mode = client.mode_of(config.wandb)
    if mode == "disabled":
        print("W&B disabled", flush=True)
        return Observer()
    # W&B keeps a log of its own: on a full disk each line of it would print a traceback.
    logging.raiseExceptions = False
    with client.wandb_environment(folder, mode):
        import wandb

        try:
            try:
                run = _init(config, folder, mode)
            except (wandb.Error, OSError) as error:
                if mode == "offline" or config.wandb == "online":
                    raise
                reason = client.one_line(error)
                print(f"W&B cannot be reached ({reason}); going on offline", flush=True)
                mode = os.environ["WANDB_MODE"] = "offline"
                run = _init(config, folder, mode)
        except (wandb.Error, ValueError, OSError) as error:
            raise UserError(
                f"W&B refuses the run ({client.one_line(error)}): log in with `wandb login`, mend "
                "--wandb_project or --wandb_entity, or use --wandb offline or disabled"
            ) from None
    later = f"offline; upload later with: python -m emaae upload-pending {folder}"
    print(f"W&B {f'online at {run.url}' if mode == 'online' else later}", flush=True)
    sweep = os.environ.get("WANDB_SWEEP_ID")
    if not sweep:
        return Mirror(folder, run, mode)
    path = f"{run.entity}/{run.project}/{sweep}"
    return Mirror(folder, run, mode, client.sweep_config(path) if mode == "online" else {})


def _init(config: Config, folder: Path, mode: str) -> Any:
    record = read_record(folder)
    if mode == "offline":
        # The files of an offline run cannot be continued: all rows are logged again.
        shutil.rmtree(folder / "wandb", ignore_errors=True)
    return client.init(
        folder,
        mode,
        id=record.get("id"),
        resume="allow" if mode == "online" else None,
        project=config.wandb_project,
        entity=config.wandb_entity,
        group=os.environ.get("WANDB_RUN_GROUP") or os.environ.get("WANDB_SWEEP_ID"),
        job_type="eval" if config.eval_only else "train",
    )


def upload(
    folder: Path,
    entity: str | None = None,
    project: str | None = None,
    sweep: str | None = None,
    sweep_config: Mapping[str, Any] | None = None,
) -> str:
    """Send what W&B lacks of the run in a folder; returns its path there.

    entity, project, sweep: where to, if not where the run was meant to go. sweep_config: the
    content of its sweep's file. Raises UserError when a part of it did not arrive, and what the
    client raises.
    """
    record = read_record(folder)
    config = read.read_or_empty(folder / "config.json")  # {} of a run that failed before it began
    # In full, since an offline run does not know its entity.
    entity = entity or record.get("entity") or client.public_api().default_entity
    project = project or record.get("project") or config.get("wandb_project")
    path = f"{entity}/{project}/{record.get('id')}"
    inside = sweep in (None, record.get("sweep"))
    if record and inside and not lacks_rows(folder, path) and not _lacks_model(folder, path):
        whole: dict[str, Any] = {"entity": entity, "project": project, "pending": []}
        write_json(folder / RECORD_FILE, record | whole)
        return path
    run = client.init(
        folder,
        "online",
        id=record.get("id"),
        resume="allow",
        entity=entity,
        project=project,
        group=record.get("group"),
        job_type="eval" if config.get("eval_only") else "train",
        settings={"sweep_id": sweep or record.get("sweep"), "console": "off"},
    )
    if sweep_config is None and record.get("sweep"):
        sweep_config = {}
    mirror = Mirror(folder, run, "online", sweep_config)
    if config:
        mirror.on_config(config)
    missing = mirror.finish(read.metrics(folder).get("status", "failed"), UPLOAD_TIMEOUT_S)
    for what, reason in missing.items():
        raise UserError(f"its {what} did not arrive ({client.one_line(reason)})")
    path = f"{entity}/{project}/{run.id}"
    if _lacks_model(folder, path):
        raise UserError("its model did not arrive (W&B has another one)")
    return path


def _name(config: Mapping[str, Any], varying: Sequence[str] = ()) -> str:
    """The name of a run on W&B's pages, e.g. cosine a0.1-0.95 i1024 e5d3 s0 norm=layer.

    varying: of the sweep; what of it is not said already comes last.
    """
    ramp = f"-{config['alpha_max']:g}" if config["update"] else ""
    blocks = f"e{config['n_encoder']}d{config['n_decoder']}"
    alpha, size = f"a{config['alpha']:g}{ramp}", f"i{config['inner_size']}"
    rest = (f" {n}={config[n]}" for n in varying if n in config and n not in KNOBS_IN_NAME)
    return f"{config['schedule']} {alpha} {size} {blocks} s{config['seed']}{''.join(rest)}"


def lacks_rows(folder: Path, path: str) -> bool:
    """Whether the W&B run at `path` has fewer rows than the folder, or is not there."""
    import wandb

    try:
        # A run whose server went away ends without complaint. Steps count from 0.
        return client.public_api().run(path).lastHistoryStep + 1 < len(rows(folder))
    except (wandb.Error, ValueError):
        return True


def _lacks_model(folder: Path, path: str) -> bool:
    project, run_id = path.rsplit("/", 1)
    mine = model_artifact(folder, run_id)
    if mine is None:
        return False
    there = client.get_or_none(client.public_api().artifact, f"{project}/{mine.name}:latest")
    return there is None or there.metadata.get("sha256") != mine.metadata["sha256"]


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows on W&B of the run in a folder: epochs, final metrics, points of the curves."""
    final, curves = read.final_metrics(folder), read.read_or_empty(folder / "curves.json")
    if "select/epoch" in final:  # whose weights they are of
        final["epoch"] = final["select/epoch"]
    found = read.history(folder) + ([final] if final else [])
    for curve, names in CURVE_COLUMNS.items() if final and curves else ():
        for point in zip(*(curves[curve][column] for column in names)):
            row = dict(zip(names.values(), point))
            found.append({name: value for name, value in row.items() if value is not None})
    return found


def _define_axes(run: Any, sweep: Mapping[str, Any] | None) -> None:
    """Tell W&B what each metric is drawn over, and of which to show the extremum.

    A summary with an extremum is a mapping, which W&B's search cannot read: the metric of a sweep
    has none, and no metric has one while that is unknown.
    """
    # Not filled in by itself: the final row belongs to no epoch.
    run.define_metric("*", step_metric="epoch", step_sync=False)
    aim = ((sweep or {}).get("metric") or {}).get("name")
    for name, metric in BY_NAME.items() if sweep is None or aim else ():
        single = metric.better and "CHANNEL" not in metric.names
        if single and logged_each_epoch(name) and name != aim:
            best = "min" if metric.better == "lower" else "max"
            run.define_metric(name, step_metric="epoch", step_sync=False, summary=best)
    for axis, *metrics in (names.values() for names in CURVE_COLUMNS.values()):
        run.define_metric(axis, summary="none")
        for name in metrics:
            run.define_metric(name, step_metric=axis, step_sync=False, summary="none")


def read_record(folder: Path) -> dict[str, Any]:
    """The content of wandb.json in a run's folder; {} for a run that was never on W&B."""
    path = folder / RECORD_FILE
    return read_json(path) if path.is_file() else {}


def _for_wandb(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what is undefined: the extremum of what holds a NaN is NaN on W&B."""
    found = {}
    for name, value in row.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue
        if name.endswith("density_log10"):
            import wandb

            value = wandb.Histogram(np_histogram=(np.array(value), np.array(DENSITY_EDGES)))
        found[CHANNEL_PREFIX + name if name.count("/") == 2 else name] = value
    return found
