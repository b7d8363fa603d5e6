"""Programs work with unusual streams, signals, variables, folders and storages."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, environment_of, program

from emaae.system.progress import progress
from emaae.system.signals import Interrupted, handle_signals

SMALL = ("--epochs=1", "--inner_size=8", "--n_encoder=2", "--n_decoder=2", "--wandb=disabled")


def slow(value):
    """A case for `make test-slow`."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("closed", [">&- 2>&- <&-", *(slow(one) for one in (">&-", "2>&-", "<&-"))])
def test_closed_streams_are_not_an_error(tmp_path, closed):
    command = f"exec {sys.executable} train.py {' '.join(SMALL)} --out_dir={tmp_path} {closed}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=environment_of(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = tmp_path.iterdir()
    assert (folder / "best.pth").is_file()


def test_a_terminal_of_ascii_gets_escapes(tmp_path):
    sweep = tmp_path / "ä.yaml"
    sweep.write_text("method: grid\nmetric: {name: select/score}\nparameters: {ä: {value: 1}}\n")
    done = program("-m", "emaae", "lint", str(sweep), PYTHONIOENCODING="ascii")
    assert done.returncode == 2, done.stderr
    assert "parameters.\\xe4: unknown parameter" in done.stdout


def test_a_pipe_that_ends_ends_the_program_in_silence():
    command = f"{sys.executable} train.py --help | head -1"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("backend", ["module://gone.backend", slow("nonsense"), slow("tkagg")])
def test_a_notebooks_backend_of_matplotlib_is_not_used(tmp_path, backend):
    flags = (*SMALL, f"--out_dir={tmp_path}", "--run_name=a")
    done = program("train.py", *flags, MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "a" / "reconstructions").rglob("*.png"))
    where = str(tmp_path / "a")
    done = program("-m", "analysis.figures", where, "--only", "overview", MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr


def test_progress_is_a_bar_in_a_notebook_and_plain_lines_without_a_terminal(monkeypatch, capsys):
    assert list(progress([1, 2], "counting", unit="steps")) == [1, 2]
    assert capsys.readouterr() == ("", ""), "what is over soon says nothing"
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert list(progress([1, 2], "counting", unit="steps")) == [1, 2]
    assert "counting" in capsys.readouterr().err


def test_a_signal_that_the_parent_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_signals():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(Interrupted):
                signal.raise_signal(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_run_under_nohup_outlives_its_terminal(tmp_path):
    flags = ["--epochs=400", *SMALL[1:], f"--out_dir={tmp_path}", "--run_name=a"]
    run = subprocess.Popen(
        ["nohup", sys.executable, "train.py", *flags],
        cwd=ROOT,
        env=environment_of(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        for line in run.stdout:
            if line.startswith("epoch   2"):
                os.kill(run.pid, signal.SIGHUP)
            if line.startswith("epoch   8"):
                break
        assert run.poll() is None
    finally:
        run.kill()
        run.communicate()


# ---- the storage of a sweep's queue


@pytest.fixture
def sweep(tmp_path):
    """A function that runs a sweep of two points with an empty program; returns the process."""
    (tmp_path / "nothing.py").write_text(
        "import json, os, pathlib\n"
        "folder = pathlib.Path(os.environ['EMAAE_OUT_DIR'], os.environ['EMAAE_RUN_NAME'])\n"
        "folder.mkdir(parents=True)\n"
        "(folder / 'metrics.json').write_text(json.dumps({'status': 'finished', 'x': 1}))\n"
    )
    content = {"program": "nothing.py", "method": "grid", "metric": {"name": "x"}}
    content |= {"parameters": {"a": {"values": [1, 2]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))

    def run(storage=None, **variables):
        more = ("--storage", str(storage)) if storage is not None else ()
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = ("-m", "emaae", "sweep", "s.yaml", "--out", "out", *more)
        return program(*command, cwd=tmp_path, PYTHONPATH=path, **variables)

    return run


def refused(done) -> str:
    """The one line of a usage error."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = (line for line in done.stderr.splitlines() if ": error: " in line)
    assert "Traceback" not in done.stderr
    return line


def test_an_incomplete_line_of_a_journal_is_removed_and_nothing_is_lost(sweep, tmp_path):
    journal = tmp_path / "study.log"
    assert sweep(journal).returncode == 0
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])
    again = sweep(journal)
    assert again.returncode == 0, again.stderr
    assert "study.log ended in an incomplete line, which was removed" in again.stderr
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2, "what was done is not done again"
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "content",
    [
        b"notes without an end of line",
        *map(slow, (b"what is this\n", b"{}\n", b"\x00\xff\n", b'[1, 2]\n"a"\n', b'{"epoch": 1}')),
        slow(b'{"op_code": nonsense\n'),
    ],
)
def test_a_file_that_is_not_a_journal_prints_one_line(sweep, tmp_path, content):
    (tmp_path / "study.log").write_bytes(content)
    line = refused(sweep(tmp_path / "study.log"))
    assert "study.log" in line
    assert (tmp_path / "study.log").read_bytes() == content


@pytest.mark.slow
def test_a_file_that_is_not_a_database_prints_one_line(sweep, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.db").write_bytes(b"not a database at all" * 50)
    assert "file is not a database" in refused(sweep())
    assert "cannot be opened" in refused(sweep("nonsense://there"))


@pytest.mark.slow
def test_a_locked_database_prints_one_line_after_the_timeout(sweep, tmp_path, monkeypatch):
    assert sweep().returncode == 0
    database = tmp_path / "out" / "study.db"
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    code = (
        "from emaae.sweeps import queue; queue.DATABASE_TIMEOUT_S = 1; import sys;"
        "from emaae.system.errors import reporting_errors; from emaae.sweeps.runner import run\n"
        "with reporting_errors('sweep'): sys.exit(run('s.yaml', out='out'))"
    )
    try:
        done = program("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    finally:
        holder.close()
    assert "database is locked" in refused(done)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_database_without_permission_to_write_prints_one_line(sweep, tmp_path):
    assert sweep().returncode == 0
    (tmp_path / "out" / "study.db").chmod(0o400)
    assert "readonly" in refused(sweep())


def test_a_folder_for_locks_that_cannot_be_made_prints_one_line(sweep, tmp_path):
    (tmp_path / f"emaae-{os.getuid()}").write_text("in the way")
    line = refused(sweep(TMPDIR=str(tmp_path)))
    assert "cannot hold the locks of runs (File exists): set TMPDIR" in line
