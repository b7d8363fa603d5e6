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

# An untrained model has an mse of about 1 in units of the data's variance, a foreign one that goes
# on learning perhaps a thousand. A rate that is much too high need not end in a number that is not
# finite: each step of Muon is as large as the one before.
DIVERGED_MSE = 1e6


class Run:
    """Receives the events of a training; this base class ignores them."""

    def save_best(self, model: CNNAutoEncoder, selected: Mapping[str, float]) -> None:
        """The weights have just become the best; `selected` are the metrics of the selection."""

    def save_last(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Save what `state()` returns, all that a resumed run needs; optional unless `now`."""

    def reconstruct(self, model: CNNAutoEncoder, val: Split, epoch: int) -> None:
        """Draw reconstructions of a few validation utterances; `log` of this epoch follows."""

    def log(self, row: Mapping[str, Any], seconds: float) -> None:
        """One row of metrics per epoch, and how long training and validation took."""


@dataclass
class Selection:
    """Which epoch is the best so far, and how many epochs ago was it?"""

    score: float = math.inf
    epoch: int = 0  # 0 when none was selected: no score was finite
    alpha: float = 0.0
    waited: int = 0  # epochs since the last improvement or change of alpha's phase

    def update(self, score: float, epoch: int, alpha: float) -> bool:
        """Take the epoch if its score is lower; NaN and equal scores are not."""
        if score < self.score:
            self.score, self.epoch, self.alpha, self.waited = score, epoch, alpha, 0
            return True
        self.waited += 1
        return False

    def metrics(self) -> dict[str, float]:
        """Its metrics, logged once at the end of a run."""
        return {f"select/{name}": getattr(self, name) for name in ("score", "epoch", "alpha")}


@dataclass
class Phase:
    """The phase of the training.

    With --early_stop and --update, alpha is held until the run would stop, and the schedule begins
    there (t = 0). Otherwise the schedule begins with the first epoch.

    With --early_stop and a learning rate that falls, the end is not known beforehand: the rate is
    held until the run would stop, or until --patience epochs are left, falls over --patience
    epochs, and the run ends there.
    """

    started: int | None  # epochs finished when the schedule began; None while alpha is held
    length: int  # epochs of the schedule that patience must not cut short
    falling: int | None = None  # epochs finished when the run would have stopped and the rate fell

    def decay_start(self, config: Config) -> int:
        """Epochs finished when the rate begins to fall, with --early_stop, as far as is known."""
        latest = max(0, config.epochs - config.patience)
        return latest if self.falling is None else self.falling

    def advance(self, epoch: int, selection: Selection, config: Config, k_falls: bool) -> bool:
        """Begin the next phase, if it is time after `epoch` epochs; returns whether to stop early.

        k_falls: in the next epoch the activation will keep fewer values than in the last one.
        """
        ramping = self.started is not None and epoch - self.started <= self.length
        if ramping or k_falls:
            selection.waited = 0  # a ramp is never cut short: patience counts after it
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
    """Everything that changes during training, and so all that last.pt must hold.

    The order of the data follows from (seed, epoch) and nothing else is drawn at random, so no
    random generator belongs to it.
    """

    model: CNNAutoEncoder
    forward: nn.Module  # the same, as it is called in training
    optimizer: Optimizer
    schedule: AlphaSchedule
    phase: Phase
    selection: Selection = field(default_factory=Selection)
    best: dict[str, torch.Tensor] | None = None  # weights of the selected epoch, a copy
    epoch: int = 0  # finished
    batch: int = 0  # finished batches of the epoch under way ...
    sums: LossSums | None = None  # ... the sums of their losses ...
    active: torch.Tensor | None = None  # ... and the number of their encoding values that are not 0
    stopped: bool = False  # early

    @classmethod
    def begin(cls, model: CNNAutoEncoder, config: Config) -> "TrainingState":
        """Before the first epoch."""
        two_phases = config.early_stop and config.update
        return cls(
            model=model,
            forward=wrap_ddp(model),
            optimizer=Optimizer(model, config),
            schedule=config.schedule(),
            phase=Phase(None, config.ramp_epochs) if two_phases else Phase(0, 0),
        )

    def alpha(self, held: float) -> float:
        """Alpha of the next epoch; `held` until the schedule begins."""
        started = self.phase.started
        return held if started is None else self.schedule.alpha(self.epoch - started)

    def lr_factor(self, config: Config, n_batches: int) -> float:
        """Fraction of --lr at the next step; n_batches: steps of an epoch."""
        step, n_steps = self.epoch * n_batches + self.batch, config.epochs * n_batches
        n_warm = round(config.lr_warm_up * n_steps)
        first, n_falling = n_warm, n_steps - n_warm
        if config.early_stop:
            first = self.phase.decay_start(config) * n_batches
            n_falling = config.patience * n_batches
        left = min(1.0, 1 - (step - first) / max(1, n_falling))
        return warm_up(step, n_warm) * LR_SCHEDULES[config.lr_schedule](left)

    def end_epoch(self) -> None:
        """Go on to the first batch of the next epoch."""
        self.epoch += 1
        self.batch, self.sums, self.active = 0, None, None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": None if self.sums is None else list(self.sums),
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
        """Restore what `state_dict` returned, on the device of the model."""
        device = next(self.model.parameters()).device

        def here(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device)

        self.epoch, self.batch, self.stopped = kept["epoch"], kept["batch"], kept["stopped"]
        self.sums = None if kept["sums"] is None else LossSums(*map(here, kept["sums"]))
        self.active = None if kept["active"] is None else here(kept["active"])
        self.model.load_state_dict(kept["model"])
        self.best = kept["best"] and {name: here(value) for name, value in kept["best"].items()}
        self.optimizer.load_state_dict(kept["optimizer"])
        self.selection = Selection(**kept["selection"])
        self.phase = Phase(**kept["phase"])
        self.schedule.state = dict(kept["schedule"])


class FitResult(NamedTuple):
    """The result of a training, without its state, which keeps the process group alive."""

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

    last: the state of an interrupted training, to continue it. The model is left with its last
    weights; the best ones are returned. On a CPU, the same config, data and number of threads give
    the same numbers, interrupted or not. Raises UserError for a validation split whose score would
    be undefined; on `Interrupted` the state is kept first.
    """
    if not (val.mean_and_sd()[1] > 0).any():
        raise UserError(
            f"the validation split never moves ({len(val.frames)} frame(s), {len(val)} "
            "utterance(s)): no fvu can be computed; give it more utterances"
        )
    if config.update and config.penalty_scheduler == "step_original":
        warnings.warn(
            "step_original raises alpha to 1, where the reconstruction has no weight left and the "
            "model is destroyed; it is here for comparison, use step to train",
            stacklevel=2,
        )
    if config.precision == "bf16" and not use_bf16("auto", train.device):
        warnings.warn(
            f"--precision bf16: the {train.device.type} here has no bfloat16 and emulates it, many "
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
        # Signals are looked for after each batch, where all processes stop together.
        with defer_interrupts():
            status = _epochs(state, train, val, config, run)
    except Interrupted:
        run.save_last(state.state_dict, now=True)
        raise
    return FitResult(status, state.selection, state.best)


def _epochs(state: TrainingState, train: Split, val: Split, config: Config, run: Run) -> str:
    """All epochs that are left; returns the status."""
    model, selection, phase, note = state.model, state.selection, state.phase, ""

    while state.epoch < config.epochs and not state.stopped:
        began, alpha = time.monotonic(), state.alpha(config.alpha)
        k = config.k_fraction_at(state.epoch)
        if model.top_k:
            model.top_k.k = k
        train_row = train_epoch(state, train, alpha, config, run, note)
        val_row = evaluate(model, val, config, alpha)
        # Their last bits may differ between processes, whose decisions may not.
        train_row, val_row = broadcast((train_row, val_row))
        state.end_epoch()
        # NaN compares as False.
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
        # While k falls sparsity still rises; alpha must not react to that.
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
    """Finish one pass over a split.

    Returns loss, mse, penalty, slow (if it has a weight) and sparsity over all its frames. note:
    text behind the progress bar. Sums stay on the device until the pass is over, so that no step
    waits for the one before.
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
        state.sums = sums.plus(state.sums)
        active = sum_over_processes(out.z.detach().count_nonzero())
        state.active = active if state.active is None else state.active + active
        state.batch += 1
        run.save_last(state.state_dict)
        stop_if_interrupted()
    assert state.sums is not None, "a split has at least one batch"
    assert state.active is not None
    with torch.no_grad():
        terms = loss_terms(config, model, state.sums, alpha)
    n_values = len(split.frames) * model.inner_size
    return terms.row() | {"sparsity": 1 - int(state.active) / n_values}
