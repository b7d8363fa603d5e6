"""The model: a stride-1 convolutional autoencoder with a sparse, over-complete encoding."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from emaae.activations import ACTIVATIONS, ReLU, TopK
from emaae.config import ARCHITECTURE
from emaae.system.distributed import sum_over_processes
from emaae.system.errors import UserError


def stack_widths(inner_size: int, n_blocks: int) -> list[int]:
    """Output channels of the blocks of an encoder; a decoder has them in reverse.

    The first of five blocks keeps the input's width and is not listed. The last hidden width is the
    largest power of two up to `inner_size` / 2 (for two blocks: below `inner_size`). The hidden
    widths before it are 128 and 256, or the last hidden width where that is smaller.

    1024, 5 blocks -> [128, 256, 512, 1024]; 768, 5 -> [128, 256, 256, 768]; 768, 2 -> [512, 768].
    """
    half = inner_size // 2 if n_blocks > 2 else inner_size - 1
    last = 2 ** (half.bit_length() - 1) if half > 0 else 1
    hidden = {2: [], 3: [128], 4: [128, 256], 5: [128, 256]}[n_blocks]
    return [*(min(width, last) for width in hidden), last, inner_size]


def stack_kernels(n_blocks: int) -> list[int]:
    """Kernel sizes in frames: 5 in the first block and 3 after it; two blocks use 3 throughout."""
    return [5 if n_blocks > 2 else 3] + [3] * (n_blocks - 1)


def _masked(h: Tensor, mask: Tensor | None) -> Tensor:
    # The mask in the precision of h: a product of bfloat16 with float32 would be float32.
    return h if mask is None else h * mask.to(h.dtype)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over real frames. h (batch, channel, time).

    In training it normalises by the mean and variance of the batch, pooled over processes, and
    updates the running mean and variance. In evaluation it normalises by the running ones.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, h: Tensor, mask: Tensor | None = None, training: bool = False) -> Tensor:
        if not training:
            running = self.running_mean, self.running_var
            return F.batch_norm(h, *running, self.weight, self.bias, eps=self.eps)
        if mask is None:
            # float32, under autocast too: bfloat16 is too coarse for sums over many frames.
            mask = self.weight.new_ones(h.shape[0], 1, h.shape[2])
        n_frames = sum_over_processes(mask.sum())
        mean = sum_over_processes((h * mask).sum((0, 2))) / n_frames
        centred = h - mean[:, None]
        var = sum_over_processes((centred.square() * mask).sum((0, 2))) / n_frames
        with torch.no_grad():
            unbiased = var * n_frames / (n_frames - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(var + self.eps)
        return centred * scale[:, None] + self.bias[:, None]


class FrameNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each frame. h (batch, channel, time)."""

    def forward(self, h: Tensor, mask: Tensor | None = None, training: bool = False) -> Tensor:
        return rearrange(super().forward(rearrange(h, "b c t -> b t c")), "b t c -> b c t")


# For each --norm: n_channels -> a normalisation layer.
NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "layer": FrameNorm,
    "batch": MaskedBatchNorm,
    "original": MaskedBatchNorm,
}


