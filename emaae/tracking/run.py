"""Following a run on W&B while it goes on."""

import contextlib
import logging
import math
import netrc
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from emaae.config import Config
from emaae.metrics import DENSITY_EDGES
from emaae.runs import read
from emaae.runs.checkpoint import write_json
from emaae.runs.folder import Follower
from emaae.system.distributed import first, shared
from emaae.system.errors import UserError
from emaae.system.files import read_json

# wandb's own 90 s are long for someone who waits; what is logged offline is not lost.
INIT_TIMEOUT_S = 20
# How long the end of a run waits for uploads; what is missing then is kept and uploaded later.
FINISH_TIMEOUT_S = 300
UPLOAD_TIMEOUT_S = 120
PREEMPTED_TIMEOUT_S = 20  # of a node that is about to be taken
# The curves of curves.json, column by column, as rows on W&B name them; the first is the axis.
CURVES = {
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
# In a run's folder: which W&B run it is, and what of it W&B does not have yet.
RECORD = "wandb.json"


class Tracker(Follower):
    """A W&B run, or nothing at all with --wandb disabled."""

    def __init__(self, folder: Path, run: Any = None, mode: str = "disabled"):
        self.folder, self.mode, self._run = folder, mode, run
        self._media: dict[str, Any] = {}
        self._lost: Exception | None = None  # why the W&B run gets no more rows
        # Values that a sweep gives this run; they are locked there.
        self.sweep_values = _given_by_sweep(run) if run is not None else {}
        # Epochs that a run that is resumed has there already: each is one row.
        self._there = run.starting_step if run is not None else 0

    @property
    def how(self) -> str:
        """Where the W&B run is, for a person."""
        if self.mode == "online":
            return f"online at {self._run.url}"
        if self.mode == "offline":
            return f"offline; upload later with: python -m emaae upload-pending {self.folder}"
        return "disabled"

    def configure(self, config: Config) -> None:
        """Tell W&B the settings, once they are final, and how to find the run by them."""
        print(f"W&B {self.how}", flush=True)
        if self._run is None:
            return
        self._run.name = (
            f"{config.schedule_name} a{config.alpha:g}"
            + (f"-{config.alpha_max:g}" if config.update else "")
            + f" i{config.inner_size} e{config.n_encoder}d{config.n_decoder} s{config.seed}"
        )
        self._run.tags = (
            config.schedule_name,
            config.sparse_loss,
            *(("demo",) if config.demo else ()),
        )
        self.settings(config.asdict())
        # Until its end is confirmed, all of it is pending: a process may be killed at any moment.
        self._record(pending=["run", "artifacts"] if self.mode == "online" else ["run"])

    def settings(self, values: Mapping[str, Any]) -> None:
        """Add to the config of the W&B run."""
        if self._run is not None:
            own = {k: v for k, v in values.items() if k not in self.sweep_values}
            self._run.config.update(own)

    def resumed(self, last: Mapping[str, Any]) -> None:
        """Log what the run has and the W&B run lacks."""
        self.log_again()

    def pictures(self, name: str, paths: Sequence[Path]) -> None:
        """Images that go with the next row."""
        if self._run is not None and paths:
            import wandb

            self._media[name] = [wandb.Image(str(path), caption=path.stem) for path in paths]

    def epoch(self, row: Mapping[str, Any], seconds: float) -> None:
        """One row."""
        self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """One row; it holds `epoch`, which is the axis of every chart."""
        media, self._media = self._media, {}
        if row["epoch"] > self._there:
            self._log(row, media)

    def log_again(self) -> None:
        """Log what history.jsonl and reconstructions/ hold and the W&B run lacks."""
        for row in read.history(self.folder):
            drawn = self.folder / "reconstructions" / f"epoch-{row['epoch']:04d}"
            self.pictures("reconstructions", sorted(drawn.rglob("*.png")))
            self.log(row)

    def log_final(self, metrics: Mapping[str, Any]) -> None:
        """What is logged once and belongs to no epoch, as far as the W&B run lacks it.

        A row of metrics, `select/score` among them, and a row for each point of curves.json.
        """
        rows = [dict(metrics)]
        n_there = max(0, self._there - len(read.history(self.folder)))
        for row in (rows + curve_rows(self.folder))[n_there:]:
            self._log(row)

    def _log(self, row: Mapping[str, Any], media: Mapping[str, Any] | None = None) -> None:
        if self._run is None or self._lost is not None:
            return
        try:
            # W&B takes NaN for a value, and the extremum of what holds one is NaN.
            defined = {name: value for name, value in row.items() if not _undefined(value)}
            plain = {name: _for_wandb(name, value) for name, value in defined.items()}
            self._run.log(plain | dict(media or {}))
        except Exception as error:  # wandb's own service is a process that may die
            self._lost = error
            print(f"W&B gets no more rows ({_line(error)}); the run goes on", flush=True)

    def ended(self, metrics: Mapping[str, Any], status: str, curves: Mapping[str, Any]) -> None:
        """Log the final metrics, `select/score` among them, store the artifacts, end the run.

        A run that was interrupted may go on, and logs no final metrics. No failure of W&B ends a
        run of ours: what could not be uploaded is kept in wandb.json, and
        `python -m emaae upload-pending` finishes it.
        """
        if self._run is None:
            return
        from emaae.tracking.artifacts import log_artifacts

        missing: dict[str, Exception] = {}
        online, preempted = self.mode == "online", status == "preempted"
        if not preempted:
            self.log_final(metrics)
        patience = PREEMPTED_TIMEOUT_S if preempted else UPLOAD_TIMEOUT_S
        try:
            self._run.summary["status"] = status
            if preempted:
                self._run.mark_preempting()  # a run of a sweep is queued again
            with _variables(self.folder, self.mode):
                log_artifacts(self._run, self.folder, patience if online else None)
        except Exception as error:  # whatever the network does
            missing["artifacts"] = error
        try:
            self._run.finish(exit_code=0 if status in read.GOOD else 1)
            if online:
                check_history(self.folder, f"{self._run.entity}/{self._run.project}/{self._run.id}")
        except Exception as error:
            missing["run"] = error
        if self._lost is not None:
            missing["run"] = self._lost
        self._record(list(missing) if online else ["run"])
        if missing:
            reasons = "; ".join(dict.fromkeys(map(_line, missing.values())))
            print(
                f"W&B lacks the {' and the '.join(missing)} ({reasons}); nothing is lost, finish "
                f"with: python -m emaae upload-pending {self.folder}",
                flush=True,
            )

    def _record(self, pending: list[str]) -> None:
        settings = self._run.settings
        write_json(
            self.folder / RECORD,
            {
                "id": self._run.id,
                "entity": self._run.entity or None,
                "project": self._run.project,
                "sweep": os.environ.get("WANDB_SWEEP_ID"),
                "mode": self.mode,
                "files": os.path.relpath(settings.sync_dir, self.folder),
                "pending": sorted(set(pending)),
            },
        )


def start(config: Config, folder: Path) -> Tracker:
    """Begin a W&B run whose files lie in `folder`/wandb.

    --wandb auto is online when a key is configured (WANDB_API_KEY or a netrc file) and offline
    otherwise; WANDB_MODE, when set, decides instead. An online start that fails goes on offline,
    unless it was asked for by name. Of several processes the first has the W&B run, and all the
    values that a sweep gives it. Raises UserError.
    """
    tracker = _start(config, folder) if first() else Tracker(folder)
    tracker.sweep_values = shared(tracker.sweep_values)
    return tracker


def _start(config: Config, folder: Path) -> Tracker:
    mode = config.wandb
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _key_configured() else "offline")
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode == "disabled":
        return Tracker(folder)
    if mode not in ("online", "offline"):
        raise UserError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    before = read_record(folder)
    # W&B keeps a log of its own: on a full disk each line of it would print a traceback.
    logging.raiseExceptions = False
    with _variables(folder, mode):
        import wandb

        try:
            if mode == "online":
                try:
                    return Tracker(folder, _init(config, folder, "online", before), "online")
                except (wandb.Error, OSError) as error:
                    if config.wandb == "online":
                        raise
                    print(f"W&B cannot be reached ({_line(error)}); going on offline", flush=True)
                    os.environ["WANDB_MODE"] = "offline"
            return Tracker(folder, _init(config, folder, "offline", before), "offline")
        except (wandb.Error, ValueError, OSError) as error:
            raise UserError(
                f"W&B refuses the run ({_line(error)}): log in with `wandb login`, mend "
                "--wandb_project or --wandb_entity, or use --wandb offline or disabled"
            ) from None


