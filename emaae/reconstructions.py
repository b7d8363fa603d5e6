"""What does a reconstruction look like? Truth and prediction of utterances, kept and drawn."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from emaae.data import Split
from emaae.data.features import FRAME_RATE_HZ
from emaae.models import CNNAutoEncoder


@dataclass(frozen=True)
class Reconstruction:
    """One utterance through the model: truth and prediction (T, D) in raw units."""

    name: str
    channels: tuple[str, ...]
    truth: np.ndarray
    prediction: np.ndarray

    def r(self) -> np.ndarray:
        """Pearson correlation of each channel (D,); NaN where truth or prediction is constant."""
        truth, prediction = self.truth.astype(np.float64), self.prediction.astype(np.float64)
        truth, prediction = truth - truth.mean(0), prediction - prediction.mean(0)
        spread = np.sqrt((truth**2).sum(0) * (prediction**2).sum(0))
        r = np.full(len(spread), np.nan)
        np.divide((truth * prediction).sum(0), spread, out=r, where=spread > 0)
        return r


def typical(split: Split, n: int = 3) -> list[int]:
    """Indices of the n utterances whose lengths are nearest to the median: the same every epoch."""
    distance = np.abs(split.lengths - np.median(split.lengths))
    return sorted(int(i) for i in np.argsort(distance, kind="stable")[:n])


@torch.no_grad()
def reconstruct(model: CNNAutoEncoder, split: Split, index: int) -> Reconstruction:
    """One utterance through the model, in evaluation mode."""
    was_training = model.training
    model.eval()
    truth = split[index]
    prediction = model(truth.T[None]).y[0].T
    model.train(was_training)
    return Reconstruction(
        split.names[index], split.channels, truth.cpu().numpy(), prediction.cpu().numpy()
    )


def save(reconstruction: Reconstruction, stem: Path, title: str) -> Path:
    """Write `stem`.npz (truth, prediction, channels, r, name) and `stem`.png; returns the png."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        f"{stem}.npz",
        truth=reconstruction.truth,
        prediction=reconstruction.prediction,
        channels=np.array(reconstruction.channels),
        r=reconstruction.r(),
        name=np.array(reconstruction.name),
    )
    image = stem.with_name(f"{stem.name}.png")
    draw(reconstruction, title).savefig(image, dpi=100)
    return image


def draw(reconstruction: Reconstruction, title: str):
    """A matplotlib figure: a row per channel, truth over prediction, name and r in its title."""
    # matplotlib takes a second to import; a Figure of its own needs no display.
    from matplotlib.figure import Figure

    n_channels = len(reconstruction.channels)
    seconds = np.arange(len(reconstruction.truth)) / FRAME_RATE_HZ
    height = 0.85 * n_channels + 1
    figure = Figure(figsize=(9, height))
    # Fixed margins: matplotlib's automatic layouts take longer than the drawing.
    figure.subplots_adjust(0.07, 0.5 / height, 0.985, 1 - 0.75 / height, hspace=0.75)
    rows = figure.subplots(n_channels, 1, sharex=True, squeeze=False)[:, 0]
    for i, (axes, name, r) in enumerate(zip(rows, reconstruction.channels, reconstruction.r())):
        (predicted,) = axes.plot(seconds, reconstruction.prediction[:, i], "#e07a5f", lw=2.6)
        (true,) = axes.plot(seconds, reconstruction.truth[:, i], "#1d3557", lw=1.1)
        unit = " (Hz)" if name == "pitch" else ""
        agreement = "r undefined" if np.isnan(r) else f"r = {r:.3f}"
        # A y of its own, since matplotlib's search for a free place takes a third of the drawing.
        axes.set_title(f"{name}{unit}   {agreement}", loc="left", fontsize=9, y=1.0, pad=3)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
        axes.locator_params(axis="y", nbins=3)
    rows[-1].set_xlabel("seconds", fontsize=9)
    top = 1 - 0.25 / height
    # A name is text, even one that looks like a formula.
    heading = f"{reconstruction.name}   {title}"
    figure.text(0.07, top, heading, fontsize=11, va="center", parse_math=False)
    figure.legend(
        [true, predicted],
        ["truth", "reconstruction"],
        loc="center right",
        bbox_to_anchor=(0.985, top),
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return figure
