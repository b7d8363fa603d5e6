"""The examples in CONTRIBUTING.md work as written, in a copy of the project."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment_of
from pages import blocks, copy_project

SETTING, USE_OF_SETTING, PENALTY, SCHEDULE, METRIC, ACTIVATION, NORM = blocks(
    ROOT / "CONTRIBUTING.md", "python"
)
METRIC_ENTRY, ACTIVATION_ENTRY, NORM_ENTRY = blocks(ROOT / "CONTRIBUTING.md", "text")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    root = copy_project(tmp_path_factory.mktemp("copy"))

    def edit(name: str, before: str, after: str) -> None:
        path = root / name
        text = path.read_text()
        assert text.count(before) == 1, before
        path.write_text(text.replace(before, after))

    edit("emaae/config.py", "    epochs: int", f"{SETTING}    epochs: int")
    edit("emaae/training.py", "        optimizer.step(", f"{USE_OF_SETTING}        optimizer.step(")
    edit("emaae/losses.py", "PENALTIES = {\n", f"PENALTIES = {{\n{PENALTY}")
    edit(
        "emaae/config.py",
        'Literal["l1", "l1_decoder_norm"',
        'Literal["half", "l1", "l1_decoder_norm"',
    )
    edit("emaae/schedules.py", "OPEN_LOOP: dict", f"{SCHEDULE}\n\nOPEN_LOOP: dict")
    edit("emaae/schedules.py", "log_lambda, cyclical)", "log_lambda, cyclical, root)")
    edit("emaae/metrics.py", '            "l0": ', f'{METRIC}            "l0": ')
    edit("emaae/metric_table.md", "| `l0` |", f"{METRIC_ENTRY}| `l0` |")
    edit("emaae/activations.py", "# For each --activation: ", f"{ACTIVATION}\n\n# By name: ")
    edit("emaae/activations.py", "ACTIVATIONS = {\n", f"ACTIVATIONS = {{\n{ACTIVATION_ENTRY}")
    edit("emaae/config.py", 'Literal["relu", ', 'Literal["squared", "relu", ')
    edit("emaae/models.py", "# For each --norm: ", f"{NORM}\n\n# By name: ")
    edit("emaae/models.py", '    "none": None,\n', f'    "none": None,\n{NORM_ENTRY}')
    edit("emaae/config.py", 'Literal["none", "layer"', 'Literal["rms", "none", "layer"')
    return root


def run(root: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=root, capture_output=True, text=True, env=environment_of()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


TRAIN_TWICE = """
import train
from emaae.config import KNOBS

small = ["--epochs=1", "--inner_size=8", "--n_encoder=2", "--n_decoder=2", "--wandb=disabled"]
# Adam does not see the scale of a gradient until its epsilon counts.
for name, norm in {"free": "none", "limited": "1e-9"}.items():
    train.main([*small, f"--gradient_norm={norm}", f"--run_name={name}"])
print(KNOBS["gradient_norm"].text)
"""


def test_a_setting_from_outside(copy):
    text = "largest norm of the gradient, to which larger ones are scaled (default: no limit)"
    assert run(copy, "-c", TRAIN_TWICE).endswith(f"{text}\n")
    free, limited = (copy / "runs" / name for name in ("free", "limited"))
    row, other = (json.loads((run / "history.jsonl").read_text()) for run in (free, limited))
    assert row["val/loss"] < other["val/loss"]
    assert json.loads((limited / "config.json").read_text())["gradient_norm"] == 1e-9


def test_a_penalty_a_schedule_and_a_metric_from_outside(copy):
    small = ("--epochs=2", "--inner_size=8", "--n_encoder=2", "--n_decoder=2", "--wandb=disabled")
    schedule = ("--update", "--penalty_scheduler=root", "--alpha_max=0.5", "--run_name=r")
    assert "\nmax_l0 " in run(copy, "train.py", *small, "--sparse_loss=half", *schedule)
    rows = [json.loads(line) for line in (copy / "runs/r/history.jsonl").read_text().splitlines()]
    assert rows[1]["alpha"] == pytest.approx(0.5 * 0.5**0.5)
    assert 0 < rows[1]["val/max_l0"] <= 1
    run(copy, "-m", "analysis.report", "runs/r")
    assert ">max l0<" in (copy / "runs/r/report.html").read_text()
    (copy / "s.yaml").write_text(
        "method: grid\nmetric: {name: test/max_l0, goal: maximize}\n"
        "parameters:\n  penalty_scheduler: {value: root}\n  update: {value: true}\n"
        "  sparse_loss: {values: [half, l1]}\n"
    )
    assert "is not logged" not in run(copy, "-m", "emaae", "lint", "s.yaml")
    assert "`max_l0` | largest density" in run(copy, "-m", "emaae.metric_table")


LOAD_AND_EXPORT = """
import emaae
from emaae.models import build_model
from emaae.runs import original
from emaae.system.errors import UserError

model = emaae.load_model("runs/n")
print("loaded", model.norm, model.activation)
for one in ({"norm": "rms"}, {"activation": "squared"}):
    try:
        original.state_dict(build_model(**one))
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_an_activation_and_a_norm_from_outside(copy):
    small = ("--epochs=2", "--inner_size=8", "--n_encoder=2", "--n_decoder=2", "--wandb=disabled")
    run(copy, "train.py", *small, "--activation=squared", "--norm=rms", "--run_name=n")
    said = run(copy, "-c", LOAD_AND_EXPORT)
    assert "loaded rms squared" in said
    assert "norm rms cannot be expressed in the original format" in said
    assert "activation squared cannot be expressed in the original format" in said


def test_every_file_that_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:emaae|tests|docs)/[\w./]+)`", text):
        assert (ROOT / name).is_file(), name
