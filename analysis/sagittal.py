"""A film of the mouth, as a GIF: `python -m analysis.sagittal RUN` draws an utterance of a run.

The six sensors seen from the left, truth and reconstruction, in real time. Where they move is data;
where they rest, and how far one unit of a channel reaches, is a template's: features are z-scores
of each channel, so offsets and scales are not in the data.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.interpolate import CubicSpline

from analysis.colours import PREDICTION, SOFT, TRUTH
from analysis.drawing import Axis, Line, Look, Panel
from analysis.insides import through
from analysis.programs import folder_of, program, writing
from analysis.runs import best, read_runs
from emaae.data.features import ARTICULATORS, FRAME_RATE_HZ
from emaae.data.phones import SD_MM
from emaae.runs.reconstructions import Reconstruction
from emaae.system.errors import UserError, reporting_errors
from emaae.system.files import expand_home

# Millimetres; x grows backwards and y upwards, from the edge of the upper incisors.
REST_MM = {
    "TD": (42.0, -6.0),
    "TB": (27.0, -5.0),
    "TT": (11.0, -10.0),
    "LI": (1.5, -9.0),
    "UL": (-9.0, 5.0),
    "LL": (-8.0, -13.0),
}
# Fixed parts of the template: hard palate and velum from the upper incisors, and the throat.
PALATE_MM = np.array(
    [(0, 0), (1.5, 7), (5, 10.5), (12, 15), (24, 18), (36, 17), (47, 12), (54, 4), (57, -6)]
)
THROAT_MM = np.array([(66, 12), (68, -6), (68, -26), (65, -44)])
ROOT_MM = (56.0, -42.0)  # of the tongue
# Outlines that move with a sensor, from it.
OUTLINES_MM = {
    "LI": np.array([(0, 0), (1, -7), (4, -16), (16, -24)]),
    "UL": np.array([(3.5, 10), (0, 6), (-1, 1), (4, -3)]),
    "LL": np.array([(3.5, -9), (0, -6), (-1, -1), (4, 3)]),
}
SIZE_INCHES, DPI = (4.2, 4.6), 100
LARGEST_MM = 12.0  # that a primitive moves a sensor in a picture
COLORS = 32  # of the GIF's palette


def positions(features: np.ndarray) -> dict[str, np.ndarray]:
    """Schematic positions (T, 2) in mm of each sensor, from features (T, D) in z-scores.

    A rest position plus z times the channel's standard deviation in real articulography.
    """
    mm = features[:, : len(ARTICULATORS)] * SD_MM
    at = {name: i for i, name in enumerate(ARTICULATORS)}
    return {
        sensor: np.array(rest) + mm[:, [at[f"{sensor}X"], at[f"{sensor}Y"]]]
        for sensor, rest in REST_MM.items()
    }


def outlines(at: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Smooth lines (n, 2) of the tongue and of what moves with the other sensors.

    at: where the sensors are. The tongue reaches from its tip to its fixed root.
    """
    lines = {"tongue": _smooth(np.array([at["TT"], at["TB"], at["TD"], ROOT_MM]))}
    return lines | {name: at[name] + _smooth(line) for name, line in OUTLINES_MM.items()}


def moved(effect: np.ndarray) -> Panel:
    """The mouth at rest and at the strongest frame of a primitive (D, W), in units of the sd.

    Magnified, so that the sensor that moves most moves LARGEST_MM.
    """
    paths = positions(effect.T)
    strongest = int(np.abs(effect[: len(ARTICULATORS)]).sum(0).argmax())
    rest = {name: np.array(at) for name, at in REST_MM.items()}
    steps = {name: path[strongest] - rest[name] for name, path in paths.items()}
    most = max(1e-9, np.linalg.norm(list(steps.values()), axis=1).max())
    at = {name: rest[name] + step * LARGEST_MM / most for name, step in steps.items()}
    still = [(_smooth(line), SOFT, 1.2) for line in (PALATE_MM, THROAT_MM)]
    before = [(line, SOFT, 0.7) for line in outlines(rest).values()]
    after = [(line, PREDICTION, 2.2) for line in outlines(at).values()]
    drawn = [
        Line(line[:, 0], line[:, 1], Look(color), width=width)
        for line, color, width in (*still, *before, *after)
    ]
    where = np.array(list(at.values()))
    sensors = Line(where[:, 0], where[:, 1], Look(PREDICTION), points=True, text=list(at))
    x, y = Axis(range=(-22, 74)), Axis(range=(-50, 28))
    return Panel(x, y, [*drawn, sensors], "displacement, magnified", equal=True)


