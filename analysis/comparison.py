"""Which setting is best at equal sparsity? `python -m analysis.comparison REF... --data DIR`

Runs that differ only in a knob that controls sparsity (alpha, alpha_max, k_fraction,
target_sparsity, geco_epsilon) form a front. The front of each seed is interpolated linearly at the
same sparsity of live units, and never extrapolated. All metrics are measured by this program on the
test split. Intervals hold 95 % of the means over resampled seeds on resampled utterances (Efron &
Tibshirani 1993, "An introduction to the bootstrap"); all settings have the same utterances in a
resample, so that ratios to the reference are paired. Units that are copies of each other (they
correlate by more than .9) make an encoding look sparser and more persistent than it is:
--copies_once counts such a group as one unit.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis import paper, probe
from analysis.baselines import BASELINES, baseline
from analysis.costs import Codec, measure
from analysis.drawing import Axis, Drawing, Line, Panel, styles
from analysis.labels import read_splits
from analysis.programs import fraction, program, run_program
from analysis.runs import GOOD, Run, grouped, read_runs, text, varying
from analysis.tables import Row, frame, markdown, write
from emaae.config import KNOBS, SWEEPABLE, Config
from emaae.data.features import SPLITS
from emaae.data.load import load_splits
from emaae.data.split import Split
from emaae.models import CNNAutoEncoder
from emaae.system.errors import UserError
from emaae.system.progress import progress

# The knobs along a front.
SPARSER = ("alpha", "alpha_max", "k_fraction", "target_sparsity", "geco_epsilon")
COSTS = ("fvu", "persistence", "dead", "distinct", "participation")
BASELINE_SPARSITIES, BASELINE_SEEDS = (0.75, 0.8, 0.85, 0.9, 0.95), (0, 1, 2, 3, 4)


class Point(NamedTuple):
    """One run, or one baseline: its codec, and its costs (B,) on each resample of utterances."""

    codec: Codec
    costs: Mapping[str, np.ndarray]


Coded = tuple[str, int, Codec]  # a setting, a seed, one codec of theirs
Front = Mapping[int, Sequence[Point]]  # the points of each seed
Fronts = Mapping[str, Front]  # that of each setting
Accuracies = Mapping[str, Mapping[str, np.ndarray]]  # by setting and set of labels, (seeds, B)


class Estimate(NamedTuple):
    """A mean over seeds and the interval that holds 95 % of the resampled ones."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return number(self.mean)
        return f"{number(self.mean)} [{number(self.low)}, {number(self.high)}]"


def number(value: float) -> str:
    """Three digits, without an exponent or a leading zero; a dash for NaN."""
    if np.isnan(value):
        return "–"
    if abs(value) <= 1e-9:
        return "0"
    digits = max(0, 2 - int(f"{value:.2e}".partition("e")[2]))
    shown = f"{value:.{digits}f}"
    return shown.replace("0.", ".", 1) if abs(value) < 1 else shown


# ---- resampling


def resampled(n_utterances: int, n: int) -> np.ndarray:
    """How often each utterance is drawn (1 + n, n_utterances); in the first row each once."""
    random = np.random.default_rng(0)
    even = np.full(n_utterances, 1 / n_utterances)
    return np.vstack([np.ones(n_utterances), random.multinomial(n_utterances, even, n)])


