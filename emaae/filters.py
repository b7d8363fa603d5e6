"""Linear filters over time: shifts by fractions of a frame, and smoothing.

Shifts are in frames of 20 ms, cutoffs in fractions of the Nyquist frequency, 25 Hz.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emaae.models import CNNAutoEncoder

KAISER_BETA = 8.0


def windowed_sinc(n_taps: int, cutoff: float = 1.0, delay: float = 0.0) -> Tensor:
    """Taps (n_taps,) of a low-pass filter that delays by `delay` frames; n_taps odd, DC gain 1.

    The Kaiser window (beta 8) is centred on the delay (Laakso et al. 1996, "Splitting the unit
    delay"), so that delays by whole frames are exact.
    """
    half = n_taps // 2
    n = torch.arange(-half, half + 1, dtype=torch.float64) + delay
    inside = 1 - (n / half).square()
    window = torch.where(inside >= 0, torch.special.i0(KAISER_BETA * inside.clamp(min=0).sqrt()), 0)
    taps = torch.sinc(cutoff * n) * window
    return taps / taps.sum()


def pad_edges(x: Tensor, n: int) -> Tensor:
    """x (C, T) with its first and last frame repeated n times each: (C, T + 2 n)."""
    return F.pad(x, (n, n), mode="replicate")


def convolve_channels(x: Tensor, taps: Tensor) -> Tensor:
    """Filter each channel of x (..., C, T) by the same taps (taps,): (..., C, T - taps + 1)."""
    # A depthwise convolution is twenty times faster than channels as a batch.
    n_channels = x.shape[-2]
    return F.conv1d(x, taps.to(x).expand(n_channels, 1, -1), groups=n_channels)


def apply_filters(x: Tensor, filters: Tensor) -> Tensor:
    """x (C, T) filtered by each of the filters (F, taps), taps odd: (F, C, T); edges repeated."""
    padded = pad_edges(x, filters.shape[1] // 2)
    return torch.stack([convolve_channels(padded, taps) for taps in filters])


def decode_filtered(model: CNNAutoEncoder, z: Tensor, filters: Tensor) -> Tensor:
    """decode(LP z) for each low-pass filter LP (F, taps), standardised: z (C, T) -> (F, D, T).

    A filter of DC gain 1 commutes with the first convolution of the decoder, its bias, and the
    normalisation before it. So these are computed once, and the filters are applied to their
    output, which has fewer channels than z. At the ends of the utterance filter and convolution do
    not commute, see `_convolve_ends`.
    """
    first = model.decoder[0]
    z = first.normalise_first(z[None], None)[0]
    half_kernel, half_filter = first.conv.weight.shape[2] // 2, filters.shape[1] // 2
    convolved = F.conv1d(pad_edges(z, 2 * half_kernel), first.conv.weight, first.conv.bias)
    convolved = pad_edges(convolved, half_filter - half_kernel)
    starts, ends = _convolve_ends(first.conv, z, filters)
    decoded, n_ends = [], ends.shape[-1]
    # One filter at a time: the results of all filters would not fit the cache.
    for taps, start, end in zip(filters, starts, ends):
        h = convolve_channels(convolved, taps)[None]
        h[..., :n_ends], h[..., -n_ends:] = start, end
        h = first.activate(h, None)
        for block in model.decoder[1:]:
            h = block(h, None)
        decoded.append(h)
    return torch.cat(decoded)


def _convolve_ends(conv: nn.Conv1d, z: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last n frames of conv(LP z) for each filter LP: two of (F, channels, n).

    Beyond the ends the convolution pads LP z with zeros, whereas the filter repeats the outer
    frames of z. This concerns n = kernel // 2 frames at each end.
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
