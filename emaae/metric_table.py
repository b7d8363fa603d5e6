"""Every metric that a run logs: its meaning, range and direction, and when it is logged.

Reads them from metric_table.md, beside this file. The linter of sweep files, the terminal, model
cards and the report use them; `python -m emaae.metric_table` prints the tables of docs/metrics.md.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emaae.data.features import CHANNELS, SPLITS

SCORE = "select/score"
# The range of metrics that are not a single number.
COUNTS = "counts"
# The metrics that are logged for the train split too; all others only for val and test.
TRAIN_METRICS = ("loss", "mse", "penalty", "slow", "sparsity")


@dataclass(frozen=True)
class Metric:
    """A row of the table: one metric, or several with a common description.

    names: without the split, as code in Markdown, separated by commas; CHANNEL stands for the name
    of any channel, METRIC for any metric of `SELECTED`. meaning: formula and source, in Markdown.
    better: lower, higher or "". brief: a short description, or "" where the meaning is short.
    summary: yes if the short tables of the terminal, model cards and the report show the metric.
    """

    names: str
    meaning: str
    range: str
    better: str
    brief: str
    summary: str

    @property
    def short_description(self) -> str:
        """The brief description or, without one, the meaning."""
        return self.brief or self.meaning

    def each_name(self) -> Iterator[str]:
        """All names: one for each channel in place of CHANNEL, and all of `SELECTED` for METRIC."""
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


# The tables: metrics of a split, such as `val/fvu`; of a run or an epoch; of the selected weights.
SPLIT_METRICS, RUN_METRICS, SHIFT_METRICS = _read_tables()
# The metrics that short tables show: of a split, without its name; and measured once, at the end.
SUMMARY = tuple(metric.names.strip("`") for metric in SPLIT_METRICS if metric.summary)
SUMMARY_AT_END = tuple(metric.names.strip("`") for metric in SHIFT_METRICS if metric.summary)
# Validation metrics of the selected epoch, which are logged once more at the end.
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
    """Whether a metric is logged in every epoch, rather than once at the end."""
    return not name.startswith(("test/", "select/", "shift/", "lowpass/"))


def score_description(knobs: Mapping[str, Any]) -> str:
    """The terms of the score, e.g. "fvu, 0.9 zeros of live units, persistence 0.9".

    knobs: the settings of the run. Without target_persistence the run is of an earlier version,
    whose score counted the zeros of dead units too.
    """
    zeros = f"fvu, {knobs.get('target_sparsity', 0.9)} zeros"
    persistence = knobs.get("target_persistence")
    if persistence is None:
        return f"{zeros} of all units (an earlier score)"
    return f"{zeros} of live units" + (f", persistence {persistence}" if persistence else "")


def tables() -> tuple[str, str]:
    """Two tables in Markdown: metrics of a split, run or epoch, and metrics of shifts."""
    return _table((*SPLIT_METRICS, *RUN_METRICS)), _table(SHIFT_METRICS)


def _table(metrics: Iterable[Metric]) -> str:
    rows = [f"| {m.names} | {m.meaning} | {m.range} | {m.better} |" for m in metrics]
    lines = ["| name | meaning | range | better |", "|---|---|---|---|", *rows]
    return "\n".join(lines).replace("  |", " |")  # of empty cells


if __name__ == "__main__":
    print("\n\n".join(tables()))
