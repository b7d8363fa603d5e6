"""The commands of a page, run in order in a copy of the project.

Each is a process of its own, forked from one that has imported torch: a page shows many short
programs, and most of the time of each would be that import.
"""

import atexit
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import sys
import traceback
from pathlib import Path

import torch
from conftest import ROOT, environment_of

context = multiprocessing.get_context("forkserver")


def blocks(page: Path, language: str) -> list[str]:
    """What stands in the code blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def copy_project(root: Path) -> Path:
    """Put what the commands of a page need into the folder `root`; returns it."""
    for name in ("emaae", "analysis", "sweeps"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", root)
    return root


def follow(page: Path, root: Path, more=lambda argv: (), good=lambda argv: (0,), **variables: str):
    """Run every command of a page in `root`.

    more: arguments to append to those of a command; good: the exit statuses that it may have.
    """
    context.set_forkserver_preload(["torch._dynamo", "matplotlib.figure"])
    for line in "".join(blocks(page, "bash")).splitlines():
        interpreter, *argv = shlex.split(line)
        assert interpreter == "python", line
        said = root / "said.txt"
        given = ([*argv, *more(argv)], root, environment_of(**variables), said)
        process = context.Process(target=_run, args=given)
        process.start()
        process.join(240)
        assert process.exitcode in good(argv), f"{line}\n{said.read_text()}"
        said.unlink()


def _run(argv: list[str], root: Path, environment: dict[str, str], said: Path) -> None:
    """`python ARGV` in `root`; what it says goes into a file."""
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.path[0] = str(root)
    status = 0
    try:
        if argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()  # as an interpreter does at its end, and a forked process does not
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
