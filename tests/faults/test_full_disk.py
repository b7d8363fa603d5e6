"""A disk that fills up: one line, exit status 2, the old files as they were, and --resume."""

import contextlib
import errno
import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from conftest import small_run
from test_interruptions import contents

import train
from emaae import command_line
from emaae.runs import folder as run_folder
from emaae.runs import reconstructions
from emaae.runs.folder import RunFolder
from emaae.system.errors import reporting_errors
from emaae.system.files import read_json


class Disk:
    """A file system of 8 MB that can be filled; without root, only fsync raises the error."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch, self.full = folder, monkeypatch, False
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        mounts = os.geteuid() == 0 and shutil.which("mount")
        self.real = bool(mounts) and not subprocess.run(command, capture_output=True).returncode
        if not self.real:
            fsync = os.fsync
            monkeypatch.setattr(os, "fsync", lambda number: self._fsync(fsync, number))

    def _fsync(self, fsync, number):
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    def fill(self):
        self.full = True
        if self.real:
            with contextlib.suppress(OSError), open(self.folder / "rest", "wb", 0) as file:
                while True:
                    file.write(bytes(1 << 20))

    def free(self):
        self.full = False
        (self.folder / "rest").unlink(missing_ok=True)

    def unmount(self):
        if self.real:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    made = Disk(tmp_path / "disk", monkeypatch)
    yield made
    made.unmount()


def files(run):
    found = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


@pytest.fixture(scope="module", autouse=True)
def one_picture():
    """Instead of three: they take most of the time of such a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstructions, "indices_of_median_length", lambda split: [0])
        yield


@pytest.fixture(scope="module")
def whole(trees, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert train.main([*flags(trees, out), "--run_name=r"]) == 0
    return contents(out / "r")


def flags(trees, out):
    kept = [f for f in small_run(trees, out) if not f.startswith(("--epochs", "--reconstruction"))]
    return [*kept, "--epochs=3", "--reconstruction_every=2", "--resume"]


@pytest.mark.parametrize(
    ("method", "written"),
    [
        ("log", "history.jsonl"),
        ("save_best", "best.pth"),
        ("save_last", "last.pt"),
        ("reconstruct", "v0.npz"),
        ("finish", "curves.json"),
    ],
)
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_loses_nothing(
    disk, trees, whole, capsys, method, written, tell
):
    run, real, seen = disk.folder / "r", getattr(RunFolder, method), SimpleNamespace(calls=0)

    def while_full(self, *arguments, **more):
        seen.calls += 1
        if seen.calls == 1 and method != "finish":
            return real(self, *arguments, **more)
        more |= {"now": True} if method == "save_last" else {}
        disk.fill()
        seen.before = files(run)
        value = real(self, *arguments, **more)
        disk.free()  # there was room in the last page of the file
        return value

    argv = [*flags(trees, disk.folder), "--run_name=r"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, method, while_full)
        with pytest.raises(SystemExit) as ended, reporting_errors("train.py"):
            train.main(argv)
    output, errors = capsys.readouterr()
    said = errors.splitlines()
    assert ended.value.code == 2
    assert len(said) == 1
    assert f"finished {run}" not in output
    assert said[0].startswith("train.py: error: ")
    assert f"{written} cannot be written (No space left on device): check the folder" in said[0]
    assert files(run) == seen.before

    disk.free()
    assert train.main(argv) == 0
    assert read_json(run / "metrics.json")["status"] == "finished"
    assert contents(run) == whole
    tell(f"full disk at {written} ({'tmpfs' if disk.real else 'simulated'}): one line, resumed")


def test_a_disk_that_is_clearly_too_small_is_refused_before_anything_is_read(
    trees, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    argv = [f for f in small_run(trees, tmp_path) if "inner_size" not in f]
    argv.append("--train_dir=/nowhere")
    with pytest.raises(SystemExit) as ended, reporting_errors("train.py"):
        train.main([*argv, "--inner_size=1024"])
    assert ended.value.code == 2
    said = r"needs about \d+ MB \(weights 13 times, and reconstructions\), .* has 100 MB free"
    assert re.search(said, capsys.readouterr().err)


def test_the_space_that_a_run_asks_for_is_the_size_of_its_files(
    trees, tmp_path, capsys, monkeypatch
):
    argv = [*flags(trees, tmp_path), "--inner_size=256", "--run_name=r"]
    most = SimpleNamespace(seen=0)
    real = os.replace

    def replace(*names):
        size = sum(path.stat().st_size for path in (tmp_path / "r").rglob("*") if path.is_file())
        most.seen = max(most.seen, size)
        real(*names)

    monkeypatch.setattr(run_folder, "KEEP_LAST_EVERY_S", 0)
    monkeypatch.setattr(os, "replace", replace)
    assert train.main(argv) == 0
    config = command_line.from_args(argv)
    weights = run_folder.weight_bytes(**config.architecture)
    assert 12 < most.seen / weights < run_folder.space_needed(config) / weights
