"""Weights & Biases, the real client against a server on this machine: sweeps, artifacts, models."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, write_tree
from forked import forked
from synthetic_runs import write_run
from wandb.errors import CommError
from wandb_backend import Backend

import emaae
from analysis.runs import read_runs
from emaae.config import Config
from emaae.data.features import ARTICULATORS
from emaae.system.errors import UserError
from emaae.system.files import lock_folder
from emaae.tracking import client
from emaae.tracking.artifacts import model_artifact, reconstruction_table
from emaae.tracking.download import _downloaded
from emaae.tracking.mirror import _name
from emaae.tracking.upload import _finish, _published_sweep, _upload_all, publish

TINY = ["--inner_size=16", "--n_encoder=2", "--n_decoder=2", "--epochs=3", "--batch_sz=4"]
GRID = {
    "program": "train.py",
    "method": "grid",
    "metric": {"name": "select/score", "goal": "minimize"},
    "parameters": {
        "alpha": {"values": [0.05, 0.3]},
        "seed": {"values": [0, 1]},
        "inner_size": {"value": 16},
        "n_encoder": {"value": 2},
        "n_decoder": {"value": 2},
        "epochs": {"value": 3},
    },
}


def variables(backend, folder, trees) -> dict[str, str]:
    """The environment of a user of `backend`, with HOME folder/home and runs in folder/runs."""
    folders = {f"EMAAE_{split.upper()}_DIR": str(path) for split, path in trees.items()}
    folders["EMAAE_OUT_DIR"] = str(folder / "runs")
    # An agent starts the `python` of the PATH: that of an activated environment.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    more = {"OMP_NUM_THREADS": "1", "PATH": path}
    return backend.environment(folder / "home") | folders | more


def wandb(*arguments: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def created(backend, folder, trees, sweep: dict) -> tuple[str, dict[str, str]]:
    """The path of a new sweep, and the environment of its agents."""
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(sweep))
    env = variables(backend, folder, trees)
    said = wandb("sweep", "--project", "speech", str(file), env=env)
    return re.search(r"wandb agent (\S+)", said)[1], env


def started(*command: str, env: dict[str, str]) -> subprocess.Popen:
    """`python COMMAND`, all of whose output is one pipe."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=os.environ | env, **pipes)


def folder_of(run_id: str, out: Path) -> Path:
    """The folder of the run that an agent has started."""
    (folder,) = (out / "runs").glob(f"*-{run_id}")
    return folder


def models_of(backend) -> list:
    return [a for a in backend.artifacts if a.type == "model" and a.state == "COMMITTED"]


