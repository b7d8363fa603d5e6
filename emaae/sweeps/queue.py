"""The queue of a sweep's points, which any number of runners share.

The queue is an Optuna study. A trial is an attempt at a point: the runner that creates it claims
the point, and of two claims to the same attempt the one with the lower number holds. Storages
number trials one by one in the order of their creation, so that all runners see the same owner
without asking each other, and a claim needs no lock.
"""

import contextlib
import errno
import fcntl
import json
import os
import random
import socket
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Any

from emaae.runs.read import ENDED, GOOD
from emaae.sweeps.space import Sweep
from emaae.system.errors import UserError

# A runner on another machine without a sign of life for this long is dead.
BEAT_EVERY_S = 30.0
SILENT_S = 300.0
# Of a database that others have locked.
PATIENCE_S = 60
# How often a point is tried when its run fails; an interruption is not a failure.
TRIES = 2

# Outcomes after which a point is done; the others are tried again.
DONE = (*ENDED, "stopped")


@dataclass(frozen=True)
class Attempt:
    """One attempt at a point of the sweep.

    point: from 0 in the sweep's order, n: 1 for the first attempt, runner: who claimed it, state:
    running, or how it ended (one of DONE, failed, interrupted), config: {} until it is claimed,
    run: name of its run folder.
    """

    trial_id: int
    number: int  # of the trial
    point: int
    n: int
    runner: str
    claim: str
    state: str
    config: Mapping[str, Any]
    run: str | None
    score: float | None
    epoch: int | None
    seconds: float | None
    resumes: bool  # the run of the attempt before, which was interrupted
    lock: str | None  # that the run's process holds
    gpu: str | None