def over_seeds(values: np.ndarray) -> Estimate:
    """The mean of the first column of values (S, B); its interval from the others, over seeds.

    Undefined values are left out; without a mean there is no interval.
    """
    mean = float(_mean(values)[0])
    if np.isnan(mean):
        return Estimate(mean, mean, mean)
    seeds = np.random.default_rng(1).integers(len(values), size=values.shape)
    means = _mean(np.take_along_axis(values, seeds, 0))[1:]
    low, high = np.nanpercentile(means, [2.5, 97.5]) if np.isfinite(means).any() else [np.nan] * 2
    return Estimate(mean, float(low), float(high))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean (B,) of the defined ones of each column; NaN without any."""
    return np.ma.masked_invalid(values).mean(0).filled(np.nan)


def at(sparsity: float | np.ndarray, points: Sequence[Point], name: str) -> np.ndarray:
    """A cost of the points of one seed at a live sparsity (B,), or at K (B, K); NaN beyond them."""
    pairs = np.stack([[p.costs["live_sparsity"], p.costs[name]] for p in points], -1)
    # An encoding without a live unit has no sparsity: it is sorted first and gives NaN.
    pairs[:, np.isnan(pairs[0])] = [[-np.inf], [np.nan]]
    ordered = (pair[:, pair[0].argsort()] for pair in pairs.swapaxes(0, 1))
    return np.array([np.interp(sparsity, x, y, np.nan, np.nan) for x, y in ordered])


def costs_at(sparsity: float, front: Front) -> dict[str, np.ndarray]:
    """Each of `COSTS` of a front, (seeds, B), at a live sparsity."""
    return {name: np.stack([at(sparsity, ps, name) for ps in front.values()]) for name in COSTS}


def on_split(front: Front, name: str) -> np.ndarray:
    """A cost of all points of a front, of all seeds (n,), on the split itself."""
    return np.array([point.costs[name][0] for points in front.values() for point in points])


# ---- what is compared


def settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that ended well under the label of their setting, without seed and `SPARSER`."""
    ended = [run for run in runs if run.status in GOOD]
    labels: dict[Run, tuple[str, ...]] = dict.fromkeys(ended, ())
    for name in varying(ended):
        called = "" if name in ("schedule", "activation") else f"{name} "
        longer = {run: (*words, called + text(run.knob(name))) for run, words in labels.items()}
        # A knob that tells no more runs apart, such as the ramp of each schedule, is left out.
        if name not in (*SPARSER, "seed") and len({*longer.values()}) > len({*labels.values()}):
            labels = longer
    return grouped(ended, lambda run: ", ".join(labels[run]) or run.schedule)


def load(run: Run, weights: str) -> CNNAutoEncoder:
    """The final or the selected weights of a run. Raises UserError without them."""
    model = run.model(final=weights == "final")
    if model is None:
        raise UserError(
            f"run {run.name} has no {weights} weights that can be loaded: expected its "
            "best.pth or, for final ones, the last.pt of a folder on this machine"
        )
    return model


def trained(runs: Mapping[str, Sequence[Run]], weights: str) -> Iterator[Coded]:
    """The setting, the seed and the codec of each run."""
    todo = [(label, run) for label, members in runs.items() for run in members]
    for label, run in progress(todo, "measuring", unit="runs"):
        yield label, run.config.get("seed", 0), Codec.of(load(run, weights))


def baselines(model: CNNAutoEncoder, splits: Mapping[str, Split]) -> Iterator[Coded]:
    """The name, the seed and the codecs of all baselines, as wide as a model and its context."""
    todo = list(itertools.product(BASELINES, BASELINE_SEEDS))
    for name, seed in progress(todo, "baselines", unit="fits"):
        codecs = baseline(name, model, splits, BASELINE_SPARSITIES, seed)
        yield from ((name, seed, codec) for codec in codecs)


def fronts(codecs: Iterable[Coded], test: Split, counts: np.ndarray, copies_once: bool) -> Fronts:
    """The front of each setting, its codecs measured on the test split and its resamples."""
    found: dict[str, dict[int, list[Point]]] = {}
    for label, seed, codec in codecs:
        point = Point(codec, measure(codec, test).costs(counts, copies_once))
        found.setdefault(label, {}).setdefault(seed, []).append(point)
    return found


def nearest(sparsity: float, points: Sequence[Point]) -> Point:
    """The point whose live sparsity is nearest; those without any are the farthest."""
    away = [abs(point.costs["live_sparsity"][0] - sparsity) for point in points]
    return points[int(np.argmin(np.nan_to_num(away, nan=np.inf)))]


