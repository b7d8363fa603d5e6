"""Do encodings predict the brain? A worked example, in which the brain is simulated.

`python -m analysis.brain REF...` predicts simulated responses to generated stories from raw
features, an untrained encoder of equal sparsity, and the encodings of runs. No brain was measured:
a response is a sparse mixture of the gestures that made the speech, convolved with a haemodynamic
response, with noise. So this shows what the pipeline can find, not what brains do.

    stories -> frames at 50 Hz -> one value per TR, z-scored, delayed (emaae.corpus.regressors)
    gestures -> mixtures -> haemodynamic response -> one value per TR, and noise
    ridge regression with cross-validated penalties (himalaya) -> r2 on stories that were left out
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import gamma, ndtri

from analysis import paper
from analysis.baselines import baseline
from analysis.comparison import load, load_data, settings
from analysis.costs import Codec
from analysis.drawing import Axis, Drawing, Line, Panel, styles
from analysis.probe import View
from analysis.programs import fraction, program, run_program
from analysis.runs import Run, number, read_comparable
from analysis.tables import frame, markdown, write
from emaae.corpus.regressors import delayed, lanczos_resample, zscored
from emaae.data.demo import generate
from emaae.data.features import ARTICULATORS, FRAME_RATE_HZ
from emaae.data.phones import Gesture
from emaae.system.errors import UserError, needs_extra
from emaae.system.progress import progress

TR_S = 1.0
DELAYS = (1, 2, 3, 4, 5, 6, 7, 8)  # TRs; the response has ended by then
GAP_S = 1.0  # between utterances
UTTERANCES = 12  # of a story
STORIES, LEFT_OUT = 10, 2
VOXELS = 100
GESTURES_PER_VOXEL = 3
NOISE = 1.0  # variance, in units of the signal's: half of a response can be explained
JITTERS_S = (0.0, 0.25, 0.5, 1.0)  # sd of errors of the onsets
PENALTIES = np.logspace(0, 6, 13)
NULL = "null of "  # an encoding at the wrong time: rotated by half a story
MAX_ERROR_S = GAP_S / 2.1  # of an onset: beyond it utterances would overlap
MAX_AWAY = 0.05  # of a run's zeros from those that are asked for, without a warning
SEED = 77  # of the stories: other speakers and sentences than those of the demo data


class Story(NamedTuple):
    """Utterances (T, 14) with the seconds at which they begin, and gestures (frames, 24)."""

    features: list[np.ndarray]
    onsets_s: np.ndarray
    gestures: np.ndarray

    @property
    def tr_times_s(self) -> np.ndarray:
        """Middles of the TRs (n,)."""
        return (np.arange(int(len(self.gestures) / FRAME_RATE_HZ / TR_S)) + 0.5) * TR_S


def stories(n: int = STORIES, utterances: int = UTTERANCES, scale: float = 1.0) -> list[Story]:
    """Generated stories; scale: of LibriSpeech's durations."""
    spoken = generate("train", seed=SEED, n_utterances=n * utterances, scale=scale)
    found = []
    for first in range(0, len(spoken), utterances):
        some = spoken[first : first + utterances]
        lengths = np.array([len(one.features) / FRAME_RATE_HZ for one in some])
        onsets = np.concatenate([[0], np.cumsum(lengths + GAP_S)[:-1]])
        gap = activations([], round(GAP_S * FRAME_RATE_HZ))
        scores = (activations(one.gestures, len(one.features)) for one in some)
        rows = np.concatenate([part for score in scores for part in (score, gap)][:-1])
        found.append(Story([one.features for one in some], onsets, rows))
    return found


def activations(gestures: Sequence[Gesture], n_frames: int) -> np.ndarray:
    """Weights (n_frames, 24) of the pull on each articulator, upwards and downwards; 0 at rest."""
    found = np.zeros((n_frames, 2 * len(ARTICULATORS)))
    for one in gestures:
        column = 2 * ARTICULATORS.index(one.channel) + (one.target < 0)
        start, end = (round(max(0.0, s) * FRAME_RATE_HZ) for s in (one.start_s, one.end_s))
        found[start:end, column] = np.maximum(found[start:end, column], one.weight)
    return found