class Queue:
    """The points of a sweep, and who runs which."""

    def __init__(self, sweep: Sweep, storage: str, flags: Sequence[str] = ()):
        """Join the sweep in a storage, or begin it there.

        storage: a database URL, or the path of a journal file on a disk that all nodes share.
        Raises UserError when the storage holds a sweep of this name that asks for something else.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep, self.n_points, self._where = sweep, sweep.n_points(), storage
        self._grid = sweep.grid() if sweep.method == "grid" else None
        self._optuna, self._storage = optuna, _open(optuna, storage)
        with self.errors_named():
            self._study = optuna.create_study(
                study_name=sweep.name,
                storage=self._storage,
                direction=optuna.study.StudyDirection[sweep.goal.upper()],
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner(),
            )
            self._refuse_changes(sweep.meaning() | {"flags after --": list(flags)}, storage)
            self.runner = uuid.uuid4().hex[:12]
            self._lock = hold(self.runner)
            self._last_beat = 0.0
            self.beat()

    def close(self) -> None:
        """Leave: what this runner had claimed and not finished is free for others."""
        try:
            for attempt in self.attempts():
                if attempt.runner == self.runner and attempt.state == "running":
                    self.finish(attempt, "interrupted")
        finally:
            release(self.runner, self._lock)

    @contextlib.contextmanager
    def errors_named(self) -> Iterator[None]:
        """A storage that fails, at the beginning or in the middle of a sweep, becomes one line."""
        import sqlalchemy

        try:
            yield
        except (
            self._optuna.exceptions.StorageInternalError,
            self._optuna.exceptions.DuplicatedStudyError,
            sqlalchemy.exc.SQLAlchemyError,
            OSError,
            JSONDecodeError,
        ) as error:
            raise UserError(
                f"the storage {self._where} failed ({_reason(error)}): when it is mended, the same "
                "command goes on with what was interrupted"
            ) from None

    def beat(self) -> None:
        """Tell other machines, now and then, that this runner lives."""
        now = time.time()
        if now - self._last_beat >= BEAT_EVERY_S:
            self._last_beat = now
            self._study.set_user_attr(f"runner {self.runner}", {"machine": machine(), "seen": now})

    # ---- claiming

    def attempts(self) -> list[Attempt]:
        """All attempts at all points, in the order of their claims; void claims left out."""
        fresh, taken, found = count(), set(), []
        for trial in self._study.get_trials(deepcopy=False):
            attrs = trial.user_attrs
            point, n = attrs["again"] if "again" in attrs else (next(fresh), 1)
            if point < self.n_points and (point, n) not in taken:
                taken.add((point, n))
                found.append(_attempt(trial, point, n))
        return found

    def claim(self) -> Attempt | None:
        """The next point for this runner: an interrupted or failed one, else a fresh one."""
        while True:
            attempts = self._bury(self.attempts())
            attrs: dict[str, Any] = {"runner": self.runner, "claim": uuid.uuid4().hex[:12]}
            last = next((a for a in latest(attempts) if _again(a, attempts)), None)
            suggested: dict[str, Any] = {}
            if last is not None:
                attrs |= {"again": [last.point, last.n + 1]}
                attrs |= {"config": last.config, "run": last.run, "lock": last.lock}
                attrs |= {"gpu": last.gpu, "resumes": last.state == "interrupted"}
                trial = self._study.get_trials(deepcopy=False)[last.number]
                suggested = {"params": trial.params, "distributions": trial.distributions}
            elif len(latest(attempts)) >= self.n_points:
                return None
            running = self._optuna.trial.TrialState.RUNNING
            self._study.add_trial(
                self._optuna.trial.create_trial(state=running, user_attrs=attrs, **suggested)
            )
            mine = [a for a in self.attempts() if a.claim == attrs["claim"]]
            if mine:
                return self._with_config(mine[0])
            self._void(attrs["claim"])  # another runner was first

    def note(self, attempt: Attempt, **attrs: Any) -> None:
        """Write something about an attempt into the storage."""
        with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            for key, value in attrs.items():
                self._storage.set_trial_user_attr(attempt.trial_id, key, value)

    def finish(self, attempt: Attempt, outcome: str, **attrs: Any) -> None:
        """How an attempt ended; the first to say so is believed."""
        self.note(attempt, outcome=outcome, **attrs)
        states, score = self._optuna.trial.TrialState, attrs.get("score")
        if outcome == "stopped" and score is not None:
            # What it reached until then; without it a search takes it for worse than all others.
            with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
                step = attrs.get("epoch") or 0
                self._storage.set_trial_intermediate_value(attempt.trial_id, step, score)
        if outcome in GOOD and score is not None:
            self._tell(attempt.number, states.COMPLETE, score)
        else:
            self._tell(attempt.number, states.PRUNED if outcome in DONE else states.FAIL)

    def done(self) -> bool:
        """Whether nothing is left to run or to wait for."""
        attempts = self.attempts()
        ended = [a for a in latest(attempts) if a.state != "running" and not _again(a, attempts)]
        return len(ended) == self.n_points

    def alive(self, runner: str) -> bool:
        """Whether a runner still works: by its lock on this machine, by its beat on others."""
        beat = self._study.user_attrs.get(f"runner {runner}")
        if beat is None:
            return False
        if beat["machine"] == machine() and lock_path(runner).exists():
            return held(runner)
        return time.time() - beat["seen"] < SILENT_S

    def _bury(self, attempts: list[Attempt]) -> list[Attempt]:
        """Attempts, those of dead runners being interrupted now."""
        runners = {a.runner for a in attempts if a.state == "running"}
        dead = {r for r in runners if r != self.runner and not self.alive(r)}
        for runner in dead:
            lock_path(runner).unlink(missing_ok=True)
        for attempt in attempts:
            if attempt.state == "running" and attempt.runner in dead:
                self.finish(attempt, "interrupted")
        return self.attempts() if dead else attempts

    def _void(self, claim: str) -> None:
        for trial in self._study.get_trials(deepcopy=False):
            if trial.user_attrs.get("claim") == claim:
                self._tell(trial.number, self._optuna.trial.TrialState.FAIL)

    def _tell(self, number: int, state: Any, score: float | None = None) -> None:
        self._study.tell(number, score, state=state, skip_if_finished=True)

    # ---- where a point lies

    def _with_config(self, attempt: Attempt) -> Attempt:
        config = attempt.config
        if not config:
            config = self._grid[attempt.point] if self._grid else self._suggest(attempt)
            self.note(attempt, config=config)
        return next(a for a in self.attempts() if a.claim == attempt.claim)

    def _suggest(self, attempt: Attempt) -> dict[str, Any]:
        """A point of a search. Optuna searches the unit cube, distributions give it W&B's shape.

        The sampler is seeded by the point, so that a random search is the same however many
        runners share it, and a bayesian one when a single job does it.
        """
        samplers, seed = self._optuna.samplers, attempt.point
        self._study.sampler = (
            samplers.RandomSampler(seed=seed)
            if self.sweep.method == "random"
            else samplers.TPESampler(seed=seed, constant_liar=True)
        )
        trial = self._optuna.trial.Trial(self._study, attempt.trial_id)
        config = {}
        for p in self.sweep.parameters:
            if not p.varies:
                config[p.name] = p.ends()[0]
            elif p.distribution == "categorical":
                choices = list(range(len(p.spec["values"])))
                config[p.name] = p.ends()[trial.suggest_categorical(p.name, choices)]
            else:
                u = trial.suggest_float(p.name, 0, 1)
                config[p.name] = p.at(min(max(u, 1e-9), 1 - 1e-9))
        return config

    def _refuse_changes(self, meaning: dict[str, Any], storage: str) -> None:
        known = self._study.user_attrs.get("sweep")
        if known is None:
            self._study.set_user_attr("sweep", meaning)
            return
        for key in sorted(known.keys() | meaning.keys()):
            old, new = known.get(key), meaning.get(key)
            if old != new:
                raise UserError(
                    f"{self.sweep.path}: {key} was {old!r} when the sweep in {storage} began and "
                    f"is {new!r} now: undo that, or begin another sweep with --out DIR"
                )


def latest(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The last attempt at each point that was tried, by point."""
    by_point = {a.point: a for a in sorted(attempts, key=lambda a: a.n)}
    return [by_point[point] for point in sorted(by_point)]


