"""Paper figures: `python -m analysis.figures DIR` draws all that the runs have numbers for.

Their text stays text in pdf and svg, their widths are those of one and two columns of a journal,
and the same runs give the same file. What they show is in `analysis/panels.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from analysis import insides, panels, paper
from analysis.drawing import Drawing, Missing, Panel, in_grid
from analysis.paper import ONE, TWO, UNDATED
from analysis.programs import folder_of, program
from analysis.runs import Run, best, read_comparable
from emaae.system.errors import UserError, reporting_errors
from emaae.system.files import expand_home


@dataclass(frozen=True)
class Page:
    """A figure on paper: what it shows of the runs, its width and the height of a row, in inches.

    of_best: it shows one run, the best.
    """

    show: Callable[..., Drawing]
    width: float
    height: float
    of_best: bool = False


def beside(*shown: Callable[[Sequence[Run]], Panel | list[Panel]]) -> Callable[..., Drawing]:
    """A row of the panels for which there are numbers, with one legend."""

    def show(runs: Sequence[Run]) -> Drawing:
        row: list[Panel] = []
        reasons = []
        for one in shown:
            try:
                found = one(runs)
                row += found if isinstance(found, list) else [found]
            except Missing as why:
                reasons.append(why)
        if not row:
            raise reasons[0]
        return Drawing([row], legend=True)

    return show


def _reconstruction(run: Run) -> Drawing:
    found, _ = insides.through(run)
    rows = [[panel] for panel in insides.reconstruction(found)]
    return Drawing(rows, f"{found.name}, run {run.name}", share_x=True, legend=True)


def _encodings(run: Run) -> Drawing:
    found, z = insides.through(run)
    rows = [[panel] for panel in insides.encodings(found, z)]
    return Drawing(rows, f"{found.name}, run {run.name}")


def _kernels(run: Run) -> Drawing:
    found, n = insides.kernels(run), insides.model_of(run).encoder[0].conv.out_channels
    title = f"first-layer kernels of {run.name}, {len(found)} of {n}, the largest norm first"
    return Drawing(in_grid(found, 8), title, bar="weight (per sd)")


def _primitives(run: Run) -> Drawing:
    found, n = insides.decoder_primitives(run), insides.model_of(run).inner_size
    title = f"decoder primitives of {run.name}, the {len(found)} busiest of {n} units"
    return Drawing(in_grid(found, 8), title, bar="answer to an impulse (sd)")


def _losses_by_run(runs: Sequence[Run]) -> Drawing:
    found = panels.losses_by_run(runs)
    return Drawing(in_grid(found, min(len(found), 4)), legend=True)


FIGURES = {
    "overview": Page(insides.overview, TWO, 1.9, of_best=True),
    "losses": Page(beside(panels.losses), TWO, 2.5),
    "losses_by_run": Page(_losses_by_run, TWO, 1.5),
    "alpha": Page(beside(panels.alpha), TWO, 2.5),
    "mse_against_alpha": Page(beside(panels.mse_along_epochs, panels.mse_across_runs), TWO, 2.6),
    "fvu_against_sparsity": Page(beside(panels.fvu_against_sparsity), ONE, 2.8),
    "sparsity_against_persistence": Page(beside(panels.sparsity_against_persistence), ONE, 2.8),
    "shift_tolerance": Page(beside(panels.self_similarity, panels.lowpass), TWO, 2.6),
    "articulators": Page(beside(panels.articulators), TWO, 2.4),
    "reconstruction": Page(_reconstruction, TWO, 0.55, of_best=True),
    "encodings": Page(_encodings, TWO, 2.2, of_best=True),
    "kernels": Page(_kernels, TWO, 1.5, of_best=True),
    "decoder_primitives": Page(_primitives, TWO, 1.5, of_best=True),
}


def draw(name: str, runs: Sequence[Run]) -> Figure:
    """One of FIGURES. Raises Missing when the runs lack what it shows."""
    page = FIGURES[name]
    shown = page.show((best(runs) or runs[0]) if page.of_best else runs)
    return paper.draw(shown, page.width, page.height)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what can be drawn, and say of the rest why not."""
    parser = program("figures", __doc__)
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
    args = expand_home(parser.parse_args(argv))
    runs = read_comparable(*args.refs)
    out = args.out or folder_of(args.refs[0]) / "figures"
    drawn = []
    for name in args.only or FIGURES:
        try:
            figure = draw(name, runs)
        except Missing as why:
            print(f"no {name}: {why}")
            continue
        drawn.append(out / f"{name}.{args.format}")
        paper.save(figure, drawn[-1])
        print(drawn[-1])
    if not drawn:
        refs = " ".join(args.refs)
        raise UserError(f"nothing could be drawn of {refs}: expected runs that trained")


if __name__ == "__main__":
    with reporting_errors("python -m analysis.figures"):
        main()
