"""Linear filters over time: shifts by parts of a frame, and smoothing.

Shifts are in frames of 20 ms, cutoffs in fractions of the Nyquist frequency, 25 Hz.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emaae.models import CNNAutoEncoder

KAISER_BETA = 8.0


def windowed_sinc(n_taps: int, cutoff: float = 1.0, delay: float = 0.0) -> Tensor:
    """Taps (n_taps,) of a low-pass filter that delays by `delay` frames; odd n_taps, DC gain 1.

    The window (Kaiser, beta 8) is centred on the delay (Laakso et al. 1996, "Splitting the unit
    delay"), so that whole frames are exact.
    """
    half = n_taps // 2
    n = torch.arange(-half, half + 1, dtype=torch.float64) + delay
    inside = 1 - (n / half).square()
    window = torch.where(inside >= 0, torch.special.i0(KAISER_BETA * inside.clamp(min=0).sqrt()), 0)
    taps = torch.sinc(cutoff * n) * window
    return taps / taps.sum()


def pad_edges(x: Tensor, n: int) -> Tensor:
    """x (C, T) with its first and last frame held for n frames beyond the ends: (C, T + 2 n)."""
    return F.pad(x, (n, n), mode="replicate")


def convolve_channels(x: Tensor, taps: Tensor) -> Tensor:
    """Each channel of x (..., C, T) through one filter (taps,): (..., C, T - taps + 1)."""
    # Depthwise: twenty times faster than channels as a batch.
    n_channels = x.shape[-2]
    return F.conv1d(x, taps.to(x).expand(n_channels, 1, -1), groups=n_channels)


def apply_filters(x: Tensor, filters: Tensor) -> Tensor:
    """x (C, T) through each filter (F, taps), odd taps: (F, C, T). A constant stays constant."""
    padded = pad_edges(x, filters.shape[1] // 2)
    return torch.stack([convolve_channels(padded, taps) for taps in filters])


def decode_filtered(model: CNNAutoEncoder, z: Tensor, filters: Tensor) -> Tensor:
    """decode(LP z) for each low-pass filter (F, taps), in units of sd: z (C, T) -> (F, D, T).

    The filter commutes with the decoder's first convolution, and with a normalisation before it:
    both are computed once, and fewer channels are filtered than z has (a bias passes a DC gain of 1
    unchanged). At the ends they do not commute, see `_convolve_ends`.
    """
    first = model.decoder[0]
    z = first.normalise_first(z[None], None)[0]
    half_kernel, half_filter = first.conv.weight.shape[2] // 2, filters.shape[1] // 2
    convolved = F.conv1d(pad_edges(z, 2 * half_kernel), first.conv.weight, first.conv.bias)
    convolved = pad_edges(convolved, half_filter - half_kernel)
    starts, ends = _convolve_ends(first.conv, z, filters)
    decoded, n_ends = [], ends.shape[-1]
    # One filter after another: all at once do not fit the cache.
    for taps, start, end in zip(filters, starts, ends):
        h = convolve_channels(convolved, taps)[None]
        h[..., :n_ends], h[..., -n_ends:] = start, end
        h = first.activate(h, None)
        for block in model.decoder[1:]:
            h = block(h, None)
        decoded.append(h)
    return torch.cat(decoded)


def _convolve_ends(conv: nn.Conv1d, z: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last frames of conv(LP z) for each filter: both (F, channels, n).

    Beyond the ends of LP z the convolution reads zeros, where the filter would hold its last frame;
    they reach n frames at each end.
    """
    half_kernel, half_filter = conv.weight.shape[2] // 2, filters.shape[1] // 2
    n_ends, n_read = (min(z.shape[1], n) for n in (half_kernel, 2 * half_kernel))
    padded, n_padded = pad_edges(z, half_filter), n_read + 2 * half_filter
    both = torch.stack([padded[:, :n_padded], padded[:, -n_padded:]])
    starts, ends = torch.stack([convolve_channels(both, taps) for taps in filters], 1)
    zeros = (half_kernel, 2 * half_kernel - n_read)
    both = torch.cat([F.pad(starts, zeros), F.pad(ends, zeros[::-1])])
    starts, ends = F.conv1d(both, conv.weight, conv.bias).chunk(2)
    return starts[..., :n_ends], ends[..., -n_ends:]
