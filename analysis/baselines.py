"""Four encodings without training, at any sparsity, for comparison.

- `one frame`: random projections of single frames, each minus its own threshold, ReLU.
- `smoothed`: the same, smoothed by a Hann window first.
- `untrained`: a model's encoder with random weights, and thresholds as above.
- `nmf`: sparse non-negative matrix factorisation of windows of frames, for gestures; after
  Ramanarayanan, Goldstein & Narayanan (2013), "Spatio-temporal articulatory movement primitives
  during speech production", with scikit-learn's factorisation of stacked frames.

Each has a linear decoder that sees as many frames of the encoding as a model's: ridge regression on
the train split, its strength chosen on val.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from analysis.costs import Codec
from analysis.kernels import untrained
from emaae.activations import TopK
from emaae.data.split import Split
from emaae.models import CNNAutoEncoder
from emaae.system.errors import needs_extra

HANN = 9  # frames
RIDGE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # in units of the inputs' mean energy
MAX_FRAMES = 20_000  # of the train split, for thresholds and decoders
# Gestures, frames of a window, weight of the L1 penalty on activations, steps, frames.
N_GESTURES, WINDOW, NMF_PENALTY, NMF_STEPS, NMF_FRAMES = 64, 9, 0.01, 100, 8_000

# From features (D, T) to responses (C, T).
Response = Callable[[Tensor], Tensor]


@torch.no_grad()
def baseline(
    name: str, model: CNNAutoEncoder, splits: Mapping[str, Split], at: Sequence[float], seed: int
) -> list[Codec]:
    """A codec of a name in `BASELINES` for each sparsity in `at`, 0 to 1.

    splits: train and val are used. model: gives the number of units (`nmf` has 64), the number of
    frames that the decoder sees, and the standardisation of features.
    """
    train, val = _evenly_spread(splits["train"]), _evenly_spread(splits["val"])
    respond = BASELINES[name](model, train, seed)
    responses = torch.cat([respond(train[i].T) for i in range(len(train))], 1)
    found = []
    for sparsity in at:
        threshold = responses.kthvalue(round(sparsity * responses.shape[1]), dim=1, keepdim=True)[0]

        def encode(x: Tensor, threshold: Tensor = threshold) -> Tensor:
            return (respond(x) - threshold).relu()

        decode = _decoder(encode, model, train, val)
        found.append(Codec(model.input_dim, encode, decode, model.standardise))
    return found


def _evenly_spread(split: Split) -> Split:
    """Utterances, evenly spread, of at most `MAX_FRAMES`."""
    step = 1 + len(split.frames) // MAX_FRAMES
    return split.subset(np.arange(0, len(split), step))


# ---- encoders, before their thresholds


def _one_frame(model: CNNAutoEncoder, train: Split, seed: int) -> Response:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(model.inner_size, model.input_dim, generator=generator)
    return lambda x: weights @ model.standardise(x)


def _smoothed(model: CNNAutoEncoder, train: Split, seed: int) -> Response:
    project, window = _one_frame(model, train, seed), TopK(1, HANN)
    return lambda x: window.smoothed(project(x)[None], None)[0]


def _untrained(model: CNNAutoEncoder, train: Split, seed: int) -> Response:
    fresh = untrained(model, seed, model.mean, model.sd)
    fresh.encoder[-1].activation = None
    return lambda x: fresh.encode(x[None])[0]


def _nmf(model: CNNAutoEncoder, train: Split, seed: int) -> Response:
    with needs_extra("analysis"):
        from sklearn.decomposition import NMF
        from sklearn.exceptions import ConvergenceWarning

    def windows(x: Tensor) -> np.ndarray:
        """The parts above and below the mean, each >= 0, of the frames around each."""
        x = model.standardise(x)
        return _context(torch.cat([x.relu(), (-x).relu()]), WINDOW).T.numpy()

    seen = np.concatenate([windows(train[i].T) for i in range(len(train))])
    factors = NMF(
        min(N_GESTURES, *seen.shape),
        init="nndsvdar",
        l1_ratio=1.0,
        alpha_W=NMF_PENALTY,
        alpha_H=0.0,
        tol=1e-3,
        max_iter=NMF_STEPS,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as good as these steps make it
        factors.fit(seen[:: 1 + len(seen) // NMF_FRAMES])
    return lambda x: torch.from_numpy(factors.transform(windows(x)).T.astype(np.float32))


BASELINES = {"one frame": _one_frame, "smoothed": _smoothed, "untrained": _untrained, "nmf": _nmf}


# ---- decoders


def _context(z: Tensor, n_frames: int) -> Tensor:
    """z (C, T) with the frames around each, zeros beyond the ends: (C n_frames, T)."""
    padded = F.pad(z, (n_frames // 2, n_frames // 2))
    return rearrange(padded.unfold(1, n_frames, 1), "c t n -> (c n) t")


def _decoder(encode: Response, model: CNNAutoEncoder, train: Split, val: Split) -> Response:
    """The best linear decoder: z (C, T) -> features (D, T) in units of sd, fitted when needed."""
    n_frames = model.decoder_receptive_field()

    def inputs(z: Tensor) -> Tensor:
        return F.pad(_context(z, n_frames), (0, 0, 0, 1), value=1.0)

    def pairs(split: Split) -> tuple[Tensor, Tensor]:
        xs = [split[i].T for i in range(len(split))]
        z = torch.cat([inputs(encode(x)) for x in xs], 1)
        return z, torch.cat([model.standardise(x) for x in xs], 1)

    @functools.cache
    @torch.no_grad()
    def weights() -> Tensor:
        (z, x), (z_val, x_val) = pairs(train), pairs(val)
        inner, outer = (z @ z.T).double(), (z @ x.T).double()
        scale = inner.diagonal().mean()
        fits = []
        for ridge in RIDGE:
            solved = inner + ridge * scale * torch.eye(len(inner), dtype=inner.dtype)
            fits.append(torch.cholesky_solve(outer, torch.linalg.cholesky(solved)).float())
        return min(fits, key=lambda fit: float((fit.T @ z_val - x_val).square().sum()))

    return lambda z: weights().T @ inputs(z)
