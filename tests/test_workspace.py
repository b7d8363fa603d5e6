"""The workspace on W&B shows what runs log, and is built without a network."""

import json

import pytest
from conftest import program, small_run
from forked import forked
from wandb_backend import Backend

import train
from analysis import workspace
from emaae.system.errors import UserError
from emaae.system.files import read_json
from emaae.tracking.download import CURVE_COLUMNS

# Runs the module as a program that cannot open a connection.
OFFLINE = """
import runpy, socket, sys
def refuse(*args, **kwargs):
    raise OSError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = ["workspace", "me/project", "--dry-run"]
runpy.run_module("analysis.workspace", run_name="__main__")
"""


@pytest.fixture(scope="module")
def view() -> dict:
    return workspace.as_json(workspace.workspace("me", "project"))


@pytest.fixture(scope="module")
def logged(trees, tmp_path_factory) -> tuple[set[str], set[str]]:
    """The settings of a real run, and the metrics that it logs."""
    out_dir = tmp_path_factory.mktemp("logged")
    assert train.main([*small_run(trees, out_dir), "--epochs=1", "--run_name=one"]) == 0
    folder = out_dir / "one"
    row = json.loads((folder / "history.jsonl").read_text())
    metrics = {*row, *read_json(folder / "metrics.json")}
    curves = {name for columns in CURVE_COLUMNS.values() for name in columns.values()}
    return set(read_json(folder / "config.json")), metrics | curves


def panels(view: dict) -> dict[str, list[dict]]:
    """The panels of each section."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def keys(value) -> set[str]:
    """Every text in nested lists and mappings."""
    if isinstance(value, dict):
        return keys(list(value.values()))
    if isinstance(value, list):
        return set().union(*map(keys, value))
    return {value} if isinstance(value, str) else set()


def test_the_sections_and_their_panels(view):
    kinds = {
        "line": "Run History Line Plot",
        "scatter": "Scatter Plot",
        "parallel": "Parallel Coordinates Plot",
        "importance": "Parameter Importance",
        "media": "Media Browser",
    }
    assert {name: [p["viewType"] for p in some] for name, some in panels(view).items()} == {
        "Alpha over epochs": [kinds["line"]] * 9,
        "What alpha costs": [kinds["scatter"]] * 3,
        "Shift tolerance of the selected weights": [kinds["line"]] * 3,
        "Which settings matter": [kinds["parallel"], kinds["importance"]],
        "Reconstructions": [kinds["media"]],
    }
    assert (view["entity"], view["project"]) == ("me", "project")


def test_each_figure_draws_the_metrics_that_it_names(view):
    lines = [p["config"] for some in panels(view).values() for p in some if "Line" in p["viewType"]]
    assert [(line["xAxis"], line["metrics"]) for line in lines] == [
        ("epoch", ["alpha"]),
        ("epoch", ["lambda_eff"]),
        ("epoch", ["train/loss", "val/loss"]),
        ("epoch", ["val/fvu"]),
        ("epoch", ["val/sparsity"]),
        ("epoch", ["val/score"]),
        ("epoch", ["val/self_similarity_20ms", "val/self_similarity_80ms"]),
        ("epoch", ["val/participation_ratio"]),
        ("epoch", ["val/noise_gain"]),
        ("shift/lag_ms", ["shift/self_similarity", "shift/input_self_similarity"]),
        ("lowpass/cutoff", ["lowpass/fvu", "lowpass/input_fvu"]),
        ("shift/shift_ms", ["shift/gain"]),
    ]
    for line in lines:  # the mean of a schedule's runs, in a band of their range
        grouped = {name: line[name] for name in ("groupBy", "groupAgg", "groupArea")}
        assert grouped == {"groupBy": "schedule.value", "groupAgg": "mean", "groupArea": "minmax"}
    scatters = [p["config"] for p in panels(view)["What alpha costs"]]
    assert [(plot["xAxis"], plot["yAxis"]) for plot in scatters] == [
        ("summary:test/sparsity", "summary:test/fvu"),
        ("summary:shift/persistence", "summary:test/sparsity"),
        ("summary:select/alpha", "summary:test/mse"),
    ]
    _, importance = panels(view)["Which settings matter"]
    assert importance["config"]["targetKey"] == "select/score"
    (media,) = panels(view)["Reconstructions"]
    assert media["config"]["mediaKeys"] == ["reconstructions"]


def test_every_metric_of_the_workspace_is_logged_and_every_setting_exists(view, logged):
    settings, metrics = logged
    for some in panels(view).values():
        for panel in some:
            config = panel["config"]
            named = keys([config.get(k, []) for k in ("xAxis", "yAxis", "metrics", "targetKey")])
            named |= {column["accessor"] for column in config.get("columns", [])}
            for name in named:
                if name.startswith("config:"):
                    assert name.removeprefix("config:").removesuffix(".value") in settings, name
                else:
                    assert name.removeprefix("summary:") in metrics, name
    (runs,) = view["spec"]["section"]["runSets"]
    shown = {k.removeprefix("summary:") for k in runs["runFeed"]["columnPinned"]}
    assert shown - {"run:displayName"} <= metrics
    assert {key["key"]["name"] for key in runs["sort"]["keys"]} <= metrics
    assert workspace.GROUP in settings


def test_a_dry_run_prints_the_same_json_each_time_without_a_network(view):
    done = program("-c", OFFLINE, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == view


@pytest.mark.parametrize("path", ["project", "me/", "/project", "me/project/sweep/more"])
def test_a_path_that_is_not_a_project_is_refused(path):
    with pytest.raises(UserError, match="is no project on W&B: expected ENTITY/PROJECT"):
        workspace.main([path])


def save(path, tmp_path) -> tuple[dict, str]:
    """What W&B is sent, and the address that is printed, without the server's."""
    with Backend() as backend:
        done = forked("-m", "analysis.workspace", path, **backend.environment(tmp_path))
        assert done.returncode == 0, done.stderr
        assert backend.strays == []
        (saved,) = backend.views
        return saved, done.stdout.removeprefix(backend.url)