def _again(last: Attempt, attempts: Sequence[Attempt]) -> bool:
    if last.state == "failed":
        return sum(a.point == last.point and a.state == "failed" for a in attempts) < TRIES
    return last.state == "interrupted"


def _attempt(trial: Any, point: int, n: int) -> Attempt:
    attrs = trial.user_attrs
    ended = trial.state.is_finished()
    return Attempt(
        trial_id=trial._trial_id,
        number=trial.number,
        point=point,
        n=n,
        runner=attrs.get("runner", ""),
        claim=attrs.get("claim", ""),
        state=attrs.get("outcome", "interrupted") if ended else "running",
        config=attrs.get("config") or {},
        run=attrs.get("run"),
        score=attrs.get("score"),
        epoch=attrs.get("epoch"),
        seconds=attrs.get("seconds"),
        resumes=attrs.get("resumes", False),
        lock=attrs.get("lock"),
        gpu=attrs.get("gpu"),
    )


JOURNAL = b'{"op_code":'  # how each line of optuna's journals begins


def _open(optuna: Any, storage: str) -> Any:
    """Optuna's storage behind a URL or the path of a journal file. Raises UserError."""
    if "://" not in storage:
        from optuna.storages.journal import JournalFileBackend

        try:
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            _mend_journal(Path(storage))
            return optuna.storages.JournalStorage(JournalFileBackend(storage))
        except OSError as error:
            raise UserError(f"--storage {storage} cannot be written: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--storage {storage} is not a journal of a sweep ({_reason(error)}): name another "
                "file, or put back a copy of it"
            ) from None
    patient = {"connect_args": {"timeout": PATIENCE_S}} if storage.startswith("sqlite") else {}
    for attempt in count(1):
        try:
            return optuna.storages.RDBStorage(storage, engine_kwargs=patient)
        except Exception as error:
            # Runners that start together create the same tables: all but one get an error at once.
            if attempt == 5 or "locked" in str(error):
                raise UserError(
                    f"--storage {storage} cannot be opened ({_reason(error)}): give a database "
                    "URL such as sqlite:///study.db, or the path of a journal file such as "
                    "study.log"
                ) from None
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError


def _mend_journal(path: Path) -> None:
    """Take off a last line that was cut short: what it would have said never came to be.

    Raises ValueError for a file of something else, to which optuna would add.
    """
    from optuna.storages.journal import JournalFileSymlinkLock

    if not path.is_file() or path.stat().st_size == 0:
        return
    with open(path, "rb") as file:
        first = file.readline()
    if not (first.startswith(JOURNAL) or JOURNAL.startswith(first)):
        raise ValueError(f"it begins with {first[:40]!r}")
    if first.endswith(b"\n"):
        json.loads(first)
    if _ends_in_a_line(path):
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()  # so that nobody is writing it now
    try:
        if not _ends_in_a_line(path):
            whole = path.read_bytes()
            os.truncate(path, whole.rfind(b"\n") + 1)
            warnings.warn(f"{path} was cut short; its last line is left out", stacklevel=2)
    finally:
        lock.release()


def _ends_in_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _reason(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200]


# ---- locks that end with the process that holds them, however it ends


def machine() -> str:
    """This machine since it was started."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()


def lock_path(name: str) -> Path:
    """Where the lock of a runner or a run lies; on this machine, as shared disks may lack locks."""
    folder = None
    try:
        folder = Path(tempfile.gettempdir()) / f"emaae-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{folder or 'a temporary folder'} cannot hold the locks of runs "
            f"({error.strerror or error}): set TMPDIR to a folder that you can write to"
        ) from None
    return folder / f"{name}.lock"


def hold(name: str) -> IO[str]:
    """Hold a lock until the file is closed by all processes that have it."""
    file = open(lock_path(name), "a+")  # noqa: SIM115 - open for as long as the lock is held
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def held(name: str) -> bool:
    """Whether a process on this machine holds the lock."""
    with contextlib.suppress(FileNotFoundError), open(lock_path(name)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def release(name: str, file: IO[str] | None) -> None:
    """Give a lock back, if it is held here, and leave nothing behind."""
    lock_path(name).unlink(missing_ok=True)
    if file is not None:
        file.close()