def _init(config: Config, folder: Path, mode: str, before: Mapping[str, Any] | None) -> Any:
    """The W&B run; `before` is the record of the one that is resumed.

    Online it is continued there. Offline it begins again under its id and is told all rows once
    more, since W&B uploads the parts of a run one over the other. Begun online and resumed offline
    it becomes another run.
    """
    import wandb

    run_id = None
    if before is not None and (mode == "online" or before["mode"] == "offline"):
        run_id = before["id"]
        if mode == "offline":
            shutil.rmtree(folder / "wandb", ignore_errors=True)
    run = wandb.init(
        id=run_id,
        resume="allow" if mode == "online" else None,
        project=config.wandb_project,
        entity=config.wandb_entity,
        dir=str(folder),
        mode=mode,
        group=os.environ.get("WANDB_RUN_GROUP") or os.environ.get("WANDB_SWEEP_ID"),
        job_type="eval" if config.eval_only else "train",
        settings=wandb.Settings(
            silent=True,
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT_S)),
            finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT_S)),
            finish_timeout_raises=True,
        ),
    )
    define_axes(run)
    return run


def define_axes(run: Any) -> None:
    """Tell W&B what each metric is drawn over: the epoch, or the axis of its curve."""
    # Not filled in by itself: the final row belongs to no epoch.
    run.define_metric("*", step_metric="epoch", step_sync=False)
    for axis, *metrics in (names.values() for names in CURVES.values()):
        run.define_metric(axis, summary="none")
        for metric in metrics:
            run.define_metric(metric, step_metric=axis, step_sync=False, summary="none")