def haemodynamic(seconds: np.ndarray) -> np.ndarray:
    """The response to an impulse: t^5 e^-t / 5! - t^15 e^-t / 15! / 6 (Glover 1999)."""
    t = np.maximum(seconds, 0)
    return t**5 * np.exp(-t) / gamma(6) - t**15 * np.exp(-t) / gamma(16) / 6


def responses(spoken: Sequence[Story], seed: int) -> list[np.ndarray]:
    """Simulated responses (TRs, VOXELS) to each story, z-scored within it, with noise."""
    random = np.random.default_rng(seed)
    mixing = np.zeros((2 * len(ARTICULATORS), VOXELS))
    for voxel in range(VOXELS):
        chosen = random.choice(len(mixing), GESTURES_PER_VOXEL, replace=False)
        mixing[chosen, voxel] = random.normal(size=GESTURES_PER_VOXEL)
    shape = haemodynamic(np.arange(0, 32, 1 / FRAME_RATE_HZ))[:, None]
    found = []
    for one in spoken:
        signal = fftconvolve(one.gestures @ mixing, shape, axes=0)
        at = np.round(one.tr_times_s * FRAME_RATE_HZ).astype(int)
        clean = zscored(signal[at])
        found.append(zscored(clean + np.sqrt(NOISE) * random.normal(size=clean.shape)))
    return found


def design(one: Story, view: View, jitter_s: float, random: np.random.Generator) -> np.ndarray:
    """The design matrix (TRs, columns) of a story, its onsets wrong by jitter_s (sd), then cut."""
    parts = [view(features) for features in one.features]
    wrong = np.clip(random.normal(0, jitter_s, len(parts)), -MAX_ERROR_S, MAX_ERROR_S)
    times = [
        onset + (np.arange(len(frames)) + 0.5) / FRAME_RATE_HZ
        for frames, onset in zip(parts, one.onsets_s + wrong)
    ]
    values = lanczos_resample(np.concatenate(parts), np.concatenate(times), one.tr_times_s)
    return delayed(zscored(values), DELAYS)


