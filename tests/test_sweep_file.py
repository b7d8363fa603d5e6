"""Sweep files: their points, and their errors line by line."""

import json
import math
import re
import textwrap
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import ROOT, program

from emaae.config import SWEEPABLE, Config
from emaae.metric_table import SCORE
from emaae.schedules import SCHEDULES
from emaae.sweeps import sweep_file
from emaae.sweeps.space import DISTRIBUTIONS, Parameter, Sweep
from emaae.system.errors import UserError

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
FINDINGS = sorted((ROOT / "analysis" / "findings").glob("*.yaml"))
FINDINGS += (ROOT / "benchmarks").glob("*.yaml")
HEAD = "method: grid\nmetric: {name: select/score, goal: minimize}\n"


@pytest.fixture
def write(tmp_path):
    def to_file(text: str, head: str = HEAD) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(head + textwrap.dedent(text))
        return path

    return to_file


def read(path: Path) -> Sweep:
    """The sweep of a file, without the warnings."""
    return sweep_file.read(path)[0]


def findings(path: Path) -> list[str]:
    """The findings, each as LINE: KEY: MESSAGE."""
    return [str(f).removeprefix(f"{path}:") for f in sweep_file.examine(path)[1]]


# ---- the files of this project


def test_the_sweep_files_of_the_main_questions_exist():
    names = {path.stem for path in FILES}
    assert {"alpha", "alpha_schedules", "penalties", "architecture", "search", "demo"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_file_expands_to_configs_and_optimises_what_is_logged(path):
    assert sweep_file.examine(path)[1] == []
    sweep = read(path)
    given = yaml.safe_load(path.read_text())
    assert given["name"] == path.stem, "W&B shows it"
    assert given["description"].endswith(("?", "."))
    assert "?" in given["description"]
    assert (sweep.metric, sweep.goal) == (SCORE, "minimize")
    assert sweep.early_terminate is None
    assert {p.name for p in sweep.parameters} <= set(SWEEPABLE)
    if sweep.method == "grid":
        configs = [Config.from_mapping(point) for point in sweep.grid()]
        assert len(configs) == len({json.dumps(vars(c)) for c in configs}) == sweep.n_points()


RECIPE = {"optimizer": "muon", "lr": 0.04, "lr_schedule": "linear", "lr_warm_up": 0.03}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_file_trains_by_the_recipe_except_for_what_it_varies(path):
    given = yaml.safe_load(path.read_text())["parameters"]
    for name, value in (RECIPE | {"precision": "auto"}).items():
        values = {value, 0.03} if (path.stem, name) == ("demo", "lr") else {value}
        assert given[name].get("value", value) in values, name
    slow = given["slow_coefficient"]
    assert max(slow.get("values", [slow.get("value")])) > 0


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_findings_can_be_repeated(path):
    assert sweep_file.examine(path)[1] == []
    configs = [Config.from_mapping(point) for point in read(path).grid()]
    assert len({c.seed for c in configs}) >= 3


def test_the_benchmark_measures_the_recipe_of_the_sweeps():
    from benchmarks import time_to_score

    assert time_to_score.RECIPE == RECIPE | {"precision": "auto"}


def test_schedules_that_have_an_end_value_are_compared_over_it_and_seeds():
    points = read(ROOT / "sweeps" / "alpha_schedules.yaml").grid()
    schedules = {p["penalty_scheduler"] for p in points}
    # A point that ignored its end value would be run three times.
    assert schedules == set(SCHEDULES) - {"constant", "step_original"}
    assert len({p["seed"] for p in points}) == 3
    ends = {p["alpha_max"] for p in points}
    assert len(points) == len(schedules) * len(ends) * 3
    assert all(p["update"] is True for p in points)


# ---- the points of a grid


def test_the_last_name_varies_fastest_and_constants_are_in_every_point(write):
    sweep = read(
        write("""
        parameters:
          seed: {values: [1, 0]}
          alpha: {values: [0.5, 0.25]}
          epochs: {value: 3}
        """)
    )
    assert [p.name for p in sweep.parameters] == ["alpha", "epochs", "seed"]
    assert sweep.grid() == [
        {"alpha": 0.5, "epochs": 3, "seed": 1},
        {"alpha": 0.5, "epochs": 3, "seed": 0},
        {"alpha": 0.25, "epochs": 3, "seed": 1},
        {"alpha": 0.25, "epochs": 3, "seed": 0},
    ]
    assert [p.name for p in sweep.varying] == ["alpha", "seed"]


def test_int_uniform_includes_its_maximum_and_q_uniform_does_not(write):
    sweep = read(
        write("""
        program: other.py
        parameters:
          n: {min: 2, max: 4}
          x: {distribution: q_uniform, min: 0.0, max: 1.0, q: 0.5}
        """)
    )
    points = [(p["n"], p["x"]) for p in sweep.grid()]
    assert points == [(2, 0), (2, 0.5), (3, 0), (3, 0.5), (4, 0), (4, 0.5)]


def test_whole_floats_reach_a_run_as_whole_numbers_and_equal_points_are_one(write):
    points = read(write("parameters: {batch_sz: {values: [8, 8.0, 4.0]}}")).grid()
    assert points == [{"batch_sz": 8}, {"batch_sz": 4}]
    assert [type(p["batch_sz"]) for p in points] == [int, int]


def test_nested_parameters_are_refused_since_no_flag_is_nested(write):
    path = write("parameters:\n  a:\n    parameters:\n      y: {value: 5}\n")
    assert findings(path) == [
        "4: parameters.a: nested parameters have no flags; list them at the top level"
    ]


def test_run_cap_cuts_a_grid(write):
    sweep = read(write("run_cap: 2\nparameters: {seed: {values: [0, 1, 2]}}"))
    assert sweep.n_points() == 2


def test_a_search_needs_a_run_cap(write):
    head = "method: random\nmetric: {name: select/score}\n"
    sweep = read(write("parameters: {lr: {min: 0.1, max: 0.5}}", head))
    with pytest.raises(UserError, match="random without run_cap never ends; add `run_cap: 20`"):
        sweep.n_points()


# ---- distributions


@pytest.mark.parametrize(
    ("kind", "spec", "values"),
    [
        ("uniform", {"min": 2, "max": 4}, [2.5, 3, 3.5]),
        ("int_uniform", {"min": 1, "max": 4}, [2, 3, 4]),
        ("q_uniform", {"min": 0, "max": 10, "q": 2}, [2, 4, 8]),
        ("log_uniform", {"min": 0.0, "max": 4.0}, [math.e, math.e**2, math.e**3]),
        ("log_uniform_values", {"min": 1, "max": 10_000}, [10, 100, 1000]),
        ("inv_log_uniform_values", {"min": 1, "max": 10_000}, [10, 100, 1000]),
        ("q_log_uniform_values", {"min": 1, "max": 16, "q": 3}, [3, 3, 9]),
        ("normal", {"mu": 5, "sigma": 2}, [3.651, 5, 6.349]),
        ("q_normal", {"mu": 5, "sigma": 2, "q": 1}, [4, 5, 6]),
        ("log_normal", {"mu": 0, "sigma": 1}, [0.5094, 1, 1.963]),
        ("beta", {"a": 1, "b": 1}, [0.25, 0.5, 0.75]),
        ("categorical", {"values": ["a", "b", "c", "d"]}, ["b", "c", "d"]),
        (
            "categorical_w_probabilities",
            {"values": ["a", "b"], "probabilities": [0.6, 0.4]},
            ["a", "a", "b"],
        ),
    ],
)
def test_distributions_have_wandbs_quartiles(kind, spec, values):
    found = [Parameter("x", kind, spec).quantile(u) for u in (0.25, 0.5, 0.75)]
    if isinstance(values[0], str):
        assert found == values
    else:
        assert found == pytest.approx(values, rel=1e-3)


def test_a_missing_distribution_is_inferred_as_by_wandb(write):
    sweep = read(
        write(
            """
        run_cap: 3
        program: other.py
        parameters:
          a: {min: 1, max: 3}
          b: {min: 1, max: 3.0}
          c: {values: [1, 2], probabilities: [0.5, 0.5]}
          d: {value: 1}
        """,
            HEAD.replace("grid", "random"),
        )
    )
    kinds = ["int_uniform", "uniform", "categorical_w_probabilities", "constant"]
    assert [p.distribution for p in sweep.parameters] == kinds
    assert set(kinds) <= set(DISTRIBUTIONS)


# ---- what is wrong, by line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "parameters:\n  lr: {values: [1e-3, 0.01]}",
            "4: parameters.lr.values: YAML reads 1e-3 as text, not as a number; write 1.0e-3",
        ),
        (
            "parameters:\n  lr: {value: 1e5}",
            "4: parameters.lr.value: YAML reads 1e5 .* write 1.0e\\+5",
        ),
        (
            "parameters:\n  early_stop:\n    values: [on, off]",
            "5: parameters.early_stop.values: YAML reads off as False; write false, or 'off'",
        ),
        (
            "parameters:\n  seed: {value: 1}\n  seed: {value: 2}",
            "5: parameters.seed: is given twice, first in line 4; YAML uses the last",
        ),
        ("methud: grid\nparameters: {seed: {value: 1}}", "3: methud: unknown key; .* 'method'"),
        (
            "parameters:\n  inner_sise: {value: 8}",
            "4: parameters.inner_sise: unknown parameter; did you mean 'inner_size'",
        ),
        (
            "parameters:\n  train_dir: {value: /data}",
            "4: parameters.train_dir: a sweep may not set it, .* EMAAE_TRAIN_DIR",
        ),
        ("program:\nparameters: {inner_sise: {value: 8}}", "4: parameters.inner_sise: unknown"),
        ("parameters:\n  wandb: {value: online}", "4: parameters.wandb: a sweep may not set it"),
        (
            "parameters:\n  seed: {value: 0}\n  alpha:\n    values: [0.1, 1.5]",
            "5: parameters.alpha: --alpha must be at least 0 and below 1, got 1.5",
        ),
        (
            "parameters:\n  alpha: {value: 0.1}\n  penalty_scheduler: {values: [step, cosine]}",
            "5: parameters.penalty_scheduler: --penalty_scheduler cosine .* add --update",
        ),
        (
            "parameters:\n  lr: {min: 0.1, max: 0.5}",
            "4: parameters.lr: a grid cannot have the distribution uniform",
        ),
        ("parameters:\n  lr: {vales: [1]}", "4: parameters.lr: needs `value`, `values`, or"),
        ("parameters:\n  lr: 0.1", "4: parameters.lr: must be `value: 0.1`"),
        ("parameters:\n  lr: {value: 0.1, min: 0}", "4: parameters.lr.min: constant has no"),
        ("parameters:\n  seed: {min: 3, max: 1}", "4: parameters.seed: min 3 must be below max"),
        (
            "parameters: {seed: {value: 1}}\ncommand:\n  - ${interpretor}",
            "5: command: unknown macro \\${interpretor}; did you mean 'interpreter'",
        ),
        (
            "parameters: {seed: {value: 1}}\ncommand: ['--x=${args}']",
            "4: command: \\${args} is expanded only as an item of its own",
        ),
        ("run_cap: 0\nparameters: {seed: {value: 1}}", "3: run_cap: must be a whole number"),
        ("parameters: [", "3: is not YAML: "),
        ("parameters: &a {seed: *a}", ".*: contains an alias to itself"),
        (
            "parameters: {seed: {min: 0, max: 9999999}}",
            "3: parameters: a grid of 10000000 points is too large; remove values",
        ),
        ("parameters: {seed: {min: 0, max: .inf}}", "3: .*max: must be a finite number, got inf"),
        (
            "parameters: {seed: {value: 2020-01-01}}",
            "3: parameters.seed.value: has the tag .*timestamp; write a plain value",
        ),
        ("parameters: {}", "3: parameters: must map parameters"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_key(write, text, expected):
    found = findings(write(text))
    assert any(re.match(expected, line) for line in found), found
    with pytest.raises(UserError, match=r"sweep.yaml:\d+: "):
        read(write(text))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("method: gird\nmetric: {name: select/score}", "1: method: must be one of .* 'grid'"),
        ("metric: {name: select/score}", "1: method: must be one of"),
        ("method: grid", "1: metric: must have `name: select/score`"),
        (
            "method: grid\nmetric: {name: select/fvu, goal: maximize}",
            "2: metric.goal: select/fvu is better when lower; write minimize",
        ),
        ("method: grid\nmetric: {name: val/scor}", "2: metric.name: 'val/scor' is not logged"),
        (
            "method: grid\nmetric:\n  name: select/score\n  goal: maximize",
            "4: metric.goal: select/score is better when lower; write minimize",
        ),
        ("method: grid\nmetric: {name: val/score}", "2: warning: metric.name: val/score is"),
        (
            "method: grid\nmetric: {name: test/fvu}",
            "2: warning: metric.name: selects on the test split, .*; use the val/ metric",
        ),
        (
            "method: random\nmetric: {name: select/score}",
            "1: warning: method: random without run_cap never ends",
        ),
        (
            "method: grid\nmetric: {name: val/score}\n"
            "early_terminate: {type: hyperband, min_iter: 3}",
            "3: warning: early_terminate: hyperband compares runs in different phases",
        ),
        (
            "method: grid\nmetric: {name: select/score}\n"
            "early_terminate: {type: hyperband, min_iter: 3}",
            "3: warning: early_terminate: select/score is logged once",
        ),
        (
            "method: grid\nmetric: {name: val/score}\nearly_terminate: {type: hyperband, eta: 3}",
            "3: early_terminate: needs `min_iter`, or `max_iter` and `s`",
        ),
        (
            "method: grid\nmetric: {name: val/score}\n"
            "early_terminate: {type: hyperband, min_iter: 1, max_iter: 9}",
            "3: early_terminate: needs `min_iter`, or `max_iter` and `s`",
        ),
        (
            "method: grid\nmetric: {name: val/score}\n"
            "early_terminate: {type: hyperband, min_iter: 2.5}",
            "3: early_terminate.min_iter: must be a whole number of at least 1, got 2.5",
        ),
        (
            "method: grid\nmetric: {name: val/score}\n"
            "early_terminate: {type: hyperband, min_iter: 2, strict: 'false'}",
            "3: early_terminate.strict: must be true or false, got 'false'",
        ),
    ],
)
def test_a_mistake_outside_the_parameters_is_reported_with_its_line_and_key(write, head, expected):
    body = "parameters:\n  update: {value: true}\n  penalty_scheduler: {value: cosine}"
    found = findings(write(f"\n{body}", head))
    assert any(re.match(expected, line) for line in found), found


