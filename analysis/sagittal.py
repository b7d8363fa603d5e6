"""A film of the mouth, as a GIF: `python -m analysis.sagittal REF` draws an utterance of a run.

Of several runs the best is filmed. The six sensors are seen from the left, truth and
reconstruction, in real time. Movements come from the data. Rest positions and the millimetres of
one unit come from a template: features are z-scores of each channel, without offset and scale.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy.interpolate import CubicSpline

from analysis import paper
from analysis.colours import PREDICTION, SOFT, TRUTH
from analysis.drawing import Axis, Drawing, Line, Panel, Style, Text
from analysis.model_panels import autoencode, reconstruction
from analysis.programs import folder_of, named, program, run_program, writing
from analysis.runs import best, read_runs
from emaae.data.features import ARTICULATORS, FRAME_RATE_HZ
from emaae.data.phones import SD_MM
from emaae.runs.reconstructions import Reconstruction

# Millimetres; x grows backwards and y upwards, from the edge of the upper incisors.
SENSORS = ("TD", "TB", "TT", "LI", "UL", "LL")  # in the order of the features
REST_MM = np.array([(42.0, -6), (27, -5), (11, -10), (1.5, -9), (-9, 5), (-8, -13)])
# Fixed parts of the template: hard palate and velum from the upper incisors, these, and the throat.
PALATE_MM = np.array(
    [(0, 0), (1.5, 7), (5, 10.5), (12, 15), (24, 18), (36, 17), (47, 12), (54, 4), (57, -6)]
)
INCISORS_MM = np.array([(0, 0), (-2.5, 1.5), (0.5, 8), (3, 7), (0, 0)])
THROAT_MM = np.array([(66, 12), (68, -6), (68, -26), (65, -44)])
ROOT_MM = (56.0, -42.0)  # of the tongue
# Outlines that move with LI, UL and LL, from them.
OUTLINES_MM = np.array(
    [
        [(0, 0), (1, -7), (4, -16), (16, -24)],
        [(3.5, 10), (0, 6), (-1, 1), (4, -3)],
        [(3.5, -9), (0, -6), (-1, -1), (4, 3)],
    ]
)
NAMES_MM = np.array([(2, 2)] * 4 + [(-8, -1)] * 2)  # where their names are, from the sensors
WIDTH_INCHES, DPI = 4.2, 100
MAX_MM = 12.0  # that a primitive moves a sensor in a picture
COLORS = 32  # of the GIF's palette


def positions(features: np.ndarray) -> np.ndarray:
    """Schematic positions (T, 6, 2) in mm of `SENSORS`, from features (T, D) in z-scores.

    A rest position plus z times the channel's standard deviation in real articulography.
    """
    moved_mm = features[:, : len(ARTICULATORS)] * SD_MM
    return REST_MM + moved_mm.reshape(-1, *REST_MM.shape)


def outlines(at: np.ndarray) -> list[np.ndarray]:
    """Smooth lines (n, 2) of tongue (tip to root), jaw and lips, from the sensors at (6, 2)."""
    dorsum, body, tip, *others = at
    lines = [_smooth(np.array([tip, body, dorsum, ROOT_MM]))]
    return lines + [sensor + _smooth(line) for sensor, line in zip(others, OUTLINES_MM)]


def mouth(*states: tuple[np.ndarray, str, float, str]) -> Panel:
    """The mouth with its sensors in some places, the last on top and named.

    A state is where the sensors are (6, 2), a colour, a width and a label.
    """
    fixed = (_smooth(PALATE_MM), INCISORS_MM, _smooth(THROAT_MM))
    items = [_line(mm, SOFT, width=1.2) for mm in fixed]
    for at, color, width, label in states:
        items += [_line(mm, color, label=label, width=width) for mm in outlines(at)]
        items.append(_line(at, color, points=True, size=3 + width))
    texts = [Text(name, y, x) for name, (x, y) in zip(SENSORS, states[-1][0] + NAMES_MM)]
    return Panel(Axis(range=(-22, 74)), Axis(range=(-50, 28)), items, texts=texts, equal=True)


def displacement(effect: np.ndarray) -> Panel:
    """The mouth at rest and at the strongest frame of a primitive (D, W), magnified to MAX_MM."""
    strongest = np.abs(effect[: len(ARTICULATORS)]).sum(0).argmax()
    steps = positions(effect.T)[strongest] - REST_MM
    steps *= MAX_MM / max(1e-9, np.linalg.norm(steps, axis=1).max())
    shown = mouth((REST_MM, SOFT, 0.7, ""), (REST_MM + steps, PREDICTION, 2.2, ""))
    return shown._replace(title="displacement, magnified")


def film(found: Reconstruction, title: str) -> Iterator[Image.Image]:
    """The picture of each frame of an utterance, truth over reconstruction."""
    predicted, true = positions(found.prediction), positions(found.truth)
    pitch = reconstruction(found).panels[found.channels.index("pitch")]

    def panels(t: int) -> list[Panel]:
        shown = mouth(
            (predicted[t], PREDICTION, 3.2, "reconstruction"), (true[t], TRUTH, 1.4, "truth")
        )
        note = "schematic: rest positions and mm per unit are a template's"
        return [shown._replace(title=note), pitch._replace(marks=[t / FRAME_RATE_HZ])]

    rows = [[panel] for panel in panels(0)]
    figure = paper.draw(Drawing(rows, title, heights=(4, 1), legend=True), WIDTH_INCHES, 2.3)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # what is in place stays there
    for t in range(len(found.truth)):
        with matplotlib.style.context(paper.STYLE):
            for axes, panel in zip(figure.axes, panels(t)):
                axes.clear()
                paper.fill(axes, panel)
            canvas.draw()
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def write(found: Reconstruction, path: Path, title: str) -> int:
    """Film an utterance in real time; returns the bytes of the GIF. Raises UserError."""
    # One palette for all, so that only what moves differs from one frame to the next.
    palette = next(film(found, title)).quantize(COLORS, dither=Image.Dither.NONE)
    frames = (one.quantize(palette=palette, dither=Image.Dither.NONE) for one in film(found, title))
    with writing(path):
        next(frames).save(
            path,
            format="GIF",
            save_all=True,
            append_images=frames,
            # Browsers take 20 ms as it is; 10 ms and less they show as 100.
            duration=1000 // FRAME_RATE_HZ,
            loop=0,
        )
    return path.stat().st_size


def main(argv: Sequence[str] | None = None) -> None:
    """Film one kept utterance of a run."""
    parser = program("sagittal", __doc__, "ref")
    add = parser.add_argument
    add("--utterance", metavar="NAME", help="(default: the one whose length is nearest to 5 s)")
    add("--out", type=Path, metavar="FILE.gif", help="(default: REF/sagittal.gif)")
    args = parser.parse_args(argv)
    path = named(args.out or folder_of(args.ref) / "sagittal.gif", ".gif")
    runs = read_runs(args.ref)
    run = best(runs) or runs[0]
    found, _ = autoencode(run, args.utterance)
    size = write(found, path, f"{found.name}, run {run.name}")
    print(f"{path}: {len(found.truth) / FRAME_RATE_HZ:.2f} s, {size / 1000:.0f} kB")


def _line(mm: np.ndarray, color: str, **more: Any) -> Line:
    x, y = mm.T
    return Line(x, y, Style(color), **more)


def _smooth(points: np.ndarray) -> np.ndarray:
    # By length along the polygon, so that unevenly spaced points make no loops.
    steps = np.maximum(np.linalg.norm(np.diff(points, axis=0), axis=1), 1e-6)
    along = np.r_[0, np.cumsum(steps)]
    return CubicSpline(along, points)(np.linspace(0, along[-1], 40))


if __name__ == "__main__":
    run_program("sagittal", main)