def works(*command: str, **env: str) -> subprocess.CompletedProcess:
    """Run a program that must succeed."""
    done = forked(*command, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def output_of(code: str, folder: Path, env: dict[str, str]) -> str:
    """What a Python program prints."""
    (folder / "code.py").write_text(code)
    return works(str(folder / "code.py"), **env).stdout


def epochs_of(run) -> list[int]:
    return [row["epoch"] for row in run.history if "train/loss" in row]


@pytest.fixture(scope="module")
def swept(trees, tmp_path_factory):
    """A 4-point grid that two concurrent agents have finished: backend, environment, sweep path."""
    home = tmp_path_factory.mktemp("swept")
    with Backend() as backend:
        path, env = created(backend, home, trees, GRID)
        # two machines, and so two caches
        agents = [
            started("-m", "wandb", "agent", path, env=env | {"WANDB_CACHE_DIR": str(cache)})
            for cache in (home / "cache1", home / "cache2")
        ]
        said = [agent.communicate(timeout=200)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0], said
        yield backend, env, path, home
    assert not backend.strays, "hosts that somebody tried to reach"
    assert not backend.unknown, "what W&B would have answered"


def test_two_agents_run_every_point_once(swept):
    backend, _, path, home = swept
    runs = backend.runs.values()
    points = sorted((run.config["alpha"], run.config["seed"]) for run in runs)
    assert points == [(alpha, seed) for alpha in (0.05, 0.3) for seed in (0, 1)]
    assert {run.state for run in runs} == {"finished"}
    sweep = path.rsplit("/", 1)[1]
    assert {run.group for run in runs} == {sweep}
    assert {run.job_type for run in runs} == {"train"}
    assert all({"constant", "l1"} == set(run.tags) for run in runs)
    assert sorted(p.name for p in (home / "runs").iterdir()) == sorted(
        f"{sweep}-{run_id}" for run_id in backend.runs
    )


def test_each_epoch_is_one_row_and_the_score_is_logged_once(swept):
    backend, _, _, home = swept
    for run_id, run in backend.runs.items():
        epochs = epochs_of(run)
        assert epochs == [1, 2, 3]
        row = run.history[1]
        for name in ("train/loss", "val/loss", "alpha", "lambda_eff", "val/sparsity", "val/fvu"):
            assert np.isfinite(row[name]), name
        assert sum("select/score" in row for row in run.history) == 1
        folder = folder_of(run_id, home)
        metrics = json.loads((folder / "metrics.json").read_text())
        assert run.summary["select/score"] == pytest.approx(metrics["select/score"])
        assert run.config["data"]["train"]["fingerprint"]
        assert run.config["batch_sz"] == 32


def test_the_final_row_has_the_epoch_of_its_weights_and_a_table_of_a_reconstruction(swept):
    backend, _, _, home = swept
    for run_id, run in backend.runs.items():
        (final,) = (row for row in run.history if "select/score" in row)
        assert final["epoch"] == final["select/epoch"]
        folder = folder_of(run_id, home)
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        selected = history[final["select/epoch"] - 1]
        for name in ("fvu", "live_sparsity", "l0", "mse", "persistence_within"):
            assert final[f"select/{name}"] == pytest.approx(selected[f"val/{name}"])
        assert final["reconstruction"]["_type"] == "table-file"
        assert final["reconstruction"]["ncols"] == 4
        best = {"val/fvu": min, "val/sparsity": max, "val/score": min}
        for name, extremum in best.items():
            kept = run.summary[name]["min" if extremum is min else "max"]
            assert kept == pytest.approx(extremum(row[name] for row in history))


def test_single_channels_are_in_a_section_of_their_own(swept):
    backend, *_ = swept
    for run in backend.runs.values():
        names = {name for row in run.history for name in row}
        assert {f"channels/val/r/{name}" for name in ARTICULATORS} <= names
        assert not [name for name in names if name.startswith(("val/r/", "test/fvu/"))]


def test_runs_are_named_by_what_their_sweep_varies():
    config = json.loads(json.dumps(vars(Config()))) | {"schedule": "constant"}
    assert _name(config) == "constant a0.25 i1024 e5d3 s0"
    assert _name(config, ("alpha", "norm", "seed", "gone")) == f"{_name(config)} norm=none"
    parameters = {"norm": {"values": ["none", "layer"]}, "lr": {"min": 0, "max": 1}}
    parameters |= {"seed": {"value": 1}, "alpha": {"values": [0.1]}}
    assert client.varying_names({"parameters": parameters}) == ("norm", "lr")


def test_a_run_that_was_changed_does_not_end_the_upload_of_others(tmp_path):
    run = write_run(tmp_path / "changed", epochs=2)
    (run / "best.pth").write_bytes(b"")
    send = partial(model_artifact, run_id="r")
    uploaded, (failure,) = _upload_all([run, tmp_path], send)
    assert "changed/model_config.json cannot be read" in failure
    assert list(uploaded) == [tmp_path], "the second folder has no model"


def test_the_table_of_reconstructions_is_of_the_last_epoch(tmp_path):
    n_frames = {"epoch-9999": 2, "epoch-10000": 3, "epoch-best": 4}  # the last is a user's own
    for name, n in n_frames.items():
        drawn = tmp_path / "reconstructions" / name
        drawn.mkdir(parents=True)
        x = np.zeros((n, 1), np.float32)
        np.savez(drawn / "u.npz", channels=["pitch"], truth=x, prediction=x)
    assert len(reconstruction_table(tmp_path).data) == 3


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "val"), ("train",)])
def test_curves_are_of_the_last_existing_split(splits):
    row = {"lowpass/cutoff": 0.5, "lowpass/fvu": 0.1}
    config = {"data": dict.fromkeys(splits)}
    run = SimpleNamespace(entity="e", project="p", id="r", config=config, summary_metrics={})
    assert _downloaded(run, [row])["curves"]["split"] == splits[-1]
    for of_another_program in (None, 3):
        config["data"] = of_another_program
        assert _downloaded(run, [row])["curves"]["split"] == "val"


