"""Utterances as long as LibriSpeech's, of noise: for timings, where the content does not matter."""

import numpy as np

from emaae.data import Split

# Quantiles of durations in train-clean-100, in seconds.
QUANTILES = ((0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), (1.41, 4.24, 11.62, 14.0, 15.16, 16.08, 24.52))


def lengths(n: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Frames of n utterances (n,)."""
    at = np.random.default_rng(seed).uniform(size=n)
    return np.maximum(5, np.interp(at, *QUANTILES) * 50 * scale).astype(int)


def split(n: int, seed: int = 0, scale: float = 1.0) -> Split:
    """n utterances of white noise, without loudness."""
    random = np.random.default_rng(seed + 1)
    return Split.from_utterances(
        (f"u{i:06d}", random.normal(size=(t, 14)).astype(np.float32))
        for i, t in enumerate(lengths(n, seed, scale))
    )