@pytest.mark.parametrize("kind", ["uniform", "log_uniform_values"])
def test_a_range_of_fractions_is_refused_for_a_whole_number(write, kind):
    body = f"\nrun_cap: 9\nparameters: {{batch_sz: {{distribution: {kind}, min: 4.0, max: 32.0}}}}"
    found = findings(write(body, HEAD.replace("grid", "random")))
    assert re.match("5: parameters.batch_sz: --batch_sz must be a whole number", found[-1])
    assert not findings(write(body.replace(kind, f"q_{kind}"), HEAD.replace("grid", "random")))


def test_the_ends_of_a_distribution_must_be_configs_too(write):
    head = HEAD.replace("grid", "bayes") + "run_cap: 5\n"
    found = findings(write("parameters:\n  alpha: {min: 0.1, max: 1.2}", head))
    assert found == ["5: parameters.alpha: --alpha must be at least 0 and below 1, got 1.2"]


def test_the_words_of_a_command_are_text_whatever_they_look_like(write):
    command = "command: ['${program}', --lr, 1e-3, '${args}']\n"
    path = write(f"{command}parameters: {{seed: {{values: [0, 1]}}}}")
    assert findings(path) == []
    assert read(path).command == ("${program}", "--lr", "1e-3", "${args}")


def test_quoted_words_are_text_and_floats_with_a_point_are_numbers(write):
    path = write("name: 'off'\nparameters: {lr: {value: 1.0e-3}, sparse_loss: {value: 'l1'}}")
    assert findings(path) == []


