"""Writing the folder of a run, OUT_DIR/RUN, which is complete without a network."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from emaae.config import SWEEPABLE, Config
from emaae.data.split import Split
from emaae.metric_table import SELECTED
from emaae.models import CNNAutoEncoder, weight_bytes
from emaae.runs import checkpoint, read, reconstructions
from emaae.system import files
from emaae.system.distributed import broadcast, is_main_process
from emaae.system.errors import UserError
from emaae.system.signals import Interrupted, defer_interrupts
from emaae.training import Run, Selection

# last.pt is four times as large as the weights (model, best, two moments of Adam), so writing it
# may take longer than an epoch. It may therefore be this much older than the end of the history.
KEEP_LAST_EVERY_S = 30.0
# Copies of the weights on disk while last.pt is written: four each in the new file, in the old one
# and in last.previous.pt, and one in best.pth.
WEIGHT_COPIES = 13
# Measured: three reconstructions of 14 s with their pictures, and twice a row of the history.
RECONSTRUCTION_BYTES = 900_000
ROW_BYTES = 3000


def space_needed(config: Config) -> int:
    """About the largest size in bytes that the folder of a run will have."""
    if config.eval_only:
        return 0
    drawn = min(config.epochs, config.epochs // config.epochs_per_figure + 2)
    weights = WEIGHT_COPIES * weight_bytes(**config.architecture)
    return weights + drawn * RECONSTRUCTION_BYTES + config.epochs * ROW_BYTES


def check_space(config: Config) -> None:
    """Raise UserError when the disk has clearly too little room for what a run leaves."""
    path = _run_path(config)
    # os.path.isdir gives False where Path.is_dir raises, for example if a name is too long.
    disk = next(folder for folder in (path, *path.absolute().parents) if os.path.isdir(folder))
    occupied = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if disk == path else 0
    free, needed = shutil.disk_usage(disk).free, space_needed(config)
    if free + occupied < needed:
        raise UserError(
            f"{path} needs about {needed / 1e6:.0f} MB (weights {WEIGHT_COPIES} times, and "
            f"reconstructions), and its disk has {free / 1e6:.0f} MB free: make room, name "
            "another --out_dir, or lower --inner_size"
        )


def status_if_ended(config: Config) -> str:
    """The status of the run to resume if that run has already ended; else ""."""
    status = broadcast(read.metrics(_run_path(config)).get("status")) if _resumes(config) else ""
    return status if status in read.ENDED else ""


def continues(config: Config) -> bool:
    """Whether the run continues from a saved state, which holds its weights."""
    return _resumes(config) and broadcast(checkpoint.has_last(_run_path(config)))


class Observer:
    """Receives the events of a run, for the terminal or W&B; this base class ignores them."""

    def on_epoch(self, row: Mapping[str, Any], seconds: float) -> None:
        """A new row of history.jsonl, and how long its epoch took."""

    def on_end(self, metrics: Mapping[str, Any], status: str, curves: Mapping[str, Any]) -> None:
        """The content of metrics.json and curves.json; {} without curves."""


class RunFolder(Run, contextlib.AbstractContextManager):
    """Writes the files of one run, and tells its observers what it writes.

    Leaving it as a context manager ends the run: after an exception before `finish` metrics.json
    has the status failed, or preempted if the exception was an interrupt.
    """

    def __init__(self, path: Path, config: Config):
        self.path, self.config = path, config
        self.observers: Sequence[Observer] = ()  # are told all events from when they are set
        self.last: dict[str, Any] | None = None  # the state from which the run is resumed
        self._lock = files.lock_folder(path)
        # Whether leaving the context ends the run: not after `finish`, and not while the settings
        # and data of a resumed run have not been compared with those of its start.
        self._unfinished = True
        # Metrics of the best epoch so far, written if the run is interrupted.
        self._selected: dict[str, float] = {}
        self._kept_last = time.monotonic()

    @classmethod
    def open(cls, config: Config) -> "RunFolder | NoFolder":
        """Open OUT_DIR/RUN: a new folder, or that of the run to resume. Raises UserError.

        The name of a run that failed before its first epoch may be reused. With several processes
        only the main one writes the folder.
        """
        if not is_main_process():
            return NoFolder(*broadcast((Path(), None)))
        run = cls._open(config)
        broadcast((run.path, run.last))
        return run

    @classmethod
    def _open(cls, config: Config) -> "RunFolder":
        path = _run_path(config)
        if config.resume and not (config.run_name or _started_by_agent()):
            raise UserError("--resume needs --run_name NAME, the run to resume")
        # A number tells default names of the same second apart; a name that was given gets none.
        numbers = () if config.run_name else range(2, 1000)
        try:
            if _resumes(config) and path.is_dir():
                return cls(path, config)._restore()
            path.parent.mkdir(parents=True, exist_ok=True)
            for attempt in (path, *(path.with_name(f"{path.name}-{i}") for i in numbers)):
                with contextlib.suppress(FileExistsError):
                    attempt.mkdir()
                    return cls(attempt, config)
            failed = read.metrics(path).get("status") == "failed"
            if failed and not read.history(path):
                run = cls(path, config)
                for name in ("metrics.json", *checkpoint.STATE_FILES):
                    (path / name).unlink(missing_ok=True)
                return run
        except OSError as error:
            raise UserError(
                f"--out_dir {config.out_dir} cannot hold the run folder {path.name} "
                f"({error.strerror}): name a directory that you can write to, or a shorter run"
            ) from None
        advice = "or remove it" if config.eval_only else "remove it, or continue it with --resume"
        raise UserError(f"{path} exists already: give another --run_name, {advice}")

    def _restore(self) -> "RunFolder":
        for stray in self.path.glob(".*.tmp"):
            stray.unlink()  # of a process that was killed while it wrote
        if checkpoint.has_last(self.path):
            self.last, self._unfinished = checkpoint.load_last(self.path), False
        else:
            # The run stopped before it saved a state, and starts again.
            self._rewind(0)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if self._unfinished:
            interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
            # On a full disk this fails too; the exception that is under way is the one to print.
            with contextlib.suppress(UserError, Interrupted), defer_interrupts():
                self.finish(self._selected, "preempted" if interrupted else "failed", {})
        if self._lock is not None:
            self._lock.close()

    def write_config(self, model: CNNAutoEncoder, splits: Mapping[str, Split]) -> None:
        """Write config.json and model_config.json.

        For a resumed run, settings and data are compared with those in config.json instead, and
        the folder goes back to the epoch of last.pt. Raises UserError if they have changed.
        """
        data = {name: _data_entry(split) for name, split in splits.items()}
        found = {"data": data, "versions": versions(), "git_commit": git_commit()}
        # Derived entries, which help to compare many runs.
        found |= {"schedule": self.config.schedule_name, "demo": self.config.uses_demo}
        found["data_fingerprint"] = read.data_fingerprint(found)
        knobs = vars(self.config)
        if self.last is None:
            files.write_json(self.path / "config.json", knobs | found)
            files.write_json(
                self.path / "model_config.json",
                # Published model configs call `lr` `learning_rate`.
                knobs | model.architecture() | {"learning_rate": self.config.lr},
            )
        else:
            self._check_unchanged(knobs | found)
            self._unfinished = True
            self._rewind(self.last["epoch"])
            if self.last["best"] is not None:
                checkpoint.save(self.path / "best.pth", self.last["best"])
                self._selected = Selection(**self.last["selection"]).metrics()

    def _check_unchanged(self, now: Mapping[str, Any]) -> None:
        before = files.read_json(self.path / "config.json")
        was, is_now = _what_must_stay(before), _what_must_stay(now)
        for what in was | is_now:
            if was.get(what) != is_now.get(what):
                raise UserError(
                    f"{what} was {was.get(what)} when {self.path} began and is {is_now.get(what)} "
                    "now: a run can only be resumed with the settings and data it began with "
                    "(settings that are not given are read from its config.json): undo the change, "
                    "or start another run with another --run_name"
                )
        for name in ("checkpoint", "model_config"):
            if now[name] != before.get(name):
                warnings.warn(
                    f"--{name} {now[name]}: without effect, since {self.path} continues from its "
                    "last.pt",
                    stacklevel=2,
                )
        if before["versions"] != now["versions"]:
            warnings.warn(
                f"{self.path} began with other versions ({before['versions']}): the numbers may "
                "differ in their last digits from those of a run that was never interrupted",
                stacklevel=2,
            )

    def _rewind(self, epoch: int) -> None:
        """Remove what was written after `epoch`. Raises UserError when the history lacks a row."""
        history = self.path / "history.jsonl"
        rows = [row for row in read.history(self.path) if row["epoch"] <= epoch]
        if [row["epoch"] for row in rows] != list(range(1, epoch + 1)):
            raise UserError(
                f"{history} has {len(rows)} of the {epoch} epochs before last.pt: the file "
                "was changed; start another run with another --run_name"
            )
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        files.write_bytes(history, text.encode())
        for name in ("metrics.json", "curves.json", "best.pth"):
            (self.path / name).unlink(missing_ok=True)
        for drawn, folder in read.drawn_epochs(self.path / "reconstructions").items():
            if drawn > epoch:
                shutil.rmtree(folder)

    def log(self, row: Mapping[str, Any], seconds: float) -> None:
        """Append the row of an epoch to history.jsonl, and wait until it is on disk."""
        path = self.path / "history.jsonl"
        before = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(json_safe(row), allow_nan=False) + "\n")
                files.flush_to_disk(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, before)  # remove the incomplete line
            raise UserError(files.write_error(path, error)) from None
        for observer in self.observers:
            observer.on_epoch(row, seconds)

    def save_best(self, model: CNNAutoEncoder, selected: Mapping[str, float]) -> None:
        """Write best.pth, a bare state_dict."""
        self._selected = dict(selected)
        checkpoint.save(self.path / "best.pth", model.state_dict())

    def save_last(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Write last.pt, the state to resume from; unless `now`, at most every 30 seconds."""
        if now or time.monotonic() - self._kept_last >= KEEP_LAST_EVERY_S:
            checkpoint.save_last(self.path, state())
            self._kept_last = time.monotonic()

    def reconstruct(self, model: CNNAutoEncoder, val: Split, epoch: int) -> None:
        """Save and draw the same three validation utterances, in reconstructions/epoch-N."""
        for index in reconstructions.indices_of_median_length(val):
            found = reconstructions.reconstruct(model, val, index)
            stem = self.path / "reconstructions" / f"epoch-{epoch:04d}" / found.name
            reconstructions.save(found, stem, f"epoch {epoch}")

    def finish(self, metrics: Mapping[str, Any], status: str, curves: Mapping[str, Any]) -> None:
        """Write metrics.json and, unless `curves` is {}, curves.json; tell the observers.

        status: finished, early_stopped, diverged, preempted or failed. curves: those of
        `shift.shift_tolerance` and the name of their `split`.
        """
        # More metrics of the selected epoch, for tables made from metrics.json alone.
        epoch = metrics.get("select/epoch")
        row = next((row for row in read.history(self.path) if row["epoch"] == epoch), {})
        selected = {name: row.get(name.replace("select/", "val/")) for name in SELECTED}
        defined = {name: value for name, value in selected.items() if value is not None}
        metrics = dict(metrics) | defined
        final = json_safe(metrics) | {"status": status}
        try:
            with defer_interrupts():  # a signal comes before the end of the run, or after it
                self._unfinished = False
                if curves:
                    files.write_json(self.path / "curves.json", json_safe(curves))
                files.write_json(self.path / "metrics.json", final)
        except UserError:
            # Observers must not be told of an end that is not on disk.
            status = "preempted" if status == "preempted" else "failed"
            raise
        finally:
            with contextlib.ExitStack() as each:  # all are told, also if one of them raises
                for observer in reversed(self.observers):
                    each.callback(observer.on_end, metrics, status, curves)


