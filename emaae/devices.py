"""Where does it run, and in which precision?"""

import ctypes
import sys

import torch

from emaae.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU when there is one. Raises UserError.

    Convolutions are computed in full float32 there: TensorFloat-32, cuDNN's default, keeps ten bits
    of the mantissa, and a model would not give the numbers that were logged for it elsewhere.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} is not there: this machine shows {torch.cuda.device_count()} CUDA "
            "device(s); use --device auto or cpu"
        )
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether training multiplies in bfloat16: `fp32`, `bf16`, or `auto`, where the hardware does.

    Weights, optimiser, loss and sums stay in float32, and so does every evaluation: what is logged
    of a model are the numbers that it gives wherever it is loaded.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.cuda.get_device_capability(device) >= (8, 0)
        # oneDNN emulates it elsewhere, slower than float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bf16"


def keep_heap() -> None:
    """Let the C library keep freed memory instead of giving it back to the system.

    The activations of each step are hundreds of MB, and pages that come fresh from the system are
    cleared first. glibc only; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        libc.mallopt(mmap_max, 0)  # no block of its own for a large array ...
        libc.mallopt(trim_threshold, -1)  # ... and none is given back