def explained(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> np.ndarray:
    """r2 of each voxel (VOXELS,) on the last stories, from ridge regression on the others.

    The penalty of each voxel is chosen by cross-validation. Raises UserError without himalaya.
    """
    with needs_extra("brain"):
        from himalaya.kernel_ridge import KernelRidgeCV
        from himalaya.scoring import r2_score
    model = KernelRidgeCV(alphas=PENALTIES, cv=5, warn=False)
    model.fit(*(np.concatenate(part[:-LEFT_OUT]).astype(np.float32) for part in (x, y)))
    test_x, test_y = (np.concatenate(part[-LEFT_OUT:]).astype(np.float32) for part in (x, y))
    return np.asarray(r2_score(test_y, model.predict(test_x)))


# ---- what predicts


def live_sparsity(run: Run, weights: str) -> float:
    """That on validation of the final or the selected weights."""
    row = run.selected if weights == "selected" else (run.history or [{}])[-1]
    return number(row.get("val/live_sparsity"))


def nearest(runs: Sequence[Run], sparsity: float, weights: str) -> dict[int, Run]:
    """The run of each seed whose live sparsity on validation is nearest."""
    found: dict[int, Run] = {}
    away = {run: abs(live_sparsity(run, weights) - sparsity) for run in runs}
    for run in sorted(runs, key=lambda run: np.nan_to_num(away[run], nan=np.inf)):
        found.setdefault(int(run.config.get("seed", 0)), run)
    return found


def compare(runs: Sequence[Run], spoken: Sequence[Story], sparsity: float, weights: str) -> Any:
    """A pandas row for each input, seed and jitter: its sparsity, and the mean r2 over voxels.

    weights: final, or selected. Raises UserError without them.
    """
    data = load_data(runs, None)
    views: dict[tuple[str, int], tuple[View, float]] = {}
    for name, members in settings(runs).items():
        for seed, run in nearest(members, sparsity, weights).items():
            live = live_sparsity(run, weights)
            if not abs(live - sparsity) <= MAX_AWAY:  # also of a run without a live unit
                warnings.warn(
                    f"{name}, seed {seed}: the nearest run to {sparsity:g} zeros has {live:.2g}, "
                    "the untrained encoder has as many as were asked for: give another --at",
                    stacklevel=2,
                )
            model = load(run, weights)
            codec = Codec.of(model)
            if ("untrained", seed) not in views:
                views["raw features", seed] = codec.standardised, 0.0
                (fitted,) = baseline("untrained", model, data, [sparsity], seed)
                views["untrained", seed] = fitted.encoding, sparsity
            own = codec.encoding, live
            views |= {(name, seed): own, (NULL + name, seed): own}
    if not views:
        raise UserError("no run has a model that can be loaded: expected runs that ended well")
    answers = {seed: responses(spoken, seed) for seed in {seed for _, seed in views}}
    rows = []
    work = [(key, jitter) for key in views for jitter in JITTERS_S]
    for (name, seed), jitter in progress(work, "predicting", unit="models"):
        view, live = views[name, seed]
        random = np.random.default_rng([seed, round(1000 * jitter)])  # the same for all inputs
        x = [design(one, view, jitter, random) for one in spoken]
        if name.startswith(NULL):
            x = [np.roll(one, len(one) // 2, axis=0) for one in x]
        r2 = explained(x, answers[seed])
        row = {"input": name, "seed": seed, "jitter_s": jitter, "live_sparsity": live}
        rows.append(row | {"r2": float(r2.mean()), "voxels_above_0": float((r2 > 0).mean())})
    return frame(rows)


def over_seeds(rows: Any) -> dict[str, Any]:
    """The mean over seeds, the lowest and the highest r2 of each input, by jitter."""
    by_input = rows.groupby("input", sort=False)
    return {name: of.groupby("jitter_s").r2.agg(["mean", "min", "max"]) for name, of in by_input}


def table(rows: Any) -> str:
    """A line for each input: its zeros, and r2 at each jitter."""
    zeros = rows.groupby("input").live_sparsity.mean()
    lines = [
        [name, f"{zeros[name]:.2f}", *(f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in r2.values)]
        for name, r2 in over_seeds(rows).items()
    ]
    jitters = sorted(rows.jitter_s.unique())
    return markdown(["input", "zeros", *(f"jitter {1000 * j:.0f} ms" for j in jitters)], lines)


def drawing(rows: Any) -> Drawing:
    """r2 over the errors of onsets, a line per input: mean and range of the seeds."""
    found = over_seeds(rows)
    quantiles = ndtri((np.arange(1000) + 0.5) / 1000)
    items = []
    for (name, r2), style in zip(found.items(), styles(list(found)).values()):
        mean, low, high = r2.values.T
        errors_s = np.clip(np.outer(r2.index, quantiles), -MAX_ERROR_S, MAX_ERROR_S)
        x = 1000 * errors_s.std(1)
        items.append(Line(x, mean, style, name, low=low, high=high, markers=True))
    x_axis, y_axis = Axis("sd of the errors of the onsets (ms)"), Axis("r2 of simulated responses")
    return Drawing([[Panel(x_axis, y_axis, items, levels=(1 / (1 + NOISE),))]], legend=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write it and its figure if asked to."""
    parser = program("brain", __doc__, "refs", "--weights")
    add = parser.add_argument
    add("--at", type=fraction, default=0.85, help="zeros of live units (default: .85)")
    add("--stories", type=int, default=STORIES, help=f"stories to generate (default: {STORIES})")
    add("--out", type=Path, metavar="DIR", help="write brain.csv and brain.png")
    args = parser.parse_args(argv)
    if args.stories <= LEFT_OUT + 1:
        raise UserError(f"--stories must be at least {LEFT_OUT + 2}, got {args.stories}")
    frame([])  # fails before the long computation when pandas is missing
    rows = compare(read_comparable(*args.refs), stories(args.stories), args.at, args.weights)
    print(f"Simulated responses; {1 / (1 + NOISE):.0%} of their variance can be explained.")
    print(f"Errors of onsets (jitter) are clipped at {1000 * MAX_ERROR_S:.0f} ms.\n")
    print(table(rows))
    if args.out:
        write(rows, args.out / "brain.csv")
        paper.save(paper.draw(drawing(rows), paper.ONE, 2.8), args.out / "brain.png")


if __name__ == "__main__":
    run_program("brain", main)