class NoFolder(Run, contextlib.AbstractContextManager):
    """Replaces RunFolder in all processes but the first, which writes the files."""

    observers: Sequence[Observer] = ()

    def __init__(self, path: Path, last: dict[str, Any] | None):
        self.path, self.last = path, last

    def _nothing(self, *_: Any) -> None:
        """Do nothing: the first process does it."""

    __exit__ = write_config = finish = _nothing


def _data_entry(split: Split) -> dict[str, Any]:
    found: dict[str, Any] = {"utterances": len(split), "frames": len(split.frames)}
    found["fingerprint"] = split.fingerprint()
    if split.skipped:
        found["skipped"] = {"files": len(split.skipped), "first": [*split.skipped][:5]}
    return found


def _what_must_stay(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of config.json that must not change: not paths, locations, skipped files."""
    found = {f"--{name}": config.get(name) for name in SWEEPABLE}
    for split, data in config["data"].items():
        found[f"the {split} split"] = {k: v for k, v in data.items() if k != "skipped"}
    return found


def _started_by_agent() -> bool:
    """Whether W&B's agent started this run; a requeued run gets the same id again."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def _resumes(config: Config) -> bool:
    return config.resume or _started_by_agent()


def _run_path(config: Config) -> Path:
    return Path(config.out_dir) / (config.run_name or _default_run_name(config))


def _default_run_name(config: Config) -> str:
    """A name with the main settings, e.g. step-a0.25-i1024-e5d3-s0-20260131-120000."""
    # A requeued run of an agent is found by its ids on W&B.
    if _started_by_agent():
        return f"{os.environ['WANDB_SWEEP_ID']}-{os.environ['WANDB_RUN_ID']}"
    what = "eval" if config.eval_only else config.schedule_name
    return (
        f"{what}-a{config.alpha:g}-i{config.inner_size}-e{config.n_encoder}d{config.n_decoder}"
        f"-s{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    )


def json_safe(value: Any) -> Any:
    """Replace undefined numbers by None at any depth: JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {name: json_safe(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [json_safe(inner) for inner in value]
    return None if isinstance(value, float) and not read.is_finite(value) else value


def versions() -> dict[str, str]:
    """Python's version and those of the packages that numbers depend on; torch's with its build."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    found["torch"] = str(torch.__version__)
    packages = ("numpy", "scipy", "einops", "wandb")
    return found | {name: importlib.metadata.version(name) for name in packages}


def git_commit() -> str | None:
    """The commit of this code, with -dirty if files have changed; None if git does not track it."""
    here = Path(__file__).resolve()

    def git(*command: str) -> str:
        full = ["git", "-C", str(here.parent), *command]
        return subprocess.run(full, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip()
    except (OSError, subprocess.SubprocessError):
        return None
