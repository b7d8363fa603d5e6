"""What can be turned? Every knob of a run, once.

A field of `Config` is a flag of `train.py`, a parameter of a sweep file, a key of the W&B config
and a key of `config.json`, all spelt the same. Text is cast by the declared type wherever it
comes from, because sweep agents pass `--update=False` and YAML reads `1e-4` as text.
"""

import argparse
import difflib
import json
import math
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from emaae.errors import UserError
from emaae.files import read_text
from emaae.schedules import SCHEDULES, AlphaSchedule, Ramp, k_fraction

# What a model needs besides its weights: arguments of `models.build_model`.
ARCHITECTURE = ("model_type", "input_dim", "inner_size", "n_encoder", "n_decoder", "norm")
ARCHITECTURE += ("activation", "gate_frames")
# How `python -m emaae encode` keeps encodings, see emaae.encodings.
FORMS = ("float32", "float16", "sparse")
# The groups of knobs that say where the data are and where a run goes.
PLACES = ("data", "run")
# What `evaluate` needs to know of the loss by which a model was trained.
LOSS = ("alpha", "sparse_loss", "slow_coefficient", "slow_loss", "weight_penalty")
LOSS += ("target_sparsity", "target_persistence")
# Schedules that start at `alpha` and never pass `alpha_max`.
FROM_ALPHA = ("step", "exponential", "log_lambda", "target_sparsity", "geco")


