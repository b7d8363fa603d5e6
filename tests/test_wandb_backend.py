"""The unmodified wandb client works against the loopback server of wandb_backend.py."""

import json
import os
import subprocess
import sys
import time

import pytest
from wandb_backend import Backend

WANDB = [sys.executable, "-m", "wandb"]


@pytest.fixture
def backend():
    with Backend() as backend:
        yield backend
        backend.fail("*", times=None)
    assert not backend.strays
    assert not backend.unknown


@pytest.fixture
def python(backend, tmp_path):
    """Runs a program text, or a command, that talks to the backend; returns what it printed."""

    def execute(program, timeout=60, code=0, **variables):
        command = [sys.executable, "-c", program] if isinstance(program, str) else program
        done = subprocess.run(
            command,
            env=clean_environment() | backend.environment(tmp_path) | variables,
            cwd=tmp_path,
            check=False,
            timeout=timeout,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return execute


def clean_environment():
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # the agent starts `python`
    return {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"PATH": path}


RUN = """
import numpy as np, wandb
run = wandb.init(project="p", name="first", group="g", job_type="train", tags=["a", "b"],
                 config={"alpha": 0.1}, id="run1")
run.config.update({"nested": {"beta": 2}})
run.define_metric("*", step_metric="epoch")
for epoch in range(3):
    row = {"epoch": epoch, "loss": 1 / (1 + epoch), "h": wandb.Histogram(np.arange(9.0))}
    if epoch == 2:
        row["image"] = wandb.Image(np.zeros((4, 4, 3), np.uint8))
        row["table"] = wandb.Table(columns=["x"], data=[[1], [2]])
    run.log(row)
run.finish()
"""


def test_a_run_arrives_with_its_config_history_summary_and_media(backend, python):
    python(RUN)
    run = backend.runs["run1"]
    assert run.config == {"alpha": 0.1, "nested": {"beta": 2}}
    assert [row["loss"] for row in run.history] == [1, 1 / 2, 1 / 3]
    assert run.history[0]["h"]["_type"] == "histogram"
    assert run.summary["loss"] == 1 / 3
    assert (run.display_name, run.group, run.job_type) == ("first", "g", "train")
    assert (run.tags, run.state, run.project) == (["a", "b"], "finished", "p")
    images = [body for name, body in run.files.items() if name.startswith("media/images")]
    assert len(images) == 1
    assert images[0].startswith(b"\x89PNG")
    table = next(body for name, body in run.files.items() if name.endswith(".table.json"))
    assert json.loads(table)["data"] == [[1], [2]]


MODEL = """
import sys, wandb
from pathlib import Path
def log(run, text, aliases, score, name="model"):
    Path("model.bin").write_bytes(text)
    artifact = wandb.Artifact(name, "model", metadata={"score": score})
    artifact.add_file("model.bin", policy="immutable", skip_cache=True)
    artifact = run.log_artifact(artifact, aliases=aliases)
    return artifact.wait()
"""


def test_artifact_versions_are_committed_once_for_each_content(backend, python):
    out = python(
        MODEL
        + """
run = wandb.init(project="p", id="run1")
print("versions", *[log(run, t, a, s).version for t, a, s in
    [(b"one", ["latest", "best"], 1.0), (b"one", ["latest"], 1.0), (b"two", ["latest"], 2.0)]])
run.finish()
"""
    )
    assert "versions v0 v0 v1" in out
    one, two = backend.artifacts
    assert (one.type, one.name, one.version, one.aliases) == ("model", "model", 0, ["best"])
    assert (two.version, two.aliases, two.metadata) == (1, ["latest"], {"score": 2.0})
    assert (one.files, two.files) == ({"model.bin": b"one"}, {"model.bin": b"two"})
    assert {a.state for a in (one, two)} == {"COMMITTED"}
    assert one.run_id == "run1"


READ = """
api = wandb.Api()
run = api.run("tester/p/a")
assert run.config == {"alpha": 1} and run.state == "finished" and run.group == "g"
assert run.summary["loss"] == 0.5 and run.sweep is None, run.summary
assert [r["loss"] for r in run.history(pandas=False)] == [1, 0.5]
assert [r["loss"] for r in run.scan_history(keys=["loss"])] == [1, 0.5]
assert [r["loss"] for r in run.scan_history()] == [1, 0.5]
assert [a.name for a in run.logged_artifacts()] == ["model:v0"]
assert {f.name for f in run.files()} >= {"config.yaml", "wandb-summary.json"}
assert [r.id for r in api.runs("tester/p", filters={"group": "g"}, per_page=1)] == ["a", "b"]
assert [r.id for r in api.runs("tester/p", filters={"group": "other"})] == []
assert len(api.runs("tester/p", filters={"config.alpha": 2})) == 1
artifact = api.artifact("tester/p/model:latest")
assert artifact.metadata == {"score": 2.0} and artifact.version == "v1"
assert Path(artifact.download(root="got"), "model.bin").read_bytes() == b"two"
assert artifact.logged_by().id == "b"
assert [t.name for t in api.artifact_types("tester/p")] == ["model"]
assert [c.name for c in api.artifact_type("model", "tester/p").collections()] == ["model"]
collection = api.artifact_collection("model", "tester/p/model")
assert [a.version for a in collection.artifacts()] == ["v1", "v0"]
assert [a.version for a in api.artifacts("model", "tester/p/model")] == ["v1", "v0"]
assert api.artifact_exists("tester/p/model:v1")
assert not api.artifact_exists("tester/p/model:v7")
assert not api.artifact_exists("tester/p/absent:v0")
assert api.artifact_collection_exists("tester/p/model", "model")
try:
    api.run("tester/p/absent")
except Exception as error:
    print("absent:", type(error).__name__, error)

for version in ["v0", "v1"]:
    artifact = api.artifact(f"tester/p/model:{version}")
    artifact.aliases.append("best")
    artifact.save()
assert "best" not in wandb.Api().artifact("tester/p/model:v0").aliases
assert wandb.Api().artifact("tester/p/model:best").version == "v1"
artifact.aliases.remove("best")
artifact.save()
assert not wandb.Api().artifact_exists("tester/p/model:best")
for version in ["v0", "v1", "v0"]:
    api.artifact(f"tester/p/model:{version}").link("tester/p/best-models", aliases=["best"])
linked = wandb.Api().artifact("tester/p/best-models:best")
print("linked", linked.name, linked.source_name, linked.aliases, linked.is_link)
assert Path(linked.download(root="linked"), "model.bin").read_bytes() == b"one"
"""


def test_the_api_reads_what_runs_logged_and_moves_aliases(backend, python):
    out = python(
        MODEL
        + """
for name, text, alpha in [("a", b"one", 1), ("b", b"two", 2)]:
    run = wandb.init(project="p", id=name, group="g", config={"alpha": alpha})
    for epoch in range(2):
        run.log({"epoch": epoch, "loss": alpha / (1 + epoch)})
    log(run, text, ["latest"], float(alpha))
    run.finish()
"""
        + READ
    )
    print(out)
    portfolio = backend.collections["tester", "p", "best-models"]
    assert portfolio.portfolio
    assert portfolio.aliases["best"] is backend.artifacts[0]


def test_a_run_of_another_job_can_log_the_files_of_a_model_into_a_common_collection(
    backend, python
):
    python(
        MODEL
        + """
run = wandb.init(project="p", id="a")
log(run, b"one", ["latest"], 1.0, name="model-a")
run.finish()
run = wandb.init(project="p", id="promotion", job_type="promote")
source = run.use_artifact("tester/p/model-a:latest")
copy = wandb.Artifact("best-model", "model", metadata=source.metadata)
copy.add_dir(source.download(root="copy"))
run.log_artifact(copy, aliases=["best"]).wait()
run.finish()
"""
    )
    copy = backend.collections["tester", "p", "best-model"].aliases["best"]
    assert copy.files == {"model.bin": b"one"}
    assert copy.run_id == "promotion"
    assert backend.runs["promotion"].inputs == [backend.artifacts[0]]


SWEEP = """
program: toy.py
method: grid
metric: {name: loss, goal: minimize}
parameters:
  b: {values: [1, 2, 3]}
  a: {values: [10, 20]}
"""
OFFLINE = """
import os
os.environ["WANDB_MODE"] = "offline"
""" + MODEL.replace("return artifact.wait()", "return artifact")


def offline_folder(tmp_path, run):
    return str(next((tmp_path / "wandb").glob(f"offline-run-*-{run}")))


def test_sync_brings_an_offline_run_and_its_artifact(backend, python, tmp_path):
    python(
        OFFLINE
        + """
run = wandb.init(project="p", id="off1", config={"alpha": 3}, group="g")
for epoch in range(3):
    run.log({"epoch": epoch, "loss": 1.0 - epoch})
log(run, b"offline model", ["latest"], 1.0)
run.finish()
"""
    )
    assert not backend.requests
    python([*WANDB, "sync", offline_folder(tmp_path, "off1")])
    run = backend.runs["off1"]
    assert (run.config, run.group, run.state) == ({"alpha": 3}, "g", "finished")
    assert [row["loss"] for row in run.history] == [1, 0, -1]
    (artifact,) = backend.artifacts
    assert (artifact.state, artifact.run_id) == ("COMMITTED", "off1")
    assert artifact.files == {"model.bin": b"offline model"}


def test_sync_attaches_to_a_sweep_that_exists_and_is_refused_where_it_does_not(
    backend, python, tmp_path
):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    python([*WANDB, "sweep", "--project", "p", "sweep.yaml"])
    (known,) = backend.sweeps
    for name, sweep in [("r1", known), ("r2", "absent")]:
        python(
            OFFLINE + 'run = wandb.init(project="p"); run.log({"loss": 1})',
            WANDB_SWEEP_ID=sweep,
            WANDB_RUN_ID=name,
        )
    python([*WANDB, "sync", offline_folder(tmp_path, "r1")])
    assert backend.runs["r1"].sweep == known
    assert backend.sweeps[known].runs[0].id == "r1"
    folder = offline_folder(tmp_path, "r2")
    out = python([*WANDB, "sync", folder])  # which exits 0 all the same
    assert "ERROR" in out
    assert "not found" in out
    assert "r2" not in backend.runs
    assert not any(name.endswith(".synced") for name in os.listdir(folder))


def test_a_new_sweep_takes_in_finished_runs(backend, python, tmp_path):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    python(
        """
import wandb
for b in [1, 2]:
    run = wandb.init(project="p", id=f"r{b}", config={"a": 10, "b": b})
    run.log({"loss": b})
    run.finish()
"""
    )
    python([*WANDB, "sweep", "-R", "r1", "-R", "r2", "--project", "p", "sweep.yaml"])
    (sweep,) = backend.sweeps.values()
    assert [run.id for run in sweep.runs] == ["r1", "r2"]
    assert backend.runs["r2"].sweep == sweep.id


@pytest.mark.parametrize("operation", ["CreateArtifact", "CommitArtifact", "/storage/"])
def test_a_server_that_dies_at_an_upload_ends_the_client_in_bounded_time(
    backend, python, operation
):
    start = time.monotonic()
    backend.fail(operation, status=None)
    out = python(
        MODEL
        + """
run = wandb.init(project="p", id="run1")
run.log({"loss": 1.0})
try:
    log(run, b"one", ["latest"], 1.0)
except Exception as error:
    print("caught", type(error).__name__, error)
run.finish()
print("end")
"""
    )
    print(out, time.monotonic() - start)
    assert "end" in out
    assert not any(a.state == "COMMITTED" for a in backend.artifacts)
    backend.start()
    python(MODEL + 'run = wandb.init(project="p", id="run2"); log(run, b"one", [], 1.0)')
    assert [a.state for a in backend.artifacts][-1] == "COMMITTED"


def test_one_failing_answer_is_tried_again(backend, python):
    backend.fail("UpsertBucket", times=1, status=500)
    backend.fail("/file_stream", times=1, status=503)
    python('import wandb; run = wandb.init(project="p", id="a"); run.log({"x": 1}); run.finish()')
    assert backend.runs["a"].state == "finished"
    assert backend.runs["a"].summary["x"] == 1
