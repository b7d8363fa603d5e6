"""Which setting is best at equal sparsity? `python -m analysis.comparison REF... --data DIR`

Runs that differ in nothing but what makes them sparse (alpha, alpha_max, k_fraction,
target_sparsity, geco_epsilon) are a front: each seed's is read at the same live sparsity, in a
straight line between its runs, never beyond them. Costs are those of the test split, measured
anew. Intervals hold 95 % of the means over resampled seeds on resampled utterances (Efron &
Tibshirani 1993, "An introduction to the bootstrap"); all settings have the same utterances in a
resample, so that ratios to the reference are paired. Units that are copies of each other (they
correlate by more than .9) make an encoding look sparse and slow: --copies_once counts such
a group as one unit.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis import paper, probe
from analysis.baselines import BASELINES, baseline
from analysis.drawing import Axis, Drawing, Line, Panel, styles
from analysis.labels import read_splits
from analysis.measured import Code, measure
from analysis.programs import program
from analysis.runs import GOOD, Run, grouped, read_runs, text, varying
from analysis.summary import markdown
from analysis.tables import frame, write
from emaae.config import Config
from emaae.data import SPLITS, Split, load_splits
from emaae.models import CNNAutoEncoder
from emaae.system.errors import UserError, reporting_errors
from emaae.system.files import expand_home
from emaae.system.progress import progress

# The knobs along a front.
SPARSER = ("alpha", "alpha_max", "k_fraction", "target_sparsity", "geco_epsilon")
COSTS = ("fvu", "persistence", "dead", "distinct", "participation")
BASELINE_SPARSITIES, BASELINE_SEEDS = (0.75, 0.8, 0.85, 0.9, 0.95), (0, 1, 2, 3, 4)


class Point(NamedTuple):
    """One run, or one baseline: its code, and its costs (B,) on each resample of utterances."""

    code: Code
    costs: Mapping[str, np.ndarray]


# The points of each seed.
Front = Mapping[int, Sequence[Point]]


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
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


# ---- resampling


def resampled(n_utterances: int, n: int) -> np.ndarray:
    """How often each utterance is drawn (1 + n, n_utterances); in the first row each once."""
    random = np.random.default_rng(0)
    even = np.full(n_utterances, 1 / n_utterances)
    return np.vstack([np.ones(n_utterances), random.multinomial(n_utterances, even, n)])


def over_seeds(values: np.ndarray) -> Estimate:
    """The mean of the first column of values (S, B), and the interval of the others, seeds drawn.

    Undefined values are left out; without a mean there is no interval.
    """
    mean = float(_mean(values)[0])
    if np.isnan(mean):
        return Estimate(mean, mean, mean)
    drawn = np.random.default_rng(1).integers(len(values), size=values.shape)
    means = _mean(np.take_along_axis(values, drawn, 0))[1:]
    low, high = np.nanpercentile(means, [2.5, 97.5]) if np.isfinite(means).any() else [np.nan] * 2
    return Estimate(mean, float(low), float(high))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean (B,) of the defined ones of each column; NaN without any."""
    return np.ma.masked_invalid(values).mean(0).filled(np.nan)


def at(
    sparsity: float | np.ndarray, points: Sequence[Point], name: str, n: int | None = None
) -> np.ndarray:
    """A cost (B,) of the points of one seed, read at a live sparsity; NaN beyond them.

    At sparsities (K,) it is (B, K). n: of so many resamples alone.
    """
    live, cost = (np.stack([p.costs[of][:n] for p in points]) for of in ("live_sparsity", name))
    order = live.argsort(0)
    columns = zip(np.take_along_axis(live, order, 0).T, np.take_along_axis(cost, order, 0).T)
    return np.array([np.interp(sparsity, x, y, np.nan, np.nan) for x, y in columns])


