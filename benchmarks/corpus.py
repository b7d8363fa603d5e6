"""Utterances of noise with LibriSpeech's durations, for timings, where content does not matter."""

import numpy as np

from emaae.data.split import Split

N_UTTERANCES = 28_539  # of train-clean-100
# Probabilities, and quantiles of the durations of train-clean-100 in seconds. That at .998 is
# chosen so that random batches of 32 are padded by 32 %, as for the real corpus.
QUANTILES = (
    (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.998, 1),
    (1.41, 4.24, 11.62, 14.0, 15.16, 16.08, 16.6, 24.52),
)


def lengths(n: int = N_UTTERANCES) -> np.ndarray:
    """Numbers of frames of n utterances (n,)."""
    at = np.random.default_rng(0).uniform(size=n)
    return (np.interp(at, *QUANTILES) * 50).astype(int)


def noise(lengths: np.ndarray) -> Split:
    """A split of white noise, without loudness; lengths (U,): frames of each utterance."""
    random = np.random.default_rng(1)
    return Split.from_utterances(
        (f"u{i:06d}", random.normal(size=(t, 14)).astype(np.float32)) for i, t in enumerate(lengths)
    )


def padding(lengths: np.ndarray, order: list[np.ndarray]) -> np.ndarray:
    """Number of frames with padding / number of real frames, for each batch (batches,)."""
    return np.array([lengths[b].max() * len(b) / lengths[b].sum() for b in order])


def total_padding(lengths: np.ndarray, order: list[np.ndarray]) -> float:
    """Number of frames with padding / number of real frames, over all batches."""
    return sum(lengths[b].max() * len(b) for b in order) / lengths.sum()


def typical(lengths: np.ndarray, order: list[np.ndarray]) -> np.ndarray:
    """The lengths of a typical batch.

    Of the tenth of the batches whose padding is closest to that of the whole epoch, the batch with
    the median number of frames.
    """
    deviation = np.abs(padding(lengths, order) - total_padding(lengths, order))
    closest = np.argsort(deviation)[: max(1, len(order) // 10)]
    frames = np.array([lengths[order[i]].sum() for i in closest])
    return lengths[order[closest[np.argsort(frames)[len(closest) // 2]]]]