@pytest.mark.parametrize(
    "spec",
    [
        "alpha: {distribution: q_uniform, min: 0, max: 1, q: 0.25}",
        "n_encoder: {distribution: q_uniform, min: 2, max: 6, q: 1}",
        "gate_frames: {distribution: q_uniform, min: 1, max: 9, q: 2}",
    ],
)
def test_a_quantised_grid_begins_at_its_minimum_and_leaves_out_its_maximum(write, spec):
    assert findings(write(f"parameters: {{{spec}}}")) == []


def test_settings_of_schedules_may_vary_where_alpha_may_change(write):
    varied = "alpha_max: {values: [0.3, 0.6]}"
    for more in (
        f"parameters: {{{varied}, update: {{value: 'True'}}}}",
        f"command: ['${{program}}', 'update=True', '${{args}}']\nparameters: {{{varied}}}",
        f"program: other.py\nparameters: {{{varied}}}",
    ):
        assert not [one for one in findings(write(more)) if "has no effect" in one]


def test_every_wrong_value_is_reported_at_once(write):
    path = write("""
        parameters:
          alpha: {values: [0.1, 1.2]}
          activation: {values: [relu, gelu]}
          inner_size: {value: 0}
          alpha_max: {values: [0.3, 0.6]}
        """)
    assert [finding.partition(": ")[2] for finding in findings(path)] == [
        "parameters.alpha: --alpha must be at least 0 and below 1, got 1.2",
        "parameters.activation: --activation must be one of relu, batch_topk, feature_topk, got "
        "'gelu'; did you mean 'relu'?",
        "parameters.inner_size: --inner_size must be at least 1 and at most 65536, got 0",
        "warning: parameters.alpha_max: has no effect without `update: {value: true}`",
    ]


