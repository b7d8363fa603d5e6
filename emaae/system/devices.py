"""The device and the precision of a run."""

import ctypes
import os

import torch

from emaae.system.distributed import is_distributed
from emaae.system.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU if there is one. Raises UserError.

    In a run of several processes each process gets its own GPU. Also switches off TensorFloat-32,
    cuDNN's default for convolutions: it keeps only ten bits of the mantissa, so a model would not
    reproduce its logged numbers on other devices.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        known = device.type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} does not exist: this machine has {torch.cuda.device_count()} CUDA "
            "device(s); use --device auto or cpu"
        )
    return _gpu_of_process(device) if is_distributed() and device.type == "cuda" else device


def _gpu_of_process(device: torch.device) -> torch.device:
    if device.index is not None:
        raise UserError(
            f"--device {device} is a single GPU, but each process needs its own: use --device cuda"
        )
    n_gpus = torch.cuda.device_count()
    rank = int(os.environ["LOCAL_RANK"])
    if rank >= n_gpus:
        raise UserError(
            f"process {rank + 1} on this machine needs its own GPU, but there are only {n_gpus}: "
            "start fewer processes with --nproc_per_node, or use --device cpu"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether training multiplies in bfloat16. precision: fp32, bf16, or auto (by the hardware).

    Weights, optimiser, loss, sums and evaluations are in float32, so that a model reproduces its
    logged numbers on every device.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.cuda.get_device_capability(device) >= (8, 0)
        # On other CPUs oneDNN emulates bfloat16, which is slower than float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bf16"


def make_deterministic() -> None:
    """Make GPU computations repeatable bit by bit; call this before the first of them.

    Operations without a deterministic implementation then raise RuntimeError.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # On by default with deterministic algorithms: fills each new tensor with NaN, for debugging.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Make the C library keep freed memory instead of returning it to the system.

    The activations of a step take hundreds of MB, and the system clears each page that it hands
    out. With memory kept, a step is 1.4 to 1.5 times as fast (benchmarks/RESULTS.md). Only for
    glibc; no effect on other systems.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        libc.mallopt(mmap_max, 0)  # large arrays come from the heap, not from mmap ...
        libc.mallopt(trim_threshold, -1)  # ... and the heap never shrinks
