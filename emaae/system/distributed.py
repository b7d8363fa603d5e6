"""Training in several processes, which torchrun starts.

    torchrun --nproc_per_node=4 train.py ...

Each process holds the whole model and takes its share of the utterances of every batch. Sums over
a batch are summed over the processes before they are divided (`sum_over_processes`). So every
process has the loss of the whole batch, and the mean of the processes' gradients is the gradient of
this loss. Only the main process, the one of rank 0, writes files, talks to W&B and prints. In a run
of one process these functions have no effect.
"""

import contextlib
import os
import signal
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

# How long the other processes wait for the main process, which may have to read a large corpus.
TIMEOUT = timedelta(days=1)
# Key in the store of the process group; its value is the rank of the first process that failed.
FAILED_KEY = "emaae/ended"


class _Group:
    """The rank of this process and the number of processes; size 1: it computes alone."""

    rank, size = 0, 1


def is_distributed() -> bool:
    """Whether torchrun started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def is_main_process() -> bool:
    """Whether this process writes files, talks to W&B and prints."""
    return _Group.rank == 0


# ---- the life of a group


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """A block in which the processes that torchrun started, if any, compute together.

    Only the main process prints. When an error ends the run, only the first process that failed
    raises it; the others end silently with exit status 0.
    """
    if not is_distributed():
        yield
        return
    launcher = os.getppid()
    # torchrun passes on a SIGTERM; SIGKILL and SIGUSR1 end it without notice to its processes.
    signals.end_with_parent(signal.SIGTERM)
    store, _Group.rank, _Group.size = next(rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        # gloo for Python objects in main memory, NCCL for tensors on a GPU.
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
        # The store is a part of torchrun, and ends with it.
        has_store = os.getppid() == launcher
        if _is_first_to_fail(store, error) if has_store else is_main_process():
            raise _explained(error) from None
        _exit(0)
    finally:
        leave_process_group()


def _exit(status: Any) -> NoReturn:
    """End this process with an exit status; processes other than the main one at once.

    After DistributedDataParallel the threads of gloo continue (torch 2.13), and a thread that asks
    for the GIL while the interpreter shuts down aborts the process. In the main process they have
    ended by then, since it goes on computing alone.
    """
    if is_main_process():
        raise SystemExit(status)
    leave_process_group()
    os._exit(status or 0)


def leave_process_group() -> None:
    """Compute alone from now on; every process must call this."""
    if _Group.size > 1:
        _Group.size = 1
        dist.destroy_process_group()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """A block that prints nothing and defers signals, which the main process handles."""
    with (
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
        signals.defer_interrupts(),
    ):
        yield


def _is_first_to_fail(store: Any, error: BaseException) -> bool:
    """Whether this process failed first and reports its error; later ones may be consequences."""
    if isinstance(error, KeyboardInterrupt) and not is_main_process():
        return False
    return store.compare_set(FAILED_KEY, "", str(_Group.rank)).decode() == str(_Group.rank)


def _explained(error: BaseException) -> BaseException:
    """The error to show: an explanation if gloo's connection to another process broke."""
    if not (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return error
    return UserError(
        "another process of this run has ended, killed perhaps for lack of memory: free memory, or "
        "start fewer processes with --nproc_per_node; --resume continues from the last save"
    )


# ---- communication


def broadcast(value: T) -> T:
    """The value of the main process, in every process; the others wait for it."""
    if _Group.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """A block that the main process finishes before the others enter it."""
    if not is_main_process():
        broadcast(None)
    yield
    if is_main_process():
        broadcast(None)


def stop_if_interrupted() -> None:
    """Raise `Interrupted` in every process if any of them got a signal, so that all stop together.

    Call it inside a `signals.defer_interrupts` block, at a point where the state is consistent.
    """
    pending = signals.interrupt_pending()
    if _Group.size > 1:
        flag = torch.tensor(int(pending))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        pending = bool(flag)
    if pending:
        signals.raise_interrupted()


# ---- computation


def local_share(order: Sequence[np.ndarray]) -> list[np.ndarray]:
    """This process's share of each batch of utterances; may be empty for a small batch."""
    return [batch[_Group.rank :: _Group.size] for batch in order]


class _SumOverProcesses(torch.autograd.Function):
    """Every process uses the sum, so the gradient of each summand sums their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor of any shape over the processes; gradients are summed too."""
    return tensor if _Group.size == 1 else _SumOverProcesses.apply(tensor)


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes, of equal shape, concatenated on the last axis; no gradient."""
    if _Group.size == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(_Group.size)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, -1)


def sum_attributes(sums: object) -> None:
    """Sum every attribute of an object over the processes, in place; all must be tensors."""
    if _Group.size > 1:
        for name, value in vars(sums).items():
            setattr(sums, name, sum_over_processes(value))


def wrap_ddp(model: nn.Module) -> nn.Module:
    """The module to call in training: it averages the gradients over the processes.

    It shares its weights with `model`; initially they become those of the main process.
    """
    if _Group.size == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.13 renames the class, to a name that earlier versions lack.
        warnings.simplefilter("ignore", FutureWarning)
        # broadcast_buffers: running statistics are already pooled where they are computed.
        return DistributedDataParallel(model, broadcast_buffers=False)
