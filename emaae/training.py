"""Training: the epoch loop, selection, early stopping and the two alpha phases."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from emaae.config import Config
from emaae.data.split import Split, batches, training_order
from emaae.evaluation import evaluate
from emaae.losses import LossSums, batch_sums, loss_terms, pressure
from emaae.metrics import zero
from emaae.models import CNNAutoEncoder
from emaae.optimizers import LR_SCHEDULES, Optimizer, warm_up
from emaae.schedules import AlphaSchedule, lambda_eff
from emaae.system.devices import use_bf16
from emaae.system.distributed import (
    broadcast,
    local_share,
    stop_if_interrupted,
    sum_over_processes,
    wrap_ddp,
)
from emaae.system.errors import UserError
from emaae.system.progress import progress
from emaae.system.signals import Interrupted, defer_interrupts

# A training mse above this counts as divergence. An untrained model has an mse of about 1 on
# standardised channels; a model from other data may start at a thousand. A bound is needed because
# a much too high learning rate need not end in NaN or inf: Muon's steps have a constant size.
DIVERGED_MSE = 1e6


class Run:
    """Receives the events of a training; this base class ignores them."""

    def save_best(self, model: CNNAutoEncoder, selected: Mapping[str, float]) -> None:
        """Save the weights, the best so far; selected: `Selection.metrics`."""

    def save_last(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Save `state()`, which a resumed run needs; may be skipped unless `now`."""

    def reconstruct(self, model: CNNAutoEncoder, val: Split, epoch: int) -> None:
        """Draw reconstructions of a few validation utterances; called before `log`."""

    def log(self, row: Mapping[str, Any], seconds: float) -> None:
        """Log the metrics of an epoch and the duration of its training and validation."""


@dataclass
class Selection:
    """The best epoch so far, and the epochs without improvement since."""

    score: float = math.inf
    epoch: int = 0  # from 1; 0 while no score was finite
    alpha: float = 0.0
    waited: int = 0  # epochs since the last improvement, or since `Phase` restarted the count

    def update(self, score: float, epoch: int, alpha: float) -> bool:
        """Select the epoch if its score is lower than the best; returns whether. NaN never is."""
        if score < self.score:
            self.score, self.epoch, self.alpha, self.waited = score, epoch, alpha, 0
            return True
        self.waited += 1
        return False

    def metrics(self) -> dict[str, float]:
        """The metrics select/..., logged once at the end of a run."""
        return {f"select/{name}": getattr(self, name) for name in ("score", "epoch", "alpha")}


@dataclass
class Phase:
    """The phase of the training.

    With --early_stop and --update, alpha is constant until early stopping would end the run; then
    the schedule begins (t = 0). Otherwise the schedule begins with the first epoch.

    With --early_stop and a falling learning rate, the learning rate is held until early stopping
    would end the run, or until --patience epochs are left. It then falls over --patience epochs,
    and the run ends.
    """

    started: int | None  # finished epochs when the schedule began; None while alpha is constant
    length: int  # epochs of the schedule, during which early stopping must not end the run
    falling: int | None = None  # finished epochs when early stopping made the learning rate fall

    def decay_start(self, config: Config) -> int:
        """Finished epochs when the learning rate begins to fall, as now known; for --early_stop."""
        latest = max(0, config.epochs - config.patience)
        return latest if self.falling is None else self.falling

    def advance(self, epoch: int, selection: Selection, config: Config, k_falls: bool) -> bool:
        """Begin the next phase if it is due after `epoch` epochs; returns whether to stop early.

        k_falls: whether the activation will keep fewer values in the next epoch than in this one.
        """
        ramping = self.started is not None and epoch - self.started <= self.length
        if ramping or k_falls:
            selection.waited = 0  # patience counts from the end of the ramp
        lr_decays = config.early_stop and config.lr_schedule != "constant"
        if lr_decays and self.decay_start(config) < epoch:
            return epoch - self.decay_start(config) >= config.patience and epoch < config.epochs
        over = config.early_stop and selection.waited >= config.patience
        if over and self.started is None:
            self.started, selection.waited, over = epoch, 0, False
        elif over and lr_decays:
            self.falling, over = epoch, False
        return over


