"""Utterances as long as LibriSpeech's, of noise: for timings, where the content does not matter."""

import numpy as np

from emaae.data.split import Split

N_UTTERANCES = 28_539  # of train-clean-100
# Quantiles of its durations in seconds. Between .95 and 1 they are not known: .998 is set so that
# random batches of 32 are padded by 32 %, as those of the corpus are.
QUANTILES = (
    (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.998, 1),
    (1.41, 4.24, 11.62, 14.0, 15.16, 16.08, 16.6, 24.52),
)


def lengths(n: int = N_UTTERANCES) -> np.ndarray:
    """Frames of n utterances (n,)."""
    at = np.random.default_rng(0).uniform(size=n)
    return (np.interp(at, *QUANTILES) * 50).astype(int)


def noise(lengths: np.ndarray) -> Split:
    """Utterances of these lengths (U,) of white noise, without loudness."""
    random = np.random.default_rng(1)
    return Split.from_utterances(
        (f"u{i:06d}", random.normal(size=(t, 14)).astype(np.float32)) for i, t in enumerate(lengths)
    )


def padding(lengths: np.ndarray, order: list[np.ndarray]) -> np.ndarray:
    """Frames computed per real frame in each batch (batches,)."""
    return np.array([lengths[b].max() * len(b) / lengths[b].sum() for b in order])


def total_padding(lengths: np.ndarray, order: list[np.ndarray]) -> float:
    """Frames computed per real frame in all batches together."""
    return sum(lengths[b].max() * len(b) for b in order) / lengths.sum()


def typical(lengths: np.ndarray, order: list[np.ndarray]) -> np.ndarray:
    """The lengths of one batch, that of median work among those padded as the whole epoch is."""
    off = np.abs(padding(lengths, order) - total_padding(lengths, order))
    near = np.argsort(off)[: max(1, len(order) // 10)]
    frames = np.array([lengths[order[i]].sum() for i in near])
    return lengths[order[near[np.argsort(frames)[len(near) // 2]]]]
