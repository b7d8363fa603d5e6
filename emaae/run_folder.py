"""What does a run leave behind? OUT_DIR/RUN, complete without a network."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from emaae import checkpoint, console, reconstructions
from emaae.config import Config, read_json
from emaae.data import Split
from emaae.errors import UserError
from emaae.models import CNNAutoEncoder
from emaae.tracking.run import Tracker

# last.pt is four times as large as the weights (model, best, two moments of Adam), and an epoch may
# take less time than writing it. So it may be this much older than the last line of the history.
KEEP_LAST_EVERY_S = 30.0


class RunFolder:
    """The files of one run. What is logged goes to the W&B run and to the terminal too.

    Used as a context it ends the run whatever happens: an exception before `finish` leaves
    metrics.json with the status failed, or preempted when it was an interrupt.
    """

    def __init__(self, path: Path, config: Config):
        self.path, self.config = path, config
        self.tracker = Tracker(path)
        self._finished = False
        self._selected: dict[str, float] = {}  # what a run that is interrupted knows of its best
        self._kept_last = -math.inf

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """Make OUT_DIR/RUN, new and empty. Raises UserError.

        A name whose run failed before its first epoch may be given again.
        """
        out_dir, name = Path(config.out_dir), config.run_name or _name(config)
        # Runs that start in the same second get folders of their own; a given name is kept.
        names = [name] if config.run_name else [name, *(f"{name}-{i}" for i in range(2, 1000))]
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            for attempt in names:
                with contextlib.suppress(FileExistsError):
                    (out_dir / attempt).mkdir()
                    return cls(out_dir / attempt, config)
            if _came_to_nothing(out_dir / name):
                return cls(out_dir / name, config)
        except OSError as error:
            raise UserError(
                f"--out_dir {config.out_dir} cannot hold the run folder {name} "
                f"({error.strerror}): name a directory that you can write to, or a shorter run"
            ) from None
        raise UserError(f"{out_dir / name} exists already: give another --run_name, or remove it")

    def __enter__(self) -> "RunFolder":
        print(f"run {self.path}", flush=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if not self._finished:
            interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
            self.finish(self._selected, "preempted" if interrupted else "failed")

    def follow(self, tracker: Tracker, config: Config) -> None:
        """Tell a W&B run everything from now on; the config is final."""
        self.tracker, self.config = tracker, config
        tracker.configure(config)
        print(f"W&B {tracker.how}", flush=True)

    def describe(self, model: CNNAutoEncoder, splits: Mapping[str, Split]) -> None:
        """Write config.json and model_config.json; say what is trained on what."""
        data = {
            name: {"utterances": len(s), "frames": len(s.frames), "fingerprint": s.fingerprint()}
            for name, s in splits.items()
        }
        found = {"data": data, "versions": versions(), "git_commit": git_commit()}
        found["schedule"] = self.config.schedule_name
        knobs = self.config.asdict()
        checkpoint.write_json(self.path / "config.json", knobs | found)
        checkpoint.write_json(
            self.path / "model_config.json",
            # `learning_rate` is how published model configs spell `lr`.
            knobs | model.architecture() | {"learning_rate": self.config.lr},
        )
        self.tracker.update_config(found)
        n_parameters = sum(p.numel() for p in model.parameters())
        print(console.data_lines(splits, self.config.demo))
        print(f"model {model.get_type()}, {n_parameters / 1e6:.2f} M parameters", flush=True)

    def log(self, row: Mapping[str, Any], seconds: float) -> None:
        """One epoch: a line of history.jsonl, flushed, a W&B row and a line on the terminal."""
        with open(self.path / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row), allow_nan=False) + "\n")
        self.tracker.log(row)
        print(console.epoch_line(row, self.config.epochs, seconds), flush=True)

    def keep_best(self, model: CNNAutoEncoder, selected: Mapping[str, float]) -> None:
        """Write best.pth, a bare state_dict."""
        self._selected = dict(selected)
        checkpoint.save(self.path / "best.pth", model.state_dict())

    def keep_last(self, state: Mapping[str, Any], *, now: bool) -> None:
        """Write last.pt, everything to continue; unless `now`, at most every 30 seconds."""
        moment = time.monotonic()
        if now or moment - self._kept_last >= KEEP_LAST_EVERY_S:
            checkpoint.save(self.path / "last.pt", {"format": checkpoint.FORMAT, **state})
            self._kept_last = moment

    def reconstruct(self, model: CNNAutoEncoder, val: Split, epoch: int) -> None:
        """Keep and draw the same few validation utterances under reconstructions/epoch-N."""
        images = []
        for index in reconstructions.typical(val):
            found = reconstructions.reconstruct(model, val, index)
            stem = self.path / "reconstructions" / f"epoch-{epoch:04d}" / found.name
            images.append(reconstructions.save(found, stem, f"epoch {epoch}"))
        self.tracker.show("reconstructions", images)

    def finish(self, metrics: Mapping[str, Any], status: str) -> None:
        """Write metrics.json, end the W&B run, print the table.

        status: finished, early_stopped, diverged, preempted or failed.
        """
        self._finished = True
        final = plain(metrics) | {"status": status}
        checkpoint.write_json(self.path / "metrics.json", final)
        finite = {name: value for name, value in plain(metrics).items() if value is not None}
        self.tracker.finish(finite, status)
        if status not in ("failed", "preempted"):
            print(console.table(metrics, status, self.path), flush=True)


def _came_to_nothing(folder: Path) -> bool:
    metrics = folder / "metrics.json"
    if (folder / "history.jsonl").exists() or not metrics.is_file():
        return False
    return read_json(metrics).get("status") == "failed"


def _name(config: Config) -> str:
    """A name that tells runs apart at a glance, e.g. step-a0.25-i1024-e5d3-s0-20260131-120000."""
    # An agent's run is found again by what W&B calls it.
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        return f"{os.environ['WANDB_SWEEP_ID']}-{os.environ['WANDB_RUN_ID']}"
    what = "eval" if config.eval_only else config.schedule_name
    return (
        f"{what}-a{config.alpha:g}-i{config.inner_size}-e{config.n_encoder}d{config.n_decoder}"
        f"-s{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    )


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: an undefined number becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that numbers depend on."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in ("torch", "numpy", "scipy", "einops", "wandb"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of this code, with `-dirty` when files differ from it; None outside git."""
    here = str(Path(__file__).resolve().parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
