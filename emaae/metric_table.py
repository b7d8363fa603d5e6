"""Every metric that a run logs: what it is, its range, which way is better, when it is logged.

The linter of sweep files, the terminal, model cards and the documentation take their words from
here. `python -m emaae.metric_table` prints the tables of docs/metrics.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from emaae.data.features import CHANNELS

SPLITS = ("train", "val", "test")
SCORE = "select/score"
# The range of what is no single number.
COUNTS = "counts"


@dataclass(frozen=True)
class Metric:
    """A metric, or some that are explained together.

    names: without the split; CHANNEL stands for any channel. words: a few, for a table in which it
    stands alone. meaning: with its formula and source, in Markdown. logged: `training`, each epoch
    of train and val, and once of test; `validation`, the same without train; `epoch`, each epoch
    and of no split; `end`, once. short: whether it stands in short tables, such as those of the
    terminal, of model cards and of the report.
    """

    names: tuple[str, ...]
    words: str
    meaning: str
    range: str
    better: Literal["lower", "higher", ""]
    logged: Literal["training", "validation", "epoch", "end"]
    note: str = ""  # behind the direction
    short: bool = False

    def full_names(self) -> Iterator[str]:
        """As they are logged, with split and channel."""
        splits = {"training": SPLITS, "validation": SPLITS[1:]}.get(self.logged)
        for name in self.names:
            channels = CHANNELS if "CHANNEL" in name else ("",)
            for channel in channels:
                filled = name.replace("CHANNEL", channel)
                yield from [f"{split}/{filled}" for split in splits] if splits else [filled]


# Of the validation split, in the row of the selected epoch.
SELECTED = (
    *("select/loss", "select/mse", "select/penalty", "select/fvu", "select/r_articulators"),
    *("select/sparsity", "select/live_sparsity", "select/l0", "select/active_mean", "select/dead"),
    *("select/hoyer", "select/self_similarity_20ms", "select/self_similarity_80ms"),
    *("select/persistence_within", "select/participation_ratio", "select/distinct_units"),
    "select/noise_gain",
)

METRICS = (
    Metric(
        ("loss",),
        "what training minimises",
        "(1 - alpha) (mse + b slow) + alpha penalty (+ weight penalty), b = `--slow_coefficient`",
        ">= 0",
        "lower",
        "training",
        note="at one alpha",
    ),
    Metric(
        ("mse",),
        "mean squared error, in units of sd",
        "mean (y - x)^2 over frames and channels",
        ">= 0",
        "lower",
        "training",
    ),
    Metric(
        ("penalty",),
        "the penalty on the encoding",
        "the term that alpha weighs, unweighted. l1: sum abs(z) / (C N). l1_decoder_norm: sum of "
        "abs(z_c) norm(W_c) over units and frames / N. tv: mean over live units of sum (z_t+1 - "
        "z_t)^2 / sum (z_t - mean)^2",
        ">= 0",
        "lower",
        "training",
    ),
    Metric(
        ("slow",),
        "slowness of the encoding",
        "with `--slow_coefficient`: tv, or tvu, where the mean is that of the utterance",
        "0 to 4",
        "lower",
        "training",
    ),
    Metric(
        ("fvu",),
        "fraction of variance unexplained, 0 is perfect",
        "fraction of variance unexplained: sum (y - x)^2 / sum (x - mean)^2",
        ">= 0; the mean gives 1",
        "lower",
        "validation",
        short=True,
    ),
    Metric(
        ("fvu/CHANNEL",),
        "the same for one channel",
        "the same for one channel",
        ">= 0",
        "lower",
        "validation",
    ),
    Metric(
        ("r/CHANNEL",),
        "correlation of one channel",
        "Pearson correlation of y and x",
        "-1 to 1",
        "higher",
        "validation",
    ),
    Metric(
        ("r_articulators",),
        "mean correlation of the 12 articulator coordinates",
        "mean of r over the 12 articulators",
        "-1 to 1",
        "higher",
        "validation",
        short=True,
    ),
    Metric(
        ("sparsity",),
        "fraction of encoding values that are exactly 0",
        "fraction of encoding values that are exactly 0",
        "0 to 1",
        "higher",
        "training",
        short=True,
    ),
    Metric(
        ("live_sparsity",),
        "the same, of the units that fire at all",
        "the same among units that fire at all; undefined when none does",
        "0 to 1",
        "higher",
        "validation",
        short=True,
    ),
    Metric(
        ("l0",),
        "units that are not 0, per frame",
        "active units per frame, C (1 - sparsity)",
        "0 to C",
        "lower",
        "validation",
        short=True,
    ),
    Metric(
        ("active_mean",),
        "mean of the values that are not 0",
        "mean of z where it is not 0",
        "> 0",
        "",
        "validation",
    ),
    Metric(
        ("dead",),
        "fraction of units that are never on",
        "fraction of units that fire on no frame of the split",
        "0 to 1",
        "lower",
        "validation",
        short=True,
    ),
    Metric(
        ("hoyer",),
        "Hoyer's sparseness",
        "mean over frames that are not silent of (sqrt(C) - L1/L2) / (sqrt(C) - 1) (Hoyer 2004)",
        "0 uniform to 1 one-hot",
        "higher",
        "validation",
    ),
    Metric(
        ("density_log10",),
        "how often units fire",
        "units per bin of log10 of the fraction of frames on which they fire: 20 bins from -5 to 0",
        COUNTS,
        "",
        "validation",
    ),
    Metric(
        (
            *("self_similarity_20ms", "self_similarity_80ms", "persistence_within"),
            *("participation_ratio", "distinct_units", "noise_gain"),
        ),
        "tolerance to shifts of a sample of utterances",
        "as `shift/...` below, of one validation utterance in 16, 8 to 32 of them, the same every "
        "epoch",
        "",
        "",
        "validation",
    ),
    Metric(
        ("score",),
        "what selects weights and models",
        "fvu + max(0, s - live_sparsity) / s + max(0, p - persistence_within) / p, s = "
        "`--target_sparsity`, p = `--target_persistence` (0 leaves the term out); what is "
        "undefined counts as 0, so an encoding that is dead, dense or forgets at once costs at "
        "least 1",
        ">= 0",
        "lower",
        "validation",
        short=True,
    ),
    Metric(
        (SCORE,),
        "the score of the selected weights",
        "the lowest `val/score`, once, at the end: what a sweep minimises",
        ">= 0",
        "lower",
        "end",
    ),
    Metric(
        SELECTED,
        "the same of the selected epoch",
        "those of the selected epoch on the validation split, once, at the end",
        "",
        "",
        "end",
    ),
    Metric(
        ("select/epoch",),
        "the selected epoch",
        "the epoch whose weights were selected, from 1",
        "",
        "",
        "end",
    ),
    Metric(
        ("alpha",),
        "weight of the penalty",
        "weight of the penalty in this epoch",
        "0 to 1",
        "",
        "epoch",
    ),
    Metric(
        ("select/alpha",),
        "alpha of the selected epoch",
        "that in the selected epoch",
        "0 to 1",
        "",
        "end",
    ),
    Metric(
        ("lambda_eff",),
        "the pressure of the penalty",
        "the pressure that alpha really applies: alpha / (1 - alpha) D / C; without / C for "
        "l1_decoder_norm, which is a sum over units",
        ">= 0",
        "",
        "epoch",
    ),
    Metric(
        ("k_fraction",),
        "fraction of values that the activation keeps",
        "with an activation other than relu: the fraction of values that it keeps in training",
        "0 to 1",
        "",
        "epoch",
    ),
    Metric(
        ("lr", "epoch"),
        "learning rate, epochs finished",
        "learning rate of the epoch's last step, muon's that of the convolutions; epochs finished",
        "",
        "",
        "epoch",
    ),
    Metric(
        ("shift/self_similarity_20ms", "shift/self_similarity_80ms"),
        "similarity to the encoding one and four frames later",
        "mean over live units of sum (z_t - mean)(z_t+k - mean) / (1/2 sum [(z_t - mean)^2 + "
        "(z_t+k - mean)^2]), k = 1 and 4 frames, pairs within an utterance",
        "-1 to 1",
        "higher",
        "end",
    ),
    Metric(
        ("shift/half_life_ms",),
        "ms until similarity falls to 1/2",
        "the lag at which self-similarity first falls to 1/2; 500 says 500 or more",
        "0 to 500 ms",
        "higher",
        "end",
    ),
    Metric(
        ("shift/persistence",),
        "half-life, in units of the input's",
        "half-life of the encoding / half-life of the input; a bound when one of them is 500",
        "> 0; 1 keeps the input's",
        "higher",
        "end",
        short=True,
    ),
    Metric(
        ("shift/persistence_within",),
        "the same within utterances",
        "the same with every utterance centred on its own mean, so that a speaker's offset is no "
        "tolerance",
        "> 0",
        "higher",
        "end",
        short=True,
    ),
    Metric(
        ("shift/persistence_weighted",),
        "the same, units weighted by what the decoder reads of them",
        "`shift/persistence` with each unit weighted by its variance times the squared norm of the "
        "weights that read it",
        "> 0",
        "higher",
        "end",
    ),
    Metric(
        ("shift/persistence_null",),
        "that of random projections of equal sparsity",
        "`shift/persistence_within` of 64 random projections of single frames, each thresholded to "
        "the `live_sparsity` of the encoding: what sparsity alone leaves",
        "> 0",
        "",
        "end",
        short=True,
    ),
    Metric(
        ("shift/gain_10ms",),
        "how far a shift by 10 ms moves it, in units of the input's",
        "how far a shift by half a frame moves the encoding, relative to how far it moves the "
        "input, both in units of their sd",
        ">= 0; 1 moves as the input",
        "lower",
        "end",
    ),
    Metric(
        ("shift/equivariance_error",),
        "how far the encoding is from following a shift by 10 ms",
        "sum norm(E(x shifted by half a frame) - E(x) shifted so)^2 / sum norm(z - mean)^2",
        ">= 0; 0 for a linear encoder",
        "",
        "end",
    ),
    Metric(
        ("lowpass/gain_0.2",),
        "how much better than the input it survives smoothing",
        "fvu of the input smoothed at 0.2 of the Nyquist frequency (5 Hz) / fvu of the decoded "
        "encoding smoothed so",
        "> 1 survives better than the input",
        "higher",
        "end",
        short=True,
    ),
    Metric(
        ("lowpass/auc_ratio",),
        "the same over ten cutoffs, inverted",
        "mean over ten cutoffs of the latter / mean of the former",
        "> 0; 1 for an identity",
        "lower",
        "end",
    ),
    Metric(
        ("shift/participation_ratio",),
        "directions in which the encoding varies",
        "directions in which the encoding varies: tr(S)^2 / norm(S)^2, S its covariance",
        "1 to C",
        "",
        "end",
    ),
    Metric(
        ("shift/distinct_units",),
        "units, copies counted once",
        "units, where those that correlate by more than .9 count once: sum over units of 1 / their "
        "number",
        "0 to C",
        "higher",
        "end",
        short=True,
    ),
    Metric(
        ("shift/noise_gain",),
        "fvu that noise on the encoding adds",
        "fvu that noise of a tenth of each unit's sd adds, in units of that noise's variance",
        "1 for an identity",
        "lower",
        "end",
        short=True,
    ),
    Metric(
        (
            *("shift/input_half_life_ms", "shift/input_self_similarity_20ms"),
            *("shift/input_self_similarity_80ms", "shift/input_participation_ratio"),
        ),
        "the input's own",
        "the input's own",
        "",
        "",
        "end",
    ),
)
# Names in short tables: of a split, without it, and of no split.
SHORT = tuple(
    n for m in METRICS if m.logged in ("training", "validation") for n in m.names if m.short
)
SHORT_AT_END = tuple(n for m in METRICS if m.logged == "end" for n in m.names if m.short)
BY_NAME = {name: metric for metric in METRICS for name in metric.full_names()}
BY_NAME |= {  # as in every epoch, but once
    name: replace(BY_NAME[name.replace("select/", "val/")], logged="end") for name in SELECTED
}


def each_epoch(name: str) -> bool:
    """Whether a metric is logged in every epoch rather than once."""
    metric = BY_NAME[name]
    return metric.logged == "epoch" or name.startswith(("train/", "val/"))


def tables() -> tuple[str, str]:
    """The metrics in Markdown: those of a split and of an epoch, and those of shifts."""
    head = "| name | meaning | range | better |\n|---|---|---|---|\n"
    of_shifts = [m for m in METRICS if m.names[0].startswith(("shift/", "lowpass/"))]
    others = [m for m in METRICS if m not in of_shifts]
    return head + _rows(others), head + _rows(of_shifts)


def _rows(metrics: list[Metric]) -> str:
    lines = []
    for m in metrics:
        better = f"{m.better}, {m.note}" if m.note else m.better
        cells = (", ".join(f"`{name}`" for name in m.names), m.meaning, m.range, better)
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(tables()))