def probed(fronts: Fronts, sparsity: float, data: Path | None, n: int) -> Accuracies:
    """Accuracies, on n resamples, of a probe of each seed's point nearest to a live sparsity."""
    splits = read_splits(data)
    counts = resampled(len(splits["test"]), n)
    todo = [(label, nearest(sparsity, ps)) for label, f in fronts.items() for ps in f.values()]
    found: dict[str, dict[str, list]] = {label: {} for label in fronts}
    for label, point in progress(todo, "probing", unit="codecs"):
        view = point.codec.encoding
        for result in probe.measure(splits, label, probe.ENCODING, view, delays=(0,)):
            accuracy = counts @ result.right() / (counts @ result.n_frames)
            found[label].setdefault(result.labels, []).append(accuracy)
    return {label: {k: np.stack(v) for k, v in of.items()} for label, of in found.items()}


# ---- tables


def rows(found: Fronts, sparsity: float, reference: str, accuracies: Accuracies) -> list[Row]:
    """A row per setting at a live sparsity: estimates, and seeds whose front reaches it."""
    values = {label: costs_at(sparsity, front) for label, front in found.items()}
    base = _mean(values[reference]["fvu"])
    lines = []
    for label, value in values.items():
        reached = np.isfinite(value["fvu"][:, 0])
        line: Row = {"setting": label, "live_sparsity": sparsity}
        line |= {"seeds": f"{reached.sum()}/{len(reached)}"}
        line |= {name: over_seeds(value[name]) for name in COSTS}
        line["times_reference"] = over_seeds(value["fvu"] / base)
        for name, accuracy in accuracies.get(label, {}).items():
            line[name] = over_seeds(accuracy)
            line[f"{name}_gain"] = over_seeds(accuracy - _mean(accuracies[reference][name]))
        lines.append(line)
    return lines


# The headings of some columns of the printed table, and the columns that have no interval there.
HEADS = {
    "times_reference": "× reference",
    "persistence": "persistence within",
    "distinct": "distinct units",
    "phone_gain": "more than reference",
    "gesture_gain": "more than reference",
}
MEANS = ("phone", "gesture", "dead", "distinct", "participation")


def table(lines: Sequence[Row]) -> str:
    """Markdown of `rows`."""
    names = list(dict.fromkeys(["setting", "seeds", "fvu", "times_reference", *lines[0]]))
    names.remove("live_sparsity")
    cells = [[number(x[n].mean) if n in MEANS else str(x[n]) for n in names] for x in lines]
    return markdown([HEADS.get(name, name) for name in names], cells)


def flat(line: Row) -> Row:
    """A row for a file: an estimate is three columns of five digits, `dead` one."""
    found: Row = {}
    for name, value in line.items():
        if isinstance(value, Estimate):
            # Resampled utterances only lose live units: an interval of `dead` would be too high.
            ends = ("",) if name == "dead" else ("", "_low", "_high")
            found |= {f"{name}{end}": float(f"{x:.5g}") for end, x in zip(ends, value)}
        else:
            found[name] = value
    return found


def drawing(found: Fronts, units: str = "live") -> Drawing:
    """Fvu and persistence over sparsity, a point for each run and a line for the mean of seeds."""
    style_of = styles(list(found))

    def lines(name: str) -> Iterator[Line]:
        for label, front in found.items():
            live, cost = on_split(front, "live_sparsity"), on_split(front, name)
            if np.isfinite(live).any():  # some unit of some run fires
                grid = np.linspace(np.nanmin(live), np.nanmax(live), 30)
                # Only where all seeds have a value: elsewhere the mean would jump.
                mean = np.mean([at(grid, ps, name)[0] for ps in front.values()], 0)
                yield Line(grid, mean, style_of[label], label, markers=bool(np.isnan(mean).all()))
            yield Line(live, cost, style_of[label], points=True, size=3)

    x = Axis(f"sparsity of {units} units")
    fvu, persistence = Axis("fvu", log=True), Axis("persistence within utterances")
    left = Panel(x, fvu, [*lines("fvu")])
    right = Panel(x, persistence, [*lines("persistence")], levels=(1,))
    return Drawing([[left, right]], legend=True)


# ---- the program


