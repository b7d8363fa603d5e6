"""The device and the precision of a run."""

import ctypes
import os

import torch

from emaae.system.distributed import is_distributed
from emaae.system.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU when there is one. Raises UserError.

    Of several processes each takes its own GPU. Multiplications that are not in bfloat16
    (`use_bf16`) are in full float32 there: TensorFloat-32, cuDNN's default for convolutions, keeps
    ten bits of the mantissa, and a model would not give its logged numbers on other devices.
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
            f"--device {name} is not there: this machine shows {torch.cuda.device_count()} CUDA "
            "device(s); use --device auto or cpu"
        )
    return _gpu_of_process(device) if is_distributed() and device.type == "cuda" else device


def _gpu_of_process(device: torch.device) -> torch.device:
    if device.index is not None:
        raise UserError(
            f"--device {device} is one GPU, and every process takes another: use --device cuda"
        )
    n_gpus = torch.cuda.device_count()
    rank = int(os.environ["LOCAL_RANK"])
    if rank >= n_gpus:
        raise UserError(
            f"process {rank + 1} of this machine needs a GPU of its own, and it shows "
            f"{n_gpus}: start fewer by --nproc_per_node, or use --device cpu"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether training multiplies in bfloat16: `fp32`, `bf16`, or `auto`, where the hardware does.

    Weights, optimiser, loss and sums stay in float32, and so does every evaluation, so that a model
    gives its logged numbers wherever it is loaded.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.cuda.get_device_capability(device) >= (8, 0)
        # On other CPUs oneDNN emulates it, slower than float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bf16"


def make_deterministic() -> None:
    """Let a GPU add in the same order every time; call it before the first computation there.

    Operations that have no such order raise RuntimeError.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # It would fill each new tensor with NaN, to expose code that reads before it writes.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of giving it back to the system.

    The activations of each step are hundreds of MB, and pages that come fresh from the system are
    cleared first: kept, a step is 1.4 to 1.5 times as fast (benchmarks/RESULTS.md). glibc only;
    on other systems nothing happens.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        libc.mallopt(mmap_max, 0)  # no block of its own for a large array ...
        libc.mallopt(trim_threshold, -1)  # ... and none is given back


def n_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
