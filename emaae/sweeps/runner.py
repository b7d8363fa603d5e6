"""Running a sweep without a server.

`python -m emaae sweep FILE.yaml` reads the same file as `wandb sweep` and starts its program as
`wandb agent` does, one process for each point. Points come from a queue that any number of runners
share (queue.py); the outcome of a run is read from its folder (judging.py).
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from emaae.command_line import config_from, from_environment, parse_flags
from emaae.data.features import find_features
from emaae.runs import read
from emaae.sweeps import sweep_file
from emaae.sweeps.judging import best, metric_values, outcome_of, should_stop_early
from emaae.sweeps.queue import DONE, Attempt, Queue, acquire_lock, is_locked, lock_path
from emaae.sweeps.space import Sweep
from emaae.sweeps.table import Screen, format_value, mean_over_seeds, ranked, table, write_csv
from emaae.system.cpus import n_cpus
from emaae.system.errors import UserError, last_error
from emaae.system.files import find_packaged, make_folder, write_bytes, write_error
from emaae.system.signals import defer_interrupts, interrupt_pending

FAILED = 1  # exit status when a point failed
POLL_S = 0.25  # interval of checking the runs and redrawing the table
STATUS_S = 60.0  # interval of progress lines, where there is no terminal
CLAIM_S = 2.0  # interval of asking for a point while none is free
# How long a run that was told to stop early may take before it is killed.
KILL_AFTER_S = 60.0
# How often a run that was interrupted without its runner is resumed at the same epoch. If it is
# interrupted there once more, it counts as failed.
MAX_STALLS = 3
# Variables by which W&B's agent tells a program which run it is.
AGENT_VARIABLES = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")


def run(
    path: str | Path,
    *,
    jobs: int | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    dry_run: bool = False,
    flags: Sequence[str] = (),
) -> int:
    """Run a sweep file to its end, or continue it; returns the exit status. Raises UserError.

    The arguments are those of `python -m emaae sweep`; flags: passed on to the program.
    """
    path = find_packaged(path)
    sweep, warnings = sweep_file.read(path)
    for warning in warnings:
        print(warning, file=sys.stderr)
    if dry_run:
        print("\n".join(_plan(sweep)))
        return 0
    folder = Path(out if out is not None else Path("runs") / path.stem).resolve()
    devices = gpus()
    jobs = jobs if jobs is not None else max(1, len(devices))
    _check_options(sweep, flags)
    if read.is_run(folder):
        raise UserError(f"--out {folder} is the folder of a run: name another")
    if storage and (folder / "sweep.yaml").is_file():  # study.db itself refuses another sweep
        begun = sweep_file.read(folder / "sweep.yaml")[0].definition()
        if begun | {"name": sweep.name} != sweep.definition():
            raise UserError(
                f"--out {folder} holds another sweep (see its sweep.yaml): name another"
            )
    make_folder(folder / "logs")
    # A file's URI: SQLAlchemy 2.0 and Optuna take some characters of a plain path as their own.
    database = URL.create("sqlite", database=(folder / "study.db").as_uri(), query={"uri": "true"})
    queue = Queue(sweep, storage or str(database), flags, storage is not None)
    runner = Runner(queue, folder, jobs, devices, flags)
    with defer_interrupts():  # a signal is raised once the runs have ended
        try:
            # For `publish`. Written after the queue, which refuses a changed file.
            write_bytes(folder / "sweep.yaml", path.read_bytes())
            runner.run_until_done()
            return runner.report()
        finally:
            runner.kill()
            queue.close()


def _plan(sweep: Sweep) -> list[str]:
    n_points = sweep.n_points()
    lines = [f"{sweep.name}: {n_points} points by {sweep.method}, {sweep.goal} {sweep.metric}"]
    if sweep.method == "grid":
        points = sweep.grid()[:n_points]
        attempts = [Attempt(0, i, 1, "open", config=point) for i, point in enumerate(points)]
        return lines + table(sweep, attempts)
    for p in sweep.varying:
        spec = ", ".join(f"{key} {value}" for key, value in p.spec.items())
        lines.append(f"{p.name}: {p.distribution}, {spec}")
    return lines


def _check_options(sweep: Sweep, flags: Sequence[str]) -> None:
    """Raise UserError for what every run would refuse, and for flags that the sweep itself sets."""
    if "${program}" in sweep.command and not find_packaged(sweep.program).is_file():
        raise UserError(
            f"{sweep.path}: program {sweep.program} is not in {Path.cwd()}; start the sweep from "
            "the folder that holds it"
        )
    for name in re.findall(sweep_file.ENVVAR, " ".join(sweep.command)):
        if name not in os.environ:
            raise UserError(f"{sweep.path}: command reads ${name}, which is not set")
    trains = Path(sweep.program).name == "train.py" and "${program}" in sweep.command
    # Words before train.py are those of its launcher, such as torchrun.
    following = sweep.command[sweep.command.index("${program}") + 1 if trains else 0 :]
    own = [_expand_variables(item) for item in following if not item.startswith("${args")]
    given: dict[str, Any] = {}
    for words, where in ((own, f"in the command of {sweep.path}"), (flags, "after `--`")):
        named = (w.lstrip("-").partition("=")[0] for w in words if w[:1] == "-" or "=" in w)
        found = parse_flags(words) if trains else dict.fromkeys(named)
        for name in found:
            if name in ("out_dir", "run_name"):
                raise UserError(f"--{name} is set by the sweep for each run; leave it out {where}")
            if words is flags and name in {p.name for p in sweep.parameters}:
                raise UserError(f"--{name} is a parameter of {sweep.path}; leave it out {where}")
        given |= found
    if trains:
        point = {p.name: p.extremes()[0] for p in sweep.parameters}
        config = config_from(from_environment() | given | point)
        for folder in (config.train_dir, config.val_dir, config.test_dir):
            if folder and not config.bucket:
                find_features(folder, config.recursive)


# ---- the runner


@dataclass
class Job:
    """A run in progress; process: None for a run that an earlier runner started."""

    attempt: Attempt
    process: subprocess.Popen | None
    stop_requested_at: float | None = None  # when hyperband asked it to stop
    began: float = field(default_factory=time.monotonic)

    def running(self) -> bool:
        """Whether the process of the run is alive."""
        return self.process.poll() is None if self.process else is_locked(self.attempt.lock)

    def send(self, number: int) -> None:
        """Send a signal to the process of the run; SIGKILL also to all processes it started."""
        with contextlib.suppress(ValueError, FileNotFoundError, ProcessLookupError):
            # The file may be gone: temporary folders are cleaned.
            lock = lock_path(self.attempt.lock)
            pid = self.process.pid if self.process else int(lock.read_text())
            kill = os.killpg if number == signal.SIGKILL else os.kill
            if self.running():
                kill(pid, number)


class Runner:
    """Claims points, starts their runs, watches them and judges them."""

    def __init__(
        self, queue: Queue, folder: Path, n_jobs: int, devices: Sequence[str], flags: Sequence[str]
    ):
        self.queue, self.sweep, self.folder = queue, queue.sweep, folder
        self.n_jobs, self.devices, self.flags = n_jobs, devices, flags
        self.runs, self.logs = folder / "runs", folder / "logs"
        # Shown until a run has ended, for a metric that is logged once at the end.
        self._progress_metric = self.sweep.metric.replace("select/", "val/")
        self.jobs: list[Job] = []
        self._stalls = Counter[tuple[int, int | None]]()
        self._histories: dict[str, tuple[Any, list[dict[str, Any]]]] = {}
        self.screen = Screen(self.sweep, queue.n_points)

    def run_until_done(self) -> None:
        """Run points until all are done or, after a signal, until the current runs have ended."""
        say = self.screen.print_line
        say(f"sweep {self.sweep.name}: {self.queue.n_points} points in {self.folder}")
        stopping = waiting = done = False
        ended: list[Attempt] = []
        claim_at, status_at = 0.0, time.monotonic() + STATUS_S
        while not (done or stopping) or self.jobs:
            if interrupt_pending() and not stopping:
                stopping = True
                say("stopping: the runs are asked to end; Ctrl-C again kills them")
                for job in self.jobs:
                    job.send(signal.SIGTERM)
            for job in [job for job in self.jobs if not job.running()]:
                self._finish_run(job)
                claim_at = 0.0
            if not stopping and len(self.jobs) < self.n_jobs and time.monotonic() >= claim_at:
                attempt = self.queue.claim()
                ended = [a for a in self.queue.latest_attempts() if a.state != "running"]
                if attempt is not None:
                    self._start_run(attempt)
                    continue
                claim_at = time.monotonic() + CLAIM_S
                final = [a for a in ended if not a.needs_retry]
                done = not self.jobs and len(final) == self.queue.n_points
                if not (self.jobs or done or waiting):
                    waiting = True
                    say("other runners have the last points; waiting for them")
            self._stop_early()
            self.queue.heartbeat()
            if self.screen.live:
                self.screen.draw(ended, [self._with_progress(job) for job in self.jobs])
            elif time.monotonic() >= status_at:
                status_at = time.monotonic() + STATUS_S
                for a in map(self._with_progress, self.jobs):
                    say(f"{a.run} epoch {format_value(a.epoch)}  score {format_value(a.score)}")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """Kill the runs that have not ended."""
        for job in self.jobs:
            job.send(signal.SIGKILL)
            if job.process:
                job.process.wait()
                lock_path(job.attempt.lock).unlink(missing_ok=True)

    def report(self) -> int:
        """Print the final table, write table.csv; returns the exit status."""
        attempts = ranked(self.sweep, self.queue.latest_attempts())
        write_csv(self.folder / "table.csv", self.sweep, attempts, self.runs)
        say = self.screen.print_line
        say("\n" + "\n".join(table(self.sweep, attempts)))
        scored = [a for a in attempts if a.score is not None]
        if scored and any(p.name == "seed" for p in self.sweep.varying):
            say("\n" + "\n".join(mean_over_seeds(self.sweep, attempts)))
        say(f"\ntable: {self.folder / 'table.csv'}")
        if scored:
            say(f"best model: {self.runs / scored[0].run / 'best.pth'}")
        failed = [a for a in attempts if a.state == "failed"]
        for a in failed:
            log = self.logs / f"{a.run}.txt"
            why = last_error(log) or "printed nothing"
            say(f"failed: point {a.point + 1:04d} ({why}); see {log}")
        if interrupt_pending():
            done = sum(a.state in DONE for a in attempts)
            progress = f"{done} of {self.queue.n_points} points are done"
            say(f"interrupted: {progress}; the same command continues")
        return FAILED if failed else 0

    def _with_progress(self, job: Job) -> Attempt:
        """The attempt of a job, with the current epoch and score of its run."""
        history = self._history(job.attempt.run)
        values = metric_values(history, self.sweep.metric)
        score = best(values or metric_values(history, self._progress_metric), self.sweep)
        return replace(job.attempt, epoch=history[-1]["epoch"] if history else None, score=score)

    def _history(self, run: str) -> list[dict[str, Any]]:
        """Epochs and scores of a run so far; history.jsonl is read only when it has changed."""
        file = self.runs / run / "history.jsonl"
        status = file.stat() if file.exists() else None
        version = status and (status.st_size, status.st_mtime_ns)
        if run not in self._histories or self._histories[run][0] != version:
            names = ("epoch", self._progress_metric, self.sweep.metric)
            rows = [{name: row.get(name) for name in names} for row in read.history(file.parent)]
            self._histories[run] = version, rows
        return self._histories[run][1]

    def _start_run(self, attempt: Attempt) -> None:
        """Start or resume the run of an attempt; watch it instead if it still runs or is done."""
        folder = self.runs / attempt.run
        if attempt.run:  # the run of the previous attempt, which was interrupted
            running = is_locked(attempt.lock)
            if running:
                self.screen.log_event(f"{attempt.run} still runs after its runner died")
            if running or outcome_of(folder, self.sweep)[0] in DONE:
                self.jobs.append(Job(attempt, None))
                return
            lock_path(attempt.lock).unlink(missing_ok=True)
        # An interrupted run is resumed; a failed one starts again from the beginning.
        resume = bool(attempt.run) and (folder / "config.json").is_file()
        name = attempt.run if resume else run_name(attempt, self.runs)
        command = expand_command(self.sweep, attempt.config, self.logs / f"{name}.json")
        lock, gpu = f"{attempt.runner}-{attempt.trial_id}", self._free_gpu(attempt)
        attempt = replace(attempt, run=name, lock=lock, gpu=gpu)
        process, log_file = None, self.logs / f"{name}.txt"
        try:
            # The child inherits the lock and holds it until it ends: another runner can tell that
            # the run still runs after this runner was killed.
            with open(log_file, "ab") as log, acquire_lock(lock) as file:
                self.queue.store_fields(attempt, "lock", "gpu", "run")
                try:
                    process = subprocess.Popen(
                        [*command, *self.flags],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=self._environment(name, gpu, resume),
                        pass_fds=[file.fileno()],
                        start_new_session=True,  # the runner passes Ctrl-C on to the run
                    )
                    file.write(str(process.pid))
                except OSError as error:
                    log.write(f"{command[0]}: {error.strerror}\n".encode())
        except OSError as error:
            raise UserError(write_error(log_file, error)) from None
        self.jobs.append(Job(attempt, process))
        values = " ".join(f"{p.name}={attempt.config.get(p.name)}" for p in self.sweep.varying)
        self.screen.log_event(f"{name} {'resumed' if resume else 'started'}  {values}")

    def _environment(self, name: str, gpu: str | None, resume: bool) -> dict[str, str]:
        env = {"WANDB_MODE": "offline", "WANDB_RUN_GROUP": self.sweep.name}
        if self.n_jobs > 1 and not self.devices:
            # Simultaneous runs that each use all cores would slow each other down.
            env["OMP_NUM_THREADS"] = str(max(1, n_cpus() // self.n_jobs))
        # If an agent started this runner, its variables do not describe the runs of the sweep.
        env |= {k: v for k, v in os.environ.items() if k not in AGENT_VARIABLES}
        env |= {"EMAAE_OUT_DIR": str(self.runs), "EMAAE_RUN_NAME": name}
        env |= {"EMAAE_RESUME": str(resume)}
        return env if gpu is None else env | {"CUDA_VISIBLE_DEVICES": gpu}

    def _free_gpu(self, attempt: Attempt) -> str | None:
        if len(self.devices) < 2 or self.n_jobs == 1:  # a single run may use all GPUs
            return None
        return min(self.devices, key=self.queue.gpus_in_use(attempt).count)

    def _finish_run(self, job: Job) -> None:
        """Store the outcome of a run whose process has ended."""
        self.jobs.remove(job)
        run, reached = job.attempt.run, self._with_progress(job)
        lock_path(job.attempt.lock).unlink(missing_ok=True)
        outcome, score = outcome_of(self.runs / run, self.sweep)
        if outcome == "failed" and read.metrics(self.runs / run).get("status") in read.GOOD:
            with open(self.logs / f"{run}.txt", "a", encoding="utf-8") as log:
                log.write(f"sweep: error: the run ended well without {self.sweep.metric}\n")
        if outcome not in DONE and job.stop_requested_at is not None:
            outcome, score = "stopped", reached.score
        elif outcome not in DONE and interrupt_pending():
            outcome = "interrupted"
        elif outcome == "interrupted":  # by a signal to the run alone
            where = reached.point, reached.epoch
            self._stalls[where] += 1
            if self._stalls[where] > MAX_STALLS:
                outcome = "failed"
        seconds = round(time.monotonic() - job.began, 1) if job.process else None
        self.queue.finish(replace(reached, state=outcome, score=score, seconds=seconds))
        more = f"  {self.sweep.metric} {format_value(score)}" if score is not None else ""
        if outcome == "failed":
            more = f"  ({last_error(self.logs / f'{run}.txt')})"
        self.screen.log_event(f"{run} {outcome}{more}")

    def _stop_early(self) -> None:
        """Ask runs that hyperband stops to end; kill those still running after KILL_AFTER_S."""
        if self.sweep.early_terminate is None:
            return
        names = [path.parent.name for path in self.runs.glob("*/history.jsonl")]
        curves = {name: metric_values(self._history(name), self.sweep.metric) for name in names}
        for job in self.jobs:
            own = curves.get(job.attempt.run, [])
            if job.stop_requested_at is None and should_stop_early(own, curves, self.sweep):
                job.stop_requested_at = time.monotonic()
                job.send(signal.SIGTERM)
            elif job.stop_requested_at and time.monotonic() - job.stop_requested_at > KILL_AFTER_S:
                job.send(signal.SIGKILL)


# ---- the command of a run


def expand_command(sweep: Sweep, config: Mapping[str, Any], json_file: Path) -> list[str]:
    """The command of a run, with W&B's macros expanded; a macro is a whole item of the command.

    json_file: where the values of `config` are written for ${args_json_file}.
    """
    items = config.items()
    macros = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [str(find_packaged(sweep.program))],
        "${args}": [f"--{name}={value}" for name, value in items],
        "${args_no_equals}": [x for name, value in items for x in (f"--{name}", str(value))],
        "${args_no_hyphens}": [f"{name}={value}" for name, value in items],
        "${args_no_boolean_flags}": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in items
            if value is not False
        ],
        "${args_json}": [json.dumps(config)],
        "${args_json_file}": [str(json_file)],
    }
    if "${args_json_file}" in sweep.command:
        write_bytes(json_file, json.dumps(config).encode())
    return [word for item in sweep.command for word in macros.get(item, [_expand_variables(item)])]


def _expand_variables(item: str) -> str:
    return re.sub(sweep_file.ENVVAR, lambda m: os.environ[m[1]], item)


def run_name(attempt: Attempt, runs: Path) -> str:
    """0001 for the first point, 0001-2 for its second attempt; a higher number if that exists."""
    point = f"{attempt.point + 1:04d}"
    names = (f"{point}-{n}" if n > 1 else point for n in itertools.count(attempt.n))
    return next(name for name in names if not (runs / name).exists())


def gpus() -> list[str]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        # -1 and Slurm's NoDevFiles mean none.
        named = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        return [gpu for gpu in named if re.match(r"\s*(\d|GPU-|MIG-)", gpu)]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU (\d+):", listed.stdout, re.MULTILINE)
