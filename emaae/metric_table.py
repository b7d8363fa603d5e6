"""Every metric that a run logs: what it is, its range, which way is better, when it is logged.

They are the rows of metric_table.md, beside this file. The linter of sweep files, the terminal,
model cards and the documentation take their words from there: `python -m emaae.metric_table` prints
the tables of docs/metrics.md.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emaae.data.features import CHANNELS, SPLITS

SCORE = "select/score"
# The range of metrics that are not a single number.
COUNTS = "counts"
# Logged for the train split too; all others only for val and test.
TRAIN_METRICS = ("loss", "mse", "penalty", "slow", "sparsity")


@dataclass(frozen=True)
class Metric:
    """A metric, or several that are explained together: a row of the table.

    names: without the split, as code in Markdown, separated by commas; CHANNEL stands for any
    channel, METRIC for any of `SELECTED`. meaning: formula and source, in Markdown. better: lower,
    higher or "". brief: a few words for tables that show the metric alone. summary: yes if
    the short tables of the terminal, model cards and the report show it.
    """

    names: str
    meaning: str
    range: str
    better: str
    brief: str
    summary: str

    @property
    def short_description(self) -> str:
        """A description for tables that show the metric alone."""
        return self.brief or self.meaning

    def each_name(self) -> Iterator[str]:
        """The names, with every channel's instead of CHANNEL, and so on."""
        for name in self.names.replace("`", "").split(", "):
            if name.endswith("/CHANNEL"):
                yield from (name.replace("CHANNEL", channel) for channel in CHANNELS)
            elif name.endswith("/METRIC"):
                yield from SELECTED
            else:
                yield name


def _read_tables() -> Iterator[tuple[Metric, ...]]:
    page = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    for table in page.split("|---|\n")[1:]:
        rows = table.partition("\n\n")[0].splitlines()
        yield tuple(Metric(*map(str.strip, row.strip("|").split("|"))) for row in rows)


# Of a split, such as `val/fvu`; of a run or of an epoch; of the selected weights.
SPLIT_METRICS, RUN_METRICS, SHIFT_METRICS = _read_tables()
# What short tables show: of a split, without its name, and what has no split.
SUMMARY = tuple(metric.names.strip("`") for metric in SPLIT_METRICS if metric.summary)
SUMMARY_AT_END = tuple(metric.names.strip("`") for metric in SHIFT_METRICS if metric.summary)
# Those of the selected epoch on the validation split, which are logged once more at the end.
SELECTED = tuple(
    f"select/{name}"
    for metric in SPLIT_METRICS
    for name in metric.each_name()
    if metric.range != COUNTS and "/" not in name and name != "score"
)
BY_NAME = {
    f"{split}/{name}": metric
    for metric in SPLIT_METRICS
    for name in metric.each_name()
    for split in SPLITS
    if split != "train" or name in TRAIN_METRICS
}
BY_NAME |= {
    name: metric for metric in (*RUN_METRICS, *SHIFT_METRICS) for name in metric.each_name()
}
BY_NAME |= {name: BY_NAME[name.replace("select/", "val/")] for name in SELECTED}


def logged_each_epoch(name: str) -> bool:
    """Whether a metric is logged in every epoch rather than once."""
    return not name.startswith(("test/", "select/", "shift/", "lowpass/"))


def score_description(knobs: Mapping[str, Any]) -> str:
    """The terms of the score of a run with these knobs, e.g. "fvu, 0.9 zeros, persistence 0.9".

    Runs of programs before target_persistence counted the zeros of dead units too.
    """
    zeros = f"fvu, {knobs.get('target_sparsity', 0.9)} zeros"
    persistence = knobs.get("target_persistence")
    if persistence is None:
        return f"{zeros} of all units (an earlier score)"
    return f"{zeros} of live units" + (f", persistence {persistence}" if persistence else "")


def tables() -> tuple[str, str]:
    """The metrics in Markdown: those of a split and of an epoch, and those of shifts."""
    return _table((*SPLIT_METRICS, *RUN_METRICS)), _table(SHIFT_METRICS)


def _table(metrics: Iterable[Metric]) -> str:
    lines = ["| name | meaning | range | better |", "|---|---|---|---|"]
    for m in metrics:
        cells = (m.names, m.meaning, m.range, m.better)
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(tables()))
