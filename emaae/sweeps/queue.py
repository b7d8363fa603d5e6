"""The queue of a sweep's points, which any number of runners share.

The queue is an Optuna study, in which a trial is one attempt at a point. A runner claims a point by
creating a trial. If two runners claim the same attempt, the trial with the lower number is valid.
The storage numbers trials in the order of their creation, so all runners agree on the owner of an
attempt without a lock.
"""

import contextlib
import fcntl
import functools
import json
import os
import random
import socket
import tempfile
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, TypeVar

import optuna
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from emaae.runs.read import ENDED, GOOD
from emaae.sweeps.space import Sweep, as_wandb_passes
from emaae.system.errors import UserError, reason

# Interval of a runner's heartbeats, and the silence after which a runner on another machine counts
# as dead.
HEARTBEAT_S = 30.0
DEAD_AFTER_S = 300.0
# How long to wait for a database that another process has locked.
DATABASE_TIMEOUT_S = 60
# How many failed attempts end a point; an interruption is not a failure.
MAX_FAILURES = 2

# Outcomes that complete a point. After `failed` and `interrupted`, see `Attempt.needs_retry`.
DONE = (*ENDED, "stopped")


@dataclass(frozen=True)
class Attempt:
    """One attempt at a point of the sweep."""

    trial_id: int
    point: int  # from 0 in the sweep's order
    n: int  # 1 for the first attempt
    state: str  # running, or how it ended: one of DONE, failed, interrupted
    runner: str = ""  # id of the runner that claimed it
    config: Mapping[str, Any] = field(default_factory=dict)
    # Names of the run's folder and of the lock that its process holds. An attempt that resumes an
    # interrupted run has those of the previous attempt until the run is started.
    run: str = ""
    lock: str = ""
    gpu: str | None = None
    score: float | None = None
    epoch: int | None = None
    seconds: float | None = None
    n_failed: int = 0  # failed attempts at this point so far, this one included

    @property
    def needs_retry(self) -> bool:
        """Whether the point must be tried again after this attempt, the last one at the point."""
        failed = self.state == "failed" and self.n_failed < MAX_FAILURES
        return failed or self.state == "interrupted"


T = TypeVar("T")


def _storage_errors(method: Callable[..., T]) -> Callable[..., T]:
    """Turn errors of the storage into UserError."""

    @functools.wraps(method)
    def wrapped(queue: "Queue", *args: Any) -> T:
        try:
            return method(queue, *args)
        except (OptunaError, SQLAlchemyError, OSError, json.JSONDecodeError) as error:
            why = reason(error.__cause__ or error)
            raise UserError(
                f"the storage {queue._where} failed ({why}): once it works again, the "
                "same command resumes the interrupted runs"
            ) from None

    return wrapped


