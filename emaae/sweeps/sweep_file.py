"""Reading and checking sweep files.

A sweep file is a YAML file in the format of Weights & Biases. YAML and W&B silently accept many
mistakes, so `examine` reports every mistake with its line; `read` returns a `Sweep`.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from emaae.config import KNOBS, OF_SCHEDULES, SWEEPABLE, Config
from emaae.knobs import did_you_mean
from emaae.metric_table import BY_NAME, COUNTS, SCORE, logged_each_epoch
from emaae.runs.read import is_finite
from emaae.sweeps.document import Document, Finding
from emaae.sweeps.space import DISTRIBUTIONS, RANGE_KEYS, Parameter, Sweep, combinations
from emaae.system.errors import UserError

T = TypeVar("T")

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
METRIC_KEYS = ("name", "goal", "impute", "impute_while_running")
HYPERBAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")

# Macros of W&B that must be whole items of a command; ENVVAR is also replaced inside an item.
MACROS = (
    "env", "interpreter", "program", "args", "args_no_equals", "args_no_hyphens",
    "args_no_boolean_flags", "args_json", "args_json_file",
)  # fmt: skip
ENVVAR = r"\$\{envvar:([A-Z0-9_]+)\}"
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")

MAX_POINTS = 100_000
# Combinations of values that are checked by creating a Config; of more, only the first ones.
COMBINATIONS_CHECKED = 10_000


def read(path: str | Path) -> tuple[Sweep, list[Finding]]:
    """The sweep of a file, and warnings about the file. Raises UserError with the first mistake."""
    sweep, findings = examine(path)
    wrong = [finding for finding in findings if not finding.warning]
    if wrong or sweep is None:
        more = f" (and {len(wrong) - 1} more: python -m emaae lint {path})" if wrong[1:] else ""
        raise UserError(f"{wrong[0]}{more}")
    return sweep, findings


def examine(path: str | Path) -> tuple[Sweep | None, list[Finding]]:
    """The sweep of a file, None if the file is no YAML mapping, and all findings sorted by line.

    The sweep is valid only if all findings are warnings. Raises UserError for a file that cannot be
    read.
    """
    file = _SweepFile(path)
    sweep = file.sweep() if file.is_mapping else None
    return sweep, sorted(file.findings, key=lambda f: (f.line, f.warning))


def description_of(path: str | Path) -> str:
    """The question of a sweep file: its description, else a comment in its first line, or ""."""
    document = Document(path)
    description = document.content.get("description")
    if isinstance(description, str):
        return description
    first = document.text.lstrip().partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


class _Mistake(UserError):
    """A mistake in the value of a key; keys: the path from the value to the wrong part of it."""

    def __init__(self, message: str, *keys: str | int):
        super().__init__(message)
        self.keys = keys


class _SweepFile(Document):
    """A YAML file that is read as a sweep."""

    def sweep(self) -> Sweep:
        """The sweep; mistakes are added to `findings`, and it is valid only if none is an error."""
        content = self.content
        program = self._optional("program", _text, "train.py")
        self.is_train_py = Path(program).name == "train.py"
        self._check_keys((), content, TOP_LEVEL_KEYS, WANDB_ONLY_KEYS)
        self._optional("description", _text, "")
        method = self._parsed(content.get("method"), partial(_one_of, METHODS), "", "method")
        metric, goal = self._parsed(content.get("metric"), self._metric, (SCORE, ""), "metric")
        tree: dict[str, Any] = self._parsed(content.get("parameters"), _mapping, {}, "parameters")
        found = [
            self._parsed(spec, partial(self._parameter, name), None, "parameters", name)
            for name, spec in sorted(tree.items())
        ]
        run_cap = self._optional("run_cap", _run_cap, None)
        if run_cap is None and method in ("random", "bayes"):
            self.warn(("method",), f"{method} without run_cap never ends")
        sweep = Sweep(
            path=self.path,
            name=self._optional("name", _text, Path(self.path).stem),
            program=program,
            method=method,
            metric=metric,
            goal=goal,
            parameters=tuple(p for p in found if p is not None),
            command=self._optional("command", _command, DEFAULT_COMMAND),
            run_cap=run_cap,
            early_terminate=self._optional(
                "early_terminate", partial(self._hyperband, metric), None
            ),
        )
        self._parsed(sweep, self._check_points, None, "parameters")
        updates = any(
            p.name == "update" and {"true", "1", "yes"} & {str(v).lower() for v in p.extremes()}
            for p in sweep.parameters
        )
        flags = [item.lstrip("-").partition("=")[0] for item in sweep.command]
        constant_alpha = self.is_train_py and not updates and "update" not in flags
        for p in sweep.varying:
            if constant_alpha and p.name in OF_SCHEDULES:
                self.warn(("parameters", p.name), "has no effect without `update: {value: true}`")
        if sweep.early_terminate and updates:
            message = "hyperband compares runs in different phases of their alpha schedules; "
            self.warn(("early_terminate",), message + "leave it out")
        return sweep

    # ---- the parts

    def _parsed(self, value: Any, parse: Callable[[Any], T], default: T, *keys: str) -> T:
        """parse(value); if that raises UserError, report it at `keys` and return the default."""
        try:
            return parse(value)
        except UserError as error:
            within = error.keys if isinstance(error, _Mistake) else ()
            self.report((*keys, *within), str(error))
            return default

    def _optional(self, key: str, parse: Callable[[Any], T], default: T) -> T:
        value = self.content.get(key)
        return default if value is None else self._parsed(value, parse, default, key)

    def _check_keys(
        self,
        keys: tuple,
        given: Iterable[str],
        known: Sequence[str],
        wandb_only: Sequence[str] = (),
    ) -> None:
        for key in given:
            if key in wandb_only:
                self.warn((*keys, key), "is used by W&B's server alone; a local sweep ignores it")
            elif key not in known:
                self.report((*keys, key), f"unknown key{did_you_mean(key, known)}")

    def _metric(self, metric: Any) -> tuple[str, str]:
        if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
            raise _Mistake(f"must have `name: {SCORE}` and `goal: minimize`, got {metric!r}")
        self._check_keys(("metric",), metric, METRIC_KEYS, ("target",))
        name, goal = metric["name"], _one_of(GOALS, metric.get("goal", "minimize"), "goal")
        if not self.is_train_py:
            return name, goal
        known = BY_NAME.get(name)
        if known is None or known.range == COUNTS:
            hint = did_you_mean(name, BY_NAME)
            raise _Mistake(f"{name!r} is not logged by runs; use {SCORE}{hint}", "name")
        if logged_each_epoch(name) and not self.content.get("early_terminate"):
            message = f"{name} is logged every epoch, and W&B uses its best value; {SCORE} is "
            self.warn(("metric", "name"), message + "logged once, for the selected weights")
        if name.startswith("test/"):
            message = "selects on the test split, which is reserved for the final numbers; "
            self.warn(("metric", "name"), message + "use the val/ metric")
        right = {"lower": "minimize", "higher": "maximize"}.get(known.better, goal)
        if goal != right:
            raise _Mistake(f"{name} is better when {known.better}; write {right}", "goal")
        return name, goal

    def _parameter(self, name: str, spec: Any) -> Parameter:
        if not isinstance(spec, dict):
            raise _Mistake(f"must be `value: {spec}` or `values: [...]`, got {spec!r}")
        if "parameters" in spec:
            raise _Mistake("nested parameters have no flags; list them at the top level")
        if self.is_train_py and name not in SWEEPABLE:
            if name not in KNOBS:
                raise _Mistake(f"unknown parameter{did_you_mean(name, SWEEPABLE)}")
            raise _Mistake(
                "a sweep may not set it, since it depends on the machine or the run; set "
                f"EMAAE_{name.upper()} or give --{name} after `--`"
            )
        kind = spec.get("distribution") or _inferred(spec)
        kind = _one_of(tuple(DISTRIBUTIONS), kind, "distribution")
        values = {**DISTRIBUTIONS[kind].optional, **spec}
        values.pop("distribution", None)
        _check_values(values, kind)
        parameter = Parameter(name, kind, values)
        try:
            parameter.extremes()
        except (OverflowError, ValueError):
            exponents = f": min and max are exponents of e; if they are values, write {kind}_values"
            hint = exponents if kind.endswith("log_uniform") else ""
            raise _Mistake(f"{kind} reaches values that are too large for a number{hint}") from None
        return parameter

    def _hyperband(self, metric: str, spec: Any) -> dict[str, Any]:
        if not isinstance(spec, dict) or spec.get("type") != "hyperband":
            raise _Mistake(f"must be a mapping with `type: hyperband`, got {spec!r}")
        self._check_keys(("early_terminate",), spec, HYPERBAND_KEYS)
        required = {"max_iter", "s"} if "max_iter" in spec else {"min_iter"}
        if not required <= spec.keys():
            raise _Mistake("needs `min_iter`, or `max_iter` and `s`")
        for key, least in (("min_iter", 1), ("max_iter", 1), ("s", 1), ("eta", 1.001)):
            value, kind = spec.get(key, least), "whole number" if "iter" in key else "number"
            if not is_finite(value) or value < least or (kind == "whole number" and value % 1):
                raise _Mistake(f"must be a {kind} of at least {least:g}, got {value!r}", key)
        if type(spec.get("strict", True)) is not bool:
            raise _Mistake(f"must be true or false, got {spec['strict']!r}", "strict")
        if "strict" not in spec:
            self.warn(
                ("early_terminate",),
                "add `strict: true` or `strict: false`: W&B documents both as the default",
            )
        if metric in BY_NAME and not logged_each_epoch(metric):
            message = f"{metric} is logged once, at the end, so hyperband never stops a run; "
            self.warn(("early_terminate",), message + "use val/score as the metric")
        return spec

    def _check_points(self, sweep: Sweep) -> None:
        """Report the values and points that Config refuses; a grid that is too large: _Mistake."""
        choices = {p.name: p.extremes() for p in sweep.parameters}
        if sweep.method == "grid":
            n = math.prod(p.grid_size() for p in sweep.parameters)
            if n > MAX_POINTS:
                size = n if n < 10**12 else f"more than {MAX_POINTS}"
                raise _Mistake(
                    f"a grid of {size} points is too large; remove values, or use method: random"
                )
            choices = {p.name: p.grid() for p in sweep.parameters}
            for p in sweep.parameters:
                if not choices[p.name]:
                    message = f"a grid cannot have the distribution {p.distribution}; list `values`"
                    self.report(("parameters", p.name), message)
        if not self.is_train_py:
            return
        for name, values in choices.items():
            for value in values:
                self._parsed(value, KNOBS[name].read, None, "parameters", name)
        if all(f.warning or not f.key.startswith("parameters") for f in self.findings):
            for point in islice(combinations(choices), COMBINATIONS_CHECKED):
                try:
                    Config.from_mapping(point)
                except UserError as error:
                    named = [n for n in re.findall(r"--(\w+)", str(error)) if n in point]
                    self.report(("parameters", *named[:1]), str(error))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Mistake(f"must be text, got {value!r}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise _Mistake(f"must map parameters to their values, got {value!r}")
    return value


def _one_of(choices: Sequence[str], value: Any, *keys: str) -> str:
    if value in choices:
        return value
    hint = did_you_mean(str(value), choices)
    raise _Mistake(f"must be one of {', '.join(choices)}, got {value!r}{hint}", *keys)


def _run_cap(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise _Mistake(f"must be a whole number, at least 1, got {value!r}")
    return value


def _command(command: Any) -> tuple[str, ...]:
    if not isinstance(command, list) or not command:
        raise _Mistake(f"must be a list such as {list(DEFAULT_COMMAND)}, got {command!r}")
    for i, item in enumerate(map(str, command)):
        for macro in re.findall(r"\$\{([^}]*)\}", re.sub(ENVVAR, "", item)):
            if macro not in MACROS:
                raise _Mistake(f"unknown macro ${{{macro}}}{did_you_mean(macro, MACROS)}", i)
            if item != f"${{{macro}}}":
                message = f"${{{macro}}} is expanded only as an item of its own"
                raise _Mistake(f"{message}, got {item!r}", i)
    return tuple(map(str, command))


def _check_values(values: Mapping[str, Any], kind: str) -> None:
    """Raise _Mistake unless a distribution can take these keys with these values."""
    known = (*DISTRIBUTIONS[kind].required, *DISTRIBUTIONS[kind].optional)
    for key, value in values.items():
        log_of_min = key == "min" and kind.endswith("log_uniform_values")
        if key not in known:
            raise _Mistake(f"{kind} has no such key{did_you_mean(key, known)}", key)
        if key in NUMERIC_KEYS and not is_finite(value):
            raise _Mistake(f"must be a finite number, got {value!r}", key)
        if (key in POSITIVE_KEYS or log_of_min) and value <= 0:
            raise _Mistake(f"must be above 0 for {kind}, got {value}", key)
        if key in ("values", "probabilities") and not (isinstance(value, list) and value):
            raise _Mistake(f"must be a non-empty list, got {value!r}", key)
    for key in known:
        if key not in values:
            raise _Mistake(f"{kind} needs `{key}`")
    if "min" in values and not values["min"] < values["max"]:
        raise _Mistake(f"min {values['min']} must be below max {values['max']}")
    if kind == "int_uniform" and not all(type(values[key]) is int for key in RANGE_KEYS):
        raise _Mistake("int_uniform takes whole numbers; write 1, not 1.0")
    if "probabilities" in values:
        p = values["probabilities"]
        numbers = len(p) == len(values["values"]) and all(is_finite(v) and v >= 0 for v in p)
        if not numbers or abs(sum(p) - 1) > 1e-5:
            raise _Mistake("must have one number for each value, and sum to 1", "probabilities")


def _inferred(spec: Mapping[str, Any]) -> str:
    """The distribution that W&B uses when a parameter names none. Raises _Mistake."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec or "max" in spec:
        whole = all(type(spec.get(key)) is int for key in RANGE_KEYS)
        return "int_uniform" if whole else "uniform"
    raise _Mistake("needs `value`, `values`, or `min` and `max`")