def knob(
    default: Any,
    text: str,
    *,
    group: str,
    choices: Sequence[str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of `Config` with its help text and its range."""
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    limits = {word: value for word, value in limits.items() if value is not None}
    return field(
        default=default,
        metadata={"text": text, "group": group, "choices": choices, "limits": limits},
    )


@dataclass(frozen=True)
class Config:
    """All knobs of one run. Build it with `Config.from_args` or `Config.from_mapping`."""

    train_dir: str | None = knob(
        None,
        "feature tree to train on; a prefix with --bucket; without any directory the run uses "
        "generated demo data",
        group="data",
    )
    val_dir: str | None = knob(
        None,
        "feature tree that selects the best weights and stops early",
        group="data",
    )
    test_dir: str | None = knob(
        None,
        "feature tree that is measured once, on the selected weights",
        group="data",
    )
    bucket: str | None = knob(
        None,
        "read the directories from this S3 bucket (needs requirements-bucket.txt)",
        group="data",
    )
    recursive: bool = knob(
        False,
        "read sub-directories too, as LibriSpeech's speaker/chapter",
        group="data",
    )
    cache_dir: str = knob(
        "auto",
        "folder for packed copies of the data, which runs of a machine share: auto is emaae below "
        "$XDG_CACHE_HOME or ~/.cache, none reads into memory",
        group="data",
    )
    verify_data: bool = knob(
        False,
        "read all data again and compare it with the packed copy, which is replaced if it differs",
        group="data",
    )
    on_bad_file: str = knob(
        "stop",
        "what becomes of a run when feature files are broken: end it, or leave them out and say so",
        group="data",
        choices=("stop", "skip"),
    )
    keep_loudness: bool = knob(
        False,
        "keep column 12, loudness: 14 input channels instead of 13",
        group="model",
    )

    model_type: str = knob(
        "cnn",
        "kind of model",
        group="model",
        choices=("cnn",),
    )
    inner_size: int = knob(
        1024,
        "units of the encoding, C",
        group="model",
        at_least=1,
        at_most=65536,
    )
    n_encoder: int = knob(
        5,
        "encoder blocks",
        group="model",
        at_least=2,
        at_most=5,
    )
    n_decoder: int = knob(
        3,
        "decoder blocks",
        group="model",
        at_least=2,
        at_most=5,
    )
    norm: str = knob(
        "none",
        "normalisation after each convolution but the last; original, for the original project's "
        "checkpoints: batch, before each, and a reconstruction that ends in a ReLU",
        group="model",
        choices=("none", "layer", "batch", "original"),
    )
    activation: str = knob(
        "relu",
        "what ends the encoder; batch_topk (Bussmann et al. 2024) keeps the largest values of a "
        "batch, feature_topk (Ayonrinde 2024; Makhzani & Frey 2015) those of each unit, and zeros "
        "the rest; thresholds follow the batches",
        group="model",
        choices=("relu", "batch_topk", "feature_topk"),
    )
    gate_frames: int = knob(
        9,
        "feature_topk: frames of the Hann window by which what is compared with the threshold is "
        "smoothed, odd; 1 is none",
        group="model",
        at_least=1,
    )
    k_fraction: float | None = knob(
        None,
        "batch_topk, feature_topk: fraction of values that are kept; .5 at first if that is more, "
        "falling over the first two thirds of the epochs (default: 1 - target_sparsity)",
        group="model",
        above=0,
        below=1,
    )
    checkpoint: str | None = knob(
        None,
        "weights (.pth) to start from, or to evaluate with --eval_only",
        group="model",
    )
    model_config: str | None = knob(
        None,
        "model_config.json that gives the architecture; with --checkpoint the one beside it "
        "is found",
        group="model",
    )

    autoencoder_loss: str = knob(
        "mse",
        "reconstruction loss, on standardised channels",
        group="loss",
        choices=("mse",),
    )
    sparse_loss: str = knob(
        "l1",
        "penalty on the encoding",
        group="loss",
        choices=("l1", "l1_decoder_norm", "tv", "tvu"),
    )
    slow_coefficient: float = knob(
        0.0,
        "weight of the slowness of the encoding beside the mse: the loss is "
        "(1 - alpha) (mse + slow_coefficient slow) + alpha penalty",
        group="loss",
        at_least=0,
    )
    slow_loss: str = knob(
        "tv",
        "slowness: change from frame to frame over variance, mean over live units; tvu: over "
        "variance within utterances",
        group="loss",
        choices=("tv", "tvu"),
    )
    weight_penalty: bool = knob(
        False,
        "add (||W||_F - 1)^2 over all convolution weights",
        group="loss",
    )
    target_sparsity: float = knob(
        0.9,
        "fraction of zeros, of units that fire, at which sparsity stops counting in the score; "
        "also the aim of --penalty_scheduler target_sparsity",
        group="loss",
        above=0,
        at_most=1,
    )
    target_persistence: float = knob(
        0.9,
        "persistence within utterances, the encoding's over the input's, at which tolerance to "
        "shifts stops counting in the score; 0 leaves it out",
        group="loss",
        at_least=0,
    )

    alpha: float = knob(
        0.25,
        "weight of the penalty; the reconstruction weighs 1 - alpha; where the schedule starts",
        group="alpha",
        at_least=0,
        below=1,
    )
    update: bool = knob(
        False,
        "let --penalty_scheduler change alpha; with --early_stop from the end of the first "
        "phase on, else from the first epoch",
        group="alpha",
    )
    penalty_scheduler: str = knob(
        "step",
        "how alpha changes with --update",
        group="alpha",
        choices=SCHEDULES,
    )
    alpha_epochs: int | None = knob(
        None,
        "length of the schedule's ramp in epochs (default: 15 with --early_stop, else all epochs)",
        group="alpha",
        at_least=1,
    )
    alpha_max: float = knob(
        0.95,
        "alpha at the end of the ramp, and the ceiling of the adaptive schedules",
        group="alpha",
        above=0,
        below=1,
    )
    alpha_period: int | None = knob(
        None,
        "length of a cycle of the cyclical schedule in epochs (default: a quarter of the "
        "ramp, at least 2)",
        group="alpha",
        at_least=2,
    )
    alpha_rise: float = knob(
        0.5,
        "fraction of a cycle that the cyclical schedule rises",
        group="alpha",
        above=0,
        at_most=1,
    )
    alpha_gain: float = knob(
        0.1,
        "target_sparsity: change of alpha per epoch and unit of missing sparsity",
        group="alpha",
        above=0,
    )
    geco_epsilon: float = knob(
        0.05,
        "geco: mse on standardised channels that is held while the penalty falls",
        group="alpha",
        above=0,
    )
    geco_rate: float = knob(
        0.5,
        "geco: speed at which the multiplier follows the constraint",
        group="alpha",
        above=0,
    )

    epochs: int = knob(
        500,
        "passes over the training split, at most",
        group="training",
        at_least=1,
    )
    batch_sz: int = knob(
        32,
        "utterances in a batch",
        group="training",
        at_least=1,
    )
    lr: float = knob(
        0.001,
        "learning rate; about 0.04 for muon",
        group="training",
        above=0,
    )
    lr_schedule: str = knob(
        "constant",
        "how the rate falls to 0 after the warm-up: over all epochs; with --early_stop over "
        "--patience epochs, which begin where the run would have stopped and end it",
        group="training",
        choices=("constant", "linear", "cosine"),
    )
    lr_warm_up: float = knob(
        0.0,
        "fraction of the steps of all epochs over which the rate rises to --lr first",
        group="training",
        at_least=0,
        below=1,
    )
    optimizer: str = knob(
        "adamw",
        "optimiser; muon (Jordan et al. 2024) orthogonalises the steps of the convolutions, and "
        "leaves the rest to adamw at a fortieth of the rate",
        group="training",
        choices=("adamw", "adam", "muon"),
    )
    weight_decay: float | None = knob(
        None,
        "fraction of the rate by which weights shrink in a step; adam adds it to the gradient "
        "(default: 0.01 for adamw, 0 for adam and muon)",
        group="training",
        at_least=0,
    )
    precision: str = knob(
        "fp32",
        "of the multiplications in training: fp32, bf16, or auto: bf16 where the hardware has it",
        group="training",
        choices=("fp32", "bf16", "auto"),
    )
    data_dtype: str = knob(
        "float32",
        "numbers that frames are kept in, on disk and in memory: float16 takes half of it, and "
        "rounds pitch to 1/4 Hz",
        group="training",
        choices=("float32", "float16"),
    )
    deterministic: bool = knob(
        False,
        "the same numbers to the last bit when a run is repeated on the same GPU, slower; on a CPU "
        "they are so anyway",
        group="training",
    )
    compile: bool = knob(
        False,
        "let torch.compile fuse what follows a convolution, for GPUs: minutes at the start, and "
        "slower on a CPU",
        group="training",
    )
    early_stop: bool = knob(
        False,
        "stop when val/score has not improved for --patience epochs",
        group="training",
    )
    patience: int = knob(
        20,
        "epochs without improvement before an early stop",
        group="training",
        at_least=1,
    )
    seed: int = knob(
        0,
        "of the initial weights and of the order of the data",
        group="training",
        at_least=0,
        at_most=2**31 - 1,
    )

    out_dir: str = knob(
        "runs",
        "where run folders are made",
        group="run",
    )
    run_name: str | None = knob(
        None,
        "name of the run and of its folder (default: made from the settings and the time)",
        group="run",
    )
    resume: bool = knob(
        False,
        "go on with the run of --run_name where it stopped, or begin it; runs of a sweep that are "
        "queued again do so by themselves",
        group="run",
    )
    eval_only: bool = knob(
        False,
        "measure --checkpoint on the given directories and train nothing",
        group="run",
    )
    reconstruction_every: int | None = knob(
        None,
        "epochs between reconstruction figures (default: a tenth of the epochs); the first "
        "and the last always have one",
        group="run",
        at_least=1,
    )
    device: str = knob(
        "auto",
        "cpu, cuda, cuda:N, or auto: the GPU when there is one",
        group="run",
    )
    wandb: str = knob(
        "auto",
        "Weights & Biases: auto is online when a key is configured, else offline",
        group="run",
        choices=("auto", "online", "offline", "disabled"),
    )
    wandb_project: str = knob(
        "emaae",
        "W&B project",
        group="run",
    )
    wandb_entity: str | None = knob(
        None,
        "W&B user or team (default: your own)",
        group="run",
    )

    @classmethod
    def from_args(
        cls, argv: Sequence[str] | None = None, sweep: Mapping[str, Any] | None = None
    ) -> "Config":
        """From a command line, the environment and, when a sweep runs it, the sweep's values.

        A sweep's values win over flags. Where the data are and where a run goes may also be said
        by variables such as EMAAE_TRAIN_DIR, over which flags win: so one sweep file serves every
        machine. Raises UserError; `--help` prints and exits.
        """
        for name in sweep or {}:
            if name in cls.__dataclass_fields__ and name not in cls.sweepable():
                raise UserError(
                    f"a sweep may not set {name}: say it with --{name} on the command line or "
                    f"EMAAE_{name.upper()} in the environment of the agent"
                )
        return cls.from_mapping(from_environment() | parse_flags(argv) | dict(sweep or {}))

    @classmethod
    def sweepable(cls) -> tuple[str, ...]:
        """The knobs that a sweep may set: all but paths and where to run."""
        return tuple(
            f.name
            for f in fields(cls)
            if f.metadata["group"] not in PLACES and f.name not in ("checkpoint", "model_config")
        )

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> "Config":
        """Build from names and values, text or not; what is not given keeps its default.

        Raises UserError for unknown names, values that cannot be cast and values out of range.
        """
        known = {f.name: f for f in fields(cls)}
        values = {}
        for name, value in given.items():
            if name not in known:
                raise UserError(f"unknown parameter {name!r}{nearest(name, known)}")
            values[name] = cast(name, value, known[name].type)
        values = _with_model_config(_resumed(values))
        config = cls(**values)
        config._check()
        return config

    def asdict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    # ---- what follows from several knobs together

    @property
    def demo(self) -> bool:
        """Whether the run uses the generated data."""
        return not (self.train_dir or self.val_dir or self.test_dir)

    @property
    def cache_folder(self) -> Path | None:
        """Where packed copies of the data lie; None where there are to be none."""
        if self.cache_dir == "none":
            return None
        if self.cache_dir != "auto":
            return Path(self.cache_dir)
        base = os.environ.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
        return Path(base, "emaae") if os.path.isabs(base) else None  # a user without a home

    @property
    def input_dim(self) -> int:
        """Channels of the input."""
        return 14 if self.keep_loudness else 13

    @property
    def architecture(self) -> dict[str, str | int]:
        """The arguments of `models.build_model`."""
        return {name: getattr(self, name) for name in ARCHITECTURE}

    @property
    def ramp_epochs(self) -> int:
        """Length of the schedule's ramp in epochs."""
        return self.alpha_epochs or (15 if self.early_stop else self.epochs)

    def k_fraction_at(self, epoch: int) -> float:
        """Fraction of values that batch_topk and feature_topk keep, after so many epochs."""
        end = 1 - self.target_sparsity if self.k_fraction is None else self.k_fraction
        return k_fraction(epoch, self.epochs, end)

    @property
    def schedule_name(self) -> str:
        """What alpha really does: constant without --update, whatever the scheduler."""
        return self.penalty_scheduler if self.update else "constant"

    def schedule(self) -> AlphaSchedule:
        """The alpha schedule, at its beginning."""
        width = self.ramp_epochs
        period = self.alpha_period or max(2, width // 4)
        return AlphaSchedule(
            name=self.schedule_name,
            ramp=Ramp(self.alpha, self.alpha_max, width, period, self.alpha_rise),
            target=self.target_sparsity,
            gain=self.alpha_gain,
            epsilon=self.geco_epsilon,
            rate=self.geco_rate,
        )

    def _check(self) -> None:
        for f in fields(self):
            check_range(f.name, getattr(self, f.name), f.metadata)
        if self.update and self.penalty_scheduler in FROM_ALPHA and self.alpha > self.alpha_max:
            raise UserError(
                f"--alpha {self.alpha} is above --alpha_max {self.alpha_max}: the "
                f"{self.penalty_scheduler} schedule starts at alpha and stays below alpha_max; "
                "lower --alpha"
            )
        if (
            self.update
            and self.alpha == 0
            and self.penalty_scheduler in ("exponential", "log_lambda", "geco")
        ):
            raise UserError(
                f"--alpha 0 cannot start the {self.penalty_scheduler} schedule, which multiplies; "
                "give a small positive --alpha such as 0.01"
            )
        if not self.update and self.penalty_scheduler not in ("step", "constant"):
            raise UserError(
                f"--penalty_scheduler {self.penalty_scheduler} changes alpha only with --update; "
                "add --update or leave the scheduler out"
            )
        if self.gate_frames % 2 == 0:
            raise UserError(
                f"--gate_frames must be odd, got {self.gate_frames}: the window has a middle"
            )
        if self.eval_only and not self.checkpoint:
            raise UserError("--eval_only needs --checkpoint FILE.pth, the weights to measure")
        if not self.demo and not self.eval_only:
            for name in ("train_dir", "val_dir"):
                if not getattr(self, name):
                    raise UserError(
                        f"--{name} is missing: give both --train_dir and --val_dir, "
                        "or no directory at all to use the generated demo data"
                    )
        if self.bucket and self.demo:
            raise UserError(
                f"--bucket {self.bucket} needs --train_dir and --val_dir, prefixes in the bucket"
            )
        if self.verify_data and self.cache_dir == "none":
            raise UserError(
                "--verify_data compares a packed copy with what it was made from, and --cache_dir "
                "none makes no copy: leave one of them out"
            )
        if self.resume and self.eval_only:
            raise UserError("--resume goes on with training: leave it out of --eval_only")
        if self.run_name is not None and (
            not self.run_name or self.run_name in (".", "..") or set(self.run_name) & set("/\\\n\0")
        ):
            raise UserError(
                f"--run_name {self.run_name!r} must be a plain folder name without slashes; "
                "say where runs go with --out_dir"
            )


# ---- casting and checking


def cast(name: str, value: Any, declared: Any) -> Any:
    """Value as its declared type (bool, int, float or str, optionally None)."""
    optional = isinstance(declared, types.UnionType)
    kinds = [t for t in typing.get_args(declared) if t is not types.NoneType]
    kind = kinds[0] if optional else declared
    text = value.strip() if isinstance(value, str) else value
    if optional and (text is None or str(text).lower() in ("none", "null")):
        return None
    if text is None:
        raise UserError(f"--{name} needs a value: expected {_wording(kind)}, got None")
    try:
        return _CASTS[kind](text)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"--{name} must be {_wording(kind)}, got {value!r}") from None


def _to_bool(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueError from None


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    try:
        return int(value) if isinstance(value, (int, str)) else _whole(value)
    except ValueError:
        return _whole(float(value))  # quantised sweep distributions give 32.0


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _to_str(value: Any) -> str:
    # Empty text is an unset variable of some script, never a path or a name.
    if isinstance(value, (dict, list, tuple)) or value == "":
        raise ValueError
    return str(value)


_CASTS = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}


def _wording(kind: type) -> str:
    return {
        bool: "True or False",
        int: "a whole number",
        float: "a finite number",
        str: "text that is not empty",
    }[kind]


def check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Raise UserError unless the value is one of the knob's choices and within its limits."""
    choices, limits = metadata["choices"], metadata["limits"]
    if choices and value not in choices:
        raise UserError(
            f"--{name} must be one of {', '.join(choices)}, got {value!r}"
            + nearest(str(value), choices)
        )
    fine = {
        "at least": lambda limit: value >= limit,
        "above": lambda limit: value > limit,
        "at most": lambda limit: value <= limit,
        "below": lambda limit: value < limit,
    }
    if value is not None and not all(fine[word](limit) for word, limit in limits.items()):
        expected = " and ".join(f"{word} {limit:g}" for word, limit in limits.items())
        raise UserError(f"--{name} must be {expected}, got {value}")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """The way out of a misspelling: "; did you mean ...?" or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---- the command line and the environment


def from_environment() -> dict[str, str]:
    """The knobs of the groups `PLACES` that the environment sets, as EMAAE_TRAIN_DIR does."""
    names = (f.name for f in fields(Config) if f.metadata["group"] in PLACES)
    variables = {name: os.environ.get(f"EMAAE_{name.upper()}") for name in names}
    return {name: value for name, value in variables.items() if value}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def parse_flags(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The flags of a command line, not yet cast, by name. `--x`, `--x=True`, `--x True` are one.

    Sweep agents have more ways, all of which are taken: `x=value`, a JSON object, and the path of a
    file that holds one.
    """
    parser = _Parser(
        usage="python train.py [--FLAG VALUE ...]",
        description="Train a sparse convolutional autoencoder on articulatory features.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=100),
    )
    known = {f.name: f for f in fields(Config)}
    groups: dict[str, Any] = {}
    for f in known.values():
        group = f.metadata["group"]
        groups.setdefault(group, parser.add_argument_group(group))
        text = f.metadata["text"].replace("%", "%%")
        if f.metadata["choices"]:
            text += f" [{', '.join(f.metadata['choices'])}]"
        if f.default is not None and f.default is not MISSING:
            text += f" (default: {f.default})"
        value = (
            {"nargs": "?", "const": "True", "metavar": "True|False"}
            if f.type is bool
            else {"metavar": _metavar(f.type)}
        )
        groups[group].add_argument(f"--{f.name}", help=text, **value)
    namespace, rest = parser.parse_known_args(_join_negative_numbers(argv))
    flags = vars(namespace)
    for token in rest:
        name, equals, value = token.partition("=")
        if equals and name in known:
            flags[name] = value
        elif token.startswith("{"):
            flags |= _json_object(token)
        elif token.endswith(".json"):
            flags |= read_json(token)
        elif token.startswith("-"):
            bare = name.lstrip("-")
            options = [f"--{other}" for other in known]
            raise UserError(
                f"unknown flag {name}{nearest(f'--{bare}', options)}; --help lists the flags"
            )
        else:
            raise UserError(f"unexpected argument {token!r}; flags look like --alpha 0.1")
    return flags


def _join_negative_numbers(argv: Sequence[str] | None) -> list[str]:
    """Write `--lr -1e-3` as `--lr=-1e-3`: argparse takes some negative numbers for flags."""
    joined: list[str] = []
    for token in sys.argv[1:] if argv is None else argv:
        flag = joined[-1] if joined else ""
        if re.match(r"-[\d.]", token) and flag.startswith("--") and "=" not in flag:
            joined[-1] = f"{flag}={token}"
        else:
            joined.append(token)
    return joined


def _json_object(token: str) -> dict[str, Any]:
    try:
        return json.loads(token)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{token!r} is not a JSON object of flags: {error}") from None


def _metavar(declared: Any) -> str:
    kinds = [t for t in typing.get_args(declared) or (declared,) if t is not types.NoneType]
    return {int: "N", float: "X", str: "TEXT"}[kinds[0]]


# ---- model_config.json


def read_model_config(path: str | Path) -> dict[str, Any]:
    """The entries of a model_config.json. Raises UserError."""
    found = read_json(path)
    if "inner_size" not in found:
        raise UserError(
            f"{path} has no inner_size: expected a model_config.json, as runs write it beside "
            "their best.pth"
        )
    return found


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError."""
    try:
        found = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {os.strerror(error.errno)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def said_by(
    path: str | Path, found: Mapping[str, Any], names: typing.Iterable[str]
) -> dict[str, Any]:
    """Those of the knobs `names` that a file gives, cast and in range. Raises UserError."""
    known = Config.__dataclass_fields__
    values = {}
    for name in names:
        if name in found:
            try:
                values[name] = cast(name, found[name], known[name].type)
                check_range(name, values[name], known[name].metadata)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
    return values


def _resumed(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the run that is resumed was given; what is said now stands."""
    if not values.get("resume") or not values.get("run_name"):
        return values
    path = Path(values.get("out_dir", Config.out_dir)) / values["run_name"] / "config.json"
    if not path.is_file():
        return values
    return said_by(path, read_json(path), Config.__dataclass_fields__) | values


def _with_model_config(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in the architecture from a model_config.json; what was said explicitly must agree.

    With --eval_only the loss of the run that trained the model is filled in too, so that the same
    weights and data have the same numbers.
    """
    path = values.get("model_config")
    if path is None and values.get("checkpoint"):
        beside = Path(values["checkpoint"]).parent / "model_config.json"
        path = str(beside) if os.path.isfile(beside) else None
    if path is None:
        return values
    found = read_model_config(path)
    architecture = said_by(path, found, [name for name in ARCHITECTURE if name != "input_dim"])
    # Models of before have no word for it.
    architecture.setdefault("activation", "relu")
    if "norm" not in found:
        # The original project had one architecture, and no word for it.
        architecture["norm"] = values.get("norm", "original")
    input_dim = found.get("input_dim")
    if input_dim is not None:
        if str(input_dim) not in ("13", "14"):
            raise UserError(
                f"{path}: input_dim must be 13 (without loudness) or 14 (with it), "
                f"got {input_dim!r}"
            )
        architecture["keep_loudness"] = str(input_dim) == "14"
    for name, value in architecture.items():
        if values.get(name, value) != value:
            raise UserError(
                f"--{name} {values[name]} contradicts {path}, which says {value}; "
                f"leave --{name} out"
            )
    loss = {}
    if values.get("eval_only"):
        told = {name: value for name, value in found.items() if value is not None}
        loss = said_by(path, told, LOSS)
        # A schedule has moved alpha since; the end of a run tells where it was selected.
        metrics = Path(path).parent / "metrics.json"
        selected = read_json(metrics) if os.path.isfile(metrics) else {}
        if selected.get("select/alpha") is not None:
            loss |= said_by(metrics, {"alpha": selected["select/alpha"]}, ["alpha"])
    return loss | values | architecture | {"model_config": path}
