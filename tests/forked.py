"""Programs that start at once: each is forked from a process that has imported torch.

That import takes most of the time of a short program. Tests of imports and of the start of
programs use `conftest.program`.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from conftest import ROOT, environment_of

PRELOADED = ["torch._dynamo", "matplotlib.pyplot", "pandas", "scipy.signal", "sklearn.linear_model"]

context = multiprocessing.get_context("forkserver")


def forked(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """As `conftest.program`, but faster; command: `-m MODULE` or a script, and arguments."""
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("out", "err")]
        given = (list(command), cwd, environment_of(**environment), said)
        process = context.Process(target=_run, args=given)
        process.start()
        process.join(240)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{command}: {[path.read_text() for path in said]}")
        return subprocess.CompletedProcess(
            command, process.exitcode, *(path.read_text() for path in said)
        )


def _run(argv: list[str], cwd: Path, environment: dict[str, str], said: list[Path]) -> None:
    """Run `python ARGV` in `cwd`, with stdout and stderr in the files `said`."""
    for stream, path in zip((1, 2), said):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.path[0] = str(cwd)
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