@pytest.mark.parametrize(
    ("files", "message"),
    [([], "sweep.yaml is missing"), (["sweep.yaml"], "holds no run yet: run the sweep first")],
)
def test_only_a_sweep_with_runs_can_be_published(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("method: grid\n")
    with pytest.raises(UserError, match=message):
        publish(tmp_path, "p")


def test_without_an_answer_no_second_sweep_is_created(monkeypatch):
    record = {"sweep": "s", "entity": "e", "project": "p"}

    class Silent:
        def sweep(self, path):
            raise error

    monkeypatch.setattr(client, "public_api", Silent)
    error: Exception = CommError("HTTP 502")
    with pytest.raises(UserError, match="did not answer whether e/p/s exists .HTTP 502"):
        _published_sweep(record, "p", "e")
    error = ValueError("Could not find sweep")
    assert _published_sweep(record, "p", "e") is None


def test_a_published_sweep_keeps_its_entity_when_none_is_given(tmp_path, monkeypatch):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(GRID))
    write_run(tmp_path / "runs" / "0001", epochs=2)
    record = {"sweep": "s", "entity": "team", "project": "p"}
    (tmp_path / "published.json").write_text(json.dumps(record))
    found = SimpleNamespace(id="s", state="FINISHED", runs=[SimpleNamespace(id="r")])
    monkeypatch.setattr(client, "public_api", lambda: SimpleNamespace(sweep=lambda path: found))
    destinations = []

    def upload(folder, entity, project, sweep, sweep_config):
        destinations.append((entity, project, sweep))
        return f"{entity}/{project}/r"

    monkeypatch.setattr("emaae.tracking.upload.upload", upload)
    for entity in (None, "team"):
        assert publish(tmp_path, "p", entity) == "team/p/s"
    assert destinations == [("team", "p", "s")] * 2


def test_a_sweep_that_cannot_be_finished_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="e/p/s exists and could not be finished"):
        _finish("e/p/s")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ("[default]\nbase_url = https://wandb.lab.org\n", "wandb.lab.org"),
        ("[default]\nbase_url = http://localhost:8080\n", "localhost:8080"),
        ("", "api.wandb.ai"),
        ("[x", "api.wandb.ai"),
    ],
)
def test_a_key_counts_for_the_server_that_wandb_login_stored(tmp_path, monkeypatch, settings, kept):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert client.mode_of("auto") == "offline", "there is no such file"
    (tmp_path / "settings").write_text(settings)
    for host in ("wandb.lab.org", "localhost:8080", "localhost", "api.wandb.ai"):
        (tmp_path / "netrc").write_text(f"machine {host} login user password {'0' * 40}\n")
        assert client.mode_of("auto") == ("online" if host == kept else "offline")