class Queue:
    """The points of a sweep, and which runner runs which point."""

    @_storage_errors
    def __init__(self, sweep: Sweep, storage: str, flags: Sequence[str] = (), shared: bool = True):
        """Join the sweep in a storage, or add it to the storage.

        storage: a database URL, or the path of a journal file on a disk that all nodes share.
        flags: those of all runs. shared: whether the storage may hold several sweeps, told apart by
        their names. Raises UserError when the storage has this sweep with another definition or
        other flags.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep, self.n_points, self._where = sweep, sweep.n_points(), storage
        opened = _open_storage(storage)
        names = [] if shared else optuna.get_all_study_names(opened)
        name = sweep.name if sweep.name in names else next(iter(names), sweep.name)
        self._study = optuna.create_study(
            study_name=name,
            storage=opened,
            direction=optuna.study.StudyDirection[sweep.goal.upper()],
            load_if_exists=True,
        )
        self._storage = self._study._storage  # the storage opened above, behind Optuna's cache
        self._refuse_changes(sweep.definition() | {"flags after --": list(flags)})
        self.runner = uuid.uuid4().hex[:12]
        self._lock = acquire_lock(self.runner)
        self._last_beat = 0.0
        self.heartbeat()

    def close(self) -> None:
        """Leave the sweep; other runners may resume the unfinished attempts of this one."""
        try:
            self._release(lambda runner: runner == self.runner)
            # Not after an error: from an unlocked file other runners see that this one has ended.
            lock_path(self.runner).unlink(missing_ok=True)
        finally:
            self._lock.close()

    @_storage_errors
    def heartbeat(self) -> None:
        """Store, at most every HEARTBEAT_S seconds, that this runner is alive."""
        now = time.time()
        if now - self._last_beat >= HEARTBEAT_S:
            self._last_beat = now
            beat = {"machine": socket.gethostname(), "seen": now}
            self._study.set_user_attr(f"runner {self.runner}", beat)

    # ---- claiming

    @_storage_errors
    def attempts(self) -> list[Attempt]:
        """The valid attempts at all points, in the order of their claims."""
        fresh, n_failed = count(), Counter[int]()
        found: dict[tuple[int, int], Attempt] = {}
        for trial in self._study.get_trials(deepcopy=False):
            attrs = trial.user_attrs
            point, n = attrs["again"] if "again" in attrs else (next(fresh), 1)
            if point < self.n_points and (point, n) not in found:
                ended = trial.state.is_finished()
                state = attrs.get("outcome", "interrupted") if ended else "running"
                stored = {f.name: attrs[f.name] for f in fields(Attempt) if f.name in attrs}
                n_failed[point] += state == "failed"
                stored["n_failed"] = n_failed[point]
                found[point, n] = Attempt(trial._trial_id, point, n, state, **stored)
        return list(found.values())

    def latest_attempts(self) -> list[Attempt]:
        """The last attempt at each point that was tried, in the order of the points."""
        attempts = sorted(self.attempts(), key=attrgetter("point", "n"))
        return list({a.point: a for a in attempts}.values())

    @_storage_errors
    def claim(self) -> Attempt | None:
        """Claim an interrupted or failed point for this runner, else a new one; None if none."""
        while True:
            self._release(lambda runner: runner != self.runner and not self.is_alive(runner))
            tried = self.latest_attempts()
            attrs: dict[str, Any] = {"runner": self.runner}
            suggested: dict[str, Any] = {}
            last = next((a for a in tried if a.needs_retry), None)
            if last is not None:
                attrs |= {"again": [last.point, last.n + 1], "config": last.config}
                if last.state == "interrupted":
                    attrs |= {"run": last.run, "lock": last.lock, "gpu": last.gpu}
                if last.config:  # else its runner was killed while it chose the values
                    trial = self._storage.get_trial(last.trial_id)
                    suggested = {"params": trial.params, "distributions": trial.distributions}
            elif len(tried) == self.n_points:
                return None
            trial_id = self._storage.create_new_trial(
                self._study._study_id,
                optuna.create_trial(state=TrialState.RUNNING, user_attrs=attrs, **suggested),
            )
            mine = next((a for a in self.attempts() if a.trial_id == trial_id), None)
            if mine is not None:
                if not mine.config:
                    mine = replace(mine, config=self._config(mine))
                    self.store_fields(mine, "config")
                return mine
            # Another runner claimed the point first.
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    @_storage_errors
    def store_fields(self, attempt: Attempt, *names: str) -> None:
        """Write fields of an attempt into the storage."""
        with contextlib.suppress(UpdateFinishedTrialError):
            for name in names:
                self._storage.set_trial_user_attr(attempt.trial_id, name, getattr(attempt, name))

    @_storage_errors
    def finish(self, ended: Attempt) -> None:
        """Store how an attempt ended, unless an outcome is already stored."""
        trial_id, score = ended.trial_id, ended.score
        state = TrialState.PRUNED if ended.state in DONE else TrialState.FAIL
        if ended.state in GOOD:
            state = TrialState.COMPLETE
        self.store_fields(ended, "score", "epoch", "seconds")
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial_id, "outcome", ended.state)
            if ended.state == "stopped" and score is not None:
                # A search ranks a pruned trial without a value below all others.
                self._storage.set_trial_intermediate_value(trial_id, ended.epoch or 0, score)
            self._storage.set_trial_state_values(
                trial_id, state, None if score is None else [score]
            )

    @_storage_errors
    def gpus_in_use(self, besides: Attempt) -> list[str | None]:
        """The GPUs of the other attempts that run on this machine, whichever runner began them."""
        machines = {name: of.get("machine") for name, of in self._study.user_attrs.items()}
        return [
            a.gpu
            for a in self.attempts()
            if a.state == "running"
            and a.trial_id != besides.trial_id
            and machines.get(f"runner {a.runner}") == socket.gethostname()
        ]

    def is_alive(self, runner: str) -> bool:
        """Whether a runner still runs: by its lock on this machine, by its heartbeat on others."""
        beat = self._study.user_attrs.get(f"runner {runner}")
        if beat is None:
            return False
        if beat["machine"] == socket.gethostname() and lock_path(runner).exists():
            return is_locked(runner)
        return time.time() - beat["seen"] < DEAD_AFTER_S

    def _release(self, is_gone: Callable[[str], bool]) -> None:
        """Mark the running attempts of runners that are gone as interrupted."""
        running = [attempt for attempt in self.attempts() if attempt.state == "running"]
        gone = set(filter(is_gone, {attempt.runner for attempt in running}))
        for attempt in running:
            if attempt.runner in gone:
                self.finish(replace(attempt, state="interrupted"))
        for runner in gone:
            lock_path(runner).unlink(missing_ok=True)

    # ---- the values of a point

    def _config(self, attempt: Attempt) -> dict[str, Any]:
        """The values of a point that is tried for the first time.

        In a search Optuna samples numbers from 0 to 1, which the quantile functions of W&B's
        distributions map to values. The sampler's seed is the number of the point, so that a random
        search has the same points with any number of jobs; a Bayesian search, with a single job.
        """
        if self.sweep.method == "grid":
            return self.sweep.grid()[attempt.point]
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(attempt.point)
        if self.sweep.method == "bayes":
            sampler = optuna.samplers.TPESampler(seed=attempt.point, constant_liar=True)
        # A study caches trials for its sampler; a newly loaded one has all of them.
        study = optuna.load_study(
            study_name=self._study.study_name, storage=self._storage, sampler=sampler
        )
        trial = optuna.Trial(study, attempt.trial_id)
        config = {}
        for p in self.sweep.parameters:
            if not p.varies:
                config[p.name] = p.extremes()[0]
            elif p.distribution == "categorical":
                values = p.spec["values"]
                config[p.name] = values[trial.suggest_categorical(p.name, range(len(values)))]
            else:
                u = trial.suggest_float(p.name, 0, 1)
                config[p.name] = p.quantile(min(max(u, 1e-9), 1 - 1e-9))
        return as_wandb_passes(config)

    def _refuse_changes(self, definition: dict[str, Any]) -> None:
        stored = self._study.user_attrs.get("sweep", definition)
        for key in sorted((stored.keys() | definition.keys()) - {"name"}):
            old, new = stored.get(key), definition.get(key)
            if old != new:
                raise UserError(
                    f"{self.sweep.path}: {key} was {old!r} when the sweep in {self._where} began "
                    f"and is {new!r} now: undo the change, or begin another sweep with --out DIR"
                )
        self._study.set_user_attr("sweep", definition)


JOURNAL_START = b'{"op_code":'  # the beginning of each line of Optuna's journals


def _open_storage(storage: str) -> optuna.storages.BaseStorage:
    """Optuna's storage behind a URL or the path of a journal file. Raises UserError."""
    try:
        if "://" in storage:
            return _open_database(storage)
        # Optuna's lock is a symbolic link to the journal. It would wait forever for the lock of a
        # killed process if the link were broken, as one with a relative path is.
        path = Path(storage).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(_Journal(path))
    except Exception as error:  # Optuna and database drivers have no common error class
        raise UserError(
            f"--storage {storage} cannot be opened ({reason(error.__cause__ or error)}): give a "
            "database URL such as sqlite:///study.db, or the path of a journal file such as "
            "study.log; replace a broken journal by a backup"
        ) from None


