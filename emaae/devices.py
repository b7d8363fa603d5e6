"""Where does it run?"""

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