@pytest.mark.parametrize("key", ["", "0" * 40])
def test_a_folder_that_the_wandb_client_made_is_not_a_local_run(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    Path("lab/speech/run").mkdir(parents=True)  # ENTITY/PROJECT/RUN
    assert client.is_local("lab/speech") == (not key), "without a key, the local folder is meant"
    assert not client.is_local("wandb:lab/speech/emaae-x:best")
    assert not client.is_local("lab/other")
    write_run(Path("lab/speech/mine"), epochs=1)
    assert client.is_local("lab/speech")
    assert client.is_local("lab/speech/mine")
    assert client.is_local(str(tmp_path))
    assert client.is_local("./lab")
    assert client.is_local("/usr/lib")


def test_the_curves_are_rows_over_axes_of_their_own(swept):
    backend, _, _, home = swept
    for run_id, run in backend.runs.items():
        defined = run.raw_config["_wandb"]["value"]["m"]  # 1 is the name, 5 the axis by its place
        axes = {m["1"]: defined[m["5"] - 1]["1"] for m in defined if "1" in m and "5" in m}
        curves = json.loads((folder_of(run_id, home) / "curves.json").read_text())
        assert curves["split"] == "test"
        for name, axis, encoding, column in [
            ("self_similarity", "shift/lag_ms", "shift/self_similarity", "lag_ms"),
            ("gain", "shift/shift_ms", "shift/gain", "shift_ms"),
            ("lowpass", "lowpass/cutoff", "lowpass/fvu", "cutoff"),
        ]:
            rows = [row for row in run.history if axis in row]
            assert [row[axis] for row in rows] == curves[name][column]
            there = [row[encoding] for row in rows if encoding in row]
            assert there == [value for value in curves[name]["encoding"] if value is not None]
            assert not any("epoch" in row for row in rows)
            assert axes[encoding] == axis
            assert encoding not in run.summary, "the last point of a curve is no result"
        assert (
            run.summary["shift/input_self_similarity_20ms"] == curves["self_similarity"]["input"][1]
        )


def test_each_run_stores_its_model_and_its_reconstructions(swept):
    backend, _, _, home = swept
    for run_id, run in backend.runs.items():
        folder = folder_of(run_id, home)
        mine = {a.type: a for a in backend.artifacts if a.run_id == run_id and a.type != "job"}
        model = mine["model"]
        assert model.name == f"emaae-{run_id}"
        assert model.files["best.pth"] == (folder / "best.pth").read_bytes()
        assert model.files["curves.json"] == (folder / "curves.json").read_bytes()
        epoch = model.metadata["epoch"]
        assert {"best", "latest", f"epoch-{epoch}"} <= set(model.aliases)
        assert model.metadata["score"] == pytest.approx(run.summary["select/score"])
        assert model.metadata["sparsity"] == pytest.approx(run.history[epoch - 1]["val/sparsity"])
        reconstruction = mine["reconstruction"]
        table = json.loads(reconstruction.files["epoch-0003/table.table.json"])
        assert table["columns"] == ["utterance", "channel", "r", "truth", "prediction"]
        assert {row[1] for row in table["data"]} == {*ARTICULATORS, "pitch"}
        assert "epoch-0001/v0.npz" in reconstruction.files
        assert "epoch-0001/v0.png" in reconstruction.files
        assert any("reconstructions" in row for row in run.history), "no media panel"


def test_promote_and_pull_give_the_model_with_the_lowest_score(swept, tmp_path):
    backend, env, path, home = swept
    best_id = min(backend.runs, key=lambda i: backend.runs[i].summary.get("select/score", 9))
    n_models = sum(a.type == "model" for a in backend.artifacts)
    env = env | {"WANDB_RUN_ID": best_id}  # as in the script of a job
    for _ in range(2):  # again changes nothing
        done = works("-m", "emaae", "promote", path, **env)
        assert f"best: run {best_id}" in done.stdout
    assert sum(a.type == "model" for a in backend.artifacts) == n_models + 1
    assert backend.runs[best_id].job_type == "train"
    entity, project, sweep = path.split("/")
    with ThreadPoolExecutor(2) as pool:  # two at the same moment agree
        promotions = [
            pool.submit(forked, "-m", "emaae", "promote", f"{entity}/{project}", **env)
            for _ in range(2)
        ]
    for done in (promotion.result() for promotion in promotions):
        assert f"best: run {best_id}" in done.stdout, done.stderr
        assert f"{entity}/{project}/emaae-{project}:best" in done.stdout
    works("-m", "emaae", "pull", f"wandb:{path}", "--out", str(tmp_path / "best"), **env)
    folder = folder_of(best_id, home)
    pulled, trained = emaae.load_model(tmp_path / "best"), emaae.load_model(folder)
    assert (tmp_path / "best/curves.json").read_bytes() == (folder / "curves.json").read_bytes()
    x = torch.randn(1, 13, 30)
    assert torch.equal(pulled.encode(x), trained.encode(x))
    assert f"run {best_id}" in (tmp_path / "best/MODEL_CARD.md").read_text().splitlines()[0]

    ref = f"wandb:{entity}/{project}/emaae-{sweep}:best"
    code = f"import emaae; print(emaae.load_model({ref!r}).get_type())"
    assert trained.get_type() in output_of(code, tmp_path, env)


def test_the_report_of_a_sweep_on_wandb_equals_that_of_its_folders(swept, tmp_path):
    backend, env, path, home = swept
    pages = [tmp_path / "there.html", tmp_path / "here.html"]
    for ref, page in zip((path, home / "runs"), pages):
        command = ("-m", "analysis.report", str(ref), "--out", str(page))
        works(*command, **env, XDG_CACHE_HOME=str(tmp_path / "cache"))
    there, here = (
        re.search(r'id="page">(.*?)</script>', page.read_text(), re.DOTALL)[1] for page in pages
    )
    trained = sorted(name for name, run in backend.runs.items() if run.job_type == "train")
    folders = json.loads(here)["runs"]
    assert json.loads(there)["runs"] == trained
    for name, folder in zip(trained, folders):
        here = here.replace(folder, name)
    assert json.loads(there) == json.loads(here)
    found = json.loads(here)
    assert {"self-similarity", "gain", "lowpass", f"unit/{found['best']}/0"} <= set(
        found["figures"]
    )
    assert "input: 1 at 0" in found["figures"]["self-similarity"]["text"]


def test_runs_read_from_wandb_equal_their_folders(swept, tmp_path):
    _, env, path, home = swept
    fields = ("config", "history", "metrics", "status", "schedule", "selected")
    code = f"""
import json
from analysis.runs import read_runs
print(json.dumps([[getattr(run, name) for name in {fields}] for run in read_runs({path!r})]))
"""
    there = json.loads(output_of(code, tmp_path, env).splitlines()[-1])
    assert there == [[getattr(run, name) for name in fields] for run in read_runs(home / "runs")]


def test_a_name_that_is_not_on_wandb_prints_one_line(swept, tmp_path):
    _, env, path, _ = swept
    for words in (
        ["promote", "tester/nothing"],
        ["pull", "tester/speech/zzz", "--out=x"],
        ["upload-pending", "nowhere"],
    ):
        done = forked("-m", "emaae", *words, **env)
        assert done.returncode == 2, done.stdout
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_values_reach_a_run_from_the_sweep_alone(trees, tmp_path):
    grid = {**GRID, "command": ["${env}", "${interpreter}", "${program}"]}
    grid["parameters"] = {**GRID["parameters"], "alpha": {"value": 0.3}, "seed": {"value": 7}}
    with Backend() as backend:
        run_agent(backend, trees, tmp_path, grid)
        ((run_id, run),) = backend.runs.items()
    config = json.loads((folder_of(run_id, tmp_path) / "config.json").read_text())
    assert (config["alpha"], config["seed"], config["inner_size"]) == (0.3, 7, 16)
    assert epochs_of(run) == [1, 2, 3]


def run_agent(backend, trees, tmp_path, sweep: dict) -> str:
    """Create a sweep and run an agent of it to its end; returns what it said."""
    path, env = created(backend, tmp_path, trees, sweep)
    return wandb("agent", path, env=env)


def offline_run(backend, trees, tmp_path):
    """A run made while no server could be reached: its folder and the user's environment."""
    env = variables(backend, tmp_path, trees)
    works("train.py", *TINY, "--wandb_project=speech", **env | {"WANDB_MODE": "offline"})
    (folder,) = (tmp_path / "runs").iterdir()
    return folder, env


def test_an_offline_run_sends_no_request_and_upload_pending_sends_everything(trees, tmp_path):
    with Backend() as backend:
        folder, env = offline_run(backend, trees, tmp_path)
        assert backend.requests == []
        assert backend.strays == []
        works("-m", "emaae", "upload-pending", str(folder), **env)
        ((run_id, run),) = backend.runs.items()
        assert epochs_of(run) == [1, 2, 3]
        types = {a.type: a for a in backend.artifacts}
        assert types["model"].files["best.pth"] == (folder / "best.pth").read_bytes()
        assert "epoch-0003/v0.npz" in types["reconstruction"].files
        assert json.loads((folder / "wandb.json").read_text())["pending"] == []
        before = len(backend.artifacts)
        works("-m", "emaae", "upload-pending", str(folder), **env)
        assert len(backend.artifacts) == before


@pytest.mark.slow
def test_a_later_upload_joins_its_sweep_or_says_why_not(trees, tmp_path):
    with Backend() as backend:
        _, env = created(backend, tmp_path, trees, GRID)
        (known,) = backend.sweeps
        for sweep in (known, "gone"):  # as an agent starts its runs
            agent = {"WANDB_SWEEP_ID": sweep, "WANDB_RUN_ID": f"of-{sweep}"}
            agent |= {"WANDB_PROJECT": "speech", "WANDB_MODE": "offline"}
            works("train.py", *TINY, "--wandb_project=speech", **env | agent)
        done = forked("-m", "emaae", "upload-pending", str(tmp_path / "runs"), **env)
        assert done.returncode == 2, done.stdout
        assert "gone-of-gone: " in done.stderr
        assert "Traceback" not in done.stderr
        assert [run.id for run in backend.sweeps[known].runs] == [f"of-{known}"]
        assert backend.runs[f"of-{known}"].group == known
        assert "of-gone" not in backend.runs


def test_reconstructions_that_did_not_arrive_are_sent_again(trees, tmp_path):
    run = write_run(tmp_path / "runs" / "demo" / "runs" / "r", epochs=2, model=True)
    upload = ("-m", "emaae", "upload-pending", str(tmp_path / "runs"))
    (run / "wandb.json").write_text('{"id": "r", "project": "speech", "pending": ["run"]}')
    with Backend() as backend:
        env = variables(backend, tmp_path, trees)
        backend.refused_types = ["reconstruction"]
        done = forked(*upload, **env)
        assert done.returncode == 2
        assert "its artifacts did not arrive" in done.stderr
        assert json.loads((run / "wandb.json").read_text())["pending"] == ["artifacts"]
        assert len(models_of(backend)) == 1
        backend.refused_types = []
        works(*upload, **env)
        assert {"emaae-r", "reconstructions-r"} <= {a.name for a in backend.artifacts}
        assert json.loads((run / "wandb.json").read_text())["pending"] == []
        assert len(models_of(backend)) == 1


def test_a_later_upload_keeps_the_tags_that_a_user_gave(trees, tmp_path):
    run = write_run(tmp_path / "runs" / "r", epochs=2)
    upload = ("-m", "emaae", "upload-pending", str(run))
    with Backend() as backend:
        env = variables(backend, tmp_path, trees)
        (run / "wandb.json").write_text('{"id": "r", "project": "speech", "pending": ["run"]}')
        works(*upload, **env | {"WANDB_TAGS": "pilot"})
        own = set(backend.runs["r"].tags) - {"pilot"}
        assert own < set(backend.runs["r"].tags)
        backend.runs["r"].tags.append("on its page")
        (run / "wandb.json").write_text(
            '{"id": "r", "project": "speech", "pending": ["artifacts"]}'
        )
        works(*upload, **env)
        assert set(backend.runs["r"].tags) == own | {"pilot", "on its page"}


def test_a_sweep_is_published_to_a_second_project_and_each_run_is_one_of_its_own(trees, tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(GRID))
    for name in ("0001", "0002"):
        write_run(tmp_path / "runs" / name, seed=int(name), epochs=2)
    with Backend() as backend:
        env = variables(backend, tmp_path, trees) | {"WANDB_RUN_ID": "of-another-run"}
        for project in ("one", "two"):
            works("-m", "emaae", "publish", str(tmp_path), "--project", project, **env)
        one, two = backend.sweeps.values()
        assert (one.project, two.project) == ("one", "two")
        assert len({run.id for run in two.runs}) == 2
        assert {run.project for run in two.runs} == {"two"}


@pytest.mark.slow
def test_a_run_in_progress_is_not_uploaded_by_a_second_process(trees, tmp_path):
    with Backend() as backend:
        folder, env = offline_run(backend, trees, tmp_path)
        lock = lock_folder(folder)
        done = forked("-m", "emaae", "upload-pending", str(folder), **env)
        lock.close()
        assert done.returncode == 2, done.stdout
        assert "another process is writing" in done.stderr
        assert backend.runs == {}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_publish_puts_a_local_sweep_with_its_runs_on_wandb(trees, tmp_path, mode):
    grid = {**GRID, "parameters": {**GRID["parameters"], "seed": {"value": 0}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    with Backend() as backend:
        env = variables(backend, tmp_path, trees)
        out = tmp_path / "local"
        sweep = ["-m", "emaae", "sweep", str(tmp_path / "grid.yaml"), "--out", str(out)]
        works(*sweep, **env | {"WANDB_MODE": mode})
        assert backend.requests == []
        assert backend.strays == []
        failed = out / "runs" / "failed"  # before it began
        failed.mkdir()
        (failed / "metrics.json").write_text('{"status": "failed"}')
        done = works("-m", "emaae", "publish", str(out), "--project", "speech", **env)
        assert "sweep: tester/speech/" in done.stdout
        (published,) = backend.sweeps.values()
        assert {run.id for run in published.runs} == set(backend.runs)
        (empty,) = (run for run in backend.runs.values() if run.state == "failed")
        assert empty.history == []
        good = [run for run in backend.runs.values() if run is not empty]
        assert sorted(run.config["alpha"] for run in good) == [0.05, 0.3]
        assert mode == "disabled" or {run.group for run in good} == {"grid"}
        for run in good:  # epochs, the final metrics, 26 + 4 + 10 points of curves
            assert len(run.history) == 3 + 1 + 40
            assert sum("select/score" in row for row in run.history) == 1
        assert {a.run_id for a in models_of(backend)} == {run.id for run in good}
        assert published.state == "FINISHED"
        assert published.config["name"] == "local"
        assert {run.display_name for run in good} == {
            f"constant a{alpha} i16 e2d2 s0" for alpha in (0.05, 0.3)
        }
        # Again it sends what is new, to the same sweep.
        write_run(out / "runs" / "later", epochs=2)
        again = works("-m", "emaae", "publish", str(out), "--project", "speech", **env)
        assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
        assert list(backend.sweeps.values()) == [published]
        assert {run.id for run in published.runs} == set(backend.runs)
        assert len(backend.runs) == 4
        # What W&B has already, but not in the sweep, joins it too.
        last = write_run(out / "runs" / "last", epochs=2)
        record = {"id": "last", "project": "speech", "pending": ["run"]}
        (last / "wandb.json").write_text(json.dumps(record))
        works("-m", "emaae", "upload-pending", str(last), **env)
        assert len(backend.runs) == 5
        assert len(published.runs) == 4
        works("-m", "emaae", "publish", str(out), "--project", "speech", **env)
        assert {run.id for run in published.runs} == set(backend.runs)
        # The folder of the sweep is not taken for one of a run.
        works("-m", "emaae", "upload-pending", str(out), **env)
        assert len(backend.runs) == 5


@pytest.mark.slow
def test_a_preempted_run_is_requeued_and_continues_as_the_same_run(trees, tmp_path):
    parameters = GRID["parameters"] | {"alpha": {"value": 0.1}, "seed": {"values": [0]}}
    grid = GRID | {"parameters": parameters | {"epochs": {"value": 60}}}
    with Backend() as backend:
        path, env = created(backend, tmp_path, trees, grid)
        agent = started("-m", "wandb", "agent", "--forward-signals", path, env=env)
        for line in agent.stdout:
            if line.startswith("epoch  5"):
                break
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        (run,) = (p for p in children if "train.py" in Path(f"/proc/{p}/cmdline").read_text())
        os.kill(int(run), signal.SIGTERM)  # the node takes the run, not the agent
        said = agent.communicate(timeout=100)[0]
        assert agent.returncode == 0, said
        assert "continuing after" in said, said
        (run,) = backend.runs.values()
        assert run.state == "finished"
        assert epochs_of(run) == list(range(1, 61))
        assert sum("select/score" in row for row in run.history) == 1
        models = models_of(backend)
        assert [a.metadata["status"] for a in models] == ["preempted", "finished"]
        assert "latest" in models[1].aliases
        (folder,) = (tmp_path / "runs").iterdir()
        assert folder.name == f"{run.sweep}-{run.id}"
        assert json.loads((folder / "wandb.json").read_text())["pending"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "metric"),
    [("random", "select/score"), ("bayes", "select/score"), ("bayes", "val/score")],
)
def test_agents_of_a_search_run_as_many_points_as_its_run_cap(trees, tmp_path, method, metric):
    parameters = GRID["parameters"] | {"alpha": {"min": 0.1, "max": 0.4}, "seed": {"value": 3}}
    sweep = GRID | {"method": method, "run_cap": 2, "parameters": parameters}
    sweep |= {"metric": {"name": metric, "goal": "minimize"}}
    with Backend() as backend:
        run_agent(backend, trees, tmp_path, sweep)
        runs = list(backend.runs.values())
        assert [run.state for run in runs] == ["finished", "finished"]
        first, second = (run.config["alpha"] for run in runs)
        assert 0.1 < first != second < 0.4
        for run in runs:
            config = json.loads((folder_of(run.id, tmp_path) / "config.json").read_text())
            assert config["alpha"] == run.config["alpha"]
            assert run.display_name.startswith(f"constant a{run.config['alpha']:g} ")
            assert type(run.summary[metric]) is float, "which W&B's search can compare"
            assert "min" in run.summary["val/fvu"]
        (sweep,) = backend.sweeps.values()
        assert sweep.state == "FINISHED"


@pytest.mark.slow
def test_hyperband_ends_runs_for_good_and_the_sweep_continues(trees, tmp_path):
    parameters = GRID["parameters"] | {"alpha": {"values": [0.01, 0.9, 0.8]}}
    parameters |= {"seed": {"value": 0}, "epochs": {"value": 150}}
    sweep = GRID | {"metric": {"name": "val/score", "goal": "minimize"}, "parameters": parameters}
    sweep |= {"early_terminate": {"type": "hyperband", "min_iter": 5, "strict": True}}
    with Backend() as backend:
        run_agent(backend, trees, tmp_path, sweep)
        states = sorted(run.state for run in backend.runs.values())
        assert len(states) == 3
        assert states[-1] == "finished"
        assert "failed" in states, "hyperband has stopped one"
        (there,) = backend.sweeps.values()
        assert there.requeued == []
        assert there.state == "FINISHED"


@pytest.mark.slow
def test_a_run_that_is_stopped_on_its_page_stays_stopped(trees, tmp_path):
    parameters = GRID["parameters"] | {"alpha": {"value": 0.1}, "seed": {"values": [0, 1]}}
    grid = GRID | {"parameters": parameters | {"epochs": {"value": 400}}}
    with Backend() as backend:
        path, env = created(backend, tmp_path, trees, grid)
        agent = started("-m", "wandb", "agent", path, env=env)
        for line in agent.stdout:
            if line.startswith("epoch   5"):  # of each run
                next(run for run in backend.runs.values() if run.state == "running").stop = True
        agent.wait(timeout=100)
        first, second = backend.runs.values()
        for run in (first, second):
            assert run.state == "failed"
            assert 5 <= max(row.get("epoch", 0) for row in run.history) < 400
        assert not next(iter(backend.sweeps.values())).requeued
        ends = [model.metadata["status"] for model in models_of(backend)]
        assert ends == ["preempted"] * 2, "what it had is kept"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_that_is_resumed_is_uploaded_as_a_single_run(trees, tmp_path, mode):
    with Backend() as backend:
        env = variables(backend, tmp_path, trees)
        env |= {"WANDB_MODE": mode, "EMAAE_RUN_NAME": "r", "WANDB_RUN_GROUP": "g"}
        process = started("train.py", *TINY, "--epochs=60", "--wandb_project=speech", env=env)
        for line in process.stdout:
            if line.startswith("epoch  5"):
                process.terminate()
        process.communicate(timeout=60)
        first = json.loads((tmp_path / "runs" / "r" / "wandb.json").read_text())
        del env["WANDB_RUN_GROUP"]
        assert "no more rows are sent" not in works("train.py", "--resume", **env).stdout
        if mode == "offline":
            works("-m", "emaae", "upload-pending", str(tmp_path / "runs"), **env)
        (run,) = backend.runs.values()
        assert (run.id, run.group) == (first["id"], "g")
        assert epochs_of(run) == list(range(1, 61))
        assert sum("select/score" in row for row in run.history) == 1
        assert any("reconstructions" in row for row in run.history[:5])


@pytest.mark.slow
def test_a_run_that_starts_again_is_another_run_on_wandb(trees, tmp_path):
    write_tree(tmp_path / "still", {"v": 1}, seed=8)
    with Backend() as backend:
        env = variables(backend, tmp_path, trees) | {"EMAAE_RUN_NAME": "r"}
        failed = forked("train.py", *TINY, f"--val_dir={tmp_path / 'still'}", **env)
        assert "the validation split never moves" in failed.stderr
        works("train.py", *TINY, "--lr=0.01", **env)
        first, second = backend.runs.values()
        assert (first.history, epochs_of(second)) == ([], [1, 2, 3])
        works("-m", "emaae", "upload-pending", str(tmp_path / "runs"), **env)


SLOWLY = [pytest.param(when, marks=pytest.mark.slow) for when in ("before init", "in the middle")]


@pytest.mark.parametrize("when", [*SLOWLY, "at the upload"])
def test_a_server_that_dies_ends_no_run_and_loses_nothing(trees, tmp_path, when):
    with Backend() as backend:
        env = variables(backend, tmp_path, trees)
        env |= {"WANDB_FINISH_TIMEOUT": "15", "WANDB_INIT_TIMEOUT": "10"}
        if when == "at the upload":
            backend.failures["CreateArtifact"] = 500
        elif when == "before init":
            backend.stop()
        flags = ("--epochs=30", "--wandb=auto", "--reconstruction_every=100")
        process = started("train.py", *TINY, *flags, "--wandb_project=speech", env=env)
        if when == "in the middle":
            for line in process.stdout:
                if line.startswith("epoch"):
                    break
            backend.stop()
        out = process.communicate(timeout=150)[0]
        assert process.returncode == 0, out
        assert "Traceback" not in out
        (folder,) = (tmp_path / "runs").iterdir()
        assert json.loads((folder / "metrics.json").read_text())["status"] == "finished"
        assert len((folder / "history.jsonl").read_text().splitlines()) == 30
        assert out.count("upload-pending") == 1, out

        backend.failures.clear()
        if when != "at the upload":
            backend.start()
        works("-m", "emaae", "upload-pending", str(folder), **env)
        (run,) = backend.runs.values()
        epochs = epochs_of(run)
        assert sorted(set(epochs)) == list(range(1, 31))
        assert models_of(backend)[0].files["best.pth"] == (folder / "best.pth").read_bytes()