def film(found: Reconstruction, title: str) -> Iterator[Image.Image]:
    """The picture of each frame of an utterance, truth over reconstruction."""
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    mouth = figure.add_axes((0.02, 0.245, 0.96, 0.685))
    mouth.set(xlim=(-22, 74), ylim=(-50, 28), xticks=[], yticks=[], aspect="equal")
    mouth.spines[:].set_visible(False)
    mouth.plot(*_smooth(PALATE_MM).T, color="0.6", lw=2)
    mouth.plot(*_smooth(THROAT_MM).T, color="0.6", lw=2)
    mouth.fill([0, -2.5, 0.5, 3], [0, 1.5, 8, 7], color="0.8", lw=0)  # the upper incisors
    figure.text(0.03, 0.945, title, fontsize=8, parse_math=False)
    note = "schematic: rest positions and mm per unit are a template's"
    figure.text(0.03, 0.225, note, fontsize=6, color="0.4")
    for x, name, color in ((0.6, "truth", TRUTH), (0.73, "reconstruction", PREDICTION)):
        figure.text(x, 0.905, name, fontsize=8, color=color, weight="bold")

    sides = []
    for values, color, width in ((found.prediction, PREDICTION, 3.2), (found.truth, TRUTH, 1.4)):
        lines = {
            name: mouth.plot([], [], color=color, lw=width, solid_capstyle="round")[0]
            for name in ("tongue", *OUTLINES_MM)
        }
        (dots,) = mouth.plot([], [], "o", color=color, ms=3 + 1.2 * width)
        sides.append((positions(values), lines, dots))
    labels = {
        sensor: mouth.text(0, 0, sensor, fontsize=6, color="0.3", clip_on=True)
        for sensor in REST_MM
    }

    pitch = figure.add_axes((0.12, 0.075, 0.85, 0.13))
    seconds = np.arange(len(found.truth)) / FRAME_RATE_HZ
    column = found.channels.index("pitch")
    pitch.plot(seconds, found.prediction[:, column], color=PREDICTION, lw=2.2)
    pitch.plot(seconds, found.truth[:, column], color=TRUTH, lw=1)
    pitch.set_xlim(0, max(seconds[-1], 1 / FRAME_RATE_HZ))
    pitch.set_ylabel("pitch (Hz)", fontsize=7)
    pitch.set_xlabel("seconds", fontsize=7, labelpad=1)
    pitch.tick_params(labelsize=6, length=2, pad=1.5)
    pitch.locator_params(axis="y", nbins=3)
    pitch.spines[["top", "right"]].set_visible(False)
    cursor = pitch.axvline(0, color="0.2", lw=1)

    for t, second in enumerate(seconds):
        for where, lines, dots in sides:
            now = {sensor: path[t] for sensor, path in where.items()}
            for name, line in outlines(now).items():
                lines[name].set_data(*line.T)
            dots.set_data(*np.array(list(now.values())).T)
        for sensor, label in labels.items():
            aside = (-7, -1) if sensor in ("UL", "LL") else (2.2, 2.2)
            label.set_position(now[sensor] + aside)  # of the truth, which is drawn last
        cursor.set_xdata([second] * 2)
        canvas.draw()
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def write(found: Reconstruction, path: Path, title: str) -> int:
    """Film an utterance in real time; returns the bytes of the GIF. Raises UserError."""
    frames = list(film(found, title))
    # One palette for all, so that only what moves differs from one frame to the next.
    palette = frames[0].quantize(COLORS, dither=Image.Dither.NONE)
    frames = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
    with writing(path):
        frames[0].save(
            path,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            # Browsers take 20 ms as it is; 10 ms and less they show as 100.
            duration=1000 // FRAME_RATE_HZ,
            loop=0,
        )
    return path.stat().st_size


def main(argv: Sequence[str] | None = None) -> None:
    """Film one kept utterance of a run."""
    parser = program("sagittal", __doc__)
    parser.add_argument(
        "run", metavar="DIR|ENTITY/PROJECT[/SWEEP]", help="a run; of several, the best is filmed"
    )
    parser.add_argument("--utterance", metavar="NAME", help="(default: that nearest to 5 s)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.gif", help="(default: sagittal.gif in DIR)"
    )
    args = expand_home(parser.parse_args(argv))
    runs = read_runs(args.run)
    run = best(runs) or runs[0]
    found, _ = through(run, args.utterance)
    path = args.out or folder_of(args.run) / "sagittal.gif"
    if path.suffix != ".gif":
        raise UserError(f"--out must name a .gif file, got {path}")
    size = write(found, path, f"{found.name}, run {run.name}")
    print(f"{path}: {len(found.truth) / FRAME_RATE_HZ:.2f} s, {size / 1000:.0f} kB")


def _smooth(points: np.ndarray) -> np.ndarray:
    # By length along the polygon, so that unevenly spaced points make no loops.
    steps = np.maximum(np.linalg.norm(np.diff(points, axis=0), axis=1), 1e-6)
    along = np.r_[0, np.cumsum(steps)]
    return CubicSpline(along, points)(np.linspace(0, along[-1], 40))


if __name__ == "__main__":
    with reporting_errors("python -m analysis.sagittal"):
        main()