def read_at(sparsity: float, front: Front) -> dict[str, np.ndarray]:
    """Each of `COSTS` of a front, (seeds, B), at a live sparsity."""
    return {name: np.stack([at(sparsity, ps, name) for ps in front.values()]) for name in COSTS}


# ---- what is compared


def settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that ended well under the label of their setting, without seed and `SPARSER`."""
    ended = [run for run in runs if run.status in GOOD]
    said: dict[Run, tuple[str, ...]] = dict.fromkeys(ended, ())
    for name in varying(ended):
        more = {run: (*words, _said(run, name)) for run, words in said.items()}
        # Knobs that follow from those before, such as the window of each schedule, are left out.
        if name not in (*SPARSER, "seed") and len(set(more.values())) > len(set(said.values())):
            said = more
    return grouped(ended, lambda run: ", ".join(said[run]) or run.schedule)


def _said(run: Run, name: str) -> str:
    if name == "activation":
        return str(run.config.get(name, "relu"))
    return run.schedule if name == "schedule" else f"{name} {text(run.config[name])}"


def trained(runs: Mapping[str, Sequence[Run]], weights: str) -> Iterator[tuple[str, int, Code]]:
    """The setting, the seed and the code of each run."""
    todo = [(label, run) for label, members in runs.items() for run in members]
    for label, run in progress(todo, "measuring", total=len(todo), unit="runs"):
        model = run.model(final=weights == "final")
        if model is None:
            raise UserError(
                f"run {run.name} has no {weights} weights that can be loaded: expected its "
                "best.pth or, for final ones, the last.pt of a folder on this machine"
            )
        yield label, run.config.get("seed", 0), Code.of(model)


def rivals(model: CNNAutoEncoder, splits: Mapping[str, Split]) -> Iterator[tuple[str, int, Code]]:
    """The name, the seed and the codes of all baselines, as wide as a model and seeing as much."""
    todo = [(name, seed) for name in BASELINES for seed in BASELINE_SEEDS]
    for name, seed in progress(todo, "baselines", total=len(todo), unit="fits"):
        codes = baseline(name, model, splits["train"], splits["val"], BASELINE_SPARSITIES, seed)
        yield from ((name, seed, code) for code in codes)


def fronts(
    codes: Iterable[tuple[str, int, Code]], test: Split, counts: np.ndarray, copies_once: bool
) -> Mapping[str, Front]:
    """The front of each setting, its codes measured on the test split and its resamples."""
    found: dict[str, dict[int, list[Point]]] = {}
    for label, seed, code in codes:
        one = Point(code, measure(code, test).costs(counts, copies_once))
        found.setdefault(label, {}).setdefault(seed, []).append(one)
    return found


def reached(found: Mapping[str, Front]) -> tuple[float, float]:
    """The lowest and the highest live sparsity of all points."""
    points = [p for front in found.values() for of_seed in front.values() for p in of_seed]
    live = [p.costs["live_sparsity"][0] for p in points]
    return float(np.nanmin(live)), float(np.nanmax(live))


# ---- a probe beside each


def nearest(sparsity: float, points: Sequence[Point]) -> Point:
    """The one whose live sparsity is nearest; one without any is never nearer than another."""

    def distance(point: Point) -> float:
        away = abs(float(point.costs["live_sparsity"][0]) - sparsity)
        return np.inf if np.isnan(away) else away

    return min(points, key=distance)


def probed(
    fronts: Mapping[str, Front], sparsity: float, data: Path | None, n_channels: int, n: int
) -> dict[str, dict[str, np.ndarray]]:
    """Accuracies (seeds, 1 + n) of a linear probe, by front and set of labels, on resamples.

    Of each seed's point that is nearest to a live sparsity; see `analysis.probe`.
    """
    splits = read_splits(data)
    counts = resampled(len(splits["test"]), n)
    todo = [(label, nearest(sparsity, ps)) for label, f in fronts.items() for ps in f.values()]
    found: dict[str, dict[str, list]] = {label: {} for label in fronts}
    for label, one in progress(todo, "probing", total=len(todo), unit="codes"):
        view = one.code.view(n_channels)
        for result in probe.measure(splits, label, probe.ENCODING, view):
            right = np.array([correct.sum() for correct in result.correct()])
            length = np.array([len(true) for true in result.true])
            accuracy = counts @ right / (counts @ length)
            found[label].setdefault(result.labels, []).append(accuracy)
    return {label: {k: np.stack(v) for k, v in of.items()} for label, of in found.items()}


# ---- tables


def rows(
    found: Mapping[str, Front],
    sparsity: float,
    reference: str,
    accuracies: Mapping[str, Mapping[str, np.ndarray]],
) -> list[dict[str, Any]]:
    """A row per setting at a live sparsity: estimates, and seeds whose front reaches it."""
    values = {label: read_at(sparsity, front) for label, front in found.items()}
    base = _mean(values[reference]["fvu"])
    lines = []
    for label, value in values.items():
        reached = np.isfinite(value["fvu"][:, 0])
        line: dict[str, Any] = {"setting": label, "live_sparsity": sparsity}
        line |= {"seeds": f"{reached.sum()}/{len(reached)}"}
        line |= {name: over_seeds(value[name]) for name in COSTS}
        line["times_reference"] = over_seeds(value["fvu"] / base)
        for name, accuracy in accuracies.get(label, {}).items():
            line[name] = over_seeds(accuracy)
            line[f"{name}_gain"] = over_seeds(accuracy - _mean(accuracies[reference][name]))
        lines.append(line)
    return lines


HEAD = {
    "setting": "setting",
    "seeds": "seeds",
    "fvu": "fvu",
    "times_reference": "× reference",
    "persistence": "persistence within",
    "dead": "dead",
    "distinct": "distinct units",
    "participation": "participation",
    "phone": "phone",
    "phone_gain": "more than reference",
    "gesture": "gesture",
    "gesture_gain": "more than reference",
}


BRIEF = ("phone", "gesture", "dead", "distinct", "participation")


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of `rows`."""
    names = [name for name in HEAD if name in lines[0]]
    cells = [[number(x[n].mean) if n in BRIEF else str(x[n]) for n in names] for x in lines]
    return markdown([HEAD[name] for name in names], cells)


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a file: an estimate is three columns, of five digits."""
    found: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Estimate):
            mean, low, high = (float(f"{x:.5g}") for x in value)
            found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        else:
            found[name] = value
    return found


def drawn(found: Mapping[str, Front], units: str = "live") -> Drawing:
    """Fvu and persistence over the sparsity of live or of distinct units.

    A point for each run, a line for the mean over seeds.
    """

    def lines(name: str) -> list[Line]:
        items = []
        for (label, front), style in zip(found.items(), styles(list(found)).values()):
            points = [p.costs for of_seed in front.values() for p in of_seed]
            live, cost = (np.array([p[of][0] for p in points]) for of in ("live_sparsity", name))
            items.append(Line(live, cost, style, points=True, size=4))
            grid = np.linspace(np.nanmin(live), np.nanmax(live), 30)
            # The mean of all seeds or nothing: where some are missing the line would jump.
            mean = np.mean([at(grid, ps, name, n=1)[0] for ps in front.values()], 0)
            items.append(Line(grid, mean, style, label, markers=True))
        return items

    x = Axis(f"sparsity of {units} units")
    fvu, persistence = Axis("fvu", log=True), Axis("persistence within utterances")
    panels = [Panel(x, fvu, lines("fvu")), Panel(x, persistence, lines("persistence"), levels=(1,))]
    return Drawing([panels], legend=True)


def fraction(text: str) -> float:
    """A number of a command line between 0 and 1, these excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a fraction between 0 and 1, got {text}")
    return value


