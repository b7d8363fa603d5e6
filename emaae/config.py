"""All knobs of a run, defined in one place.

A field of `Config` is a flag of `train.py`, a parameter of a sweep file, a key of the W&B config
and a key of `config.json`, all of the same name. The string below a field is its help text.
`emaae.command_line` reads the values.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from emaae.knobs import did_you_mean, knob, knobs_of
from emaae.schedules import SCHEDULES, AlphaSchedule, Ramp, k_fraction
from emaae.system.errors import UserError

# The knobs that determine a model: arguments of `models.build_model`.
ARCHITECTURE = (
    "model_type", "input_dim", "inner_size", "n_encoder", "n_decoder", "norm", "activation",
    "gate_frames",
)  # fmt: skip
# How `python -m emaae encode` stores encodings, see emaae.corpus.encodings.
ENCODING_FORMATS = ("float32", "float16", "sparse")
# The groups of knobs that say where the data are and where a run goes.
LOCATION_GROUPS = ("data", "run")
# Schedules that start at `alpha` and never exceed `alpha_max`.
SCHEDULES_FROM_ALPHA = ("step", "exponential", "log_lambda", "target_sparsity", "geco")

_data, _model, _loss, _alpha, _training, _run = (
    partial(knob, group) for group in ("data", "model", "loss", "alpha", "training", "run")
)


@dataclass(frozen=True)
class Config:
    """All knobs of one run. Build it with `Config.from_mapping`, or see `emaae.command_line`."""

    train_dir: str | None = _data(None, path=True)
    """feature tree to train on, with --bucket a prefix in the bucket; without any directory the run
    uses generated demo data"""
    val_dir: str | None = _data(None, path=True)
    """feature tree of the validation split, for selecting the weights and for early stopping"""
    test_dir: str | None = _data(None, path=True)
    """feature tree of the test split, on which the selected weights are measured"""
    demo: bool = _data(False)
    """use the generated demo data, the default without directories; runs of a W&B agent need this
    flag or EMAAE_DEMO=True for it"""
    bucket: str | None = _data(None)
    """read the directories from this S3 bucket (needs requirements-bucket.txt)"""
    recursive: bool = _data(False)
    """read sub-directories too, such as LibriSpeech's speaker/chapter"""
    cache_dir: str = _data("auto", path=True)
    """folder of packed copies of the data, which all runs on a machine share; auto: emaae in
    $XDG_CACHE_HOME or ~/.cache; none: read the data into memory"""
    on_bad_file: Literal["stop", "skip"] = _data("stop")
    """what to do when feature files are broken: stop the run, or skip the files with a warning"""

    keep_loudness: bool = _model(False)
    """keep column 12, loudness: 14 input channels instead of 13"""
    model_type: Literal["cnn"] = _model("cnn")
    """kind of model; cnn is the only one"""
    inner_size: int = _model(1024, at_least=1, at_most=65536)
    """units of the encoding, C"""
    n_encoder: int = _model(5, at_least=2, at_most=5)
    """encoder blocks"""
    n_decoder: int = _model(3, at_least=2, at_most=5)
    """decoder blocks"""
    norm: Literal["none", "layer", "batch", "original"] = _model("none")
    """normalisation after each convolution except the last; original is for checkpoints of the
    original project: batch normalisation before each convolution, and a ReLU at the end of the
    decoder"""
    activation: Literal["relu", "batch_topk", "feature_topk"] = _model("relu")
    """activation at the end of the encoder; batch_topk (Bussmann et al. 2024) keeps the largest
    values of a batch, feature_topk (Ayonrinde 2024; Makhzani & Frey 2015) the largest of each unit,
    and both set the rest to 0; after training the thresholds are running means"""
    gate_frames: int = _model(9, at_least=1)
    """feature_topk: length in frames (odd) of the Hann window that smooths the values compared with
    the threshold; 1 does not smooth"""
    k_fraction: float | None = _model(None, above=0, below=1)
    """batch_topk, feature_topk: fraction of values kept at the end of training (default: 1 -
    target_sparsity); it starts at 0.5, or at this value if larger, and falls linearly over the
    first two thirds of the epochs"""
    checkpoint: str | None = _model(None, path=True)
    """weights (.pth) to start from, or to evaluate with --eval_only"""
    model_config: str | None = _model(None, path=True)
    """model_config.json that gives the architecture (default: the one beside --checkpoint)"""

    autoencoder_loss: Literal["mse"] = _loss("mse")
    """reconstruction loss, on standardised channels; mse is the only one"""
    sparse_loss: Literal["l1", "l1_decoder_norm", "tv", "tvu"] = _loss("l1")
    """penalty on the encoding"""
    slow_coefficient: float = _loss(0.0, at_least=0)
    """weight of the slowness of the encoding relative to the mse: the loss is (1 - alpha) * (mse +
    slow_coefficient * slow) + alpha * penalty"""
    slow_loss: Literal["tv", "tvu"] = _loss("tv")
    """slowness: squared change from frame to frame / variance (tvu: variance within utterances),
    mean over live units"""
    weight_penalty: bool = _loss(False)
    """add (||W||_F - 1)^2 over all convolution weights"""
    target_sparsity: float = _loss(0.9, above=0, at_most=1)
    """fraction of zeros, among units that fire at least once, above which the score no longer
    improves; also the target of --penalty_scheduler target_sparsity"""
    target_persistence: float = _loss(0.9, at_least=0)
    """persistence within utterances (half-life of the encoding / half-life of the input) above
    which the score no longer improves; 0 removes this term from the score"""

    alpha: float = _alpha(0.25, at_least=0, below=1)
    """weight of the penalty; the reconstruction has weight 1 - alpha; with --update, the start
    value of schedules that do not start at 0"""
    update: bool = _alpha(False)
    """let --penalty_scheduler change alpha, from the first epoch or, with --early_stop, from the
    epoch after which the run would have stopped"""
    penalty_scheduler: str = _alpha("step", choices=SCHEDULES)
    """how alpha changes with --update"""
    alpha_epochs: int | None = _alpha(None, at_least=1)
    """length of the schedule's ramp in epochs (default: 15 with --early_stop, else all epochs)"""
    alpha_max: float = _alpha(0.95, above=0, below=1)
    """alpha at the end of the ramp, and upper bound of the adaptive schedules; step reaches it in
    the last epoch of the ramp; linear, cosine, exponential and log_lambda reach it in the first
    epoch after the ramp, so never when the ramp takes all epochs"""
    alpha_period: int | None = _alpha(None, at_least=2)
    """length of a cycle of the cyclical schedule in epochs (default: a quarter of the ramp, at
    least 2)"""
    alpha_rise: float = _alpha(0.5, above=0, at_most=1)
    """cyclical: fraction of a cycle in which alpha rises"""
    alpha_gain: float = _alpha(0.1, above=0)
    """target_sparsity: change of alpha after an epoch, divided by target - fraction of zeros"""
    geco_epsilon: float = _alpha(0.05, above=0)
    """geco: upper bound of the mse on standardised channels under which the penalty is minimised"""
    geco_rate: float = _alpha(0.5, above=0)
    """geco: speed at which the multiplier follows the constraint"""

    epochs: int = _training(500, at_least=1)
    """passes over the training split, at most"""
    batch_sz: int = _training(32, at_least=1)
    """utterances in a batch"""
    lr: float = _training(0.001, above=0)
    """learning rate; about 0.04 for muon"""
    lr_schedule: Literal["constant", "linear", "cosine"] = _training("constant")
    """constant, or how the learning rate falls to 0 after the warm-up: over all epochs or, with
    --early_stop, over another --patience epochs from when the run would have stopped"""
    lr_warm_up: float = _training(0.0, at_least=0, below=1)
    """warm-up, in which the learning rate rises linearly to --lr, as a fraction of all steps"""
    optimizer: Literal["adamw", "adam", "muon"] = _training("adamw")
    """optimiser; muon (Jordan et al. 2024) orthogonalises the steps of the convolutions; biases and
    norms then use adamw at 1/40 of the learning rate"""
    weight_decay: float | None = _training(None, at_least=0)
    """adamw, muon: each step multiplies the weights by 1 - lr * weight_decay; adam: adds
    weight_decay * weights to the gradient (default: 0.01 for adamw, 0 for adam and muon)"""
    precision: Literal["fp32", "bf16", "auto"] = _training("fp32")
    """precision of the multiplications in training: fp32, bf16, or auto (bf16 where the hardware
    has it)"""
    data_dtype: Literal["float32", "float16"] = _training("float32")
    """number type of the stored frames, on disk and in memory: float16 takes half the space, and
    rounds pitch to 1/4 Hz or less below 512 Hz and to 1/2 Hz above"""
    deterministic: bool = _training(False)
    """make repeated runs on the same GPU bitwise identical, at some cost in speed; on a CPU they
    always are"""
    early_stop: bool = _training(False)
    """stop when val/score has not improved for --patience epochs"""
    patience: int = _training(20, at_least=1)
    """epochs without improvement before an early stop"""
    seed: int = _training(0, at_least=0, at_most=2147483647)
    """seed of the initial weights and of the order of the data"""

    out_dir: str = _run("runs", path=True)
    """where run folders are made"""
    run_name: str | None = _run(None)
    """name of the run and of its folder (default: made from the settings and the time)"""
    resume: bool = _run(False)
    """continue the run of --run_name where it stopped, or begin it; a run that a sweep queues again
    continues without this flag"""
    eval_only: bool = _run(False)
    """measure --checkpoint on the given directories and train nothing"""
    reconstruction_every: int | None = _run(None, at_least=1)
    """epochs between reconstruction figures (default: a tenth of the epochs); the first and the
    last epoch always have one"""
    device: str = _run("auto")
    """cpu, cuda, cuda:N, or auto: the GPU when there is one"""
    wandb: Literal["auto", "online", "offline", "disabled"] = _run("auto")
    """Weights & Biases: auto is online when a key is configured, else offline"""
    wandb_project: str = _run("emaae")
    """W&B project"""
    wandb_entity: str | None = _run(None)
    """W&B user or team (default: your own)"""

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> "Config":
        """The config of these names and values; the values may be text. Reads no file.

        Raises UserError for unknown names, for values that cannot be cast or are out of range, and
        for knobs that contradict each other.
        """
        config = cls(**cast_all(given))
        config._check()
        return config

    # ---- what follows from several knobs together

    @property
    def uses_demo(self) -> bool:
        """Whether the run uses the generated demo data: when no directory is given."""
        return not (self.train_dir or self.val_dir or self.test_dir)

    @property
    def cache_folder(self) -> Path | None:
        """The folder of packed copies of the data; None for --cache_dir none."""
        if self.cache_dir == "none":
            return None
        if self.cache_dir != "auto":
            return Path(self.cache_dir)
        base = os.environ.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
        return Path(base, "emaae") if os.path.isabs(base) else None  # no home directory

    @property
    def input_dim(self) -> int:
        """Channels of the input."""
        return 14 if self.keep_loudness else 13

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of `models.build_model`."""
        return {name: getattr(self, name) for name in ARCHITECTURE}

    @property
    def ramp_epochs(self) -> int:
        """Length of the schedule's ramp in epochs."""
        return self.alpha_epochs or (15 if self.early_stop else self.epochs)

    @property
    def epochs_per_figure(self) -> int:
        """Epochs between reconstruction figures."""
        return self.reconstruction_every or max(1, round(self.epochs / 10))

    def k_fraction_at(self, epoch: int) -> float:
        """Fraction of values that batch_topk and feature_topk keep in epoch 0, 1, ...: 0..1."""
        end = 1 - self.target_sparsity if self.k_fraction is None else self.k_fraction
        return k_fraction(epoch, self.epochs, end)

    @property
    def schedule_name(self) -> str:
        """The name of the alpha schedule: constant without --update."""
        return self.penalty_scheduler if self.update else "constant"

    def schedule(self) -> AlphaSchedule:
        """The alpha schedule in its initial state."""
        period = self.alpha_period or max(2, self.ramp_epochs // 4)
        return AlphaSchedule(
            name=self.schedule_name,
            ramp=Ramp(self.alpha, self.alpha_max, self.ramp_epochs, period, self.alpha_rise),
            target=self.target_sparsity,
            gain=self.alpha_gain,
            epsilon=self.geco_epsilon,
            rate=self.geco_rate,
        )

    def _check(self) -> None:
        for name, each in KNOBS.items():
            # step_original ends at alpha 1: such a model can be measured, but no run starts at 1.
            if not (name == "alpha" and self.alpha == 1 and self.eval_only):
                each.check(getattr(self, name))
        scheduler = self.penalty_scheduler
        if self.update and scheduler in SCHEDULES_FROM_ALPHA and self.alpha > self.alpha_max:
            raise UserError(
                f"--alpha {self.alpha} is above --alpha_max {self.alpha_max}: the {scheduler} "
                "schedule starts at alpha and never exceeds alpha_max; lower --alpha"
            )
        if self.update and self.alpha == 0 and scheduler in ("exponential", "log_lambda", "geco"):
            raise UserError(
                f"--alpha 0 cannot start the {scheduler} schedule, which multiplies its start "
                "value; give a small positive --alpha such as 0.01"
            )
        if not self.update and scheduler not in ("step", "constant"):
            raise UserError(
                f"--penalty_scheduler {scheduler} changes alpha only with --update; "
                "add --update or leave the scheduler out"
            )
        if self.gate_frames % 2 == 0:
            raise UserError(
                f"--gate_frames must be odd, got {self.gate_frames}: the window is centred on a "
                "frame; use one more or one less"
            )
        top_k = self.activation in ("batch_topk", "feature_topk")
        if top_k and self.target_sparsity == 1 and self.k_fraction is None and not self.eval_only:
            raise UserError(
                f"--target_sparsity 1 leaves --activation {self.activation} no values to keep: "
                "lower it, or set the fraction to keep with --k_fraction, such as 0.1"
            )
        dirs = [name for name in ("train_dir", "val_dir", "test_dir") if getattr(self, name)]
        if self.demo and dirs:
            raise UserError(f"--demo is the generated data: leave out --{dirs[0]} or --demo")
        if self.eval_only and not self.checkpoint:
            raise UserError("--eval_only needs --checkpoint FILE.pth, the weights to measure")
        for name in ("train_dir", "val_dir"):
            if dirs and name not in dirs and not self.eval_only:
                raise UserError(
                    f"--{name} is missing: give both --train_dir and --val_dir, "
                    "or no directory at all to use the generated demo data"
                )
        if self.bucket and not dirs:
            raise UserError(
                f"--bucket {self.bucket} needs --train_dir and --val_dir, prefixes in the bucket"
            )
        if self.resume and self.eval_only:
            raise UserError("--resume continues training: leave it out with --eval_only")
        if self.run_name and (self.run_name in (".", "..") or set(self.run_name) & set("/\\\n\0")):
            raise UserError(
                f"--run_name {self.run_name!r} must be a plain folder name without slashes; "
                "set the folder of all runs with --out_dir"
            )


KNOBS = knobs_of(Config)
# The knobs that only runs with --update use.
OF_SCHEDULES = [
    name
    for name, each in KNOBS.items()
    if each.group == "alpha" and name not in ("alpha", "update", "penalty_scheduler")
]
# The knobs that a sweep may set: all but paths and those that say where the data and the run are.
SWEEPABLE = [n for n, k in KNOBS.items() if k.group not in LOCATION_GROUPS and not k.path]


def cast_all(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values, each cast to the type of its knob. Raises UserError, also for unknown names."""
    for name in given:
        if name not in KNOBS:
            raise UserError(f"unknown parameter {name!r}{did_you_mean(name, KNOBS)}")
    return {name: KNOBS[name].cast(value) for name, value in given.items()}
