"""The sources of a run's settings: flags, the environment, a sweep, and files.

Flags override the environment, and a sweep's values override flags. Settings that are not given
come from the resumed run and from a model_config.json, if any, else from the defaults.
"""

import argparse
import itertools
import json
import os
import re
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emaae.config import (
    ARCHITECTURE,
    KNOBS,
    LOCATION_GROUPS,
    OF_SCHEDULES,
    SWEEPABLE,
    Config,
    cast_all,
)
from emaae.knobs import did_you_mean
from emaae.system.errors import ArgumentParser, UserError
from emaae.system.files import read_json


def from_args(argv: Sequence[str], sweep: Mapping[str, Any] | None = None) -> Config:
    """The config from a command line, the environment and the values of a sweep, if there is one.

    A sweep's values override flags. Flags override variables such as EMAAE_TRAIN_DIR, which say
    where the data are and where runs go, so that one sweep file works on every machine. Raises
    UserError; `--help` prints and exits.
    """
    for name in sweep or {}:
        if name in KNOBS and name not in SWEEPABLE:
            raise UserError(
                f"a sweep may not set {name}: set it with --{name} on the command line or "
                f"EMAAE_{name.upper()} in the environment of the agent"
            )
    flags = parse_flags(argv)
    config = config_from(from_environment(flags) | flags | dict(sweep or {}))
    changed = [n for n in OF_SCHEDULES if getattr(config, n) != KNOBS[n].default]
    if changed and not config.update:
        names = ", ".join(f"--{name}" for name in changed)
        warnings.warn(f"{names}: without effect, since --update is not given", stacklevel=2)
    by_agent = bool(os.environ.get("WANDB_SWEEP_ID"))
    if by_agent and config.run_name:
        raise UserError(
            f"--run_name {config.run_name} names all runs of a W&B agent alike: leave it out, and "
            "unset EMAAE_RUN_NAME; runs are named after the sweep"
        )
    if by_agent and config.uses_demo and not config.demo:
        raise UserError(
            "this run of a W&B agent has no data directories, and a sweep must not mix generated "
            "with real speech: set EMAAE_TRAIN_DIR, EMAAE_VAL_DIR and perhaps EMAAE_TEST_DIR where "
            "the agent is started, or EMAAE_DEMO=True for a sweep on generated speech"
        )
    return config


def config_from(given: Mapping[str, Any]) -> Config:
    """The config of these names and values; the values may be text.

    With `model_config`, or a `checkpoint` that has a model_config.json beside it, that file gives
    the architecture. With `resume`, missing settings are those of the run. Raises UserError.
    """
    values = cast_all(given)
    resumed = _resumed_settings(values)
    # The files that gave the run its first weights and its architecture may be gone.
    kept = {k: v for k, v in resumed.items() if k not in ("checkpoint", "model_config")}
    return Config.from_mapping(resumed | _with_model_config(kept | values))


def from_environment(overridden: Container[str] = ()) -> dict[str, Any]:
    """The knobs of `LOCATION_GROUPS` that variables such as EMAAE_TRAIN_DIR set.

    overridden: names of knobs that flags set. WANDB_PROJECT and WANDB_ENTITY, which all W&B
    programs read, apply where the EMAAE_ variables are not set. Raises UserError for a value that
    its knob cannot have, and for an EMAAE_ variable that sets no knob.
    """
    # The later ones override.
    variables = {"WANDB_PROJECT": "wandb_project", "WANDB_ENTITY": "wandb_entity"}
    variables |= {
        f"EMAAE_{name.upper()}": name for name, k in KNOBS.items() if k.group in LOCATION_GROUPS
    }
    for variable in os.environ:
        if variable.startswith("EMAAE_") and variable not in variables:
            name = variable.removeprefix("EMAAE_").lower()
            if name in KNOBS:
                raise UserError(
                    f"{variable} is set, and {name} cannot be set in the environment: give "
                    f"--{name} on the command line, or unset the variable"
                )
            hint = did_you_mean(variable, variables)
            raise UserError(f"{variable} is set, and names no setting{hint}; unset it")
    found: dict[str, Any] = {}
    for variable, name in variables.items():
        if (value := os.environ.get(variable)) and name not in overridden:
            found |= read_knobs(f"{variable} is set", {name: value}, [name])
    return found


