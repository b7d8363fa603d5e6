"""What does a run look like? `python -m analysis.figures RUN` draws its overview.

One function per panel, each taking and returning matplotlib axes, so that a paper's figure can be
put together from them.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import emaae
from emaae.config import Config, read_json
from emaae.data import load_splits
from emaae.data.features import FRAME_RATE_HZ
from emaae.errors import UserError, speaking_plainly
from emaae.reconstructions import Reconstruction, reconstruct

TRUTH, PREDICTION, ALPHA, SPARSITY = "#1d3557", "#e07a5f", "#b08900", "#3d7a5f"
SHOWN = ("TTY", "TDY", "LLY", "pitch")


def read_history(run: Path) -> dict[str, np.ndarray]:
    """Columns of history.jsonl, one value per epoch; undefined values are NaN. Raises UserError."""
    path = run / "history.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing: expected the folder of a run that trained")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # the last line of a run that was killed
            rows.append(json.loads(line))
    if not rows:
        raise UserError(f"{path} is empty: the run ended before its first epoch")
    names = [name for name, value in rows[0].items() if not isinstance(value, list)]
    return {name: np.array([row[name] for row in rows], dtype=float) for name in names}


def losses(axes: Axes, history: dict[str, np.ndarray]) -> Axes:
    """Training and validation loss over epochs, on a logarithmic axis."""
    axes.semilogy(history["epoch"], history["train/loss"], color=TRUTH, lw=1.2, label="train loss")
    axes.semilogy(history["epoch"], history["val/loss"], color=PREDICTION, lw=1.8, label="val loss")
    # A loss spans little more than a decade: powers of ten alone would leave one label.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend(frameon=False)
    axes.set_ylabel("loss")
    return axes


def alpha_and_sparsity(axes: Axes, history: dict[str, np.ndarray]) -> Axes:
    """What the schedule did and what the encoding made of it; both run from 0 to 1."""
    axes.plot(history["epoch"], history["alpha"], color=ALPHA, lw=1.8, label="alpha")
    axes.plot(
        history["epoch"], history["val/sparsity"], color=SPARSITY, lw=1.8, label="val sparsity"
    )
    axes.set(ylim=(0, 1), xlabel="epoch", ylabel="fraction")
    axes.legend(frameon=False)
    return axes


def traces(axes: Axes, found: Reconstruction, shown: tuple[str, ...] = SHOWN) -> Axes:
    """Truth and reconstruction of some channels, one above the other, each in units of its sd."""
    seconds = np.arange(len(found.truth)) / FRAME_RATE_HZ
    r = found.r()
    for row, name in enumerate(shown):
        i = found.channels.index(name)
        mean, sd = found.truth[:, i].mean(), max(found.truth[:, i].std(), 1e-12)
        for values, color, width, label in (
            (found.prediction, PREDICTION, 2.6, "reconstruction"),
            (found.truth, TRUTH, 1.1, "truth"),
        ):
            shifted = (values[:, i] - mean) / sd - 5 * row
            axes.plot(seconds, shifted, color=color, lw=width, label=None if row else label)
        axes.annotate(
            f"{name}\nr = {r[i]:.3f}",
            (1.01, -5 * row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.97))
    axes.set(yticks=[], xlim=(0, seconds[-1]))
    axes.spines["left"].set_visible(False)
    return axes


def encoding(axes: Axes, z: np.ndarray) -> Axes:
    """Raster of an encoding z (T, C): each unit over its own maximum, in the order of its peak."""
    alive = z[:, z.max(0) > 0]
    alive = alive / alive.max(0)
    order = np.argsort(alive.argmax(0), kind="stable")
    axes.imshow(
        alive[:, order].T,
        aspect="auto",
        cmap="Greys",
        vmin=0,
        vmax=1,
        extent=(0, len(z) / FRAME_RATE_HZ, alive.shape[1], 0),
        interpolation="nearest",
    )
    axes.set(xlabel="seconds", ylabel="unit, by time of peak")
    return axes


def overview(run: Path) -> Figure:
    """Losses, alpha and sparsity of a run; an utterance of about 5 s, rebuilt and encoded."""
    config, model = read_config(run), emaae.load_model(run)
    splits = load_splits(config, wanted=("val",))
    if "val" not in splits:
        raise UserError(f"{run} has no validation split: expected the folder of a run that trained")
    val = splits["val"]
    index = int(np.argmin(np.abs(val.lengths - 5 * FRAME_RATE_HZ)))
    with torch.no_grad():
        z = model.encode(val[index].T[None])[0].T.numpy()

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplot_mosaic(
        [["loss", "traces"], ["alpha", "encoding"]], width_ratios=[1, 1.9]
    )
    history = read_history(run)
    losses(panels["loss"], history)
    alpha_and_sparsity(panels["alpha"], history)
    traces(panels["traces"], reconstruct(model, val, index))
    encoding(panels["encoding"], z)
    sparsity = float((z == 0).mean())
    panels["encoding"].set_title(
        f"encoding of {val.names[index]}: {z.shape[1]} units, {sparsity:.0%} zeros",
        fontsize=9,
        loc="left",
    )
    for name in ("loss", "alpha", "traces"):
        panels[name].spines[["top", "right"]].set_visible(False)
    return figure


def read_config(run: Path) -> Config:
    """The config of a run, from its config.json. Raises UserError."""
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: expected the folder of a run")
    kept = read_json(path)
    known = Config.__dataclass_fields__
    return Config.from_mapping({name: value for name, value in kept.items() if name in known})


def main(argv: list[str] | None = None) -> int:
    """Draw the overview of one run; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--out", type=Path, help="directory (default: the run's folder)")
    parser.add_argument("--format", default="png", choices=("png", "pdf", "svg"))
    args = parser.parse_args(argv)
    path = (args.out or args.run) / f"overview.{args.format}"
    figure = overview(args.run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    print(path)
    return 0


if __name__ == "__main__":
    with speaking_plainly("python -m analysis.figures"):
        sys.exit(main())
