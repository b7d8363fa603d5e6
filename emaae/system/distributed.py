"""Training in several processes, which torchrun starts.

    torchrun --nproc_per_node=4 train.py ...

Each process holds the whole model and takes its share of the utterances of every batch. Sums over
a batch are summed over the processes before anything is divided (`sum_over_processes`), so that all
of them have the loss of the whole batch, and the mean of their gradients is its gradient. Only the
main process writes files, talks to W&B and prints. In a run of one process nothing here does
anything.
"""

import contextlib
import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from emaae.system import signals
from emaae.system.errors import UserError

T = TypeVar("T")

# How long the others may wait for the first process, which may read a large corpus.
TIMEOUT = timedelta(days=1)
# The key under which the first process that fails says so.
FAILED_KEY = "emaae/ended"


class _Group:
    """Which of how many processes this is; `size` is 1 when it computes alone."""

    rank, size = 0, 1


def is_distributed() -> bool:
    """Whether torchrun started this process and others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def is_main_process() -> bool:
    """Whether this process is the one that writes files, talks to W&B and prints."""
    return _Group.rank == 0


# ---- the life of a group


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Compute together with the processes that torchrun started, if it did, until the block ends.

    Only the first one prints. An error that ends them all is raised in one process, the first
    that met it; the others end silently with exit status 0.
    """
    if not is_distributed():
        yield
        return
    launcher = os.getppid()
    _end_with_the_launcher()
    store, _Group.rank, _Group.size = next(rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        # Messages between processes are in main memory, tensors on the device.
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=_Group.rank,
        world_size=_Group.size,
        timeout=TIMEOUT,
    )
    try:
        with contextlib.nullcontext() if is_main_process() else _silenced():
            yield
    except SystemExit as end:
        _exit(end.code)
    except BaseException as error:
        # When torchrun has ended, so has its store.
        has_store = os.getppid() == launcher
        if _is_first_to_fail(store, error) if has_store else is_main_process():
            raise _explained(error) from None
        _exit(0)
    finally:
        leave_process_group()


def _exit(status: Any) -> NoReturn:
    """End this process with an exit status; all but the first at once.

    After DistributedDataParallel gloo's threads go on (torch 2.13), and a thread that asks for the
    GIL while the interpreter ends aborts the process. The first process computes on alone, while
    its threads come to rest.
    """
    if is_main_process():
        raise SystemExit(status)
    leave_process_group()
    os._exit(status or 0)


def leave_process_group() -> None:
    """Compute alone from now on; to be called by all."""
    if _Group.size > 1:
        _Group.size = 1
        dist.destroy_process_group()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Print nothing, and leave it to the first process to react to signals."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        signals.defer_interrupts(),
    ):
        yield


def _is_first_to_fail(store: Any, error: BaseException) -> bool:
    """Whether to report the error here: those of the other processes may be its consequences."""
    if isinstance(error, KeyboardInterrupt) and not is_main_process():
        return False
    return store.compare_set(FAILED_KEY, "", str(_Group.rank)).decode() == str(_Group.rank)


def _explained(error: BaseException) -> BaseException:
    """The error to show when the connection broke because another process was killed."""
    if not (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return error
    return UserError(
        "another process of this run is gone, killed perhaps for lack of memory: free some, or "
        "start fewer by --nproc_per_node; --resume goes on from what was kept"
    )


def _end_with_the_launcher() -> None:
    """Get SIGTERM when torchrun dies: it passes that on, but SIGKILL and SIGUSR1 end it."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


# ---- communication


def broadcast(value: T) -> T:
    """The first process's value, in every process; the others wait for it."""
    if _Group.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """A block that the first process leaves before the others enter it."""
    if not is_main_process():
        broadcast(None)
    yield
    if is_main_process():
        broadcast(None)


def stop_if_interrupted() -> None:
    """Raise `Interrupted` in every process when one got a signal, so that none waits.

    To be called within `signals.defer_interrupts`, where nothing is half done.
    """
    asked = signals.interrupt_pending()
    if _Group.size > 1:
        flag = torch.tensor(int(asked))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        asked = bool(flag)
    if asked:
        signals.raise_interrupted()


# ---- computation


def local_share(order: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The share of this process of each batch of utterances; of the last ones it may be empty."""
    return [batch[_Group.rank :: _Group.size] for batch in order]


class _SumOverProcesses(torch.autograd.Function):
    """Each process reads the sum, so the gradient of its part is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor of any shape over the processes, for each; gradients are summed too."""
    return tensor if _Group.size == 1 else _SumOverProcesses.apply(tensor)


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes, of one shape, joined in the last dimension; no gradient."""
    if _Group.size == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(_Group.size)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, -1)


def sum_attributes(sums: object) -> None:
    """Sum every attribute of an object, all of them tensors, over the processes, in place."""
    if _Group.size > 1:
        for name, value in vars(sums).items():
            setattr(sums, name, sum_over_processes(value))


def wrap_ddp(model: nn.Module) -> nn.Module:
    """The model to call in training, whose gradients are the mean of those of all processes.

    Weights and state stay those of `model`, and start as those of the first process.
    """
    if _Group.size == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.13 renames it, to a name that earlier versions lack.
        warnings.simplefilter("ignore", FutureWarning)
        # Running statistics are pooled where they are computed.
        return DistributedDataParallel(model, broadcast_buffers=False)