def _kept(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs whose knobs have the values of NAME=VALUE."""
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals or name not in Config.sweepable():
            raise UserError(f"--where needs NAME=VALUE, a knob of a sweep, got {condition!r}")
        wanted = getattr(Config.from_mapping({name: value}), name)
        runs = [run for run in runs if run.config.get(name) == wanted]
    return list(runs)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each sparsity, and write them and a figure if asked to."""
    parser = program("comparison", __doc__)
    add: Callable = parser.add_argument
    add("refs", nargs="+", metavar="REF", help="as for analysis.report, put together")
    add("--data", type=Path, metavar="DIR", help="with train, val, test (default: the demo data)")
    add("--at", type=fraction, nargs="+", default=[0.85, 0.9], help="(default: .85 .9)")
    add("--weights", choices=("final", "selected"), default="final", help="(default: final)")
    add("--where", nargs="+", default=[], metavar="NAME=VALUE", help="only runs with these knobs")
    add("--reference", metavar="SETTING", help="(default: the first setting)")
    add("--baselines", action="store_true", help="measure encodings that were not trained, too")
    add("--copies_once", action="store_true", help="sparsity and persistence of distinct units")
    add(
        "--probe",
        action="store_true",
        help="add the accuracy of a linear probe; needs generated speech",
    )
    add("--resamples", type=int, default=1000, metavar="N", help="(default: 1000)")
    add("--out", type=Path, metavar="DIR", help="write comparison.csv and comparison.png there")
    args = expand_home(parser.parse_args(argv))
    if args.resamples < 1:
        raise UserError(f"--resamples must be at least 1, got {args.resamples}")
    if args.out:
        frame([])  # fails before the long measurement when pandas is missing

    found = settings(_kept([run for ref in args.refs for run in read_runs(ref)], args.where))
    if not found:
        raise UserError(f"{' '.join(args.refs)}: no run there has ended well")
    first = next(iter(found.values()))[0]
    where = {f"{name}_dir": str(args.data / name) for name in SPLITS} if args.data else {}
    loudness = {bool(run.config.get("keep_loudness")) for of in found.values() for run in of}
    if len(loudness) > 1:
        raise UserError(
            "some runs read loudness and others do not: use --where keep_loudness=False"
        )
    form = {"recursive": True, "keep_loudness": loudness.pop()}
    splits = load_splits(Config.from_mapping(where | form))
    test, counts = splits["test"], resampled(len(splits["test"]), args.resamples)
    names = [*found, *(BASELINES if args.baselines else ())]
    reference = args.reference or names[0]
    if reference not in names:
        raise UserError(f"--reference must be one of {'; '.join(names)}, got {reference!r}")
    codes = trained(found, args.weights)
    if args.baselines:
        model = first.model()
        if model is None:
            raise UserError(f"run {first.name} has no weights that can be loaded")
        codes = itertools.chain(codes, rivals(model, splits))
    compared = fronts(codes, test, counts, args.copies_once)
    print(f"{args.weights} weights, test split, reference: {reference}")
    accuracies = {}
    if args.probe:
        accuracies = probed(compared, args.at[0], args.data, len(test.channels), args.resamples)
    lines: list[dict[str, Any]] = []
    units = "distinct" if args.copies_once else "live"
    for sparsity in args.at:
        found_here = rows(compared, sparsity, reference, accuracies)
        print(f"\nat {sparsity:g} zeros of {units} units\n\n{table(found_here)}", flush=True)
        if all(np.isnan(line["fvu"].mean) for line in found_here):
            low, high = reached(compared)
            print(f"\nno front reaches that: runs have {low:.3g} to {high:.3g}, a front needs two")
        lines += map(flat, found_here)
        accuracies = {}  # they are of the first sparsity
    if args.out:
        write(frame(lines), args.out / "comparison.csv")
        figure = paper.draw(drawn(compared, units), height=3.0)
        paper.save(figure, args.out / "comparison.png")


if __name__ == "__main__":
    with reporting_errors("python -m analysis.comparison"):
        main()
