"""Two tables of results: `python -m analysis.summary REF...` prints them as Markdown.

One line per setting, mean and standard deviation over its runs; one line per schedule, the front
of its runs. Runs of several REFs are put together. Numbers are those of the selected weights.
"""

from collections.abc import Sequence

import numpy as np

from analysis.fronts import FRONT_HEADS, schedule_fronts
from analysis.programs import program, run_program
from analysis.runs import GOOD, Run, aims, groups, read_comparable, split_of
from analysis.tables import markdown
from emaae.system.errors import UserError

# Column: metric, `*` being the split.
COLUMNS = {
    "fvu": "*/fvu",
    "sparsity": "*/sparsity",
    "live sparsity": "*/live_sparsity",
    "dead": "*/dead",
    "validation score": "select/score",
    "half-life (ms)": "shift/half_life_ms",
    "persistence": "shift/persistence",
    "within": "shift/persistence_within",
    "null": "shift/persistence_null",
    "gain 10 ms": "shift/gain_10ms",
    "low-pass gain .2": "lowpass/gain_0.2",
    "participation": "shift/participation_ratio",
    "distinct": "shift/distinct_units",
    "noise gain": "shift/noise_gain",
}


def settings(runs: Sequence[Run]) -> str:
    """Mean and standard deviation over the runs of each setting, one line each."""
    split, lines = split_of(runs), []
    for label, members in groups(runs).items():
        ended = [run for run in members if run.status in GOOD]
        cells = [label, f"{len(ended)}/{len(members)}"]
        for metric in COLUMNS.values():
            values = np.array([run.metric(metric.replace("*", split)) for run in ended])
            cells.append(_mean_and_sd(values[np.isfinite(values)]))
        lines.append(cells)
    return markdown(["setting", "runs", *COLUMNS], lines)


def _mean_and_sd(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values[0]:.3g}" if len(values) else "–"
    return f"{values.mean():.3g} ± {values.std(ddof=1):.2g}"


def fronts(runs: Sequence[Run]) -> str:
    """Hypervolume and fvu at a sparsity of each schedule's front, the best one first."""
    lines = [
        [name, str(n), *("–" if np.isnan(value) else f"{value:.4f}" for value in values)]
        for name, n, *values in schedule_fronts(runs)
    ]
    return markdown(FRONT_HEADS, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    args = program("summary", __doc__, "refs").parse_args(argv)
    runs = read_comparable(*args.refs)
    if not any(run.status in GOOD for run in runs):
        raise UserError(f"{' '.join(args.refs)}: none of {len(runs)} runs has ended well")
    print(f"On the {split_of(runs)} split; validation scores ask for {aims(runs)}.\n")
    print(f"{settings(runs)}\n\n{fronts(runs)}")


if __name__ == "__main__":
    run_program("summary", main)