def test_anchors_and_merges_are_not_reported_as_duplicates(write):
    path = write("""
        parameters:
          seed: &three {values: [0, 1, 2]}
          patience: &more {<<: *three, values: [5, 6]}
          epochs: *more
        """)
    assert findings(path) == []
    assert len(read(path).grid()) == 12


def test_lint_prints_a_line_for_each_mistake_and_fails(write):
    path = write("parameters:\n  lr: {value: 1e-3}\n  sede: {value: 1}")
    done = program("-m", "emaae", "lint", str(path), *map(str, FILES))
    assert done.returncode == 2
    keys = [line.split(": ")[1] for line in done.stdout.splitlines()]
    assert keys == ["parameters.lr.value", "parameters.sede"]
    assert program("-m", "emaae", "lint", *map(str, FILES)).returncode == 0


def test_a_missing_file_hides_no_mistakes_of_the_files_before_it(write):
    path = write("parameters:\n  lr: {value: 1e-3}")
    done = program("-m", "emaae", "lint", str(path), "none.yaml")
    assert done.returncode == 2
    assert "parameters.lr.value: YAML reads 1e-3 as text" in done.stdout
    assert "none.yaml cannot be read" in done.stderr


def test_a_missing_file_prints_one_line():
    done = program("-m", "emaae", "lint", "none.yaml")
    assert done.returncode == 2
    assert (
        done.stderr
        == "python -m emaae: error: none.yaml cannot be read: No such file or directory\n"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_file_is_valid_against_the_schema_of_wandb(path):
    schema = ROOT / ".venv" / "wandb-sweeps" / "sweeps" / "config" / "schema.json"
    if not schema.is_file():
        pytest.skip("make setup installs the package with the schema")
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    given = yaml.safe_load(path.read_text())
    assert list(validator.iter_errors(given)) == []
    assert not validator.is_valid(given | {"method": "guess"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "method: must be one of grid, random, bayes, got None"),
        ("", "a sweep file must be a mapping, such as `method: grid`"),
        ("[1]", "a sweep file must be a mapping, such as `method: grid`"),
    ],
)
def test_a_file_without_content_is_refused(write, text, expected):
    path = write(text, head="")
    assert findings(path)[0] == f"1: {expected}"
    with pytest.raises(UserError, match=re.escape(expected)):
        read(path)


