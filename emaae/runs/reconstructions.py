"""Saving and drawing truth and prediction of a few utterances."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emaae.data.features import FRAME_RATE_HZ
from emaae.data.split import Split
from emaae.models import CNNAutoEncoder
from emaae.system.files import make_folder, write_atomically


@dataclass(frozen=True)
class Reconstruction:
    """One utterance and its reconstruction: truth and prediction (T, D) in raw units."""

    name: str
    channels: tuple[str, ...]
    truth: np.ndarray
    prediction: np.ndarray

    def correlations(self) -> np.ndarray:
        """Pearson correlation of each channel (D,); NaN where truth or prediction is constant."""
        truth, prediction = self.truth.astype(np.float64), self.prediction.astype(np.float64)
        truth, prediction = truth - truth.mean(0), prediction - prediction.mean(0)
        spread = np.sqrt((truth**2).sum(0) * (prediction**2).sum(0))
        r = np.full(len(spread), np.nan)
        np.divide((truth * prediction).sum(0), spread, out=r, where=spread > 0)
        return r


def indices_of_median_length(split: Split) -> list[int]:
    """The indices of the three utterances whose lengths are nearest to the median."""
    distance = np.abs(split.lengths - np.median(split.lengths))
    return sorted(np.argsort(distance, kind="stable")[:3].tolist())


@torch.no_grad()
def reconstruct(model: CNNAutoEncoder, split: Split, index: int) -> Reconstruction:
    """Reconstruct the utterance of a split at `index`."""
    truth = split[index]
    prediction = model.decode(model.encode(truth.T[None]))[0].T
    return Reconstruction(
        split.names[index], split.channels, truth.cpu().numpy(), prediction.cpu().numpy()
    )


def save(reconstruction: Reconstruction, stem: Path, title: str) -> None:
    """Write `stem`.npz (truth, prediction, channels, r, name) and `stem`.png. Raises UserError."""
    arrays = vars(reconstruction) | {"r": reconstruction.correlations()}
    figure = draw(reconstruction, title)
    make_folder(stem.parent)
    npz, png = (stem.with_name(f"{stem.name}.{form}") for form in ("npz", "png"))
    write_atomically(npz, lambda file: np.savez(file, **arrays))
    write_atomically(png, lambda file: figure.savefig(file, format="png", dpi=100))


def draw(reconstruction: Reconstruction, title: str):
    """A matplotlib figure: a lane per channel, truth over prediction.

    Each lane is scaled to the range of the truth, printed under the channel's name; r is printed at
    its right end.
    """
    # matplotlib takes a second to import; a Figure without pyplot needs no display.
    from matplotlib.figure import Figure

    truth, prediction = reconstruction.truth, reconstruction.prediction
    seconds = np.arange(len(truth)) / FRAME_RATE_HZ
    lanes = -np.arange(len(reconstruction.channels))
    figure = Figure(figsize=(9, 0.62 * len(lanes) + 1))
    # All lanes share one pair of axes: a pair for each channel takes ten times as long.
    axes = figure.subplots()
    inch = 1 / figure.get_figheight()
    figure.subplots_adjust(0.11, 0.45 * inch, 0.93, 1 - 0.5 * inch)
    low, high = truth.min(0), truth.max(0)
    middle, span = (low + high) / 2, np.where(high > low, (high - low) * 1.25, 1.0)

    def lane(values: np.ndarray) -> np.ndarray:
        # Values far outside the range would cover the other lanes.
        return np.clip((values - middle) / span, -0.7, 0.7) + lanes

    predicted = axes.plot(seconds, lane(prediction), "#e07a5f", lw=2.4)
    true = axes.plot(seconds, lane(truth), "#1d3557", lw=1.0)
    axes.set_ylim(lanes[-1] - 0.75, 0.75)
    axes.margins(x=0)
    axes.set_yticks([])
    axes.set_xlabel("seconds", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["left", "top", "right"]].set_visible(False)
    side: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    for i, (channel, r) in enumerate(zip(reconstruction.channels, reconstruction.correlations())):
        name = "pitch (Hz)" if channel == "pitch" else channel
        limits = f"{low[i]:.3g} to {high[i]:.3g}"
        agreement = "r undefined" if np.isnan(r) else f"r {r:.3f}"
        axes.text(-0.01, lanes[i] + 0.14, name, ha="right", fontsize=9, **side)
        axes.text(-0.01, lanes[i] - 0.2, limits, ha="right", fontsize=6.5, color="0.45", **side)
        axes.text(1.01, lanes[i], agreement, fontsize=8, **side)
    # parse_math=False: a name that looks like a formula is still text.
    heading = f"{reconstruction.name}   {title}"
    figure.text(0.11, 1 - 0.25 * inch, heading, fontsize=11, va="center", parse_math=False)
    figure.legend(
        [true[0], predicted[0]],
        ["truth", "reconstruction"],
        loc="center right",
        bbox_to_anchor=(0.93, 1 - 0.25 * inch),
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return figure
