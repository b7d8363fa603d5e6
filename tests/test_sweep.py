"""Sweeps without a server, run as users run them, with a small program instead of train.py."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

import optuna
import pexpect
import pytest
from conftest import ROOT, environment_of, program, small_run, write_tree

from emaae.__main__ import main
from emaae.metric_table import logged_each_epoch
from emaae.runs import read
from emaae.sweeps import judging, queue, runner, sweep_file
from emaae.sweeps.queue import Attempt, Queue, acquire_lock, is_locked, lock_path
from emaae.sweeps.space import Sweep
from emaae.sweeps.table import mean_over_seeds
from emaae.system import files
from emaae.system.errors import UserError
from emaae.system.signals import Interrupted, handle_signals

# Leaves what train.py leaves. x is the score, `seconds` how long it takes; x above 8 fails, above 6
# diverges, and 5 fails the first time.
PROGRAM = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
flags = dict(arg.lstrip("-").split("=", 1) for arg in sys.argv[1:])
x, seconds = float(flags["x"]), float(flags.get("seconds", 0))
name = os.environ["EMAAE_RUN_NAME"]
with open("started.txt", "a") as file:
    print(name, flags["x"], file=file)
folder = os.path.join(os.environ["EMAAE_OUT_DIR"], name)
os.makedirs(folder)
status, metrics = "failed", {}
try:
    for epoch in range(1, 6):
        with open(f"{folder}/history.jsonl", "a") as file:
            print(json.dumps({"epoch": epoch, "val/score": x + 1 / epoch}), file=file)
        time.sleep(seconds / 5)
    while os.path.exists("wait"):
        time.sleep(0.02)
    if x > 8 or x == 5 and "-" not in name:
        raise SystemExit("cannot do that")
    status = "diverged" if x > 6 else "finished"
    metrics = {"select/score": x} if status == "finished" else {}
except KeyboardInterrupt:
    status = "preempted"
finally:
    with open(f"{folder}/metrics.json", "w") as file:
        json.dump(metrics | {"status": status}, file)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the program, where sweeps are started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # for locks
    Path("play.py").write_text(PROGRAM)
    return tmp_path


def write(parameters: str, head: str = "") -> Path:
    head = head or "method: grid\nmetric: {name: select/score, goal: minimize}\n"
    path = Path("play.yaml")
    path.write_text(f"# How does it play?\nprogram: play.py\n{head}{textwrap.dedent(parameters)}")
    return path


def read_sweep(path: Path) -> Sweep:
    return sweep_file.read(path)[0]


def start(*command: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "emaae", "sweep", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment_of(PYTHONPATH=str(ROOT), TMPDIR=os.getcwd(), **environment),
    )


def sweep(*command: str, **environment: str) -> tuple[int, str]:
    process = start(*command, **environment)
    out, _ = process.communicate(timeout=100)
    return process.returncode, out


def started() -> list[str]:
    path = Path("started.txt")
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def table(folder: str = "runs/play") -> list[dict]:
    with open(Path(folder) / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# ---- from the first point to the table


def test_a_grid_runs_in_order_once_and_its_table_is_sorted_by_score(place):
    write("parameters:\n  x: {values: [3, 1, 2]}\n  seconds: {value: 0.0}")
    code, out = sweep("play.yaml")
    assert code == 0, out
    assert started() == ["0001", "0002", "0003"]
    assert [(row["point"], row["x"]) for row in table()] == [("2", "1"), ("3", "2"), ("1", "3")]
    assert {row["status"] for row in table()} == {"finished"}
    assert "0001 started  x=3" in out
    assert f"best model: {place}/runs/play/runs/0002/best.pth" in out
    logs = sorted(path.name for path in Path("runs/play/logs").iterdir())
    assert logs == ["0001.txt", "0002.txt", "0003.txt"]
    before = table()
    assert sweep("play.yaml")[0] == 0
    assert table() == before
    assert len(started()) == 3


def test_seeds_are_averaged_for_each_setting(place):
    write("parameters:\n  x: {values: [3, 1]}\n  seed: {values: [0, 1]}")
    code, out = sweep("play.yaml", "--jobs", "2")
    assert code == 0, out
    lines = [line.split() for line in out.splitlines()]
    at = lines.index(["x", "seeds", "mean", "select/score", "sd"])
    assert lines[at + 1 : at + 3] == [["1", "2", "1", "0"], ["3", "2", "3", "0"]]


def test_settings_that_print_alike_are_averaged_separately(place):
    sweep = read_sweep(write("parameters: {x: {values: [0.123411, 0.123412]}}"))
    attempts = [Attempt(i, i, 1, "finished", config=c, score=i) for i, c in enumerate(sweep.grid())]
    lines = mean_over_seeds(sweep, attempts)
    assert [line.split() for line in lines[1:]] == [["0.1234", "1", str(i), "-"] for i in (0, 1)]


def test_a_failing_point_is_tried_once_more_and_reported(place):
    write("parameters: {x: {values: [9, 5, 7, 1]}}")
    code, out = sweep("play.yaml")
    assert code == 1
    assert started() == ["0001", "0001-2", "0002", "0002-2", "0003", "0004"]
    status = {row["x"]: row["status"] for row in table()}
    assert status == {"9": "failed", "5": "finished", "7": "diverged", "1": "finished"}
    assert "failed: point 0001 (cannot do that); see" in out
    assert sweep("play.yaml")[0] == 1
    assert len(started()) == 6


def test_a_dry_run_lists_the_points_without_running_them(place, capsys):
    assert runner.run(write("parameters: {x: {values: [3, 1]}}"), dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["0001", "3"], ["0002", "1"]]
    assert not Path("runs").exists()


def test_in_a_terminal_the_table_is_redrawn_with_epochs_and_scores(place):
    write("parameters:\n  x: {values: [3, 1]}\n  seconds: {value: 1.0}")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "emaae", "sweep", "play.yaml", "--jobs", "1"],
        env=environment_of(PYTHONPATH=str(ROOT), TMPDIR=str(place)),
        encoding="utf-8",
        dimensions=(20, 60),
        timeout=60,
    )
    child.expect("play: 0 of 2 points")
    child.expect(r"0001 +3 +(2 +3\.5|3 +3\.333|4 +3\.25|5 +3\.2) +running")
    child.expect(r"\x1b\[3A\x1b\[J")
    child.expect("play: 1 of 2 points")
    child.expect(r"0001 +3 +5 +3 +finished")
    child.expect(r"best model: .*/0002/best.pth")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


# ---- many runners, and runners that die

JOURNAL = ("--storage", "study.log")
SLOW_JOURNAL = pytest.param(JOURNAL, marks=pytest.mark.slow, id="journal")
SLOW_SQLITE = pytest.param((), marks=pytest.mark.slow, id="sqlite")


@pytest.mark.parametrize("storage", [pytest.param((), id="sqlite"), SLOW_JOURNAL])
def test_a_sweep_that_is_killed_and_started_again_ends_with_the_same_table_and_runs_nothing_twice(
    place, storage
):
    write("parameters:\n  x: {values: [4, 2, 3, 1]}\n  seconds: {value: 0.5}")
    process = start("play.yaml", *storage)
    until(lambda: len(started()) == 2)
    Path("wait").touch()
    process.kill()
    process.communicate()
    again = start("play.yaml", *storage)
    while "0002 still runs after its runner died" not in (line := again.stdout.readline()):
        assert line, "ended without the run that went on"
    Path("wait").unlink()
    assert again.wait(60) == 0, again.stdout.read()
    again.stdout.close()
    assert started() == ["0001", "0002", "0003", "0004"]
    assert [(row["x"], row["status"], row["epoch"]) for row in table()] == [
        (x, "finished", "5") for x in ("1", "2", "3", "4")
    ]


def test_a_run_that_died_with_its_runner_is_run_again(place):
    write("parameters:\n  x: {values: [2, 1]}\n  seconds: {value: 2.0}")
    process = start("play.yaml")
    until(lambda: started() == ["0001"])
    (pid,) = filter(None, (path.read_text() for path in lock_path("x").parent.iterdir()))
    process.kill()
    process.communicate()
    os.kill(int(pid), signal.SIGKILL)
    assert sweep("play.yaml")[0] == 0
    assert started() == ["0001", "0001-2", "0002"]
    assert [Path(row["run"]).name for row in table()] == ["0002", "0001-2"]


@pytest.mark.parametrize("storage", [SLOW_SQLITE, pytest.param(JOURNAL, id="journal")])
def test_runners_that_share_a_storage_never_run_a_point_twice(place, storage):
    write("parameters:\n  x: {distribution: q_uniform, min: 0, max: 5, q: 0.25}")
    runners = [start("play.yaml", "--jobs", "2", *storage) for _ in range(2)]
    outs = [process.communicate(timeout=100)[0] for process in runners]
    assert [process.returncode for process in runners] == [0, 0], outs
    assert sorted(started()) == [f"{i:04d}" for i in range(1, 21)]
    assert [row["status"] for row in table()] == ["finished"] * 20
    assert all("finished" in out for out in outs)


def test_ctrl_c_stops_cleanly_and_the_same_command_continues(place):
    write("parameters:\n  x: {values: [2, 1, 3]}\n  seconds: {value: 1.5}")
    process = start("play.yaml")
    until(lambda: len(started()) == 1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted: 0 of 3 points are done; the same command continues" in out
    assert read.metrics(Path("runs/play/runs/0001"))["status"] == "preempted"
    assert started() == ["0001"]
    assert sweep("play.yaml", "--jobs", "3")[0] == 0
    assert sorted(started()) == ["0001", "0001-2", "0002", "0003"]


def test_ctrl_c_twice_kills_the_runs_and_ends_at_once(place):
    Path("play.py").write_text(PROGRAM.replace("default_int_handler", "SIG_IGN"))
    write("parameters:\n  x: {values: [2, 1]}\n  seconds: {value: 100}")
    process = start("play.yaml")
    until(lambda: len(started()) == 1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out.splitlines()[-1] == "python -m emaae: interrupted"
    assert not any(is_locked(path.stem) for path in lock_path("x").parent.iterdir())


@pytest.mark.parametrize("signals", [["SIGUSR1"], ["SIGINT", "SIGINT"]])
def test_a_signal_of_a_scheduler_or_ctrl_c_that_arrives_twice_lets_the_runs_save(place, signals):
    send = "".join(f"    os.kill(os.getppid(), signal.{name})\n" for name in signals)
    text = PROGRAM.replace("try:\n", f"try:\n{send}    time.sleep(60)\n", 1)
    Path("play.py").write_text(text)
    path = write("parameters: {x: {values: [2, 1]}}")
    with handle_signals(), pytest.raises(Interrupted):
        runner.run(path)
    assert read.metrics(Path("runs/play/runs/0001"))["status"] == "preempted"
    assert started() == ["0001"]


# A run that is interrupted at each of its first ten starts. It gets an epoch further if x is 1.
INTERRUPTED = """
import json, os, pathlib, sys
name, resume = os.environ["EMAAE_RUN_NAME"], os.environ["EMAAE_RESUME"]
with open("started.txt", "a") as file:
    print(name, resume, file=file)