def curve_rows(folder: Path) -> list[dict[str, float]]:
    """The points of curves.json as rows for W&B; none when there is no such file."""
    curves, rows = read.read_or_empty(folder / "curves.json"), []
    for curve, names in CURVES.items():
        series = {metric: curves[curve][key] for key, metric in names.items()} if curves else {}
        for point in zip(*series.values()):
            rows.append({k: value for k, value in zip(series, point) if value is not None})
    return rows


def _given_by_sweep(run: Any) -> dict[str, Any]:
    if not run.resumed:
        return dict(run.config)
    # The config of a run that is resumed holds all that it was told before; the agent leaves what
    # it gives in a file.
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    given = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else {}
    return {name: value for name, value in run.config.items() if name in given}


@contextlib.contextmanager
def _variables(folder: Path, mode: str) -> Iterator[None]:
    """What wandb takes from the environment alone, for one run and not for the next one."""
    ours = {
        # Read when wandb is imported: said later, an "offline" client asks the network twice.
        "WANDB_MODE": mode,
        # Artifacts of an offline run are remembered by absolute path: keep them with the run.
        "WANDB_DATA_DIR": str(folder.resolve() / "wandb" / "data"),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def public_api() -> Any:
    """W&B's client for questions. Raises UserError when it cannot be reached or refuses the key."""
    import wandb

    try:
        return wandb.Api(timeout=INIT_TIMEOUT_S)
    except (wandb.Error, OSError) as error:
        raise UserError(
            f"W&B cannot be asked ({_line(error)[:200]}): check the network and `wandb login`"
        ) from None


def check_history(folder: Path, path: str) -> None:
    """Ask W&B whether it has every row of a run; raises an error when it has not.

    A run whose server went away ends without complaint.
    """
    import wandb

    rows = len(read.history(folder))
    if read.final_metrics(folder):
        rows += 1 + len(curve_rows(folder))
    there = public_api().run(path).lastHistoryStep + 1  # counts from 0
    if there < rows:
        raise wandb.Error(f"{there} of {rows} rows arrived")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What wandb.json of a run's folder says; None for a run that W&B never knew."""
    path = folder / RECORD
    return read_json(path) if path.is_file() else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _for_wandb(name: str, value: Any) -> Any:
    if name.endswith("density_log10"):
        import wandb

        return wandb.Histogram(np_histogram=(value, DENSITY_EDGES))
    return value


def _key_configured() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