def test_the_workspace_is_saved_as_printed_and_its_address_is_printed(view, tmp_path):
    saved, address = save("me/project", tmp_path)
    assert address.startswith("/me/project?nw=")
    assert (saved["entityName"], saved["projectName"]) == ("me", "project")
    assert workspace.without_ids(saved["spec"]) == view["spec"]


def test_a_report_of_a_sweep_has_the_same_panels_of_its_runs_alone(view, tmp_path):
    saved, _ = save("me/project/s1", tmp_path)
    assert saved["displayName"] == "Sweep s1"
    grids = [b for b in json.loads(saved["spec"])["blocks"] if b["type"] == "panel-grid"]
    assert len(grids) == len(panels(view))
    for grid, expected in zip(grids, panels(view).values()):
        metadata = grid["metadata"]
        assert len(metadata["panelBankSectionConfig"]["panels"]) == len(expected)
        (runset,) = metadata["runSets"]
        said = json.dumps(runset["filters"])
        assert '"s1"' in said
        assert '"train"' in said


def test_without_a_key_a_page_of_a_sweep_prints_one_line(tmp_path):
    done = forked("-m", "analysis.workspace", "me/project/s1", "--dry-run", HOME=str(tmp_path))
    assert done.returncode == 2
    assert "W&B did not show the page of me/project/s1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_refuses_prints_one_line(tmp_path):
    with Backend() as backend:
        backend.failures["UpsertView2"] = 403
        env = backend.environment(tmp_path)
        done = forked("-m", "analysis.workspace", "me/project", **env)
    assert done.returncode == 2
    (line,) = [one for one in done.stderr.splitlines() if "error:" in one]
    assert "W&B did not save the page of me/project" in line
    assert "Traceback" not in done.stderr