def _open_database(url: str, n_tries: int = 5) -> optuna.storages.BaseStorage:
    connect_args = {"timeout": DATABASE_TIMEOUT_S} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": connect_args})
    except Exception as error:
        if n_tries == 1 or "locked" in str(error.__cause__ or error):
            raise
    # Runners that start together all create the tables: all but one get an error and try again.
    time.sleep(random.uniform(0.1, 0.5))
    return _open_database(url, n_tries - 1)


class _Journal(JournalFileBackend):
    """Optuna's journal, in which an entry that was cut short does no harm.

    A full disk or a kill may cut one short, and Optuna would append the next entry to the same
    line. Raises ValueError for a file that is not a journal.
    """

    def __init__(self, path: Path):
        super().__init__(str(path), JournalFileSymlinkLock(str(path)))
        with open(path, "rb") as file:
            first = file.readline()
        if not (first.startswith(JOURNAL_START) or JOURNAL_START.startswith(first)):
            raise ValueError(f"it is not the journal of a sweep: it begins with {first[:40]!r}")
        if first.endswith(b"\n"):
            json.loads(first)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, after removing an incomplete last line."""
        path = Path(self._file_path)
        self._lock.acquire()  # so that no other process writes to it meanwhile
        try:
            with open(path, "rb+") as file:
                file.seek(max(0, path.stat().st_size - 1))
                if file.read() not in (b"", b"\n"):
                    file.truncate(path.read_bytes().rfind(b"\n") + 1)
                    warnings.warn(
                        f"{path} ended in an incomplete line, which was removed", stacklevel=2
                    )
        finally:
            self._lock.release()
        super().append_logs(logs)


# ---- locks, which the system releases when the process that holds them ends or is killed


def lock_path(name: str) -> Path:
    """The lock file of a runner or a run, on this machine: shared disks may not support locks."""
    return Path(tempfile.gettempdir(), f"emaae-{os.getuid()}", f"{name}.lock")


def acquire_lock(name: str) -> IO[str]:
    """Lock until all processes that have the returned file close it. Raises UserError."""
    try:
        path = lock_path(name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 - open for as long as the lock is held
    except OSError as error:
        raise UserError(
            f"{error.filename or 'a temporary folder'} cannot hold the locks of runs "
            f"({error.strerror}): set TMPDIR to a folder that you can write to"
        ) from None
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def is_locked(name: str) -> bool:
    """Whether a process on this machine holds the lock."""
    with contextlib.suppress(FileNotFoundError), open(lock_path(name)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