# Placeholders for values in --help.
METAVARS: dict[type, str] = {bool: "True|False", int: "N", float: "X", str: "TEXT"}


def parse_flags(argv: Sequence[str]) -> dict[str, Any]:
    """The flags of a command line by name, not yet cast.

    For a bool, `--x`, `--x=True` and `--x True` mean the same. Other forms that sweep agents use
    are accepted too: `x=value`, a JSON object of flags, and the path of a .json file with one.
    """
    parser = ArgumentParser(
        usage="python train.py [--FLAG VALUE ...]",
        description="Train a sparse convolutional autoencoder on articulatory features.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=100),
    )
    for title, knobs in itertools.groupby(KNOBS.values(), key=lambda each: each.group):
        group = parser.add_argument_group(title)
        for each in knobs:
            text = each.text.replace("%", "%%")
            if each.choices or each.limits:
                text += f" [{', '.join(each.choices) or each.range}]"
            if each.default is not None:
                text += f" (default: {each.default})"
            alone: dict[str, Any] = {"nargs": "?", "const": "True"} if each.kind is bool else {}
            group.add_argument(f"--{each.name}", help=text, metavar=METAVARS[each.kind], **alone)
    namespace, rest = parser.parse_known_args(_unambiguous(argv))
    flags = vars(namespace)
    for token in rest:
        name, equals, value = token.partition("=")
        if equals and name in KNOBS:
            flags[name] = value
        elif token.startswith("-"):
            hint = did_you_mean(f"--{name.lstrip('-')}", [f"--{other}" for other in KNOBS])
            raise UserError(f"unknown flag {name}{hint}; --help lists the flags")
        elif token.startswith("{") or (
            token.endswith(".json") and (not equals or os.path.isfile(token))
        ):
            flags |= json_flags(token)
        else:
            hint = did_you_mean(name, KNOBS) if equals else ""
            raise UserError(f"unexpected argument {token!r}{hint}; flags look like --alpha 0.1")
    return flags


def json_flags(token: str) -> dict[str, Any]:
    """The flags in a JSON object: the text of the object, or the path of a file. UserError."""
    if not token.startswith("{"):
        return read_json(token)
    try:
        return json.loads(token)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{token!r} is not a JSON object of flags: {error}") from None


def _unambiguous(argv: Sequence[str]) -> list[str]:
    """Write `--lr -1e-3` as `--lr=-1e-3`, and `--update x=1` as `--update=True x=1`.

    argparse mistakes some negative numbers for flags, and x=1 for the value of --update.
    """
    words: list[str] = []
    for token in argv:
        flag = words[-1] if words else ""
        each = KNOBS.get(flag.removeprefix("--")) if flag.startswith("--") else None
        if each and re.match(r"-[\d.]", token):
            words[-1] = f"{flag}={token}"
            continue
        if each and each.kind is bool and ("=" in token or token.endswith((".json", "}"))):
            words[-1] = f"{flag}=True"
        words.append(token)
    return words


def read_model_config(path: str | Path) -> dict[str, Any]:
    """The entries of a model_config.json. Raises UserError."""
    found = read_json(path)
    if "inner_size" not in found:
        raise UserError(
            f"{path} has no inner_size: expected a model_config.json, as runs write it beside "
            "their best.pth"
        )
    return found