class Block(nn.Module):
    """Mask, convolution that keeps the length, normalisation, activation. h (batch, channel, time).

    With norm "original", batch normalisation comes before the mask instead. A block without an
    activation has no normalisation after the convolution either.
    """

    norm: nn.Module | None

    def __init__(
        self, in_size: int, out_size: int, kernel_size: int, norm: str, activation: nn.Module | None
    ):
        super().__init__()
        self.conv = nn.Conv1d(in_size, out_size, kernel_size, padding=kernel_size // 2)
        self.norm_first, self.norm = norm == "original", None
        make = NORMS[norm]
        if make and (self.norm_first or activation):
            self.norm = make(in_size if self.norm_first else out_size)
        self.activation = activation

    def forward(self, h: Tensor, mask: Tensor | None, training: bool = False) -> Tensor:
        # Biases make padded frames non-zero. The mask before each convolution keeps them out of the
        # last real frames.
        h = self.conv(_masked(self.normalise_first(h, mask, training), mask))
        return self.activate(h, mask, training)

    def normalise_first(self, h: Tensor, mask: Tensor | None, training: bool = False) -> Tensor:
        """h (batch, channel, time) after the normalisation before the mask, if there is one."""
        return self.norm(h, mask, training) if self.norm and self.norm_first else h

    def activate(self, h: Tensor, mask: Tensor | None, training: bool = False) -> Tensor:
        """h (batch, channel, time) after the convolution's normalisation and activation, if any."""
        if self.norm and not self.norm_first:
            h = self.norm(h, mask, training)
        return self.activation(h, mask, training) if self.activation else h


class Output(NamedTuple):
    """Reconstruction y (batch, input_dim, time) in raw units, encoding z (batch, C, time) >= 0."""

    y: Tensor
    z: Tensor


class CNNAutoEncoder(nn.Module):
    """Sparse convolutional autoencoder over articulatory features.

    Args:
        input_dim: channels of the input (13 without loudness, 14 with it).
        inner_size: units of the encoding, C.
        n_encoder, n_decoder: blocks, 2 to 5 each.
        norm, activation, gate_frames: as the flags of `train.py`, see `emaae.config`.

    The model takes raw features x (batch, input_dim, time) and returns raw-scale reconstructions:
    the buffers `mean` and `sd` hold the mean and standard deviation of the train split (see
    `normalise`). An optional mask (batch, 1, time) in {0, 1} marks real frames; without a mask all
    frames are real. The encoder ends with a ReLU or a sparser activation, so inactive units are
    exactly 0. The decoder ends with a linear layer; with norm "original" a ReLU follows, and
    reconstructions cannot fall below the mean.

    Batch normalisation and activation thresholds use the statistics of the batch, and update the
    running ones, only with `training=True`; `forward` passes it in training mode. By default
    `encode` and `decode` use the running statistics and change nothing, in either mode.
    """

    model_type = "cnn"
    # Lists of modules; buffers (input_dim,).
    encoder: Sequence[Block]
    decoder: Sequence[Block]
    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        input_dim: int = 13,
        inner_size: int = 1024,
        n_encoder: int = 5,
        n_decoder: int = 3,
        norm: str = "none",
        activation: str = "relu",
        gate_frames: int = 9,
    ):
        super().__init__()
        for name, n_blocks in {"n_encoder": n_encoder, "n_decoder": n_decoder}.items():
            if n_blocks not in (2, 3, 4, 5):
                raise ValueError(f"{name} must be 2, 3, 4 or 5 blocks, got {n_blocks}")
        if inner_size < 1 or input_dim < 1:
            raise ValueError(
                f"inner_size and input_dim must be at least 1, got {inner_size} and {input_dim}"
            )
        for name, value, known in (("norm", norm, NORMS), ("activation", activation, ACTIVATIONS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.input_dim, self.inner_size, self.norm = input_dim, inner_size, norm
        self.n_encoder, self.n_decoder = n_encoder, n_decoder
        self.activation, self.gate_frames = activation, gate_frames

        inward = [input_dim, *stack_widths(inner_size, n_encoder)]
        outward = [*reversed(stack_widths(inner_size, n_decoder)), input_dim]
        gate = ACTIVATIONS[activation](inner_size, gate_frames)
        self.encoder = _stack(inward, n_encoder, norm, gate)
        self.decoder = _stack(outward, n_decoder, norm, ReLU() if norm == "original" else None)
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("sd", torch.ones(input_dim))

    def normalise(self, mean: Tensor, sd: Tensor) -> None:
        """Set the mean and sd (input_dim,), in raw units, that standardise the inputs.

        A constant channel (sd 0) is centred but not scaled.
        """
        self.mean.copy_(mean)
        self.sd.copy_(torch.where(sd > 0, sd, 1.0))

    def standardise(self, x: Tensor) -> Tensor:
        """Raw features x (..., input_dim, time) as z-scores by the train split's mean and sd."""
        return (x - self.mean[:, None]) / self.sd[:, None]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Output:
        """Reconstruction and encoding of raw features x (batch, input_dim, time)."""
        z = self.encode(x, mask, self.training)
        return Output(self.decode(z, mask, self.training), z)

    def encode(self, x: Tensor, mask: Tensor | None = None, training: bool = False) -> Tensor:
        """Raw features (batch, input_dim, time) -> encoding (batch, inner_size, time), >= 0."""
        h = self.standardise(x)
        for block in self.encoder:
            h = block(h, mask, training)
        return _masked(h, mask)

    def decode(self, z: Tensor, mask: Tensor | None = None, training: bool = False) -> Tensor:
        """Encoding (batch, inner_size, time) -> raw features (batch, input_dim, time)."""
        for block in self.decoder:
            z = block(z, mask, training)
        y = z * self.sd[:, None] + self.mean[:, None]
        return _masked(y, mask)

    def get_type(self) -> str:
        """A name for the architecture, e.g. CNN_Autoencoder_ne5_nd3_innersz1024."""
        return f"CNN_Autoencoder_ne{self.n_encoder}_nd{self.n_decoder}_innersz{self.inner_size}"

    def architecture(self) -> dict[str, Any]:
        """The arguments of `build_model` for a model like this one."""
        return {name: getattr(self, name) for name in ARCHITECTURE}

    def conv_weights(self) -> list[Tensor]:
        """The convolution weights (out, in, kernel), input to output."""
        return [block.conv.weight for block in (*self.encoder, *self.decoder)]

    def unit_norms(self) -> Tensor:
        """L2 norm (inner_size,) of the first decoder layer's weights that read each unit."""
        # sqrt(sum of squares) would have a NaN gradient for a unit whose weights are all 0.
        return torch.linalg.vector_norm(self.decoder[0].conv.weight, dim=(0, 2))

    @property
    def top_k(self) -> TopK | None:
        """The activation that keeps the largest values of the encoding; None with "relu"."""
        last = self.encoder[-1].activation
        return last if isinstance(last, TopK) else None

    def receptive_field(self) -> int:
        """Number of input frames that one frame of the encoding depends on."""
        return _field(self.encoder) + (self.top_k.gate_frames - 1 if self.top_k else 0)

    def decoder_receptive_field(self) -> int:
        """Number of frames of the encoding that one frame of the reconstruction depends on."""
        return _field(self.decoder)


def _field(blocks: Sequence[Block]) -> int:
    return 1 + sum(block.conv.kernel_size[0] - 1 for block in blocks)


def _stack(widths: list[int], n_blocks: int, norm: str, end: nn.Module | None) -> Any:
    if n_blocks == 5:  # the first block keeps the width
        widths = [widths[0], *widths]
    return nn.ModuleList(
        Block(widths[i], widths[i + 1], k, norm, ReLU() if i < n_blocks - 1 else end)
        for i, k in enumerate(stack_kernels(n_blocks))
    )


def build_model(model_type: str = "cnn", **architecture: Any) -> CNNAutoEncoder:
    """A new model from the settings of `config.ARCHITECTURE`.

    Raises ValueError for unknown settings and UserError when the weights exceed the memory.
    """
    if model_type != "cnn":
        raise ValueError(f"model_type must be cnn, got {model_type!r}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = weight_bytes(model_type, **architecture)
    if needed > memory:
        raise UserError(
            f"a model of {architecture} has {needed / 1e9:.1f} GB of weights, more than the "
            f"{memory / 1e9:.1f} GB of memory of this machine: lower --inner_size"
        )
    return CNNAutoEncoder(**architecture)


def weight_bytes(model_type: str = "cnn", **architecture: Any) -> int:
    """Bytes of the weights and buffers of a model, computed without allocating them."""
    with torch.device("meta"):
        return sum(t.nbytes for t in CNNAutoEncoder(**architecture).state_dict().values())
