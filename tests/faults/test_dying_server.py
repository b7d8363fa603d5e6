"""Runs survive the end of their W&B server at any request; other commands end with one line."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import program
from forked import forked
from synthetic_runs import write_run
from test_wandb import TINY, models_of, variables, works
from wandb_backend import Backend

FILES = ("best.pth", "config.json", "history.jsonl", "last.pt", "metrics.json", "model_config.json")
EPOCHS = 5


def train(backend, folder, trees) -> tuple[dict[str, str], str]:
    """Train while the server may die; returns the environment and the output."""
    env = variables(backend, folder, trees)
    env |= {"WANDB_FINISH_TIMEOUT": "15", "WANDB_INIT_TIMEOUT": "10"}
    flags = [f"--epochs={EPOCHS}", "--wandb=auto", "--wandb_project=speech", "--run_name=r"]
    done = program("train.py", *TINY, *flags, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return env, done.stdout + done.stderr


def outlives(number, folder, trees) -> str:
    """Let the server die at a request, check the run, and return the operation of the request."""
    with Backend() as backend:
        backend.dies_at = number
        env, said = train(backend, folder, trees)
        run = folder / "runs" / "r"
        for name in FILES:
            assert (run / name).stat().st_size, name
        assert json.loads((run / "metrics.json").read_text())["status"] == "finished"
        assert len((run / "history.jsonl").read_text().splitlines()) == EPOCHS
        if len(backend.requests) <= number:
            return "nothing: there were fewer requests this time"
        assert said.count("upload-pending") == 1, said

        operation, _ = backend.requests[number]
        backend.dies_at = None
        backend.start()
        done = program("-m", "emaae", "upload-pending", str(run), **env)
        assert done.returncode == 0, (operation, done.stdout + done.stderr)
        (uploaded,) = backend.runs.values()
        epochs = {row["epoch"] for row in uploaded.history if "epoch" in row}
        assert epochs == set(range(1, EPOCHS + 1)), operation
        weights = (run / "best.pth").read_bytes()
        assert any(m.files["best.pth"] == weights for m in models_of(backend)), operation
        return operation


@pytest.mark.slow
def test_a_run_outlives_its_server_whichever_request_it_dies_at(trees, tmp_path, times, tell):
    with Backend() as backend:
        (tmp_path / "whole").mkdir()
        train(backend, tmp_path / "whole", trees)
        n = len(backend.requests)
    numbers = times([n // 2], range(n))
    folders = [tmp_path / str(number) for number in numbers]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as two:
        ends = list(two.map(lambda i, folder: outlives(i, folder, trees), numbers, folders))
    names = {end for end in ends if not end.startswith("nothing")}
    assert names
    tell(f"a server that dies at each of {len(ends)} requests of a run: {len(names)} operations")


@pytest.mark.slow
def test_promote_and_pull_end_with_one_line_whichever_request_fails(trees, tmp_path, times, tell):
    run = write_run(tmp_path / "runs" / "r", epochs=2, model=True)
    (run / "wandb.json").write_text('{"id": "r", "project": "speech"}')
    with Backend() as backend:
        env = variables(backend, tmp_path, trees) | {"WANDB_FINISH_TIMEOUT": "5"}
        works("-m", "emaae", "upload-pending", str(run), **env)
        for command, sample in (
            (["promote", "tester/speech"], "UseArtifact"),
            (["pull", "tester/speech", f"--out={tmp_path / 'mine'}"], "FetchArtifactManifest"),
        ):
            first = len(backend.requests)
            works("-m", "emaae", *command, **env)
            names = {name for name, _ in backend.requests[first:] if " " not in name}  # GraphQL
            assert sample in names
            for name in times([sample], sorted(names)):
                if command[0] == "promote":
                    backend.collections.pop(("tester", "speech", "emaae-speech"), None)
                backend.failures = {name: 500}
                done = forked("-m", "emaae", *command, **env)
                backend.failures = {}
                assert done.returncode in (0, 2), (name, done.stderr)
                assert "Traceback" not in done.stderr, name
                works("-m", "emaae", *command, **env)
            tell(f"{command[0]}: each of {len(names)} operations refused, a line each")