def with_knobs(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs whose knobs have the values of NAME=VALUE. Raises UserError."""
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals or name not in SWEEPABLE:
            raise UserError(f"--where needs NAME=VALUE, a knob of a sweep, got {condition!r}")
        wanted = KNOBS[name].read(value)
        runs = [run for run in runs if run.config.get(name) == wanted]
    return list(runs)


def load_data(runs: Sequence[Run], data: Path | None) -> dict[str, Split]:
    """The splits of a tree, or of the demo data, in the form that the runs read."""
    loudness = {bool(run.config.get("keep_loudness")) for run in runs}
    if len(loudness) > 1:
        raise UserError(
            "some runs read loudness and others do not: choose one kind, for example by --where "
            "keep_loudness=False"
        )
    folders = {f"{name}_dir": str(data / name) for name in SPLITS} if data else {}
    form = {"recursive": True, "keep_loudness": loudness.pop()}
    return load_splits(Config.from_mapping(folders | form))


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each sparsity, and write them and a figure if asked to."""
    parser = program("comparison", __doc__, "refs", "--data", "--weights")
    add = parser.add_argument
    add("--at", type=fraction, nargs="+", default=[0.85, 0.9], help="sparsities (default: .85 .9)")
    add("--where", nargs="+", default=[], metavar="NAME=VALUE", help="only runs with these knobs")
    add("--reference", metavar="SETTING", help="setting to compare with (default: the first)")
    add("--baselines", action="store_true", help="add encodings without training")
    add("--copies_once", action="store_true", help="count copies of a unit as one unit")
    add("--probe", action="store_true", help="add the accuracy of a linear probe")
    add("--resamples", type=int, default=1000, metavar="N", help="for intervals (default: 1000)")
    add("--out", type=Path, metavar="DIR", help="write comparison.csv and comparison.png there")
    args = parser.parse_args(argv)
    if args.resamples < 1:
        raise UserError(f"--resamples must be at least 1, got {args.resamples}")
    if args.out:
        frame([])  # fails before the long measurement when pandas is missing

    runs = settings(with_knobs(read_runs(*args.refs), args.where))
    if not runs:
        which = f" with {' '.join(args.where)}" if args.where else ""
        raise UserError(f"{' '.join(args.refs)}: no run there{which} has ended well")
    names = [*runs, *(BASELINES if args.baselines else ())]
    reference = args.reference or names[0]
    if reference not in names:
        raise UserError(f"--reference must be one of {'; '.join(names)}, got {reference!r}")
    members = list(itertools.chain(*runs.values()))
    splits = load_data(members, args.data)
    others = baselines(load(members[0], "selected"), splits) if args.baselines else ()
    codecs = itertools.chain(trained(runs, args.weights), others)
    counts = resampled(len(splits["test"]), args.resamples)
    found = fronts(codecs, splits["test"], counts, args.copies_once)
    print(f"{args.weights} weights, test split, reference: {reference}")
    accuracies = probed(found, args.at[0], args.data, args.resamples) if args.probe else {}
    lines: list[Row] = []
    units = "distinct" if args.copies_once else "live"
    for sparsity in args.at:
        at_sparsity = rows(found, sparsity, reference, accuracies)
        print(f"\nsparsity of {units} units: {sparsity:g}\n\n{table(at_sparsity)}", flush=True)
        if all(np.isnan(line["fvu"].mean) for line in at_sparsity):
            live = np.concatenate([on_split(front, "live_sparsity") for front in found.values()])
            live = live[np.isfinite(live)]
            have = f"{live.min():.3g} to {live.max():.3g}" if len(live) else "no unit that fires"
            print(
                f"\nno front reaches this sparsity: runs have {have}, and a front needs two runs "
                "of a seed"
            )
        lines += map(flat, at_sparsity)
        accuracies = {}  # measured at the first sparsity only
    if args.out:
        write(frame(lines), args.out / "comparison.csv")
        figure = paper.draw(drawing(found, units), height=3.0)
        paper.save(figure, args.out / "comparison.png")


if __name__ == "__main__":
    run_program("comparison", main)
