"""Tidy tables: `python -m analysis.tables REF...` writes runs for R, pandas or a spreadsheet.

A row is an observation, a column a variable. All begin with the run, its setting (the
same but for the seed), schedule and seed. Metrics keep their names, with `_` for `/`; settings are
`config_NAME`. Undefined values are empty.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.programs import folder_of, program, run_program, writing
from analysis.runs import Run, labels, read_runs
from emaae.config import SWEEPABLE
from emaae.data.features import CHANNELS, SPLITS
from emaae.system.errors import needs_extra

SERIES = ("encoding", "input")
FORMATS = ("csv", "parquet")

Row = dict[str, Any]


def tables(runs: Sequence[Run]) -> dict[str, Any]:
    """The tables by name, each a pandas DataFrame; their rows are in the order of the runs."""
    make: dict[str, Callable[[Run], Iterable[Row]]] = {
        "runs": _of_run,
        "history": lambda run: map(_scalars, run.history),
        "channels": _of_channels,
        "curves": _of_curves,
    }
    return {
        name: frame(
            {"run": run.name, "setting": label, "schedule": run.schedule, "seed": run.knob("seed")}
            | row
            for run, label in labels(runs).items()
            for row in rows_of(run)
        )
        for name, rows_of in make.items()
    }


def _of_run(run: Run) -> Iterator[Row]:
    """One row: settings, the validation metrics of the selected epoch, the final metrics."""
    yield {
        "status": run.status,
        "epochs": len(run.history),
        **{f"config_{name}": run.config[name] for name in SWEEPABLE if name in run.config},
        **_scalars({k: v for k, v in run.selected.items() if k.startswith("val/")}),
        **_scalars(run.metrics),
    }


def _of_channels(run: Run) -> Iterator[Row]:
    """A row per split and channel of `CHANNELS`, of the selected weights: fvu and Pearson r."""
    measured = run.measured
    for split, channel in itertools.product(SPLITS, CHANNELS):
        if (name := f"{split}/fvu/{channel}") in measured:
            r = measured.get(f"{split}/r/{channel}")
            yield {"split": split, "channel": channel, "fvu": measured[name], "r": r}


def _of_curves(run: Run) -> Iterator[Row]:
    """A row per point of each curve.

    series: encoding or input; of `density`, units over log10 of the fraction of frames on which
    they fire, in the middle of each bin, it is the split.
    """
    for curve, columns in ((name, run.curve(name)) for name in run.curves):
        axis = next((name for name in columns if name not in SERIES), "")
        for series in SERIES:
            for x, value in zip(columns.get(axis, ()), columns.get(series, ())):
                yield {"curve": curve, "series": series, "x": x, "value": value}
    for split in SPLITS:
        for x, value in zip(*run.density(split)):
            yield {"curve": "density", "series": split, "x": x, "value": value}


def _scalars(metrics: Mapping[str, Any]) -> Row:
    """Metrics that are one number and of no channel: channels have a table of their own."""
    return {
        name.replace("/", "_"): value
        for name, value in metrics.items()
        if not isinstance(value, list | dict) and name.count("/") < 2
    }


def frame(rows: Iterable[Row]) -> Any:
    """A pandas DataFrame with every column that some row has. Raises UserError without pandas."""
    with needs_extra("analysis"):
        import pandas
    table = pandas.DataFrame(list(rows))
    for name in table.select_dtypes("object"):
        # Words beside numbers, such as a seed that is "random", are all words.
        if len({type(value) for value in table[name].dropna()}) > 1:
            table[name] = table[name].map(str, na_action="ignore")
    return table


def write(table: Any, path: Path) -> None:
    """Write it as the path's suffix says, csv or parquet. Raises UserError without pyarrow."""
    with writing(path), needs_extra("parquet"):
        if path.suffix == ".csv":
            table.to_csv(path, index=False)
        else:
            import pyarrow  # noqa: F401

            table.to_parquet(path, index=False)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables that have rows."""
    parser = program("tables", __doc__, "refs")
    add = parser.add_argument
    add("--format", default="csv", choices=FORMATS, help="(default: csv)")
    add("--out", type=Path, metavar="DIR", help="(default: REF/tables; ./tables for runs on W&B)")
    args = parser.parse_args(argv)
    out = args.out or folder_of(args.refs[0]) / "tables"
    for name, table in tables(read_runs(*args.refs)).items():
        if table.empty:
            print(f"no {name}: no run has left any")
            continue
        path = out / f"{name}.{args.format}"
        write(table, path)
        print(f"{path}: {len(table)} rows, {len(table.columns)} columns")


if __name__ == "__main__":
    run_program("tables", main)