@dataclass
class TrainingState:
    """Everything that changes during training; last.pt stores it.

    No state of a random generator belongs to it: the order of the data depends only on seed and
    epoch, and nothing else is random.
    """

    model: CNNAutoEncoder
    forward: nn.Module  # the model, wrapped for training in several processes
    optimizer: Optimizer
    schedule: AlphaSchedule
    phase: Phase
    selection: Selection = field(default_factory=Selection)
    best: dict[str, torch.Tensor] | None = None  # weights of the selected epoch, a copy
    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch ...
    sums: LossSums = LossSums()  # ... the sums of their losses ...
    active: torch.Tensor = zero()  # ... and the number of their encoding values that are not 0
    stopped: bool = False  # whether early stopping ended the training

    @classmethod
    def begin(cls, model: CNNAutoEncoder, config: Config) -> "TrainingState":
        """The state before the first epoch."""
        two_phases = config.early_stop and config.update
        return cls(
            model=model,
            forward=wrap_ddp(model),
            optimizer=Optimizer(model, config),
            schedule=config.schedule(),
            phase=Phase(None, config.ramp_epochs) if two_phases else Phase(0, 0),
        )

    def alpha(self, constant: float) -> float:
        """Alpha of the next epoch; `constant` until the schedule begins."""
        started = self.phase.started
        return constant if started is None else self.schedule.alpha(self.epoch - started)

    def lr_factor(self, config: Config, n_batches: int) -> float:
        """Learning rate of the next step as a fraction of --lr; n_batches: steps of an epoch."""
        step, n_steps = self.epoch * n_batches + self.batch, config.epochs * n_batches
        n_warm = round(config.lr_warm_up * n_steps)
        first, n_falling = n_warm, n_steps - n_warm
        if config.early_stop:
            first = self.phase.decay_start(config) * n_batches
            n_falling = config.patience * n_batches
        left = min(1.0, 1 - (step - first) / max(1, n_falling))
        return warm_up(step, n_warm) * LR_SCHEDULES[config.lr_schedule](left)

    def end_epoch(self) -> None:
        """Move on to the first batch of the next epoch."""
        self.epoch += 1
        self.batch, self.sums, self.active = 0, LossSums(), zero()

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": list(self.sums),
            "active": self.active,
            "stopped": self.stopped,
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "selection": asdict(self.selection),
            "phase": asdict(self.phase),
            "schedule": dict(self.schedule.state),
        }

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, with tensors on the device of the model."""
        device = next(self.model.parameters()).device

        def on_device(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device)

        self.epoch, self.batch, self.stopped = kept["epoch"], kept["batch"], kept["stopped"]
        # An earlier version stored None at the end of an epoch.
        self.sums = LossSums(*map(on_device, kept["sums"] or ()))
        self.active = on_device(kept["active"] or zero())
        self.model.load_state_dict(kept["model"])
        best = kept["best"]
        self.best = best and {name: on_device(value) for name, value in best.items()}
        self.optimizer.load_state_dict(kept["optimizer"])
        self.selection = Selection(**kept["selection"])
        self.phase = Phase(**kept["phase"])
        self.schedule.state = dict(kept["schedule"])


class FitResult(NamedTuple):
    """The result of a training, without its state, which would keep the process group alive."""

    status: str  # finished, early_stopped or diverged
    selection: Selection
    best: dict[str, torch.Tensor] | None  # the selected weights; None when no score was finite


def fit(
    model: CNNAutoEncoder,
    train: Split,
    val: Split,
    config: Config,
    run: Run,
    last: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train until the last epoch, an early stop, or divergence.

    last: the state of an interrupted training, to continue it. Returns the best weights; the model
    itself has the last weights. On a CPU, the same config, data and number of threads give
    the same numbers, interrupted or not. Raises UserError for a validation split without variance
    and for a `last` of another training; saves the state before it passes on `Interrupted`.
    """
    if not (val.mean_and_sd()[1] > 0).any():
        raise UserError(
            f"the validation split never moves ({len(val.frames)} frame(s), {len(val)} "
            "utterance(s)), so no fvu can be computed: give it more utterances"
        )
    if config.update and config.penalty_scheduler == "step_original":
        warnings.warn(
            "step_original raises alpha to 1, where the reconstruction has no weight and the model "
            "is destroyed: it is meant for comparison only; use step instead",
            stacklevel=2,
        )
    if config.precision == "bf16" and not use_bf16("auto", train.device):
        warnings.warn(
            f"--precision bf16: this {train.device.type} has no bfloat16 and emulates it, many "
            "times slower than float32; use --precision auto or fp32",
            stacklevel=2,
        )
    state = TrainingState.begin(model, config)
    if last is not None:
        try:
            state.load_state_dict(last)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"last.pt does not hold the state of this training ({error}): begin another run "
                "with another --run_name"
            ) from error
    try:
        # Signals take effect after a batch, so that all processes stop together.
        with defer_interrupts():
            status = _epochs(state, train, val, config, run)
    except Interrupted:
        run.save_last(state.state_dict, now=True)
        raise
    return FitResult(status, state.selection, state.best)


