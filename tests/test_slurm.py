"""The job scripts: a job that must end stops its agent or runner and is requeued."""

import os
import subprocess
import time

import pytest
from conftest import ROOT

# Stand in for the cluster and for the programs that the scripts start.
STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> calls.txt
"""
# Says when it is told to stop.
PROGRAM = """#!/bin/bash
trap 'echo "told to stop" >> calls.txt; exit 130' TERM
echo "$(basename "$0") $*" >> calls.txt
[ -e quick ] && exit 3
for _ in $(seq 200); do sleep 0.05; done
"""
SCRIPTS = {
    "slurm_agents.sh": (["me/speech/abc"], "wandb agent --forward-signals me/speech/abc"),
    "slurm_local.sh": (
        ["sweeps/alpha.yaml", "shared/alpha"],
        "python -m emaae sweep sweeps/alpha.yaml --out shared/alpha "
        "--storage shared/alpha/journal.log",
    ),
}


@pytest.fixture(params=SCRIPTS)
def job(request, tmp_path):
    """A job script with stand-ins for its commands: start it, and list the commands it called."""
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "activate").write_text(f'PATH="{environment}:$PATH"\n')
    for name, text in [("scontrol", STAND_IN), ("wandb", PROGRAM), ("python", PROGRAM)]:
        (environment / name).write_text(text)
        (environment / name).chmod(0o755)
    arguments, command = SCRIPTS[request.param]

    def start(*given, **variables):
        given = given or arguments
        slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "70"} | variables
        return subprocess.Popen(
            ["bash", str(ROOT / "sweeps" / request.param), *given],
            cwd="/",
            env=os.environ | slurm,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls():
        path = tmp_path / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []

    return start, calls, command, tmp_path


def until_called(calls, n=1):
    deadline = time.monotonic() + 20
    while len(calls()) < n:
        assert time.monotonic() < deadline, calls()
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("variables", "name"),
    [({}, "70"), ({"SLURM_ARRAY_JOB_ID": "69", "SLURM_ARRAY_TASK_ID": "4"}, "69_4")],
    ids=["alone", "array"],
)
def test_a_job_whose_time_is_up_stops_its_program_and_is_queued_again(job, variables, name):
    start, calls, command, _ = job
    process = start(**variables)
    until_called(calls)
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert calls() == [command, "told to stop", f"scontrol requeue {name}"], err


def test_a_program_that_ends_by_itself_gives_its_exit_status_and_queues_nothing(job):
    start, calls, command, folder = job
    (folder / "quick").touch()
    process = start()
    process.communicate(timeout=20)
    assert process.returncode == 3
    assert calls() == [command]


def test_without_a_sweep_the_script_says_how_it_is_used(job):
    start, calls, *_ = job
    process = start("")
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "give the sweep" in err
    assert calls() == []