def read_knobs(where: str | Path, found: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The knobs among `names` in `found`, cast and checked. UserError, which says where it is."""
    try:
        return {name: KNOBS[name].read(found[name]) for name in names if name in found}
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _resumed_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run to resume; {} if there is none."""
    if not values.get("resume") or not values.get("run_name"):
        return {}
    path = Path(values.get("out_dir", Config.out_dir)) / values["run_name"] / "config.json"
    if not path.is_file():
        return {}
    # Not the place, which may be that from which the folder was moved.
    return read_knobs(path, read_json(path), [name for name in KNOBS if name != "out_dir"])


# Settings of later versions of the original project, whose models differ: normalisation after the
# convolution, encoders that do not end in a ReLU, other kernel sizes.
LATER_KEYS = (
    "batchnorm_first", "final_tanh", "initial_ekernel", "initial_dkernel", "exclude_final_norm",
    "exclude_all_norm",
)  # fmt: skip
# Keys of the original project that are no knobs here; they correspond to --lr and --keep_loudness.
ORIGINAL_KEYS = ("learning_rate", "input_dim")
# The knobs that --eval_only takes from the run that trained the model.
LOSS_KNOBS = (
    "alpha", "sparse_loss", "slow_coefficient", "slow_loss", "weight_penalty", "target_sparsity",
    "target_persistence",
)  # fmt: skip


def _check_version(path: str | Path, found: Mapping[str, Any], *, asked: bool) -> None:
    """Raise UserError for the model_config.json of a model that this program cannot compute.

    A file without `norm` comes from the original project; warn when its version is uncertain.
    asked: whether --norm is given.
    """
    later = [name for name in LATER_KEYS if name in found]
    if later:
        raise UserError(
            f"{path} says {', '.join(later)}: it is of a later version of the original project, "
            "whose models are different (their encodings can be negative) and cannot be used "
            "here; use that version, or train a new model"
        )
    if "norm" in found:
        return  # of this program; other versions of it may have other knobs
    unknown = [name for name in found if name not in KNOBS and name not in ORIGINAL_KEYS]
    if unknown:
        raise UserError(
            f"{path} says {', '.join(unknown)}, which this program does not know: remove it from "
            "the file if it does not change what the model computes"
        )
    if "patience" in found and not asked:
        warnings.warn(
            f"{path} does not say where its model has batch normalisation: assumed before each "
            "convolution, with a ReLU at the end, as in the first versions of the original "
            'project. If that is right, add "norm": "original" to the file; if it comes after the '
            'convolution, "norm": "batch" (or give --norm)',
            stacklevel=2,
        )


def _with_model_config(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in the architecture from a model_config.json; values that are given must agree with it.

    With --eval_only, fill in the knobs of the loss (`LOSS_KNOBS`) too, so that the same weights and
    data give the same numbers as in training.
    """
    path = values.get("model_config")
    if path is None and values.get("checkpoint"):
        candidate = Path(values["checkpoint"]).parent / "model_config.json"
        path = str(candidate) if os.path.isfile(candidate) else None
    if path is None:
        return values
    found = read_model_config(path)
    architecture = read_knobs(path, found, [name for name in ARCHITECTURE if name != "input_dim"])
    # Files written before this setting existed lack it.
    architecture.setdefault("activation", "relu")
    _check_version(path, found, asked="norm" in values)
    if "norm" not in found:
        architecture["norm"] = values.get("norm", "original")
    dim = found.get("input_dim")
    if dim is not None:
        if str(dim) not in ("13", "14"):
            expected = "13 (without loudness) or 14 (with it)"
            raise UserError(f"{path}: input_dim must be {expected}, got {dim!r}")
        architecture["keep_loudness"] = str(dim) == "14"
    for name, value in architecture.items():
        if values.get(name, value) != value:
            raise UserError(
                f"--{name} {values[name]} contradicts {path}, which says {value}; "
                f"leave --{name} out"
            )
    loss = {}
    if values.get("eval_only"):
        given = {name: value for name, value in found.items() if value is not None}
        loss = read_knobs(path, given, LOSS_KNOBS)
        # A schedule may have changed alpha; metrics.json has the alpha of the selected epoch.
        metrics = Path(path).parent / "metrics.json"
        alpha = read_json(metrics).get("select/alpha") if os.path.isfile(metrics) else None
        if alpha is not None:
            loss["alpha"] = alpha
    return loss | values | architecture | {"model_config": path}