n = len(open("started.txt").readlines())
folder = pathlib.Path(os.environ["EMAAE_OUT_DIR"], name)
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text("{}")
epoch = n if sys.argv[1] == "--x=1" else 1
with open(folder / "history.jsonl", "a") as file:
    print(json.dumps({"epoch": epoch, "val/score": 1.0}), file=file)
status = {"status": "finished", "select/score": 1} if n > 10 else {"status": "preempted"}
(folder / "metrics.json").write_text(json.dumps(status))
"""


@pytest.mark.parametrize(
    ("x", "code", "starts"),
    [(1, 0, ["0001"] * 11), (0, 1, ["0001"] * 4 + ["0001-5"])],
    ids=["further each time", "no further"],
)
def test_a_run_that_is_interrupted_without_its_runner_is_resumed_while_it_makes_progress(
    place, x, code, starts
):
    Path("play.py").write_text(INTERRUPTED)
    assert runner.run(write(f"parameters: {{x: {{value: {x}}}}}")) == code
    assert started() == starts
    resumed = [line.split()[1] for line in Path("started.txt").read_text().splitlines()]
    assert resumed == [str(name in starts[:i]) for i, name in enumerate(starts)]


def test_a_runner_on_another_machine_counts_as_dead_without_heartbeats(place):
    path = write("parameters: {x: {values: [1]}}")
    storage = f"sqlite:///{place}/study.db"
    mine, other = (Queue(read_sweep(path), storage) for _ in range(2))
    assert mine.is_alive(other.runner)
    claimed = other.claim()
    assert mine.claim() is None
    now = time.time()
    other._study.set_user_attr(f"runner {other.runner}", {"machine": "far", "seen": now - 100})
    assert mine.claim() is None
    other._study.set_user_attr(f"runner {other.runner}", {"machine": "far", "seen": now - 1000})
    again = mine.claim()
    assert (again.point, again.n, again.runner) == (0, 2, mine.runner)
    other.finish(replace(claimed, state="finished", score=0.0))  # too late
    assert [a.state for a in mine.attempts()] == ["interrupted", "running"]
    mine.close()
    other.close()


def test_a_lock_of_the_journal_left_by_a_killed_runner_is_removed(place, monkeypatch):
    soon = partial(queue.JournalFileSymlinkLock, grace_period=3)  # by default 30 s
    monkeypatch.setattr(queue, "JournalFileSymlinkLock", soon)
    path = write("parameters: {x: {values: [1]}}")
    killed = Queue(read_sweep(path), "shared/study.log")
    killed._study._storage._backend._lock.acquire()
    opened = []
    thread = Thread(
        target=lambda: opened.append(Queue(read_sweep(path), "shared/study.log")), daemon=True
    )
    thread.start()
    thread.join(20)
    (mine,) = opened
    assert mine.claim().point == 0
    mine.close()
    killed.close()


def test_an_entry_that_a_full_disk_cut_short_stops_no_other_runner(place):
    path = write("parameters: {x: {values: [1, 2]}}")
    queues = [Queue(read_sweep(path), "study.log") for _ in range(2)]
    assert queues[0].claim().point == 0
    with open("study.log", "a") as file:
        file.write('{"op_code":5,"work')
    with pytest.warns(UserWarning, match="ended in an incomplete line, which was removed"):
        assert queues[1].claim().point == 1
    assert [a.point for a in queues[0].attempts()] == [0, 1]
    for each in queues:
        each.close()


def test_the_first_of_two_claims_to_an_attempt_is_valid(place):
    path = write("parameters: {x: {values: [1, 2]}}")
    queue = Queue(read_sweep(path), f"sqlite:///{place}/study.db")
    for name, again in (("a", None), ("b", [0, 2]), ("c", [0, 2]), ("d", None), ("e", None)):
        attrs = {"runner": queue.runner, "run": name} | ({"again": again} if again else {})
        trial = optuna.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs=attrs)
        queue._study.add_trial(trial)
    found = [(a.run, a.point, a.n) for a in queue.attempts()]
    assert found == [("a", 0, 1), ("b", 0, 2), ("d", 1, 1)]
    queue.close()


def test_a_lock_is_held_until_its_file_is_closed(place):
    with acquire_lock("a test"):
        assert is_locked("a test")
    assert not is_locked("a test")


# ---- what is started


def expanded(command: list[str], config: dict, tmp_path: Path) -> list[str]:
    path = tmp_path / "sweep.yaml"
    content = {"method": "grid", "metric": {"name": "s"}, "parameters": {"x": {"value": 1}}}
    path.write_text(json.dumps(content | {"program": "play.py", "command": command}))
    return runner.expand_command(read_sweep(path), config, tmp_path / "args.json")


@pytest.mark.parametrize(
    ("macro", "expected"),
    [
        ("${args}", ["--lr=0.001", "--update=True", "--a=None"]),
        ("${args_no_hyphens}", ["lr=0.001", "update=True", "a=None"]),
        ("${args_no_equals}", ["--lr", "0.001", "--update", "True", "--a", "None"]),
        ("${args_no_boolean_flags}", ["--lr=0.001", "--update", "--a=None"]),
        ("${args_json}", ['{"lr": 0.001, "update": true, "a": null}']),
        ("${program}", ["play.py"]),
        ("${interpreter}", [sys.executable]),
        ("${env}", ["/usr/bin/env"]),
        ("--keep=${envvar:SOMEWHERE}", ["--keep=here"]),
    ],
)
def test_macros_expand_as_the_agent_expands_them(tmp_path, monkeypatch, macro, expected):
    monkeypatch.setenv("SOMEWHERE", "here")
    config = {"lr": 0.001, "update": True, "a": None}
    assert expanded([macro], config, tmp_path) == expected


def test_arguments_can_come_as_a_file(tmp_path):
    command = expanded(["${program}", "${args_json_file}"], {"x": 1}, tmp_path)
    assert command == ["play.py", str(tmp_path / "args.json")]
    assert json.loads((tmp_path / "args.json").read_text()) == {"x": 1}


def test_flags_after_two_hyphens_and_variables_reach_the_program(place):
    Path("play.py").write_text(
        "import json, os, sys, pathlib\n"
        "folder = pathlib.Path(os.environ['EMAAE_OUT_DIR'], os.environ['EMAAE_RUN_NAME'])\n"
        "folder.mkdir(parents=True)\n"
        "names = ('WANDB_MODE', 'WANDB_RUN_GROUP', 'CUDA_VISIBLE_DEVICES')\n"
        "seen = {n: os.environ.get(n) for n in names} | {'argv': sys.argv[1:]}\n"
        "metrics = {'status': 'finished', 'select/score': 1} | seen\n"
        "(folder / 'metrics.json').write_text(json.dumps(metrics))\n"
    )
    write("name: plays\nparameters: {x: {values: [1, 2]}}")
    flags = ["--device=cpu", "--epochs", "1"]
    code, out = sweep("play.yaml", "--jobs", "2", "--", *flags, CUDA_VISIBLE_DEVICES="3,5")
    assert code == 0, out
    seen = [read.metrics(Path("runs/play/runs", name)) for name in ("0001", "0002")]
    for i, each in enumerate(seen):
        assert each["argv"] == [f"--x={i + 1}", *flags]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in seen] == ["3", "5"]
    assert {(s["WANDB_MODE"], s["WANDB_RUN_GROUP"]) for s in seen} == {("offline", "plays")}


def test_runners_of_one_machine_share_its_gpus(place):
    path = write("parameters: {x: {values: [1, 2, 3, 4, 5]}}")
    queues = [Queue(read_sweep(path), f"sqlite:///{place}/study.db") for _ in range(2)]
    runners = [runner.Runner(queue, place, 2, ["0", "1", "2"], []) for queue in queues]
    attempts = []
    for each in (*runners, *runners):
        attempt = each.queue.claim()
        attempts.append(replace(attempt, gpu=each._free_gpu(attempt)))
        each.queue.store_fields(attempts[-1], "gpu")
    assert [a.gpu for a in attempts] == ["0", "1", "2", "0"]
    queues[0].finish(replace(attempts[2], state="interrupted"))
    again = queues[1].claim()
    assert (again.point, again.gpu) == (2, "2")
    assert runners[1]._free_gpu(again) == "2", "its own place is free"
    queues[0]._study.set_user_attr(f"runner {queues[0].runner}", {"machine": "far", "seen": 0})
    assert queues[1].gpus_in_use(again) == ["1", "0"], "a GPU of another machine is another one"
    for each in queues:
        each.close()


def test_jobs_divide_the_cores_that_the_runner_may_use_rather_than_those_of_the_node(
    place, monkeypatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    queue = Queue(read_sweep(write("parameters: {x: {values: [1, 2]}}")), "study.log")
    environment = runner.Runner(queue, place, 2, [], [])._environment("0001", None, False)
    queue.close()
    assert environment["OMP_NUM_THREADS"] == "2"


# ---- searches


def searched(place: Path, method: str, *flags: str) -> list[dict]:
    write(
        """
        run_cap: 6
        parameters:
          x: {min: 0.0, max: 4.0}
          kind: {values: [a, b]}
          seed: {value: 3}
        """,
        f"method: {method}\nmetric: {{name: select/score}}\n",
    )
    code, out = sweep("play.yaml", *flags)
    assert code == 0, out
    return sorted(table(flags[-1] if flags else "runs/play"), key=lambda row: int(row["point"]))


def test_a_random_search_is_the_same_however_many_jobs_share_it(place):
    one = searched(place, "random", "--out", "one")
    three = searched(place, "random", "--jobs", "3", "--out", "three")
    assert [(r["x"], r["kind"]) for r in one] == [(r["x"], r["kind"]) for r in three]
    assert len({r["x"] for r in one}) == 6
    assert {r["seed"] for r in one} == {"3"}
    assert all(0 <= float(r["x"]) <= 4 for r in one)


def test_whole_floats_reach_the_runs_of_a_search_as_whole_numbers(place):
    path = write(
        "run_cap: 1\nparameters: {x: {value: 1.0}, y: {values: [2.0, 2]}}",
        "method: random\nmetric: {name: select/score}\n",
    )
    queue = Queue(read_sweep(path), "study.log")
    attempt = queue.claim()
    queue.close()
    assert repr(attempt.config) == "{'x': 1, 'y': 2}"


def test_a_bayesian_search_learns_from_its_scores(place):
    path = write(
        "run_cap: 40\nparameters: {x: {min: 0.0, max: 4.0}}",
        "method: bayes\nmetric: {name: select/score}\n",
    )
    queue = Queue(read_sweep(path), "study.log")
    found = []
    while (attempt := queue.claim()) is not None:
        found.append(attempt.config["x"])
        queue.finish(replace(attempt, state="finished", score=abs(found[-1] - 3)))
    queue.close()
    assert len(found) == 40
    late = [abs(x - 3) for x in found[20:]]
    assert sum(late) / 20 < 0.5 < sum(abs(x - 3) for x in found[:10]) / 10


# ---- early termination


def test_a_run_whose_score_is_not_finite_has_failed(place):
    Path("metrics.json").write_text('{"status": "finished", "val/score": NaN}')
    spec = hyperband(type="hyperband", min_iter=1)
    assert judging.outcome_of(place, spec) == ("failed", None)
    Path("history.jsonl").write_text('{"epoch": 1, "val/score": 2.0}\n')
    assert judging.outcome_of(place, spec) == ("finished", 2.0)


def hyperband(**spec) -> Sweep:
    write(
        f"parameters: {{x: {{value: 1}}}}\nearly_terminate: {json.dumps(spec)}",
        "method: grid\nmetric: {name: val/score}\n",
    )
    return read_sweep("play.yaml")


def test_only_histories_that_have_changed_are_read_again(place, monkeypatch):
    write("parameters: {x: {values: [1]}}")
    queue = Queue(read_sweep("play.yaml"), "study.log")
    runs = runner.Runner(queue, place, 1, [], [])
    file = place / "runs" / "a" / "history.jsonl"
    file.parent.mkdir(parents=True)
    reads = []
    real = read.history
    monkeypatch.setattr(read, "history", lambda folder: reads.append(folder) or real(folder))
    job = runner.Job(Attempt(0, 0, 1, "running", run="a"), None)
    for epoch in (1, 2):
        with open(file, "a") as out:
            print(json.dumps({"epoch": epoch, "val/score": 1 / epoch}), file=out)
        seen = [runs._with_progress(job) for _ in range(3)]
        assert [(a.epoch, a.score) for a in seen] == [(epoch, 1 / epoch)] * 3
    assert len(reads) == 2
    queue.close()


def test_hyperbands_epochs_are_those_of_wandb():
    assert judging.hyperband_epochs({"min_iter": 3}, 100) == [3, 9, 27, 81]
    assert judging.hyperband_epochs({"max_iter": 27, "s": 2, "eta": 3}, 100) == [3, 9]
    assert judging.hyperband_epochs({"max_iter": 27, "s": 5, "eta": 3}, 100) == [1, 3, 9]
    assert judging.hyperband_epochs({"max_iter": 27, "s": 1000, "eta": 3.0}, 100) == [1, 3, 9]


def test_hyperband_keeps_the_best_fraction_of_the_runs_at_a_band(place):
    curves = {"a": [3.0, 3.0], "b": [2.0, 2.0], "c": [1.0, 1.0], "d": [4.0, 0.5], "e": [9.0]}
    strict = hyperband(type="hyperband", min_iter=2, eta=2, strict=True)
    behind = {name for name, c in curves.items() if judging.should_stop_early(c, curves, strict)}
    assert behind == {"a"}
    loose = hyperband(type="hyperband", min_iter=1, eta=4, strict=False)
    behind = {name for name, c in curves.items() if judging.should_stop_early(c, curves, loose)}
    assert behind == {"a", "e"}


def test_hyperband_stops_a_run_which_keeps_its_best_score(place):
    write(
        """
        early_terminate: {type: hyperband, min_iter: 2, eta: 3, strict: true}
        parameters:
          x: {values: [1, 4]}
          seconds: {value: 3.0}
        """,
        "method: grid\nmetric: {name: val/score}\n",
    )
    code, out = sweep("play.yaml", "--jobs", "2")
    assert code == 0, out
    assert [(row["x"], row["status"]) for row in table()] == [("1", "finished"), ("4", "stopped")]
    assert 2 <= int(table()[1]["epoch"]) < 5


# ---- mistakes


def test_a_changed_file_is_refused_with_what_differs(place):
    assert runner.run(write("parameters: {x: {values: [2, 1]}}")) == 0
    changed = write("parameters: {x: {values: [2, 3]}}")
    with pytest.raises(
        UserError, match=r"play.yaml: parameters.x was .*\[2, 1\].* and is .*\[2, 3\]"
    ):
        runner.run(changed)
    assert "[2, 1]" in Path("runs/play/sweep.yaml").read_text()


def test_a_folder_takes_one_sweep_whatever_the_name_of_its_file(place):
    path = write("parameters: {x: {values: [2, 1]}}")
    assert runner.run(path) == 0
    other = Path("other.yaml")
    other.write_text(path.read_text().replace("[2, 1]", "[2, 1, 3]"))
    with pytest.raises(UserError, match=r"other.yaml: parameters.x was .*\[2, 1\].* and is .* 3\]"):
        runner.run(other, out="runs/play")
    assert runner.run(path.rename("renamed.yaml"), out="runs/play") == 0
    assert started() == ["0001", "0002"]
    with pytest.raises(UserError, match="--out .*0001 is the folder of a run: name another"):
        runner.run(other, out="runs/play/runs/0001")
    with pytest.raises(UserError, match="--out .*play holds another sweep"):
        runner.run(other, out="runs/play", storage="shared.log")


@pytest.mark.parametrize("name", ["name: play\n", ""])
def test_the_copy_in_the_folder_of_a_sweep_continues_it(place, name):
    path = write(f"{name}parameters: {{x: {{values: [2, 1]}}}}")
    assert runner.run(path) == 0
    copy = Path("runs/play/sweep.yaml")
    assert runner.run(copy, out="runs/play") == 0
    assert started() == ["0001", "0002"]
    assert copy.read_text() == path.read_text()


@pytest.mark.parametrize("name", ["sweep.yaml", "0001.txt", "table.csv"])
def test_a_full_disk_names_the_file_and_not_the_storage(place, monkeypatch, name):
    def full(path, *args, **more):
        if name in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, *args, **more)

    for module in (runner, files):
        monkeypatch.setattr(module, "open", full, raising=False)
    path = write("parameters: {x: {values: [1]}}")
    with pytest.raises(UserError, match=rf"{name} cannot be written \(No space left on device\)"):
        runner.run(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flags": ["--out_dir=x"]}, "--out_dir is set by the sweep"),
        ({"flags": ["--x=3"]}, "--x is a parameter of play.yaml"),
        ({"out": "play.py/x?"}, "play.py/x.*/logs cannot be made"),
        ({"storage": "nosql://x"}, "--storage nosql://x cannot be opened"),
        ({"out": "play.py"}, "play.py/logs cannot be made"),
    ],
)
def test_a_usage_error_prints_one_line(place, options, message):
    with pytest.raises(UserError, match=message) as error:
        runner.run(write("parameters: {x: {values: [2, 1]}}"), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sweep", "play.yaml", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["sweep", "play.yaml", "--jobs", "two"], "--jobs must be a whole number, got 'two'"),
        (["demo-data", "--out", "x", "--jobs=-1"], "--jobs must be at least 1, got -1"),
        (
            ["demo-data", "--out", "x", "--n_utterances=200000"],
            "--n_utterances must be at least 1 and at most 100000, got 200000",
        ),
    ],
)
def test_a_number_out_of_range_names_the_flag_and_its_range(place, argv, message):
    with pytest.raises(UserError, match=message):
        main(argv)


def test_a_name_in_the_command_is_refused(place):
    path = write("command: ['${program}', --run_name=x, '${args}']\nparameters: {x: {values: [2]}}")
    with pytest.raises(UserError, match="--run_name is set by the sweep for each run; leave it"):
        runner.run(path)


@pytest.mark.parametrize("name", ["q?1", "p%20x", "{b}", "a b"])
def test_a_folder_may_have_any_name(place, name):
    path = write("parameters: {x: {values: [1]}}")
    assert [runner.run(path, out=name) for _ in range(2)] == [0, 0]
    assert started() == ["0001"]
    assert (place / name / "study.db").is_file()


def test_a_run_without_the_metric_of_the_sweep_says_so(place, capfd):
    head = "method: grid\nmetric: {name: test/score, goal: minimize}\n"
    assert runner.run(write("parameters: {x: {values: [1]}}", head)) == runner.FAILED
    assert "failed: point 0001 (sweep: error: the run ended well without test/score)" in (
        capfd.readouterr().out
    )


def test_a_run_is_stopped_although_its_lock_file_is_gone(place):
    write("parameters:\n  x: {value: 1}\n  seconds: {value: 60}")
    process = start("play.yaml")
    until(lambda: len(started()) == 1)
    for path in lock_path("x").parent.iterdir():
        path.unlink()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert "0001 interrupted" in out


def test_a_missing_program_prints_one_line_and_exits_with_status_2(place):
    write("parameters: {x: {values: [2, 1]}}")
    Path("play.py").unlink()
    code, out = sweep("play.yaml")
    assert code == 2
    assert out.startswith("python -m emaae: error: play.yaml: program play.py is not in")
    assert len(out.splitlines()) == 1


def test_a_storage_that_breaks_prints_one_line_and_leaves_no_process(place):
    write("parameters:\n  x: {values: [2, 1]}\n  seconds: {value: 1.5}")
    process = start("play.yaml")
    until(lambda: len(started()) == 1)
    Path("runs/play/study.db").write_bytes(b"not a database" * 1000)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 2, out
    assert out.splitlines()[-1].startswith("python -m emaae: error: the storage sqlite:///")
    assert "Traceback" not in out
    assert not any(is_locked(path.stem) for path in lock_path("x").parent.iterdir())


@pytest.mark.parametrize(
    ("visible", "found"), [("0, 2", 2), ("GPU-7", 1), ("-1", 0), ("NoDevFiles", 0), ("", 0)]
)
def test_gpus_are_those_that_cuda_names(monkeypatch, visible, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(runner.gpus()) == found


# ---- the real program


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alfa=0.1"], "unknown flag --alfa; did you mean '--alpha'"),
        (["--epochs", "many"], "--epochs must be a whole number"),
        (["--train_dir=a", "--val_dir=b"], "a does not exist"),
        (["--train_dir=tree", "--val_dir=tree"], "in its sub-directories: add --recursive"),
        (["--train_dir=tree"], "--val_dir is missing"),
    ],
)
def test_flags_that_every_run_would_refuse_are_refused_before_the_first_run(place, flags, message):
    write_tree(place / "tree", {"s/a": 9})
    Path("train.py").write_text("")
    path = write("parameters: {seed: {values: [0, 1]}}")
    path.write_text(path.read_text().replace("play.py", "train.py"))
    with pytest.raises(UserError, match=message):
        runner.run(path, flags=flags)
    # The flags may be in the command of the file, too.
    own = "".join(f", {flag}" for flag in flags)
    with open(path, "a") as file:
        file.write(f"\ncommand: ['${{env}}', python3, '${{program}}'{own}, '${{args}}']\n")
    with pytest.raises(UserError, match=message):
        runner.run(path)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("out_dir", "--out_dir is set by the sweep"), ("seed", "--seed is a parameter of play.yaml")],
)
@pytest.mark.parametrize("form", ["--{}=1", "{}=1", '{{"{}": 1}}', "{}.json"])
def test_what_a_sweep_sets_is_refused_in_every_form_of_a_flag(place, name, message, form):
    Path("train.py").write_text("")
    Path(f"{name}.json").write_text(json.dumps({name: 1}))
    path = write("parameters: {seed: {values: [0, 1]}}")
    path.write_text(path.read_text().replace("play.py", "train.py"))
    with pytest.raises(UserError, match=message):
        runner.run(path, flags=[form.format(name)])


def test_a_sweep_of_train_py_leaves_models_that_are_named_in_its_table(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "method: grid\nprogram: train.py\nmetric: {name: select/score}\n"
        "parameters: {update: {value: false}, seed: {values: [0, 1]}}\n"
    )
    flags = ("--epochs=1", "--inner_size=8", "--n_encoder=2", "--n_decoder=2", "--wandb=disabled")
    options = ("--jobs", "2", "--out", str(tmp_path / "out"))
    process = program("-m", "emaae", "sweep", str(path), *options, "--", *flags)
    assert process.returncode == 0, process.stdout + process.stderr
    best = process.stdout.splitlines()[-1].removeprefix("best model: ")
    assert Path(best).is_file()
    rows = table(str(tmp_path / "out"))
    scores = [read.metrics(Path(row["run"]))["select/score"] for row in rows]
    assert scores == sorted(scores) == [float(row["select/score"]) for row in rows]
    last = read.history(Path(rows[0]["run"]))[-1]
    assert {name for name in last if logged_each_epoch(name)} == set(last)
    config = json.loads((Path(rows[0]["run"]) / "config.json").read_text())
    assert (config["inner_size"], str(config["seed"])) == (8, rows[0]["seed"])


@pytest.mark.slow
def test_an_interrupted_run_of_train_py_is_resumed_where_it_stopped(trees, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "method: grid\nprogram: train.py\nmetric: {name: select/score}\n"
        "parameters: {seed: {values: [0, 1]}}\n"
    )
    flags = small_run(trees, tmp_path)[:-1]
    flags[flags.index("--epochs=3")] = "--epochs=30"
    command = [sys.executable, "-m", "emaae", "sweep", str(path), "--jobs=2"]
    env = os.environ | {"WANDB_RUN_ID": "outer", "WANDB_SWEEP_ID": "outer"}
    outs = [tmp_path / "whole", tmp_path / "broken"]
    for out in outs:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        whole = [*command, f"--out={out}", "--", *flags]
        process = subprocess.Popen(whole, cwd=ROOT, env=env, **pipes)
        if out.name == "broken":
            until(lambda: len(read.history(tmp_path / "broken" / "runs" / "0001")) >= 3)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[0]
            assert process.returncode == 130, said
            assert "interrupted: 0 of 2 points are done" in said
            process = subprocess.Popen(whole, cwd=ROOT, env=env, **pipes)
        said = process.communicate(timeout=100)[0]
        assert process.returncode == 0, said
    assert "0001 resumed  seed=0" in said
    assert "continuing after" in (outs[1] / "logs" / "0001.txt").read_text()
    assert sorted(path.name for path in (outs[1] / "runs").iterdir()) == ["0001", "0002"]
    for name in ("0001/history.jsonl", "0002/history.jsonl", "0001/metrics.json"):
        assert (outs[0] / "runs" / name).read_text() == (outs[1] / "runs" / name).read_text()