# ---- made to do harm


def laughs(first: str, more: str) -> str:
    lines = [f"l0: &l0 {first}"]
    lines += [f"l{i}: &l{i} {more % ', '.join([f'*l{i - 1}'] * 10)}" for i in range(1, 10)]
    return "\n".join(lines) + "\nparameters: {alpha: {values: [0.1]}}"


SEED = "parameters:\n  seed: {value: %s}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (laughs("[1, 1]", "[%s]"), "1: has more than 200000 values after aliases"),
        (laughs("{a: 1}", "{<<: [%s]}"), "1: has more than 200000 values after aliases"),
        ("parameters: &p {a: *p}", "1: contains an alias to itself, or is nested too deeply"),
        ("a: " + "[" * 10_000, "1: contains an alias to itself, or is nested too deeply"),
        (SEED % ("9" * 5000), "4: parameters.seed.value: is longer than 1000 characters"),
        (SEED % ("1" + ":59" * 30_000), "4: parameters.seed.value: is longer than 1000"),
        (SEED % ("9" * 900), "4: parameters.seed.value: 9{40} is too large for a 64-bit integer"),
        (SEED % "2001-99-99", "4: parameters.seed.value: has the tag .*:timestamp"),
        (SEED % "!!int x", "4: parameters.seed.value: 'x' cannot be read as int"),
        (SEED % '"\\U00110000"', "1: is not YAML: "),
        (SEED % '"\\U99999999"', "1: is not YAML: "),
        (SEED % "!!set {a}", "4: parameters.seed.value: has the tag .*:set"),
        (
            "? [a]\n: 1\nparameters: {alpha: {value: 0.1}}",
            "3: a key must be text, not a collection",
        ),
        (
            "parameters: {alpha: {distribution: q_uniform, min: -1.0e+308, max: 1.0e+308, q: 1}}",
            "3: parameters.alpha: q_uniform reaches values that are too large for a number",
        ),
        ("#" * (1 << 20), "has 10486.. bytes: expected at most 1048576"),
    ],
    ids=lambda case: case[:40],
)
def test_a_file_that_would_take_all_memory_or_time_prints_one_line(write, text, expected):
    path = write(text)
    try:
        lines = findings(path)
    except UserError as error:
        lines = [str(error).removeprefix(f"{path} ")]
    assert re.match(expected, lines[0]), lines[:3]
    assert all("\n" not in line and len(line) < 2100 for line in lines)


def test_tags_of_python_are_refused_and_nothing_is_run(write, tmp_path):
    path = write(SEED % f"!!python/object/apply:os.mkdir ['{tmp_path}/trace']")
    assert "has the tag tag:yaml.org,2002:python/object/apply:os.mkdir" in findings(path)[0]
    assert not (tmp_path / "trace").exists()


def test_lint_finds_nothing_in_a_correct_sweep_with_hyperband(write):
    path = write(
        """\
        method: random
        run_cap: 3
        metric: {name: val/score, goal: minimize}
        early_terminate: {type: hyperband, min_iter: 3, strict: true}
        parameters: {alpha: {min: 0.1, max: 0.2}}
        """,
        head="",
    )
    assert findings(path) == []


def test_the_question_is_the_description_or_else_the_first_comment(write):
    assert sweep_file.description_of(write("", head="# What?\nmethod: grid\n")) == "What?"
    text = "# not this\ndescription: Which one?\nmethod: grid\n"
    assert sweep_file.description_of(write("", head=text)) == "Which one?"
    assert sweep_file.description_of(write("", head="method: grid\n")) == ""
