"""README and docs are true: their commands run, and their tables and tree are those of the code."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from pages import blocks, copy_project, follow

from emaae.config import KNOBS
from emaae.schedules import SCHEDULES

README = ROOT / "README.md"
# In the order in which their commands build on each other; tests/test_guide.py has the guide's.
NAMES = (
    *("features", "training", "runs", "sweeps", "analysis", "models", "brain"),
    *("metrics", "architecture"),
)
PAGES = [README, *(ROOT / "docs" / f"{name}.md" for name in NAMES)]
TEXT = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
LINKED = [*PAGES, ROOT / "docs" / "guide.md", ROOT / "SECURITY.md", ROOT / "analysis/FINDINGS.md"]
# Appended to the pages' training commands, which are for more patient readers.
QUICK = ["--epochs=1", "--inner_size=16", "--n_encoder=2", "--n_decoder=2", "--wandb=disabled"]


def quick(argv: list[str]) -> list[str]:
    return QUICK if argv[0] == "train.py" and "--eval_only" not in argv else []


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project in which the commands of all pages have been run, in order."""
    root = copy_project(tmp_path_factory.mktemp("readme"))
    demo = yaml.safe_load((ROOT / "sweeps" / "demo.yaml").read_text())
    for name, value in {"epochs": 1, "alpha_epochs": 1, "inner_size": 16}.items():
        demo["parameters"][name] = {"value": value}
    demo["parameters"]["penalty_scheduler"] = {"values": ["constant", "cosine"]}
    (root / "sweeps" / "demo.yaml").write_text(yaml.safe_dump(demo))
    for page in PAGES:
        follow(page, root, more=quick, WANDB_MODE="disabled")
    return root


def test_the_commands_run_as_written(project):
    for run in ("first", "cosine"):
        metrics = json.loads((project / "runs" / run / "metrics.json").read_text())
        assert metrics["status"] == "finished"
    assert (project / "runs/demo/figures/overview.pdf").stat().st_size > 10_000
    assert (project / "runs/demo/tables/curves.csv").stat().st_size > 1_000
    assert (project / "runs/demo/sagittal.gif").stat().st_size > 10_000
    assert json.loads((project / "runs/cosine/config.json").read_text())["alpha_max"] == 0.6
    assert len(list((project / "runs/demo/runs").iterdir())) == 2
    assert (project / "best-model" / "best.pth").is_file()


def test_a_model_encodes_a_file_in_three_lines(project, monkeypatch):
    snippet, _ = blocks(README, "python")
    assert len([line for line in snippet.splitlines() if line and "import" not in line]) == 3
    monkeypatch.chdir(project)
    names: dict = {}
    exec(snippet, names)
    assert names["z"].shape == (len(names["features"]), 16)


def test_a_promoted_model_encodes_without_this_package(project, monkeypatch):
    monkeypatch.chdir(project)
    for page in (README, ROOT / "docs" / "models.md"):
        snippet = next(one for one in blocks(page, "python") if "torch.export" in one)
        assert len([line for line in snippet.splitlines() if line]) == 3
        names = {"x": torch.randn(2, 13, 40)}
        exec(snippet, names)
        assert names["z"].shape == (2, 16, 40)


def test_a_figure_is_composed_in_a_notebook_as_the_page_says(project, monkeypatch):
    (snippet,) = blocks(ROOT / "docs" / "analysis.md", "python")
    monkeypatch.chdir(project)
    exec(snippet, {})
    assert (project / "runs/demo/figures/mine.pdf").stat().st_size > 5_000


def test_every_schedule_is_in_the_table():
    text = TEXT["training"]
    table = text[text.index("## Alpha") : text.index("## Many GPUs")]
    rows = re.findall(r"^\| (\w+)(?: \(default\))? \|", table, re.MULTILINE)
    assert tuple(rows) == SCHEDULES


def test_every_module_is_in_the_tree_and_every_file_of_the_tree_exists():
    tree = TEXT["architecture"]
    for path in (ROOT / "emaae").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"\b{path.name}\b", tree), path.name
    folders = ("emaae", "analysis", "benchmarks", "tests")
    known = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"\b(\w+\.py)\b", tree)) <= known | {"train.py"}


def test_every_flag_in_the_documentation_exists():
    known = set(KNOBS)
    known |= {"out", "help", "project", "entity", "storage", "jobs", "array", "flag", "dry"}
    known |= {"format", "only", "utterance", "audio_dir", "batch_s", "no"}
    known |= {"standalone", "nproc_per_node", "model", "features", "encodings", "json"}
    known |= {"data", "like", "at", "resamples", "weights", "where", "baselines", "probe"}
    known |= {"reference", "copies_once", "index", "upload"}
    known |= {"encodings", "tr", "tr_times", "delays", "trim", "onsets", "units_of"}
    for flag in re.findall(r"--([a-z_]+)", "".join(TEXT.values())):
        assert flag in known, flag


@pytest.mark.parametrize("target", ["setup", "demo", "test", "test-faults", "check"])
def test_the_targets_of_the_makefile_exist(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 14_000


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_have_a_target(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M) if anchor else []
            known = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}
            assert not anchor or anchor in known, target


def test_every_page_is_linked_from_the_readme():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in TEXT["README"], page.name