def _epochs(state: TrainingState, train: Split, val: Split, config: Config, run: Run) -> str:
    """Do the remaining epochs; returns the status."""
    model, selection, phase, note = state.model, state.selection, state.phase, ""

    while state.epoch < config.epochs and not state.stopped:
        began, alpha = time.monotonic(), state.alpha(config.alpha)
        k = config.k_fraction_at(state.epoch)
        if model.top_k:
            model.top_k.k = k
        train_row = train_epoch(state, train, alpha, config, run, note)
        val_row = evaluate(model, val, config, alpha)
        # The last bits may differ between processes, but all must take the same decisions.
        train_row, val_row = broadcast((train_row, val_row))
        state.end_epoch()
        # A NaN mse counts as diverged: it compares as False.
        diverged = not (math.isfinite(train_row["loss"]) and train_row["mse"] < DIVERGED_MSE)
        improved = not diverged and selection.update(val_row["score"], state.epoch, alpha)
        if improved:
            state.best = copy.deepcopy(model.state_dict())
        row = {"epoch": state.epoch, "alpha": alpha, "lr": state.optimizer.lr}
        row["lambda_eff"] = lambda_eff(alpha, pressure(config, model))
        if model.top_k:
            row["k_fraction"] = k
        row |= {f"train/{name}": value for name, value in train_row.items()}
        row |= {f"val/{name}": value for name, value in val_row.items()}
        seconds = time.monotonic() - began
        if diverged:
            run.log(row, seconds)
            return "diverged"

        k_falls = model.top_k is not None and config.k_fraction_at(state.epoch) < k
        # Alpha must not react to the rise in sparsity that a falling k causes.
        if phase.started is not None and not k_falls:
            state.schedule.observe(train_row["mse"], train_row["sparsity"])
        state.stopped = phase.advance(state.epoch, selection, config, k_falls)
        over = state.stopped or state.epoch == config.epochs
        if over or state.epoch == 1 or state.epoch % config.epochs_per_figure == 0:
            run.reconstruct(model, val, state.epoch)
        run.log(row, seconds)
        if improved:
            run.save_best(model, selection.metrics())
        run.save_last(state.state_dict, now=over)
        note = f"fvu {val_row['fvu']:.4f}, sparsity {val_row['sparsity']:.3f}, alpha {alpha:.3f}"
    return "early_stopped" if state.stopped else "finished"


def train_epoch(
    state: TrainingState, split: Split, alpha: float, config: Config, run: Run, note: str = ""
) -> dict[str, float]:
    """Do the rest of one epoch, from the next batch of `state` on.

    Returns loss, mse, penalty, slow (with --slow_coefficient) and sparsity over all frames of the
    epoch. note: text after the progress bar. Sums stay on the device until the end, so that the CPU
    need not wait for each step.
    """
    model, optimizer = state.model.train(), state.optimizer
    order = training_order(split.lengths, config.batch_sz, config.seed, state.epoch)
    what, n_batches = f"epoch {state.epoch + 1}/{config.epochs}", len(order)
    bf16 = use_bf16(config.precision, split.device)
    rest = batches(split, local_share(order[state.batch :]))
    for x, mask in progress(
        rest, what, total=n_batches, done=state.batch, unit="batches", postfix=note
    ):
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = state.forward(x, mask)
        sums = batch_sums(config, model, x, out, mask).pooled()
        loss_terms(config, model, sums, alpha).loss.backward()
        optimizer.step(state.lr_factor(config, n_batches))
        state.sums = state.sums.plus(sums)
        state.active = state.active + sum_over_processes(out.z.detach().count_nonzero())
        state.batch += 1
        run.save_last(state.state_dict)
        stop_if_interrupted()
    with torch.no_grad():
        terms = loss_terms(config, model, state.sums, alpha)
    n_values = len(split.frames) * model.inner_size
    return terms.row() | {"sparsity": 1 - int(state.active) / n_values}
