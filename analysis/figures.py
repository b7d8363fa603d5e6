"""Paper figures: `python -m analysis.figures REF...` draws all that the runs have numbers for.

Their text stays text in pdf and svg, their widths are those of one and two columns of a journal,
and the same runs give the same file. What they show is in `analysis/panels.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis import kernels, model_panels, panels, paper
from analysis.drawing import Drawing, Missing, Panel, in_grid
from analysis.paper import ONE, TWO, UNDATED
from analysis.programs import folder_of, program, run_program
from analysis.runs import Run, best, read_comparable
from emaae.system.errors import UserError

Show = Callable[[Sequence[Run]], Drawing]


def beside(*shown: Callable[[Sequence[Run]], Panel | list[Panel]]) -> Show:
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


def of_best(show: Callable[[Run], Drawing]) -> Show:
    """A figure of one run, of the best."""
    return lambda runs: show(best(runs) or runs[0])


def _overview(run: Run) -> Drawing:
    traces, raster = model_panels.encodings(*model_panels.autoencode(run)).panels
    rows = [[panels.run_losses(run), traces], [panels.run_alpha(run), raster]]
    return Drawing(rows, widths=(1, 1.9))


def _reconstruction(run: Run) -> Drawing:
    found, _ = model_panels.autoencode(run)
    return model_panels.reconstruction(found, f"{found.name}, run {run.name}")


def _encodings(run: Run) -> Drawing:
    found, z = model_panels.autoencode(run)
    return model_panels.encodings(found, z, f"{found.name}, run {run.name}")


def _kernels(run: Run) -> Drawing:
    model = model_panels.model_of(run)
    found, n = model_panels.first_kernels(model), model.encoder[0].conv.out_channels
    title = f"first-layer kernels of {run.name}, {len(found)} of {n}, the largest norm first"
    return in_grid(found, 8, title=title)


def _primitives(run: Run) -> Drawing:
    model = model_panels.model_of(run)
    kept = model_panels.kept_by(run, model).values()
    z = np.concatenate([kernels.autoencode(model, one.truth)[1] for one in kept])
    units = kernels.busiest_units(model, z, model_panels.N_TILES)
    if not len(units):
        raise Missing(f"no unit of run {run.name} fires on the kept utterances")
    found, n = model_panels.primitives(kernels.primitives(model, units), units), model.inner_size
    title = f"decoder primitives of {run.name}, the {len(units)} busiest of {n} units"
    return in_grid(found, 8, title=title)


def _losses_by_run(runs: Sequence[Run]) -> Drawing:
    found = panels.losses_by_run(runs)
    return in_grid(found, min(len(found), 4), legend=True)


# What each shows, its width and the height of a row, in inches.
FIGURES: dict[str, tuple[Show, float, float]] = {
    "overview": (of_best(_overview), TWO, 1.9),
    "losses": (beside(panels.losses), TWO, 2.5),
    "losses_by_run": (_losses_by_run, TWO, 1.5),
    "alpha": (beside(panels.alpha), TWO, 2.5),
    "mse_against_alpha": (beside(panels.mse_along_epochs, panels.mse_across_runs), TWO, 2.6),
    "fvu_against_sparsity": (beside(panels.fvu_against_sparsity), ONE, 2.8),
    "sparsity_against_persistence": (beside(panels.sparsity_against_persistence), ONE, 2.8),
    "shift_tolerance": (beside(panels.self_similarity, panels.lowpass), TWO, 2.6),
    "articulators": (beside(panels.articulators), TWO, 2.4),
    "reconstruction": (of_best(_reconstruction), TWO, 0.55),
    "encodings": (of_best(_encodings), TWO, 2.2),
    "kernels": (of_best(_kernels), TWO, 1.5),
    "decoder_primitives": (of_best(_primitives), TWO, 1.5),
}


def draw(name: str, runs: Sequence[Run]) -> Figure:
    """One of FIGURES. Raises Missing when the runs lack what it shows."""
    show, width, height = FIGURES[name]
    return paper.draw(show(runs), width, height)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what can be drawn, and say of the rest why not."""
    parser = program("figures", __doc__, "refs")
    add = parser.add_argument
    add("--format", default="pdf", choices=tuple(UNDATED), help="(default: pdf)")
    add("--out", type=Path, metavar="DIR", help="(default: REF/figures; ./figures for runs on W&B)")
    add("--only", nargs="+", metavar="NAME", choices=tuple(FIGURES), help=", ".join(FIGURES))
    args = parser.parse_args(argv)
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
    run_program("figures", main)
