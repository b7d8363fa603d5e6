"""Sweep files: what they mean, and what is wrong with them.

A sweep file is a YAML file of Weights & Biases. YAML and W&B both accept much that does not mean
what it seems to, so `examine` reports what is wrong in which line; `read` returns a `Sweep`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice, starmap
from pathlib import Path
from typing import Any

from emaae.config import KNOBS, Config
from emaae.knobs import did_you_mean
from emaae.metric_table import BY_NAME, COUNTS, SCORE, logged_each_epoch
from emaae.runs.read import is_finite
from emaae.sweeps.document import Document, Finding
from emaae.sweeps.space import DISTRIBUTIONS, RANGE_KEYS, Parameter, Sweep, combinations
from emaae.system.errors import UserError
from emaae.system.files import read_text

# Keys of distributions that hold numbers, and those whose numbers must be above 0.
NUMERIC_KEYS = ("min", "max", "mu", "sigma", "q", "a", "b")
POSITIVE_KEYS = ("sigma", "q", "a", "b")

METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
# Top-level keys that a local sweep uses; then those that only W&B's server uses.
TOP_LEVEL_KEYS = (
    "program", "method", "metric", "parameters", "command", "name", "description", "run_cap",
    "early_terminate", "project", "entity",
)  # fmt: skip
WANDB_ONLY_KEYS = ("apiVersion", "kind", "controller", "job", "image_uri", "metrics", "scheduler")
METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
HYPERBAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")

MACROS = (
    "env", "interpreter", "program", "args", "args_no_equals", "args_no_hyphens",
    "args_no_boolean_flags", "args_json", "args_json_file",
)  # fmt: skip
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")

MAX_POINTS = 100_000
# Every combination is tried on Config; beyond this many the first ones stand for the rest.
COMBINATIONS_CHECKED = 10_000


def read(path: str | Path) -> tuple[Sweep, list[Finding]]:
    """The sweep of a file, and warnings about it. Raises UserError for the first mistake."""
    sweep, findings = examine(path)
    wrong = [finding for finding in findings if not finding.warning]
    if wrong or sweep is None:
        more = f" (and {len(wrong) - 1} more: python -m emaae lint {path})" if wrong[1:] else ""
        raise UserError(f"{wrong[0]}{more}")
    return sweep, findings


def examine(path: str | Path) -> tuple[Sweep | None, list[Finding]]:
    """The sweep of a file (None when too much is wrong) and what is wrong, by line. UserError."""
    document = _document(path)
    sweep = _Checker(document, document.content).sweep() if document.content is not None else None
    return sweep, sorted(document.findings, key=lambda f: (f.line, f.warning))


def description_of(path: str | Path) -> str:
    """The question of a sweep file: its description, else a comment in its first line, or ""."""
    document = _document(path)
    description = (document.content or {}).get("description")
    if isinstance(description, str):
        return description
    first = document.text.lstrip().partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _document(path: str | Path) -> Document:
    try:
        return Document(str(path), read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8: expected a YAML file") from None


class _Checker:
    """Makes a sweep of a document, and reports to the document what is wrong."""

    def __init__(self, document: Document, content: dict[str, Any]):
        self.document, self.content, self.report = document, content, document.report
        self.warn = partial(document.report, warning=True)
        self.program = self._text("program", "train.py")
        self.is_train_py = Path(self.program).name == "train.py"

    def sweep(self) -> Sweep | None:
        """The sweep; None when too much of it is wrong."""
        content = self.content
        for key in content:
            if key in WANDB_ONLY_KEYS:
                self.warn((key,), "is W&B's own, ignored without a server")
        self._check_keys((), [key for key in content if key not in WANDB_ONLY_KEYS], TOP_LEVEL_KEYS)
        self._text("description", "")
        method = self._one_of(("method",), content.get("method"), METHODS)
        metric, goal = self._metric(content.get("metric"))
        tree = content.get("parameters")
        if not isinstance(tree, dict) or not tree:
            self.report(("parameters",), f"must map names to what they may be, got {tree!r}")
            return None
        parameters = tuple(filter(None, starmap(self._parameter, sorted(tree.items()))))
        run_cap = content.get("run_cap")
        if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
            self.report(("run_cap",), f"must be a whole number, at least 1, got {run_cap!r}")
            run_cap = None
        if run_cap is None and method in ("random", "bayes"):
            self.warn(("method",), f"{method} without run_cap never ends")
        early_terminate = self._hyperband(content.get("early_terminate"), metric)
        sweep = Sweep(
            path=self.document.path,
            name=self._text("name", Path(self.document.path).stem),
            program=self.program,
            method=method or "grid",
            metric=metric,
            goal=goal,
            parameters=parameters,
            command=self._command(content.get("command")),
            run_cap=run_cap,
            early_terminate=early_terminate,
        )
        if method == "grid":
            n = math.prod(p.grid_size() for p in parameters)
            if n > MAX_POINTS:
                size = n if n < 10**12 else f"more than {MAX_POINTS}"
                message = f"a grid of {size} points; leave some out, or take method: random"
                self.report(("parameters",), message)
                return None
            for p in parameters:
                if p.grid() is None:
                    message = f"a grid cannot hold {p.distribution}; list `values`"
                    self.report(("parameters", p.name), message)
        if self.is_train_py and not any(
            not f.warning and f.key.startswith("parameters") for f in self.document.findings
        ):
            self._check_configs(sweep)
        if early_terminate and any(p.name == "update" and True in p.extremes() for p in parameters):
            message = "hyperband stops runs by the phase of their alpha schedule; leave it out"
            self.warn(("early_terminate",), message)
        return sweep

    # ---- the parts

    def _text(self, key: str, default: str) -> str:
        value = self.content.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value.strip():
            self.report((key,), f"must be text, got {value!r}")
            return default
        return value

    def _check_keys(
        self, key_path: tuple, given: Iterable[str], known: Sequence[str], message="unknown key"
    ) -> None:
        for key in given:
            if key not in known:
                self.report((*key_path, key), f"{message}{did_you_mean(key, known)}")

    def _one_of(self, key_path: tuple, value: Any, choices: Sequence[str]) -> str | None:
        if value in choices:
            return value
        hint = did_you_mean(str(value), choices) if value is not None else ""
        self.report(key_path, f"must be one of {', '.join(choices)}, got {value!r}{hint}")
        return None

    def _metric(self, metric: Any) -> tuple[str, str]:
        if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
            expected = f"`name: {SCORE}` and `goal: minimize`"
            self.report(("metric",), f"must say {expected}, got {metric!r}")
            return SCORE, "minimize"
        self._check_keys(("metric",), metric, METRIC_KEYS)
        if "target" in metric:
            message = "is known to W&B's server only; without it all points are run"
            self.warn(("metric", "target"), message)
        name = metric["name"]
        goal = self._one_of(("metric", "goal"), metric.get("goal", "minimize"), GOALS)
        if self.is_train_py:
            self._check_metric(name, goal)
        return name, goal or "minimize"

    def _check_metric(self, name: str, goal: str | None) -> None:
        key_path = ("metric", "name")
        metric = BY_NAME.get(name)
        if metric is None or metric.range == COUNTS:
            hint = did_you_mean(name, BY_NAME)
            self.report(key_path, f"{name!r} is not logged by runs; use {SCORE}{hint}")
            return
        if logged_each_epoch(name) and not self.content.get("early_terminate"):
            message = f"{name} is logged every epoch, and W&B takes its extremum; {SCORE} is "
            self.warn(key_path, message + "logged once, for the selected weights")
        if name.startswith("test/"):
            message = "selects by the test split, which is kept for the final numbers; "
            self.warn(key_path, message + "use the val/ metric")
        right = {"lower": "minimize", "higher": "maximize"}.get(metric.better)
        if right and goal and goal != right:
            self.report(("metric", "goal"), f"{name} is better when {metric.better}; write {right}")

    def _parameter(self, name: str, spec: Any) -> Parameter | None:
        key_path = ("parameters", name)
        if not isinstance(spec, dict):
            self.report(key_path, f"must be `value: {spec}` or `values: [...]`, got {spec!r}")
            return None
        if "parameters" in spec:
            message = "is nested, but flags are not; list its parameters at the top level"
            self.report(key_path, message)
            return None
        self._check_name(name, key_path)
        kind = spec.get("distribution") or _inferred(spec)
        if kind is None:
            self.report(key_path, "needs `value`, `values`, or `min` and `max`")
            return None
        if str(kind) not in DISTRIBUTIONS:
            hint = did_you_mean(str(kind), DISTRIBUTIONS)
            self.report(key_path, f"unknown distribution {kind!r}{hint}")
            return None
        distribution = DISTRIBUTIONS[kind]
        known = (*distribution.required, *distribution.optional, "distribution")
        before = len(self.document.findings)
        self._check_keys(key_path, spec, known, f"{kind} takes no such key")
        for key in distribution.required:
            if key not in spec:
                self.report(key_path, f"{kind} needs `{key}`")
        values = {**distribution.optional, **spec}
        values.pop("distribution", None)
        self._check_numbers(values, kind, key_path)
        if len(self.document.findings) > before:
            return None
        parameter = Parameter(name, kind, values)
        try:
            parameter.extremes()
        except (OverflowError, ValueError):
            hint = f"; to give them, write {kind}_values" if kind.endswith("log_uniform") else ""
            self.report(key_path, f"{kind} reaches values that are too large for a number{hint}")
            return None
        return parameter

    def _check_name(self, name: str, key_path: tuple) -> None:
        if not self.is_train_py or name in Config.sweepable():
            return
        if name in KNOBS:
            message = "a sweep may not set it: paths and where to run belong to each machine; set "
            self.report(key_path, f"{message}EMAAE_{name.upper()} or give --{name} after `--`")
        else:
            hint = did_you_mean(name, Config.sweepable())
            self.report(key_path, f"unknown parameter{hint}")

    def _check_numbers(self, values: dict, kind: str, key_path: tuple) -> None:
        for key, value in values.items():
            if key in NUMERIC_KEYS:
                if not is_finite(value):
                    self.report((*key_path, key), f"must be a finite number, got {value!r}")
                    return
                log_of_min = key == "min" and kind.endswith("log_uniform_values")
                if (key in POSITIVE_KEYS or log_of_min) and value <= 0:
                    self.report((*key_path, key), f"must be above 0 for {kind}, got {value}")
            elif key in ("values", "probabilities") and not (isinstance(value, list) and value):
                self.report((*key_path, key), f"must be a list that is not empty, got {value!r}")
                return
        if "min" in values and "max" in values and not values["min"] < values["max"]:
            self.report(key_path, f"min {values['min']} must be below max {values['max']}")
        if kind == "int_uniform" and not all(type(values.get(k, 0)) is int for k in RANGE_KEYS):
            self.report(key_path, "int_uniform takes whole numbers; write 1, not 1.0")
        if "probabilities" in values:
            p = values["probabilities"]
            numbers = all(is_finite(v) and v >= 0 for v in p)
            if len(p) != len(values.get("values", [])) or not numbers or abs(sum(p) - 1) > 1e-5:
                message = "must be one number for each of the values, and sum to 1"
                self.report((*key_path, "probabilities"), message)

    def _command(self, command: Any) -> tuple[str, ...]:
        if command is None:
            return DEFAULT_COMMAND
        if not isinstance(command, list) or not command:
            example = list(DEFAULT_COMMAND)
            self.report(("command",), f"must be a list such as {example}, got {command!r}")
            return DEFAULT_COMMAND
        for i, item in enumerate(command):
            for macro in re.findall(r"\$\{([^}]*)\}", str(item)):
                if re.fullmatch(r"envvar:[A-Z0-9_]+", macro):
                    continue
                if macro not in MACROS:
                    hint = did_you_mean(macro, MACROS)
                    self.report(("command", i), f"unknown macro ${{{macro}}}{hint}")
                elif item != f"${{{macro}}}":
                    message = f"${{{macro}}} expands only when it is an item of its own"
                    self.report(("command", i), f"{message}, got {item!r}")
        return tuple(str(item) for item in command)

    def _hyperband(self, spec: Any, metric: str) -> dict[str, Any] | None:
        if spec is None:
            return None
        key_path = ("early_terminate",)
        if not isinstance(spec, dict) or spec.get("type") != "hyperband":
            self.report(key_path, f"must be a mapping with `type: hyperband`, got {spec!r}")
            return None
        self._check_keys(key_path, spec, HYPERBAND_KEYS)
        required = {"max_iter", "s"} if "max_iter" in spec else {"min_iter"}
        if not required <= spec.keys():
            self.report(key_path, "needs `min_iter`, or `max_iter` and `s`")
            return None
        for key, least in (("min_iter", 1), ("max_iter", 1), ("s", 1), ("eta", 1.001)):
            value = spec.get(key, least)
            if not is_finite(value) or value < least:
                message = f"must be a number of at least {least:g}, got {value!r}"
                self.report((*key_path, key), message)
                return None
        if "strict" not in spec:
            self.warn(key_path, "say `strict: true` or `false`: W&B documents both")
        if metric in BY_NAME and not logged_each_epoch(metric):
            message = f"{metric} is logged once, at the end, so that hyperband never stops a run; "
            self.warn(key_path, message + "take val/score as the metric")
        return spec

    # ---- every point must be a Config

    def _check_configs(self, sweep: Sweep) -> None:
        choices = {
            p.name: (p.grid() if sweep.method == "grid" else None) or p.extremes()
            for p in sweep.parameters
        }
        for point in islice(combinations(choices), COMBINATIONS_CHECKED):
            try:
                Config.from_mapping(point)
            except UserError as error:
                named = [n for n in re.findall(r"--(\w+)", str(error)) if n in point]
                self.report(("parameters", *named[:1]), str(error))


def _inferred(spec: Mapping[str, Any]) -> str | None:
    """The distribution that W&B takes when none is named."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec or "max" in spec:
        whole = all(type(spec.get(key)) is int for key in RANGE_KEYS)
        return "int_uniform" if whole else "uniform"
    return None
