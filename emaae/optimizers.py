"""The optimisers and the learning rate."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from emaae.config import Config
from emaae.models import CNNAutoEncoder
from emaae.system.devices import use_bf16

# Coefficients a, b, c of Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/: five
# steps s -> a s + b s^3 + c s^5 move every singular value s from about .01..1 into .7..1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# With muon, AdamW updates biases and normalisation weights at this fraction of the learning rate:
# .001 for .04. With a tenth of the learning rate, twice as many units die.
ADAMW_LR_FRACTION = 0.025


def orthogonalise(matrix: Tensor) -> Tensor:
    """Approximately U V' for a matrix (m, n) = U S V': singular values become .7 to 1.2.

    Computed in the precision of the matrix, which may be bfloat16. A positive factor on the matrix
    changes nothing while its norm is between 1e-19 and 1e18; far outside the result tends to 0.
    Singular values far below a hundredth of the norm stay below .7.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # so that the Gram matrix below has the shorter side
    # Singular values must start at most at 1, or they diverge. The square of a norm below the
    # bound would underflow to 0.
    x = x / torch.linalg.vector_norm(x).clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): a step is the orthogonalised Nesterov momentum.

    A weight (out, in, kernel) is treated as a matrix (out, in x kernel). torch.optim.Muon takes
    only matrices and always multiplies in bfloat16, which is a hundred times slower than float32
    where the hardware lacks it.

    Args:
        params: weights of two or more dimensions.
        lr: approximate spectral norm of a step; multiplied by sqrt(out / (in x kernel)) where that
            exceeds 1.
        weight_decay: weights are multiplied by 1 - lr * weight_decay in each step.
        momentum: 0 to 1.
        bf16: multiply in bfloat16.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        bf16: bool = False,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = torch.bfloat16 if bf16 else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                mean = state["momentum"].lerp_(weight.grad, 1 - momentum)
                ahead = weight.grad.lerp(mean, momentum).flatten(1)
                update = orthogonalise(ahead.to(self.dtype)).to(weight.dtype).view_as(weight)
                weight.mul_(1 - lr * group["weight_decay"])
                weight.sub_(update, alpha=lr * max(1, ahead.shape[0] / ahead.shape[1]) ** 0.5)


class Optimizer:
    """The optimiser of a config; with muon, one for the convolutions and AdamW for the rest."""

    def __init__(self, model: CNNAutoEncoder, config: Config):
        self.full_lr = lr = config.lr
        decay = config.weight_decay
        given: dict[str, Any] = {} if decay is None else {"weight_decay": decay}
        self.optimizers: list[tuple[float, torch.optim.Optimizer]]  # (fraction of --lr, optimiser)
        # fused: one kernel for all parameters instead of several for each.
        if config.optimizer == "muon":
            weights = {id(weight): weight for weight in model.conv_weights()}
            rest = [p for p in model.parameters() if id(p) not in weights]
            muon = Muon(
                weights.values(), lr, bf16=use_bf16(config.precision, model.sd.device), **given
            )
            adamw = torch.optim.AdamW(rest, lr, weight_decay=0.0, fused=True)
            self.optimizers = [(1.0, muon), (ADAMW_LR_FRACTION, adamw)]
        else:
            adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
            self.optimizers = [(1.0, adam(model.parameters(), lr, fused=True, **given))]

    @property
    def lr(self) -> float:
        """Learning rate of the last step (with muon: of the convolutions); --lr before any step."""
        return self.optimizers[0][1].param_groups[0]["lr"]

    def zero_grad(self) -> None:
        """Reset the gradients."""
        for _, optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self, factor: float) -> None:
        """Update the weights; factor: the learning rate as a fraction of --lr."""
        for lr_fraction, optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr_fraction * factor * self.full_lr
            optimizer.step()

    def state_dict(self) -> list:
        """The state of each optimiser: tensors and plain values."""
        return [optimizer.state_dict() for _, optimizer in self.optimizers]

    def load_state_dict(self, kept: list) -> None:
        """Restore what `state_dict` returned."""
        for (_, optimizer), state in zip(self.optimizers, kept, strict=True):
            optimizer.load_state_dict(state)


# ---- the learning rate


def warm_up(step: int, n_steps: int) -> float:
    """Factor on the learning rate at step 0, 1, ...: rises linearly over n_steps, then is 1."""
    return min(1.0, (step + 1) / (n_steps + 1))


# For each value of --lr_schedule: the factor on --lr when a fraction `left` (1 to 0) of the steps
# is left.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda left: 1.0,
    "linear": lambda left: left,
    "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
}
