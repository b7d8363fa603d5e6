"""Linear filters over time: shifts by parts of a frame, and smoothing.

Shifts are in frames of 20 ms, cutoffs in fractions of the Nyquist frequency, 25 Hz.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from emaae.models import CNNAutoEncoder

KAISER_BETA = 8.0


def windowed_sinc(n_taps: int, cutoff: float = 1.0, delay: float = 0.0) -> Tensor:
    """Taps (n_taps,) of a low-pass filter that delays by `delay` frames; odd n_taps, DC gain 1.

    The window (Kaiser, beta 8) is centred on the delay (Laakso et al. 1996, "Splitting the unit
    delay"), so that whole frames are exact.
    """
    reach = n_taps // 2
    n = torch.arange(-reach, reach + 1, dtype=torch.float64) + delay
    inside = 1 - (n / reach).square()
    window = torch.where(inside >= 0, torch.special.i0(KAISER_BETA * inside.clamp(min=0).sqrt()), 0)
    taps = torch.sinc(cutoff * n) * window
    return taps / taps.sum()


def pad_edges(x: Tensor, n: int) -> Tensor:
    """x (C, T) with its first and last frame held for n frames beyond the ends: (C, T + 2 n)."""
    return F.pad(x, (n, n), mode="replicate")


def convolve_channels(x: Tensor, taps: Tensor) -> Tensor:
    """Each channel of x (..., C, T) through one filter, less its ends: (..., C, T - taps + 1)."""
    # Depthwise: twenty times faster than channels as a batch.
    n_channels = x.shape[-2]
    return F.conv1d(x, taps.to(x).expand(n_channels, 1, -1), groups=n_channels)


def apply_filters(x: Tensor, filters: Tensor) -> Tensor:
    """x (C, T) through each filter (F, taps), odd taps: (F, C, T). A constant stays constant."""
    beyond = pad_edges(x, filters.shape[1] // 2)
    return torch.stack([convolve_channels(beyond, taps) for taps in filters])


def decode_filtered(model: CNNAutoEncoder, z: Tensor, filters: Tensor) -> Tensor:
    """decode(LP z) for each low-pass filter (F, taps), in units of sd: z (C, T) -> (F, D, T).

    The filter commutes with the decoder's first convolution, and with a normalisation before it:
    they are computed once, and there are fewer channels to filter than in z (a bias passes a DC
    gain of 1 unchanged). But the convolution reads zeros beyond the ends of LP z, where the filter
    holds what is there: the frames that those zeros reach are made in the order of the definition.
    """
    first, n_frames = model.decoder[0], z.shape[1]
    z = first.normalise_first(z[None], None)[0]
    weight, bias = first.conv.weight, first.conv.bias
    reach, wide = weight.shape[2] // 2, filters.shape[1] // 2
    once = pad_edges(F.conv1d(pad_edges(z, 2 * reach), weight, bias), wide - reach)

    n_ends, n_read = min(n_frames, reach), min(n_frames, 2 * reach)
    beyond, span = pad_edges(z, wide), n_read + 2 * wide
    ends = torch.stack([beyond[:, :span], beyond[:, -span:]])
    heads, tails = torch.stack([convolve_channels(ends, taps) for taps in filters], 1)
    zeros = (reach, 2 * reach - n_read)
    ends = F.conv1d(torch.cat([F.pad(heads, zeros), F.pad(tails, zeros[::-1])]), weight, bias)

    decoded = []
    # One filter after another: all at once fall out of the cache.
    for taps, head, tail in zip(filters, *ends.chunk(2)):
        h = convolve_channels(once, taps)[None]
        h[..., :n_ends], h[..., -n_ends:] = head[:, :n_ends], tail[:, -n_ends:]
        h = first.activate(h, None)
        for block in model.decoder[1:]:
            h = block(h, None)
        decoded.append(h)
    return torch.cat(decoded)
