"""Paper figures: `python -m analysis.figures DIR` draws all that the runs have numbers for.

Their text stays text in pdf and svg, their widths are those of one and two columns of a journal,
and the same runs give the same file. What they show is in `analysis/panels.py`.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import panels
from analysis.panels import Missing
from analysis.runs import Run, best, read_runs
from emaae.system.errors import UserError, speaking_plainly

ONE, TWO = 3.5, 7.2  # columns of a journal, in inches: 89 and 183 mm
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 8,
    "figure.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "savefig.dpi": 300,
    # Text as text, in fonts that journals take and editors can change.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "emaae",
}
MAX_RUNS = 60  # with a panel each
# The same runs give the same file, whenever it is drawn.
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


@dataclass(frozen=True)
class Page:
    """A figure on paper.

    draw: fills the axes with the runs, or with the best run when it is of one_model. axes: makes
    them, from the figure and the runs. width: in inches; height: of one row. legend: whether the
    axes have one in common, which then stands below them.
    """

    draw: Callable
    axes: Callable[[Figure, Sequence[Run]], Any]
    width: float
    height: float
    one_model: bool = False
    legend: bool = False


def grid(rows: int = 1, columns: int = 1, **more: Any) -> Callable:
    """Axes in rows and columns; `more` is for matplotlib's `subplots`."""
    return lambda figure, runs: figure.subplots(rows, columns, **more)


def _one_per_run(figure: Figure, runs: Sequence[Run]) -> np.ndarray:
    n = min(max(1, sum(bool(run.history) for run in runs)), MAX_RUNS)
    columns = min(n, 4)
    return figure.subplots(math.ceil(n / columns), columns, squeeze=False, sharex=True)


def _one_per_channel(figure: Figure, runs: Sequence[Run]) -> np.ndarray:
    n = 14 if runs[0].config.get("keep_loudness") else 13
    return figure.subplots(n, 1, sharex=True)


def _one_per_kernel(figure: Figure, runs: Sequence[Run]) -> np.ndarray:
    # The first of five blocks is as wide as the input, 13 or 14 channels.
    return figure.subplots(2 if runs[0].config.get("n_encoder") == 5 else 3, 8)


def _overview(figure: Figure, runs: Sequence[Run]) -> dict[str, Axes]:
    rows: list[Any] = [["loss", "traces"], ["alpha", "encoding"]]
    return figure.subplot_mosaic(rows, width_ratios=[1, 1.9])


FIGURES = {
    "overview": Page(panels.overview, _overview, TWO, 1.9, one_model=True),
    "losses": Page(panels.losses, grid(1, 2), TWO, 2.5, legend=True),
    "losses_by_run": Page(panels.losses_by_run, _one_per_run, TWO, 1.3),
    "alpha": Page(panels.alpha, grid(1, 2), TWO, 2.5, legend=True),
    "mse_against_alpha": Page(panels.mse_against_alpha, grid(1, 2), TWO, 2.6, legend=True),
    "fvu_against_sparsity": Page(panels.fvu_against_sparsity, grid(), ONE, 2.8, legend=True),
    "sparsity_against_persistence": Page(
        panels.sparsity_against_persistence, grid(), ONE, 2.8, legend=True
    ),
    "shift_tolerance": Page(panels.shift_tolerance, grid(1, 2), TWO, 2.6, legend=True),
    "articulators": Page(panels.articulators, grid(), TWO, 2.4, legend=True),
    "reconstruction": Page(panels.reconstruction, _one_per_channel, TWO, 0.55, one_model=True),
    "encodings": Page(panels.encodings, grid(2, 1, sharex=True), TWO, 2.2, one_model=True),
    "kernels": Page(panels.kernels, _one_per_kernel, TWO, 1.4, one_model=True),
    "decoder_primitives": Page(panels.decoder_primitives, grid(3, 8), TWO, 1.5, one_model=True),
}


def draw(name: str, runs: Sequence[Run]) -> Figure:
    """One of FIGURES. Raises Missing when the runs lack what it shows."""
    page = FIGURES[name]
    if page.one_model:
        runs = [best(runs) or runs[0]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        axes = page.axes(figure, runs)
        layout = figure.axes[0].get_gridspec()
        rows = layout.nrows if layout else 1
        page.draw(axes, runs[0] if page.one_model else runs)
        below = legend(figure, page.width) if page.legend else 0.0
        figure.set_size_inches(page.width, page.height * rows + below)
    return figure


def legend(figure: Figure, width: float) -> float:
    """One legend of all axes below them; returns the inches that it takes."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    if len(entries) < 2:
        return 0.0
    # About .05 inches a letter at 7 points, and .45 for the line beside it.
    columns = max(1, int(width / (0.45 + 0.05 * max(map(len, entries)))))
    columns = min(columns, len(entries))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns)
    return 0.17 * math.ceil(len(entries) / columns)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            figure.savefig(path, metadata=UNDATED[path.suffix[1:]])
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def main(argv: list[str] | None = None) -> int:
    """Draw what can be drawn, and say of the rest why not; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description=__doc__)
    parser.add_argument(
        "refs",
        nargs="+",
        metavar="DIR|ENTITY/PROJECT[/SWEEP]",
        help="runs, sweeps, or an --out_dir, put together",
    )
    parser.add_argument("--format", default="pdf", choices=tuple(UNDATED), help="(default: pdf)")
    parser.add_argument(
        "--out", type=Path, help="directory (default: DIR/figures; figures for runs on W&B)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=tuple(FIGURES), help=", ".join(FIGURES)
    )
    args = parser.parse_args(argv)
    runs = [run for ref in args.refs for run in read_runs(ref)]
    first = Path(args.refs[0])
    out = args.out or (first if first.is_dir() else Path()) / "figures"
    drawn = 0
    for name in args.only or FIGURES:
        try:
            figure = draw(name, runs)
        except Missing as why:
            print(f"no {name}: {why}")
            continue
        path = out / f"{name}.{args.format}"
        save(figure, path)
        drawn += 1
        print(path)
    if not drawn:
        raise UserError(
            f"nothing could be drawn of {' '.join(args.refs)}: expected runs that trained"
        )
    return 0


if __name__ == "__main__":
    with speaking_plainly("python -m analysis.figures"):
        sys.exit(main())
